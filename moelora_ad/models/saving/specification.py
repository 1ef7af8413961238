"""Parts of a detector as plain JSON, ``{"class_path": ..., "init_args": {...}}``, and built from it again.

The JSON may be untrusted. Only classes of packages that the reader trusts are imported, and an argument is
never more than a number, a word, a list or the fields of a dataclass that the class itself names. (jsonargparse, which
reads a user's own YAML, reads words as numbers, "0x10" for 16, opens files that a value names and builds objects in
objects: what a user may write is more than what a model needs.)
"""

import dataclasses
import importlib
import inspect
import math
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from moelora_ad.adapters import RemembersArguments
from moelora_ad.errors import InputError

OURS = __name__.partition(".")[0]


def describe(part: RemembersArguments, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """The class and the arguments of an object, as plain JSON.

    Raises:
        InputError: an argument cannot be written as JSON, or the class cannot be imported by its name.
    """
    cls = type(part)
    if "<" in cls.__qualname__ or cls.__module__ == "__main__":
        raise InputError(f"{cls.__qualname__} cannot be saved: put the class into a module that can be imported")
    kinds = {name: parameter.kind for name, parameter in inspect.signature(cls).parameters.items()}
    arguments: dict[str, Any] = {}
    for name, value in part.init_args.items():
        if kinds[name] == inspect.Parameter.VAR_KEYWORD:
            arguments |= value
        elif name not in leave_out and not (kinds[name] == inspect.Parameter.VAR_POSITIONAL and not value):
            arguments[name] = value
    return {
        "class_path": _public_path(cls),
        "init_args": {name: _plain(value, f"{cls.__name__}({name}=...)") for name, value in arguments.items()},
    }


def first_argument(cls: type) -> str:
    """The name of a constructor's first argument: of a classifier, the width that it gets from its backbone.

    Raises:
        InputError: the constructor has no argument.
    """
    name = next(iter(inspect.signature(cls).parameters), None)
    if name is None:
        raise InputError(f"{cls.__name__} cannot be saved: its first argument must be the width of a frame")
    return name


def without_source(cls: type) -> dict[str, Any]:
    """The argument that stops a backbone's constructor from loading weights; empty if it has none."""
    parameters = inspect.signature(cls).parameters
    if "pretrained" in parameters:
        return {"pretrained": False}
    return {"source": None} if "source" in parameters and parameters["source"].default is None else {}


def resolve(described: Any, base: type[Any], allow: Collection[str] = ()) -> type[Any]:
    """Import the class of a description.

    Args:
        described: as `describe` gives it.
        base: the class must be a subclass of this.
        allow: packages besides ours whose classes may be imported.

    Raises:
        InputError: the description is faulty, or the class is not of a trusted package, not a subclass of ``base``, or
            abstract.
    """
    what = base.__name__
    if not isinstance(described, dict) or not {"class_path"} <= described.keys() <= {"class_path", "init_args"}:
        raise InputError(f"the {what} is not described by class_path and init_args")
    path = described["class_path"]
    names = path.split(".") if isinstance(path, str) else []
    if len(names) < 2 or not all(name.isidentifier() and not name.startswith("_") for name in names):
        raise InputError(f"class_path {path!r} of the {what} is not a dotted path of a class")
    if not any(path.startswith(f"{package}.") for package in (OURS, *allow)):
        raise InputError(f"class_path {outside_code(path)}")
    module_name, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        told = not_found(names[0]) if getattr(error, "name", None) == names[0] else error
        raise InputError(f"class_path {path}: {told}") from None
    if not inspect.isclass(found) or not issubclass(found, base) or inspect.isabstract(found):
        raise InputError(f"class_path {path} cannot be built as {what}; is {OURS} older than the model?")
    return found


def outside_code(path: str) -> str:
    """The end of an error message: why a class is not imported, and how to allow it."""
    package = path.partition(".")[0]
    return (
        f"{path} is code from outside {OURS}: if you trust it, name its package, --allow {package} "
        f"(in Python allow=[{package!r}])"
    )


def not_found(module: str) -> str:
    """The end of an error message: a module is missing."""
    return f"no module named {module!r}: it is not installed, and {module}.py is not in the current folder"


def packages_of(described: Any) -> list[str]:
    """The packages besides ours whose classes a description names, at any depth."""
    if isinstance(described, Mapping):
        path = described.get("class_path")
        found = [path.partition(".")[0]] if isinstance(path, str) and "." in path else []
        found = [package for package in found if package.isidentifier()]
        parts: Any = described.values()
    else:
        found, parts = [], described if isinstance(described, list | tuple) else ()
    for part in parts:
        found += packages_of(part)
    return [package for package in dict.fromkeys(found) if package != OURS]


def allow_options(packages: Sequence[str]) -> str:
    """Options to add to a command so that it builds classes of these packages."""
    return "".join(f" --allow {package}" for package in packages)


def maker(described: Any, base: type[Any], allow: Collection[str] = (), given: int = 0) -> Callable[..., Any]:
    """A function that builds what is described, its arguments checked against the class.

    Args:
        given: number of leading arguments that the caller of the function will give.

    Raises:
        InputError: see `resolve`; or an argument is unknown, is missing, or has another type than the class declares.
    """
    cls = resolve(described, base, allow)
    arguments = described.get("init_args", {})
    if not isinstance(arguments, dict):
        raise InputError(f"init_args of {cls.__name__} is not an object")
    try:
        inspect.signature(cls).bind(*range(given), **arguments)
    except TypeError as error:
        raise InputError(f"init_args of {cls.__name__}: {error}") from None
    hints = get_type_hints(cls.__init__)
    fitted = {name: _fitted(value, hints.get(name, Any), f"{cls.__name__}.{name}") for name, value in arguments.items()}
    make: Callable[..., Any] = cls
    return partial(make, **fitted)


def _plain(value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name), where) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, where) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise InputError(f"{where} has a {type(value).__name__}, which a saved model cannot describe")


def _fitted(value: Any, hint: Any, where: str) -> Any:
    """The value converted to the type of its hint, or refused."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        for one in arguments:
            try:
                return _fitted(value, one, where)
            except _Misfit:
                continue
    elif origin is Literal:
        if any(type(value) is type(one) and value == one for one in arguments):
            return value
    elif dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _dataclass(value, hint, where)
    elif origin in (list, tuple, Sequence, Collection, Iterable) and isinstance(value, list):
        items = arguments[:1] if origin is not tuple or arguments[-1] is Ellipsis else arguments
        if len(items) in (1, len(value)):
            hints = items * len(value) if len(items) == 1 else items
            return (tuple if origin is tuple else list)(
                _fitted(item, one, where) for item, one in zip(value, hints, strict=True)
            )
    elif origin in (dict, Mapping) and len(arguments) == 2 and isinstance(value, dict):
        return {name: _fitted(item, arguments[1], f"{where}.{name}") for name, item in value.items()}
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif hint in (bool, int, str, dict, list, types.NoneType) and type(value) is hint:
        return value
    name = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    raise _Misfit(f"{where} is {value!r}, not {name}")


class _Misfit(InputError):
    """A value does not have the type of its hint."""


def _dataclass(value: dict[str, Any], cls: Any, where: str) -> Any:
    hints = get_type_hints(cls)
    if unknown := value.keys() - {field.name for field in dataclasses.fields(cls)}:
        raise _Misfit(f"{where}: {cls.__name__} has no field {min(unknown)!r}")
    fields = {name: _fitted(item, hints[name], f"{where}.{name}") for name, item in value.items()}
    try:
        return cls(**fields)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from None


def _public_path(cls: type) -> str:
    """The shortest dotted path that the class can be imported by: packages export what is public. Names in
    ``moelora_ad`` itself are for users' code: files contain the paths in its packages."""
    names = cls.__module__.split(".")
    for count in range(2 if names[0] == OURS else 1, len(names) + 1):
        module = ".".join(names[:count])
        if getattr(sys.modules.get(module), cls.__name__, None) is cls:
            return f"{module}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"

"""Packages whose names import their modules when they are first used (PEP 562)."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package that offers ``__all__``.

    The imports below ``if TYPE_CHECKING:`` in the package's ``__init__.py``, which type checkers read, say where each
    name comes from; a name that is imported from the package itself is one of its modules. The two functions are set
    below its ``else:``, as checkers take a package with a ``__getattr__`` to have any name.

    Args:
        package: the ``__name__`` of the package.
    """
    places: dict[str, str] = {}

    def getattr_(name: str) -> Any:
        module = sys.modules[package]
        if name not in module.__all__:
            raise _UnknownNameError(package, name, module.__all__)
        if not places:
            places.update(_imports(Path(str(module.__file__))))
        place = places[name]
        value = import_module(f"{package}.{name}") if place == package else getattr(import_module(place), name)
        setattr(module, name, value)  # so that it is looked up only once
        return value

    def dir_() -> list[str]:
        module = sys.modules[package]
        return sorted({*vars(module), *module.__all__})

    return getattr_, dir_


def _imports(path: Path) -> dict[str, str]:
    import ast

    nodes = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in nodes for alias in node.names}


class _UnknownNameError(AttributeError):
    """Looks for the nearest known name when it is shown: reading a configuration asks for thousands of names."""

    def __str__(self) -> str:
        import difflib

        package, name, known = self.args
        near = difflib.get_close_matches(name, known, n=1)
        return f"module {package!r} has no attribute {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")

"""Files of tensors that come from outside: safetensors, and pickles from which only tensors and plain values are taken.

Published checkpoints contain more than tensors: the options of their training, the best figure so far, a dictionary of
labels. The classes of these are on a list. None of them is imported or built: an `Opaque` replaces it, which
stores the file's values and does nothing. Any other class is refused by its name.
"""

import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from moelora_ad.errors import InputError
from moelora_ad.models.saving.containers import check_container
from moelora_ad.models.saving.files import check_regular, read_tensors


class Opaque:
    """The replacement of an object in a file: its state, without its class."""

    def __init__(self, *arguments: object) -> None:
        self.state: dict[Any, Any] = {}

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, dict) else {}


def _dictionary(*arguments: object) -> dict[Any, Any]:
    return {}


_NUMPY = ("multiarray._reconstruct", "multiarray.scalar")
HARMLESS = (
    "argparse.Namespace",
    "builtins.bool",
    "builtins.dict",
    "builtins.float",
    "builtins.int",
    "builtins.list",
    "builtins.str",
    "fairseq.data.dictionary.Dictionary",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in _NUMPY),
    *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata")),
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Enum", "Float", "Integer", "String")),
    "pathlib.Path",
    "pathlib.PosixPath",
    "typing.Any",
)
"""Classes and functions that published checkpoints name beside tensors."""
_ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(Opaque, name) for name in HARMLESS]
_ALLOWED.append((_dictionary, "collections.defaultdict"))


def read_file(path: Path) -> Any:
    """Read the content of a file: of safetensors the tensors by name, of a pickle whatever was saved.

    Tensors stay on the disk until they are used, where the file allows it.

    Raises:
        InputError: the file is missing, damaged or of another kind, or it contains what is not on the list.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file")
    check_regular(path)
    if path.suffix == ".safetensors":
        return read_tensors(path)
    zipped = is_zipfile(path)
    if zipped:
        check_container(os.fspath(path), "import")
    try:
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # PyTorch raises many kinds of errors for a damaged file
        raise InputError.at(path, _reason(str(error))) from None
    _check_extent(content, path)
    return content


def field(node: Any, *names: str) -> Any:
    """A value of a training's options, which may be plain, a namespace or those of OmegaConf; None if it is missing.

    Args:
        node: the options.
        names: path of the value, from the outermost name to the innermost.
    """
    for name in names:
        node = _content(node)
        node = node.get(name) if isinstance(node, Mapping) else None
    return _content(node)


def _content(node: Any) -> Any:
    """The content of an `Opaque`: OmegaConf stores that of a container, and the value of anything else, in a field."""
    for _ in range(2):  # a container's content is plain, a node's value too
        if isinstance(node, Opaque):
            state = node.state
            node = next((state[name] for name in ("_content", "_val") if name in state), state)
    return node


def _reason(error: str) -> str:
    """The error of a file, reworded where PyTorch advises to trust it."""
    if named := re.search(r"GLOBAL ([\w.]+)", error):
        return f"contains code ({named[1]}), which is not run: only tensors and plain values are read"
    if "eights only" in error or "weights_only" in error:
        error = error.rpartition("WeightsUnpickler error:")[2]
    first = error.strip().partition("\n")[0].strip()
    return f"is not a readable checkpoint of PyTorch{f': {first}' if ' ' in first else ''}"


def _check_extent(content: Any, path: Path) -> None:
    """Check that the tensors are not larger than the file: views of one storage could stand for any number of values.

    Raises:
        InputError: they are larger.
    """
    size = 0
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            size += one.numel() * one.element_size()
        elif isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, list | tuple):
            waiting += one
    if size > 2 * path.stat().st_size:
        raise InputError.at(path, "has tensors of more values than fit into it: it is damaged or malicious")

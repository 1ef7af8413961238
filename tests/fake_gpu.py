"""A fake CUDA device on a machine without one: code runs without content, and waits for a GPU are reported."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moelora_ad.torch_internals import FakeTensorMode

PACKAGE = Path(__file__).parents[1]
_WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "bincount")
_INDEXING = ("index", "index_put", "index_put_")


class Waits(TorchDispatchMode):
    """Notes operations that wait for a GPU.

    These are operations whose result decides on shapes or comes to the host, operations on tensors of both devices, and
    copies between the devices that do not say ``non_blocking``.

    Attributes:
        found: The name of each operation, and the line of this repository that called it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if _is_on_gpu(args[0] if args else None) and (name in _WAITING or (name in _INDEXING and _waits(args[1]))):
            self.found.append(f"{name} at {_line()}")
        result = func(*args, **kwargs)
        if name != "copy_" and len(_devices(args, kwargs)) > 1:
            self.found.append(f"{name} of two devices at {_line()}")
        if name in ("_to_copy", "copy_"):
            source, target = (args[1], args[0]) if name == "copy_" else (args[0], result)
            blocking = not kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
            if source.device.type != target.device.type and blocking:
                self.found.append(f"copy of {tuple(source.shape)} to {target.device.type} at {_line()}")
        return result


@contextmanager
def fake_gpu(*modules: nn.Module) -> Iterator[Waits]:
    """Move the modules' parameters, buffers and other tensors to a fake GPU; gives what would wait there.

    Backward passes cannot run: PyTorch asks the driver for a device.
    """
    waits = Waits()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for part in (part for module in modules for part in module.modules()):
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(like(parameter), requires_grad=parameter.requires_grad)
            for holder in (part._buffers, vars(part)):
                for name, value in list(holder.items()):
                    if isinstance(value, Tensor):
                        holder[name] = like(value)
        with waits:
            yield waits


def like(tensor: Tensor) -> Tensor:
    """A tensor of the same shape and type on the fake GPU."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


def _is_on_gpu(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cuda"


def _waits(indices: list[Tensor | None]) -> bool:
    """Whether an index waits for the GPU: a mask does, as it decides on shapes."""
    return any(index is not None and index.dtype == torch.bool for index in indices)


def _devices(*arguments: object) -> set[str]:
    return {leaf.device.type for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)}


def _line() -> str:
    frames = [frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(PACKAGE)]
    ours = [frame for frame in frames if Path(frame.filename) != Path(__file__)]
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].line}"

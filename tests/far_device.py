"""A device with a memory of its own, on any machine: real numbers, forward and backward passes, and an error wherever
tensors of two devices meet, as a GPU gives it, or a number is in float64, as Apple's GPUs give it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from moelora_ad import float64

FAR = torch.device("lazy", 0)  # a name that PyTorch knows, and whose backward pass needs no driver
_COPIES = ("_to_copy", "copy_")


class FarTensor(Tensor):
    """A tensor on the far device; its numbers are in an inner tensor on the CPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "FarTensor":
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=FAR,
            requires_grad=inner.requires_grad,
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:
        return f"Far({self.inner})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict) -> "FarTensor":
        made = memo[id(self)] = FarTensor(self.inner.clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made._is_param = True
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Makes tensors on the far device where a device is given."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == FAR.type:
            return _run(func, args, kwargs)
        return func(*args, **kwargs)


def _run(func: Any, args: tuple, kwargs: dict) -> Any:
    name = func.overloadpacket.__name__
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    is_far = any(isinstance(tensor, FarTensor) for tensor in tensors)
    near = [tensor for tensor in tensors if not isinstance(tensor, FarTensor) and tensor.dim()]
    if is_far and near and name not in _COPIES:
        raise RuntimeError(f"{name}: tensors are on two devices, {FAR} and {near[0].device}")
    target = kwargs.get("device")
    if target is not None:
        is_far = torch.device(target).type == FAR.type
        kwargs = kwargs | {"device": torch.device("cpu") if is_far else target}
    elif name == "copy_":
        is_far = isinstance(args[0], FarTensor)
    there = {"args": args, "kwargs": kwargs}
    inner = tree_map(lambda leaf: leaf.inner if isinstance(leaf, FarTensor) else leaf, there)
    result = func(*inner["args"], **inner["kwargs"])
    if not is_far:
        return result
    if any(getattr(leaf, "dtype", None) in (torch.float64, torch.complex128) for leaf in tree_leaves(result)):
        raise TypeError(f"{name}: {FAR} has no float64")
    wrapped = tree_map(lambda leaf: FarTensor(leaf) if isinstance(leaf, Tensor) else leaf, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


class FarAccelerator(CPUAccelerator):
    """Lightning's view of the far device."""

    def setup_device(self, device: torch.device) -> None:
        pass


def strategy() -> SingleDeviceStrategy:
    """A strategy of one process on the far device."""
    return SingleDeviceStrategy(device=FAR, accelerator=FarAccelerator())


@contextmanager
def device() -> Iterator[torch.device]:
    """Make the far device usable within the block."""
    autocast, is_enabled, dtype = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype

    def near(name: str | None) -> str | None:
        return "cpu" if name == FAR.type else name

    class Autocast(autocast):
        def __init__(self, device_type: str, *arguments: Any, **named: Any) -> None:
            super().__init__(near(device_type), *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(float64, "LACKING", frozenset({FAR.type}))
        patch.setattr(torch, "autocast", Autocast)
        patch.setattr(torch, "inference_mode", torch.no_grad)  # its tensors cannot be wrapped
        patch.setattr(torch, "is_autocast_enabled", lambda *given: is_enabled(*(near(one) for one in given)))
        patch.setattr(torch, "get_autocast_dtype", lambda name: dtype(near(name)))
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=FAR): made on the CPU, then moved
        try:
            with _Factories():
                yield FAR
        finally:
            torch._C._set_only_lift_cpu_tensors(False)

"""All uses of what has no public name in PyTorch, each with a test."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException as CompilerError
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from moelora_ad.float64 import float64_or_float32

__all__ = [
    "BatchNorm",
    "CompilerError",
    "Constant",
    "FakeTensorMode",
    "WatchedLoader",
    "changes_in_place",
    "check_dimensions",
    "forget_compilation",
    "is_watched",
    "is_within_backward",
    "keeps_tensors_elsewhere",
    "uncompiled",
    "undoes_scaling",
    "without_scaling",
]
# FakeTensorMode: tensors with a device but no content, on which a real model runs; on the meta device it could not, as
# code asks for devices. BatchNorm: all kinds of batch normalisation, and the one forward that they share.
# CompilerError: what torch.compile raises where it cannot compile.

Row = TypeVar("Row", covariant=True)
_WATCH_SECONDS = 5.0


def is_within_backward() -> bool:
    """Whether a backward pass of this thread is running: gradient checkpointing repeats forward passes in it."""
    return torch._C._current_graph_task_id() != -1


def keeps_tensors_elsewhere() -> bool:
    """Whether tensors for the backward pass are kept in another way, as by gradient checkpointing, which computes them
    again."""
    return not torch.compiler.is_compiling() and torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def changes_in_place(tensor: Tensor) -> int:
    """How often a tensor was changed in place. 0 in compiled code, which does not tell, and for tensors of inference
    mode, which can be changed only there, and are not counted."""
    return 0 if torch.compiler.is_compiling() or tensor.is_inference() else tensor._version


def is_watched(module: nn.Module) -> bool:
    """Whether hooks see the forward or backward passes of a module."""
    hooks = module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks
    return any(hooks)


def undoes_scaling(optimizer: Optimizer) -> bool:
    """Whether an optimiser (a fused one) divides gradients by the scale of ``16-mixed`` in its own step."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def without_scaling(optimizer: Optimizer) -> None:
    """Tell that gradients are not scaled: Lightning then clips those of a fused optimiser, too."""
    if undoes_scaling(optimizer):
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` has wrapped; ``module`` itself if it is not such a wrapper."""
    wrapped = getattr(module, "_orig_mod", None)
    return wrapped if isinstance(wrapped, nn.Module) else module


def forget_compilation(module: nn.Module) -> None:
    """Undo ``module.compile()``: the module runs eagerly again."""
    module._compiled_call_impl = None


def check_dimensions(layer: BatchNorm, values: Tensor) -> None:
    """Check that values have as many dimensions as a kind of batch normalisation takes.

    Raises:
        ValueError: They have not; the message is PyTorch's.
    """
    layer._check_input_dim(values)


class Constant(nn.Module):
    """A tensor of a front end, such as a filter bank: it moves with the model from device to device, but keeps its
    precision. A buffer would be cast with the model, by ``nn.Module.to`` and by strategies that cast all buffers. In
    float64 it stays on the CPU where a device has none, see `in_float64`.

    Args:
        tensor: the tensor, of any shape.
    """

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor

    def forward(self, device: torch.device) -> Tensor:
        """Return the tensor on ``device``."""
        return self.tensor.to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Constant":
        super()._apply(fn, recurse)
        device = fn(torch.empty(0, device=self.tensor.device)).device
        if self.tensor.dtype == torch.float64 and float64_or_float32(device) != torch.float64:
            device = torch.device("cpu")
        without_content = self.tensor.is_meta
        self.tensor = torch.empty_like(self.tensor, device=device) if without_content else self.tensor.to(device)
        return self


class WatchedLoader(DataLoader[Row]):
    """A ``DataLoader`` that asks every few seconds whether its workers live, even with a ``timeout``.

    PyTorch asks once then, when the time is over. Until then it relies on the system's signal of a worker's end, which
    is lost if it comes while this thread cannot raise an error, or to a program whose main thread does other work.

    Its workers never collect garbage of the process that started them: pinned tensors in it would end them.
    """

    def _get_iterator(self) -> _BaseDataLoaderIter:
        if not self.num_workers:
            return super()._get_iterator()
        with _garbage_kept_from_workers():
            if not self.timeout:
                return super()._get_iterator()
            self.check_worker_number_rationality()
            return _WatchedIterator(self)


@contextmanager
def _garbage_kept_from_workers() -> Iterator[None]:
    # A forked worker inherits all garbage of this process, and dies if it frees what a GPU's driver has given.
    if gc.get_freeze_count():  # by the caller, whose objects would thaw with the others
        gc.collect()
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _WatchedIterator(_MultiProcessingDataLoaderIter):
    def _get_data(self) -> Any:
        end = time.monotonic() + self._timeout
        while (left := end - time.monotonic()) > 0:
            is_there, data = self._try_get_data(min(left, _WATCH_SECONDS))  # raises an error if a worker is gone
            if is_there:
                return data
            if self._pin_memory and not self._pin_memory_thread.is_alive():
                raise RuntimeError("Pin memory thread exited unexpectedly")
        raise RuntimeError(f"DataLoader timed out after {self._timeout} seconds")

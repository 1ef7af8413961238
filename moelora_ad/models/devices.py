"""The device that a model computes on, and its memory."""

from typing import TypeVar

import torch
from torch import Tensor, nn

from moelora_ad.errors import InputError

Module = TypeVar("Module", bound=nn.Module)
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "ALLOC_FAILED")


def usable_device(device: str | torch.device | None = None, called: str = "device") -> torch.device:
    """The requested device; the first GPU, or else the CPU, if none is given.

    Args:
        device: "cpu", "cuda", "cuda:1", ...; None for the best there is.
        called: name of the option that chose it, for the error.

    Raises:
        InputError: there is no such device, or it cannot be used.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{called} {str(device)!r} cannot be used: {reason}") from None


def on_device(module: Module, device: str | torch.device | None) -> Module:
    """The module, moved to a device; to the CPU if none is named.

    Raises:
        InputError: there is no such device, or it has too little memory.
    """
    try:
        return module.to(device or "cpu")
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device}: {str(error).splitlines()[0]}") from None


class HostCopy:
    """An asynchronous copy of a tensor to the host: the program continues, and a GPU makes the copy once it has
    computed what was queued before.

    Args:
        tensor: a tensor on any device. It may change afterwards.
    """

    def __init__(self, tensor: Tensor) -> None:
        is_gpu = tensor.device.type == "cuda"
        self._copy = tensor.detach().to("cpu", non_blocking=is_gpu)  # into pinned memory
        self._taken = torch.cuda.Event() if is_gpu else None
        if self._taken is not None:
            self._taken.record(torch.cuda.current_stream(tensor.device))

    @property
    def is_immediate(self) -> bool:
        """Whether the copy was taken at once, as it is of a tensor on the host."""
        return self._taken is None

    @property
    def is_there(self) -> bool:
        """Whether the copy is complete, so that `tensor` need not wait."""
        return self._taken is None or self._taken.query()

    def tensor(self) -> Tensor:
        """Wait for the copy, and return it."""
        if self._taken is not None:
            self._taken.synchronize()
        return self._copy


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports a lack of memory: Python's own, PyTorch's for any device, and those that a library of
    the GPU's maker raises for its own memory (cuBLAS, cuDNN)."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_WORDS)

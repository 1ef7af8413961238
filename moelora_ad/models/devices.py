"""The device that a model computes on, and its memory."""

from typing import TypeVar

import torch
from torch import nn

from moelora_ad.errors import InputError

Module = TypeVar("Module", bound=nn.Module)


def usable_device(device: str | torch.device | None = None, called: str = "device") -> torch.device:
    """The device that was asked for; the first GPU, or else the CPU, if none was.

    Args:
        device: "cpu", "cuda", "cuda:1", ...; None for the best there is.
        called: what the user calls this choice, for the error's line.

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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error tells of a lack of memory: Python's, PyTorch's of any device, and those that a library of the
    GPU's maker raises where it finds no room of its own (cuBLAS, cuDNN)."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_WORDS)


_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "ALLOC_FAILED")

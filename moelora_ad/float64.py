"""Double precision, which not every device has."""

import torch
from torch import Tensor

LACKING = frozenset({"mps"})
"""Kinds of devices without float64: Apple's GPUs."""


def float64_or_float32(device: torch.device) -> torch.dtype:
    """The most precise type of real numbers on a device."""
    return torch.float32 if device.type in LACKING else torch.float64


def in_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64, on the CPU if its device has no float64."""
    return (tensor.cpu() if tensor.device.type in LACKING else tensor).double()

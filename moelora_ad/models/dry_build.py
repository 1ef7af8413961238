"""Modules without memory: to check what an untrusted configuration needs, before memory is allocated."""

from collections.abc import Iterator, Sized
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from moelora_ad.errors import InputError

MOST_OF_ENCODER = 5_000
"""Most parameter tensors of an encoder; the largest published speech encoders have 1,500."""
MOST_OF_DETECTOR = 200_000
"""Most parameter tensors of a detector: those of an encoder whose linear layers all have a hundred experts."""


@contextmanager
def dry_build(most: int) -> Iterator[None]:
    """Build modules within the block on the meta device: they have names and shapes, but no values.

    Args:
        most: number of parameter tensors that may be made.

    Raises:
        InputError: more are made.
    """
    made = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal made
        made += 1
        if made > most:
            raise InputError(
                f"a model of more than {most:,} tensors is requested, which is too many; the last is "
                f"{name} of a {type(module).__name__}: check the numbers of layers and of experts"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            yield
    finally:
        handle.remove()


def most_for(saved: Sized) -> int:
    """Number of parameter tensors that may be made for the saved ones; some modules replace a tensor by another."""
    return 2 * len(saved) + 100

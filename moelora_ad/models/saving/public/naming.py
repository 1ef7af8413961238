"""Matching the tensors of a published checkpoint to those of a module of ours."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from moelora_ad.errors import InputError, counted
from moelora_ad.models.saving.files import check_finite


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without the prefixes that ``nn.DataParallel``, Lightning and other wrappers put before all names."""
    found = dict(tensors)
    for prefix in ("module.", "model.", "module."):
        if found and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def matched(
    given: Mapping[str, Tensor],
    module: nn.Module,
    names: Mapping[str, str],
    where: str,
) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their names in a module, float32 where they are floating-point.

    Args:
        given: the tensors by the checkpoint's names.
        module: may be on the meta device.
        names: the checkpoint's name of each of the module's tensors.
        where: the checkpoint's name in messages.

    Raises:
        InputError: a name is missing or unknown, a shape is another one, or a value is not finite; the first is named.
    """
    own = module.state_dict()
    wanted = {names[name]: name for name in own}
    if missing := sorted(wanted.keys() - given.keys()):
        raise InputError(f"{where}: lacks {counted(len(missing), 'tensor')}, first {missing[0]}")
    if unknown := sorted(given.keys() - wanted.keys()):
        raise InputError(f"{where}: has {counted(len(unknown), 'unknown tensor')}, first {unknown[0]}")
    for name, tensor in given.items():
        shape = tuple(own[wanted[name]].shape)
        if tuple(tensor.shape) != shape:
            raise InputError(f"{where}: {name} is {tuple(tensor.shape)}, not {shape}")
        if tensor.is_complex() or tensor.is_quantized or tensor.layout != torch.strided:
            raise InputError(f"{where}: {name} has no plain numbers ({tensor.dtype}, {tensor.layout})")
    check_finite(given, where)
    return {wanted[name]: tensor.to(own[wanted[name]].dtype).contiguous() for name, tensor in given.items()}

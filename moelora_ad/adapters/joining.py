"""The matrices of all adapted projections of a model, concatenated and cast together.

Each projection has several small ones. On its own it would copy each in every step, and their gradients too: a thousand
small operations at 96 projections, which a GPU does faster than a program queues them.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from moelora_ad.adapters.layer import MoELoRALinear


@contextmanager
def joined_matrices(model: nn.Module) -> Iterator[None]:
    """Let the adapted projections of a model use, within the block, matrices that are concatenated and cast in its
    beginning, for all of them at once. Outputs and gradients stay the same.

    It changes nothing where a strategy has sharded the parameters, or the model is being compiled or exported as a
    whole. A projection that is not used within the block has gradients of zero and not none.

    Args:
        model: the model that contains the projections.
    """
    sites = [module for module in model.modules() if isinstance(module, MoELoRALinear)]
    matrices = [site.matrices() for site in sites]
    if torch.compiler.is_compiling() or not all(_is_whole(one) for pair in matrices for one in (*pair[0], *pair[1])):
        yield
        return
    joined = zip(_rows([down for down, _ in matrices]), _up([up for _, up in matrices]), strict=True)
    for site, pair in zip(sites, joined, strict=True):
        site.joined = pair
    try:
        yield
    finally:
        for site in sites:
            site.joined = None


def _is_whole(matrix: Tensor) -> bool:
    if matrix.dim() != 2:  # a process's part of FSDP's flat parameter, or nothing with DeepSpeed
        return False
    return type(matrix) is nn.Parameter or not hasattr(matrix, "placements")  # those of a DTensor


def _rows(matrices: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Matrices (..., in) below each other, for each projection."""
    found: dict[int, Tensor] = {}
    for group in _alike([(few[0].shape[1], few[0].dtype, few[0].device) for few in matrices]):
        rows = _cast(torch.cat([one for number in group for one in matrices[number]]))
        found |= zip(group, rows.split([sum(len(one) for one in matrices[number]) for number in group]), strict=True)
    return [found[number] for number in range(len(matrices))]


def _up(matrices: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Matrices (out, r) beside each other, for each projection."""
    found: dict[int, Tensor] = {}
    for group in _alike([(len(few), few[0].shape, few[0].dtype, few[0].device) for few in matrices]):
        first = matrices[group[0]]
        up = _cast(torch.cat([one for number in group for one in matrices[number]]))
        beside = up.view(len(group), len(first), *first[0].shape).transpose(1, 2).flatten(2)
        found |= zip(group, beside.unbind(), strict=True)
    return [found[number] for number in range(len(matrices))]


def _alike(kinds: Sequence[Hashable]) -> list[list[int]]:
    groups = defaultdict(list)
    for number, kind in enumerate(kinds):
        groups[kind].append(number)
    return list(groups.values())


def _cast(matrix: Tensor) -> Tensor:
    device = matrix.device.type
    return matrix.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else matrix

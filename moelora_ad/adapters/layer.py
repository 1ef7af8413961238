"""The adapted projection, and what all projections of a model do together."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from moelora_ad.adapters.expert import LoRAExpert
from moelora_ad.adapters.gate import Gate, decide_together
from moelora_ad.adapters.sites import ROLES, role_of
from moelora_ad.torch_internals import changes_in_place, keeps_tensors_elsewhere


class MoELoRALinear(nn.Module):
    """A frozen projection plus a gated sum of low-rank experts: y = W_0 x + (alpha / r) sum_i G_i(x) B_i A_i x.

    (arXiv 2509.13878, section 2.) One expert without a gate is exactly LoRA. All experts are computed by two matrix
    products, whatever their number: x meets [A_1; ...; A_N; W_g; W_noise] in the first, and the N r low-rank
    activations, weighted by the gate, meet [B_1, ..., B_N] in the second, which adds them to the output of the base in
    place: a hook on ``base`` that keeps its output must copy it.

    Args:
        base: the projection to adapt. The caller decides whether it is frozen.
        experts: LoRA experts of one rank that fit the base.
        gate: required for two experts or more.
        alpha: the update is scaled by alpha / rank; None means alpha = rank, the paper's equation without a scale.
        owns_gate: False if the gate belongs to another projection that shares it: then it is a submodule of that one
            alone, and counted and saved there.

    Shapes: input, x, (..., in_features) -> (..., out_features).

    Raises:
        ValueError: experts, gate and base do not fit each other.
    """

    def __init__(
        self,
        base: nn.Linear,
        experts: Iterable[LoRAExpert],
        gate: Gate | None = None,
        alpha: float | None = None,
        owns_gate: bool = True,
    ) -> None:
        super().__init__()
        self.base = base
        self.experts = nn.ModuleList(experts)
        self.gate: Gate | None
        if owns_gate:
            self.gate = gate
        else:
            object.__setattr__(self, "gate", gate)  # bypasses nn.Module, which would register it
        self._check(experts=self.lora_experts())
        self.rank = self.lora_experts()[0].rank
        self.scaling = 1.0 if alpha is None else alpha / self.rank
        self.joined: Joined | None = None  # within `joined_matrices`

    def lora_experts(self) -> Sequence[LoRAExpert]:
        """The experts, in order."""
        return cast(Sequence[LoRAExpert], self.experts)

    def _check(self, experts: Sequence[LoRAExpert]) -> None:
        if not experts:
            raise ValueError("an adapted projection needs at least one expert")
        widths = (self.base.in_features, self.base.out_features)
        shapes = {(e.lora_A.shape[1], e.lora_B.shape[0], e.rank) for e in experts}
        if len(shapes) > 1 or next(iter(shapes))[:2] != widths:
            raise ValueError(
                f"experts of (in, out, rank) {sorted(shapes)} do not fit a {widths[0]} -> {widths[1]} base"
            )
        if self.gate is None and len(experts) > 1:
            raise ValueError(f"{len(experts)} experts need a gate")
        if self.gate is not None:
            shape = self.gate.num_experts, self.gate.weight.shape[1]
            if shape != (len(experts), widths[0]):
                raise ValueError(f"a gate of shape {shape} does not fit {len(experts)} experts")

    def remove_gate(self) -> None:
        """Remove the gate, so that a single expert is a plain LoRA."""
        self.__dict__.pop("gate", None)  # a gate that another projection owns
        self.gate = None

    # Models that look at their projection see the base: the adapted layer replaces an nn.Linear.
    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    def forward(self, input: Tensor) -> Tensor:  # named as in nn.Linear, which a model may call by keyword
        autocast = _autocast_dtype(input)
        joined = self.joined
        if joined is not None and joined.group.autocast == autocast and joined.group.is_usable():
            up = joined.up
            x, low = joined.group.meet(joined.number, input)
        else:
            down, parts = self.matrices()
            up = _cast(torch.cat(parts, dim=1))
            x, (low,) = _meet([self], input, autocast, _cast(torch.cat(down)))
        base = self.base(x.reshape(-1, x.shape[-1]))
        # In place: a sum in new memory would read and write all of the output once more. The base may be of lower
        # precision than its adapters, which are added in theirs.
        output = base.to(up.dtype).addmm_(low.reshape(-1, up.shape[1]), up.t(), alpha=self.scaling).to(base.dtype)
        return output.view(*input.shape[:-1], up.shape[0])

    def matrices(self) -> "Matrices":
        """[A_1, ..., A_N, W_g, W_noise], which meet the input in one product, and [B_1, ..., B_N]; see `Gate.rows`."""
        experts = self.lora_experts()
        gate = [] if self.gate is None else self.gate.rows()
        return [*(expert.lora_A for expert in experts), *gate], [expert.lora_B for expert in experts]

    def extra_repr(self) -> str:
        return f"num_experts={len(self.experts)}, rank={self.rank}, scaling={self.scaling:g}"


Matrices = tuple[list[Tensor], list[Tensor]]
"""Of a projection, see `MoELoRALinear.matrices`."""


def _meet(
    sites: Sequence[MoELoRALinear], input: Tensor, autocast: torch.dtype | None, rows: Tensor
) -> tuple[Tensor, Sequence[Tensor]]:
    """The input as bases take it, and for each projection the low-rank activations of all its experts, weighted by its
    gate, (..., N r)."""
    x = input if autocast is None else input.to(autocast)  # else it is cast for the base and again for the experts
    down = functional.linear(x.to(rows.dtype), rows)  # (..., S N r), and the gates' S N or 2 S N
    rank, experts, gates = sites[0].rank, len(sites[0].experts), [site.gate for site in sites if site.gate is not None]
    if gates:
        width = len(sites) * experts * rank
        down, logits = down.split([width, down.shape[-1] - width], dim=-1)
        weights = gates[0](logits) if len(gates) == 1 else decide_together(gates, logits)
        down = (down.unflatten(-1, (-1, rank)) * weights.to(down.dtype).unsqueeze(-1)).flatten(-2)
    return x, [down] if len(sites) == 1 else down.split(experts * rank, dim=-1)


@dataclass
class Group:
    """Projections that meet one input in one product, within `joined_matrices`: the first of them that gets it computes
    the low-rank activations of all.

    Attributes:
        sites: the projections.
        rows: their matrices that meet the input: all A, then all W_g, then all W_noise.
        autocast: to what these are cast; None if autocast is off.
        left: what is not yet used of the last product: its input, how often that had been changed in place, the input
            as bases take it, and the activations of each projection.
    """

    sites: Sequence[MoELoRALinear]
    rows: Tensor
    autocast: torch.dtype | None
    left: tuple[Tensor, int, Tensor, Sequence[Tensor | None]] | None = None

    def is_usable(self) -> bool:
        """Whether a pass that is computed again, without joined matrices, would keep the same tensors."""
        return len(self.sites) == 1 or not keeps_tensors_elsewhere()

    def meet(self, number: int, input: Tensor) -> tuple[Tensor, Tensor]:
        """The input as the base takes it, and the low-rank activations of a projection, given by its number."""
        if len(self.sites) == 1:
            x, (own,) = _meet(self.sites, input, self.autocast, self.rows)
            return x, own
        changes, left = changes_in_place(input), self.left
        if left is None or left[0] is not input or left[1] != changes or left[3][number] is None:
            left = input, changes, *_meet(self.sites, input, self.autocast, self.rows)
        *_, x, low = left
        others = [None if other == number else one for other, one in enumerate(low)]
        self.left = None if all(one is None for one in others) else (input, changes, x, others)
        return x, cast(Tensor, low[number])


@dataclass
class Joined:
    """What a projection uses within `joined_matrices`.

    Attributes:
        group: the projections that meet the same input.
        number: the place of this one in it.
        up: [B_1, ..., B_N] of this one.
    """

    group: Group
    number: int
    up: Tensor


@contextmanager
def joined_matrices(model: nn.Module, share_inputs: bool = True) -> Iterator[None]:
    """Let the adapted projections of a model work together within the block. Outputs and gradients stay the same.

    Their matrices are concatenated and cast in its beginning, for all of them at once. And query, key and value of an
    attention meet their input in one product and mix their experts in one step. They are known by their names in one
    module, such as ``q_proj``, ``key`` or ``linear_v``; one that gets another input than the others, or whose gate is
    watched, is on its own.

    On its own, each projection would copy each of its small matrices in every step, and their gradients: with the rest
    almost two thousand operations at 96 projections, which a GPU does faster than a program queues them.

    It changes nothing where a strategy has sharded the parameters, or the model is being compiled or exported as a
    whole. A projection that is not used within the block has gradients of zero and not none.

    Args:
        model: the model that contains the projections.
        share_inputs: whether query, key and value share a product. Where the backward pass computes them again, outside
            of the block, they do not in any case. In inference mode neither, as changes in place are not counted there.
    """
    names = dict(_sites(model))
    matrices = {site: site.matrices() for site in names}
    if torch.compiler.is_compiling() or not all(map(_is_whole, chain.from_iterable(chain(*matrices.values())))):
        yield
        return
    shared = share_inputs and not torch.is_inference_mode_enabled()
    groups = _groups(names, matrices) if shared else [[site] for site in names]
    rows = _rows([_in_order([matrices[site] for site in group]) for group in groups])
    up = dict(zip(names, _up([few for _, few in matrices.values()]), strict=True))
    for members, its_rows in zip(groups, rows, strict=True):
        group = Group(members, its_rows, _autocast_dtype(its_rows))
        for number, site in enumerate(members):
            object.__setattr__(site, "joined", Joined(group, number, up[site]))  # nn.Module would look at it for long
    try:
        yield
    finally:
        for site in names:
            object.__setattr__(site, "joined", None)


def _sites(module: nn.Module, name: str = "") -> Iterator[tuple[MoELoRALinear, str]]:
    """The adapted projections of a model and their names. It does not look into them, which would take long."""
    if isinstance(module, MoELoRALinear):
        yield module, name
        return
    for own, child in module.named_children():
        yield from _sites(child, f"{name}.{own}")


def _is_whole(matrix: Tensor) -> bool:
    if matrix.dim() != 2:  # a process's part of FSDP's flat parameter, or nothing with DeepSpeed
        return False
    return type(matrix) is nn.Parameter or not hasattr(matrix, "placements")  # those of a DTensor


def _groups(names: dict[MoELoRALinear, str], matrices: dict[MoELoRALinear, Matrices]) -> list[list[MoELoRALinear]]:
    """The projections by themselves, but query, key and value of one module, in this order, together if all that are
    adapted are of one kind."""
    groups, attentions = [], defaultdict(list)
    for site, name in names.items():
        parent, _, own = name.rpartition(".")
        if role := role_of(own):
            attentions[parent].append((ROLES.index(role), site))
        else:
            groups.append([site])
    for members in attentions.values():
        members.sort(key=itemgetter(0))
        roles, sites = ([*column] for column in zip(*members, strict=True))
        kinds = {_kind(site, matrices[site]) for site in sites}
        together = len(set(roles)) == len(roles) and len(kinds) == 1 and None not in kinds
        groups += [sites] if together else [[site] for site in sites]
    return groups


def _kind(site: MoELoRALinear, matrices: Matrices) -> Hashable:
    """What projections of one group have in common; none if it stays alone."""
    (first, *_), up = matrices
    shape, gate = (first.shape, len(up), first.dtype, first.device), site.gate
    if gate is None:
        return shape
    return (*shape, gate.policy, gate.is_noisy) if gate.decides_alike() else None


def _in_order(members: Sequence[Matrices]) -> list[Tensor]:
    """What meets the input of several projections: first all A, then all W_g, then all W_noise."""
    experts = len(members[0][1])
    gates = zip(*(down[experts:] for down, _ in members), strict=True)
    return [*chain.from_iterable(down[:experts] for down, _ in members), *chain.from_iterable(gates)]


def _rows(matrices: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Matrices (..., in) below each other, for each projection."""
    found: dict[int, Tensor] = {}
    for group in _alike([(few[0].shape[1], few[0].dtype, few[0].device) for few in matrices]):
        rows = _cast(torch.cat([one for number in group for one in matrices[number]]))
        found |= zip(
            group, rows.split([sum(one.shape[0] for one in matrices[number]) for number in group]), strict=True
        )
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
    dtype = _autocast_dtype(matrix)
    return matrix if dtype is None else matrix.to(dtype)


def _autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """To what autocast casts; None if it is off."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

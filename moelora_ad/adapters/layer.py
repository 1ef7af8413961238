"""The adapted projection, and what all projections of a model do together."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from moelora_ad.adapters.expert import LoRAExpert
from moelora_ad.adapters.gate import Gate


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
        self.joined: tuple[Tensor, Tensor] | None = None  # see `joined_matrices`

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
        # The base may be of lower precision than its adapters, which are added in theirs.
        dtype, device = self.lora_experts()[0].lora_B.dtype, input.device.type
        if torch.is_autocast_enabled(device):  # which would cast the input for the base and again for the experts
            dtype = torch.get_autocast_dtype(device)
            input = input.to(dtype)
        joined = self.joined
        if joined is not None and all(one.dtype == dtype for one in joined):
            rows, up = joined
        else:
            down, parts = self.matrices()
            rows, up = torch.cat(down).to(dtype), torch.cat(parts, dim=1).to(dtype)
        low = self._low(input.to(dtype), rows).reshape(-1, up.shape[1])
        base = self.base(input.reshape(-1, input.shape[-1]))
        # In place: a sum in new memory would read and write all of the output once more.
        output = base.to(dtype).addmm_(low, up.t(), alpha=self.scaling).to(base.dtype)
        return output.view(*input.shape[:-1], up.shape[0])

    def matrices(self) -> tuple[list[Tensor], list[Tensor]]:
        """[A_1, ..., A_N, W_g, W_noise], which meet the input in one product, and [B_1, ..., B_N]; see `Gate.rows`."""
        experts = self.lora_experts()
        gate = [] if self.gate is None else self.gate.rows()
        return [*(expert.lora_A for expert in experts), *gate], [expert.lora_B for expert in experts]

    def _low(self, input: Tensor, rows: Tensor) -> Tensor:
        """The low-rank activations of all experts, weighted by the gate, (..., N r)."""
        down = functional.linear(input, rows)  # (..., N r), and the gate's N or 2 N
        if self.gate is None:
            return down
        width = self.rank * len(self.experts)
        low, logits = down.split([width, down.shape[-1] - width], dim=-1)
        weights = self.gate(logits).to(low.dtype)
        return (low.unflatten(-1, (-1, self.rank)) * weights.unsqueeze(-1)).flatten(-2)

    def extra_repr(self) -> str:
        return f"num_experts={len(self.experts)}, rank={self.rank}, scaling={self.scaling:g}"


@contextmanager
def joined_matrices(model: nn.Module) -> Iterator[None]:
    """Let the adapted projections of a model use, within the block, matrices that are concatenated and cast in its
    beginning, for all of them at once. Outputs and gradients stay the same.

    On its own, each projection would copy each of its small matrices in every step, and their gradients: a thousand
    operations at 96 projections, which a GPU does faster than a program queues them.

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

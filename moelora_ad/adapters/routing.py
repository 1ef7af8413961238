"""Watching gates: what they decide, summed up while a model runs, with no code in any layer's forward."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moelora_ad.adapters.errors import AdapterError
from moelora_ad.adapters.gate import valid_of
from moelora_ad.adapters.injection import adapted_sites, running_eagerly
from moelora_ad.adapters.layer import MoELoRALinear
from moelora_ad.float64 import float64_or_float32
from moelora_ad.torch_internals import is_within_backward

ALL = ""  # the group of utterances that no label was given for


class Decision(NamedTuple):
    """What a gate decided for one projection in one forward pass.

    Attributes:
        site: dotted path of the adapted projection.
        layer: that projection.
        inputs: (..., T, in_features), its input; (B, in_features) are rows of one token, whose scores and weights are
            (B, N).
        scores: (..., T, N) float32, the input of the softmax, without noise; (..., 1, N) for whole utterances.
        weights: (..., T, N) float32, the experts' weights; (..., 1, N) for whole utterances.
        valid: (B, T) bool, tokens that are not padding, as set by ``valid_tokens``; None for all.
    """

    site: str
    layer: MoELoRALinear
    inputs: Tensor
    scores: Tensor
    weights: Tensor
    valid: Tensor | None

    def mean_weights(self) -> Tensor:
        """The experts' weights (..., N) float32 of each row: the mean over its tokens that are not padding."""
        return mean_over_tokens(self.weights.float(), self.valid)


@contextmanager
def watch_gates(model: nn.Module, see: Callable[[Decision], None]) -> Iterator[None]:
    """Call a function with every decision of the model's gates, within the block.

    A pass that gradient checkpointing repeats in the backward pass is not seen again. What ``torch.compile`` has
    compiled runs eagerly within the block (see `running_eagerly`). Nothing is left on the model afterwards; a
    model that is not watched has no overhead.

    Args:
        model: a model with adapted projections.
        see: called with each decision, whose tensors still belong to the autograd graph.

    Raises:
        AdapterError: the model has no gate.
    """
    sites = [(name, site) for name, site in adapted_sites(model) if site.gate is not None]
    if not sites:
        raise AdapterError("the model has no gates to watch: adapt it with MoELoRA")
    current: list[tuple[str, MoELoRALinear, Tensor]] = []  # the projection that calls its gate, which may be shared

    def enter(name: str) -> Callable[[MoELoRALinear, tuple[Tensor, ...], dict[str, Tensor]], None]:
        def note(layer: MoELoRALinear, arguments: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            current[:] = [(name, layer, arguments[0] if arguments else named["input"])]

        return note

    def decided(gate: nn.Module, arguments: tuple[Tensor, ...], weights: Tensor) -> None:
        if is_within_backward():
            return
        name, layer, inputs = current[0]
        assert layer.gate is gate
        see(Decision(name, layer, inputs, layer.gate.scores(arguments[0]), weights, layer.gate.valid))

    handles: list[Any] = [site.register_forward_pre_hook(enter(name), with_kwargs=True) for name, site in sites]
    for gate in {id(site.gate): site.gate for _, site in sites}.values():
        assert gate is not None
        handles.append(gate.register_forward_hook(decided))
    try:
        with running_eagerly():
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def record_routing(model: nn.Module) -> Iterator["RoutingRecord"]:
    """Record how the model's gates use their experts, within the block.

    Call ``record.label([...])`` before a forward pass to separate its utterances by attack, codec or anything else.
    Padding is left out where ``valid_tokens`` has set it, as the backbones of this package do.

    Raises:
        AdapterError: see `watch_gates`.
    """
    record = RoutingRecord()
    with watch_gates(model, record.add):
        yield record


@dataclass(frozen=True)
class SiteRouting:
    """How the gate of a projection used its experts: means over decisions, over tokens or whole utterances.

    Attributes:
        num_decisions: number of decisions.
        mean_gate: (N,) weight of each expert.
        top1_share: (N,) share of the decisions whose largest weight is this expert's.
        selection_share: (N,) share of the decisions that keep this expert; 1 for all experts of a dense gate.
        output_norm: (N,) norm of an expert's own update, (alpha / r) ||B_i A_i x||, before the gate weights it.
        entropy: entropy in nats of the weights divided by their sum: 0 if one expert takes all, log N if all are equal.
        kept_mass: sum of the weights: 1 for dense and renormalised gates, less where top-k leaves weights out.
    """

    num_decisions: int
    mean_gate: Tensor
    top1_share: Tensor
    selection_share: Tensor
    output_norm: Tensor
    entropy: float
    kept_mass: float

    @property
    def effective_experts(self) -> float:
        """The effective number of experts, see the function of this name."""
        return float(effective_experts(self.mean_gate))

    @property
    def load_balance(self) -> float:
        """N sum_i f_i P_i, with f_i the top-1 share of expert i and P_i its share of the weights (Fedus et al., arXiv
        2101.03961, eq. 4 to 6): 1 if the experts are used equally, N if one takes everything."""
        share = self.mean_gate / self.mean_gate.sum()
        return float(len(share) * (self.top1_share * share).sum())


def effective_experts(mean_gate: Tensor) -> Tensor:
    """Effective number of experts: exp of the entropy of the mean weights, (..., N) -> (...). It is N if all experts
    are used equally, and 1 if one takes everything."""
    share = mean_gate / mean_gate.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp()


class RoutingRecord:
    """Running sums of gate decisions, for each group of utterances and each projection.

    It stores 4 N + 3 numbers for each group and projection, however many utterances pass.
    """

    def __init__(self) -> None:
        self._labels: list[str] | None = None
        self._rows: dict[str, int] = {}  # group -> row of the sums
        self._sums: dict[str, Tensor] = {}  # site -> (groups, 4 N + 3)

    def label(self, groups: Sequence[str] | None) -> None:
        """Set the groups of the utterances of the next forward passes.

        Args:
            groups: a label for each row of the batch; None for no groups.
        """
        self._labels = None if groups is None else [str(group) for group in groups]

    @property
    def groups(self) -> tuple[str, ...]:
        """The labels that occurred, in the order of their first utterance; empty for utterances without one."""
        return tuple(self._rows)

    def sites(self, group: str | None = None) -> dict[str, SiteRouting]:
        """Figures of every projection whose gate decided something, by its dotted path.

        Args:
            group: label of the utterances to count; None for all utterances.

        Raises:
            KeyError: no utterance had this label.
        """
        if group is None:
            sums_of_all = {site: sums.sum(0) for site, sums in self._sums.items()}
            return {site: _figures(sums) for site, sums in sums_of_all.items() if sums[-1] > 0}
        row = self._rows[group]
        sums_of_group = {site: sums[row] for site, sums in self._sums.items() if row < len(sums)}
        return {site: _figures(sums) for site, sums in sums_of_group.items() if sums[-1] > 0}

    def mean_gates(self) -> dict[str, Tensor]:
        """The mean weight (N,) of each expert at every projection: the weights of the static mixture."""
        return {site: routing.mean_gate for site, routing in self.sites().items()}

    @torch.no_grad()
    def reduce(self, model: nn.Module, total: Callable[[Tensor], Tensor]) -> None:
        """Make this the record of all processes together, without labels. This is a collective call.

        Args:
            model: the watched model, whose projections every process has, even those without a decision there.
            total: returns the sum of a vector over the processes.
        """
        own: dict[str, Tensor] = {}
        for name, site in adapted_sites(model):
            if site.gate is not None:
                device = site.gate.weight.device
                nothing = torch.zeros(1, 4 * len(site.experts) + 3, dtype=float64_or_float32(device), device=device)
                own[name] = self._sums.get(name, nothing).to(device).sum(0)
        together = total(torch.cat(list(own.values()))).split([len(sums) for sums in own.values()])
        self._rows = {ALL: 0}
        self._sums = {name: sums.unsqueeze(0) for name, sums in zip(own, together, strict=True)}

    @torch.no_grad()
    def add(self, decision: Decision) -> None:
        """Count a decision.

        Raises:
            AdapterError: the number of labels is not that of the batch's rows.
        """
        numbers = _numbers(decision)  # (B, ..., 4 N + 3)
        labels = self._labels
        if labels is None:
            rows, per_row = [self._row(ALL)], numbers.flatten(0, -2).sum(0, keepdim=True)
        elif len(labels) == len(numbers):
            rows = [self._row(group) for group in labels]
            per_row = numbers if numbers.dim() == 2 else numbers.flatten(1, -2).sum(1)
        else:
            raise AdapterError(f"{len(labels)} labels were given for a batch of {len(numbers)} rows")
        size = len(self._rows), numbers.shape[-1]
        sums = torch.zeros(size, dtype=per_row.dtype, device=per_row.device)
        sums.index_add_(0, torch.tensor(rows, device=per_row.device), per_row)
        before = self._sums.get(decision.site)
        if before is not None:
            sums[: len(before)] += before.to(sums.device)
        self._sums[decision.site] = sums

    def _row(self, group: str) -> int:
        return self._rows.setdefault(group, len(self._rows))


def _numbers(decision: Decision) -> Tensor:
    """A decision's numbers to sum up: (..., T, 4 N + 3), or (..., 1, 4 N + 3) for utterances; zero for padding."""
    weights, valid = decision.weights.float(), decision.valid
    norms = expert_norms(decision.layer, decision.inputs)
    if norms.shape != weights.shape:  # one decision for all tokens of an utterance
        norms = mean_over_tokens(norms, valid).unsqueeze(-2)
    top1 = torch.zeros_like(weights).scatter_(-1, weights.argmax(-1, keepdim=True), 1.0)
    mass = weights.sum(-1, keepdim=True)
    entropy = torch.special.entr(weights / mass).sum(-1, keepdim=True)
    parts = [weights, top1, (weights > 0).float(), norms, entropy, mass, torch.ones_like(mass)]
    numbers = torch.cat(parts, -1)
    kept = valid_of(numbers, valid)
    if kept is not None:
        numbers = numbers.where(kept, 0.0)  # padding may contain anything
    return numbers.to(float64_or_float32(numbers.device))


def mean_over_tokens(values: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over tokens that are not padding: (..., T, N) -> (..., N), rows of one token (B, N) as they are; ``valid``
    as in a `Decision`."""
    if values.dim() < 3:
        return values
    kept = valid_of(values, valid)
    if kept is None:
        return values.mean(-2)
    return values.where(kept, 0.0).sum(-2) / kept.sum(-2).clamp(min=1)


def expert_norms(layer: MoELoRALinear, inputs: Tensor) -> Tensor:
    """(alpha / r) ||B_i A_i x|| of each expert, (..., in_features) -> (..., N), without any (..., N, out_features)."""
    with torch.autocast(inputs.device.type, enabled=False):
        experts = [(expert.lora_A.float(), expert.lora_B.float()) for expert in layer.lora_experts()]
        low = nn.functional.linear(inputs.float(), torch.cat([down for down, _ in experts]))
        low = low.unflatten(-1, (len(experts), layer.rank))
        gram = torch.stack([up.T @ up for _, up in experts])
        squares = torch.einsum("...ni,nij,...nj->...n", low, gram, low)
        return abs(layer.scaling) * squares.clamp(min=0).sqrt()


def _figures(sums: Tensor) -> SiteRouting:
    experts = (len(sums) - 3) // 4
    count = int(sums[-1])
    means = (sums / sums[-1]).float().cpu()
    gate, top1, selected, norms = means[: 4 * experts].split(experts)
    return SiteRouting(count, gate, top1, selected, norms, float(means[-3]), float(means[-2]))

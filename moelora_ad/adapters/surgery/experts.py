"""Changing the experts of an adapted model: add, split, drop, freeze, silence them and knock them out.

Every function changes all mixtures of a model, or those at ``sites``, in place. New experts are new parameters: build
the optimiser afterwards. Saving the model needs a method that makes the new number of experts.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from moelora_ad.adapters.errors import AdapterError
from moelora_ad.adapters.expert import LoRAExpert
from moelora_ad.adapters.gate import Gate
from moelora_ad.adapters.injection import adapted_sites
from moelora_ad.adapters.layer import MoELoRALinear


def freeze_experts(
    model: nn.Module, experts: Collection[int], frozen: bool = True, sites: Collection[str] | None = None
) -> None:
    """Exclude experts from training, or (``frozen=False``) include them again.

    A frozen expert has no gradient, so that no optimiser moves it, weight decay included.

    Raises:
        AdapterError: there is no such expert or site.
    """
    for layer in chosen_mixtures(model, sites, experts, gated=False).values():
        for number in experts:
            for parameter in layer.lora_experts()[number].parameters():
                parameter.requires_grad_(not frozen)
                parameter.grad = None


@torch.no_grad()
def add_expert(model: nn.Module, offset: float = -math.inf, sites: Collection[str] | None = None) -> None:
    """Add a new expert behind the others, initialised like any new one, with ``lora_B`` zero.

    Args:
        model: adapted with MoELoRA.
        offset: offset of its gate logit. -inf silences it: its weight is exactly 0, so that the model's function is
            unchanged, and it learns nothing until `set_logit_offset` changes that. Any other number gives it a share of
            the gate at once.
        sites: dotted paths; None for all mixtures.

    Raises:
        AdapterError: there is no such site, the mixture has been extended, or the offset is not a number.
    """
    mixtures, gates = chosen_mixtures(model, sites), chosen_gates(model, sites)
    _check_offset(offset)
    _check_not_extended(gates)
    for layer in mixtures.values():
        base, like = layer.base, layer.lora_experts()[-1].lora_A
        expert = LoRAExpert(base.in_features, base.out_features, layer.rank).to(like).train(layer.training)
        layer.experts.append(expert)
    for gate in gates.values():
        new = Gate(gate.weight.shape[1], 1).to(gate.weight)
        rows = {"weight": torch.cat([gate.weight, new.weight])}
        if gate.noise_weight is not None and new.noise_weight is not None:
            rows["noise_weight"] = torch.cat([gate.noise_weight, new.noise_weight])
        offsets = torch.cat([gate.logit_offset, gate.logit_offset.new_full((1,), offset)])
        means = gate.policy.noise_mean
        _rebuild(gate, rows, offsets, None if means is None else (*means, 0.0))


@torch.no_grad()
def set_logit_offset(model: nn.Module, expert: int, offset: float, sites: Collection[str] | None = None) -> None:
    """Set the number that is added to an expert's gate logit: 0 for no offset, -inf to silence the expert.

    Raises:
        AdapterError: there is no such expert or site, the offset is not a number, or all experts would be silent.
    """
    chosen_mixtures(model, sites, [expert])
    _check_offset(offset)
    gates = chosen_gates(model, sites)
    changed = {site: _offsets(site, gate, [expert], offset) for site, gate in gates.items()}
    for site, gate in gates.items():
        gate.set_offsets(changed[site])


@torch.no_grad()
def split_expert(
    model: nn.Module,
    expert: int,
    perturbation: float = 0.01,
    generator: torch.Generator | None = None,
    sites: Collection[str] | None = None,
) -> None:
    """Replace an expert by two halves, one in its place and one behind all others, without changing the function.

    Both get its matrices and gate rows, and half its gate weight: log 2, times the temperature, is subtracted from its
    logit offset. A perturbation is added to one half's lora_A and subtracted from the other's, which cancels as long as
    their gates agree. (In training, noise is drawn for each half separately.)

    Args:
        model: adapted with MoELoRA, with dense gates.
        expert: number of the expert.
        perturbation: its standard deviation, relative to the root mean square of lora_A.
        generator: random generator of the perturbation, on the CPU; None for torch's own.
        sites: dotted paths; None for all mixtures.

    Raises:
        AdapterError: there is no such expert or site; or a gate keeps the top k, where two halves would be chosen
            instead of one expert and another; or the mixture has been extended; or the perturbation is not a number of
            0 or more.
    """
    check_perturbation(perturbation)
    mixtures = chosen_mixtures(model, sites, [expert])
    _check_not_extended(chosen_gates(model, sites))
    for site, layer in mixtures.items():
        if not is_dense(gate_of(layer)):
            raise AdapterError(
                f"{site}: a top-{gate_of(layer).policy.top_k} gate would keep both halves instead of one expert "
                "and another; only experts of dense gates can be split"
            )
    for layer in mixtures.values():
        one = layer.lora_experts()[expert]
        other = LoRAExpert(layer.in_features, layer.out_features, layer.rank).to(one.lora_A).train(layer.training)
        noise = perturbation * relative_noise(one.lora_A, generator)
        other.lora_A.copy_(one.lora_A - noise)
        other.lora_B.copy_(one.lora_B)
        one.lora_A.add_(noise)
        other.requires_grad_(one.lora_A.requires_grad)
        layer.experts.append(other)
    for gate in chosen_gates(model, sites).values():
        order = [*range(gate.num_experts), expert]
        gate.logit_offset[expert] -= math.log(2) * gate.policy.temperature
        _keep_all(gate)
        _reorder(gate, order)


@torch.no_grad()
def drop_expert(model: nn.Module, expert: int, sites: Collection[str] | None = None) -> None:
    """Remove an expert; those behind it move up. A dense gate stays dense; the last expert left loses its gate and is a
    plain LoRA.

    Raises:
        AdapterError: there is no such expert or site, or all experts left would be silent, or all would be those that
            the mixture was extended by.
    """
    mixtures = chosen_mixtures(model, sites, [expert])
    gates = chosen_gates(model, sites)
    for site, gate in gates.items():
        if expert < len(gate.weight) == 1 and gate.added:
            raise AdapterError(f"{site}: expert {expert} cannot be dropped, since the others were added to it")
        _offsets(site, gate, [expert], -math.inf)
    for layer in mixtures.values():
        layer.experts = nn.ModuleList([e for number, e in enumerate(layer.experts) if number != expert])
        if len(layer.experts) == 1:
            layer.remove_gate()
    for gate in gates.values():
        if is_dense(gate):
            _keep_all(gate)
        _reorder(gate, [number for number in range(gate.num_experts) if number != expert])


@contextmanager
def knocked_out(
    model: nn.Module, experts: Collection[int], redistribute: bool = True, sites: Collection[str] | None = None
) -> Iterator[None]:
    """Take experts out of the model within the block, for evaluation.

    Args:
        model: an adapted model.
        experts: numbers of the experts to take out.
        redistribute: take the softmax over the experts that remain, as if the others did not exist; False keeps every
            gate weight and removes the experts' updates only.
        sites: dotted paths; None for all.

    Raises:
        AdapterError: there is no such expert or site, or no expert remains for the gate to choose.
    """
    mixtures = chosen_mixtures(model, sites, experts, gated=redistribute)
    gates = chosen_gates(model, sites) if redistribute else {}
    silenced = {site: _offsets(site, gate, experts, -math.inf) for site, gate in gates.items()}
    offsets = {site: gate.offsets() for site, gate in gates.items()}
    chosen = [] if redistribute else [layer.lora_experts()[n] for layer in mixtures.values() for n in set(experts)]
    ups = [expert.lora_B.detach().clone() for expert in chosen]
    try:
        with torch.no_grad():
            for site, gate in gates.items():
                gate.set_offsets(silenced[site])
            for expert in chosen:
                expert.lora_B.zero_()
        yield
    finally:
        with torch.no_grad():
            for site, gate in gates.items():
                gate.set_offsets(offsets[site])
            for expert, up in zip(chosen, ups, strict=True):
                expert.lora_B.copy_(up)


def chosen_mixtures(
    model: nn.Module, sites: Collection[str] | None, experts: Collection[int] = (), gated: bool = True
) -> dict[str, MoELoRALinear]:
    """The chosen projections, all of which have these experts."""
    found = {site: layer for site, layer in adapted_sites(model) if not gated or layer.gate is not None}
    if sites is not None:
        if missing := [site for site in sites if site not in found]:
            raise AdapterError(f"{missing[0]} is not {'a mixture' if gated else 'an adapted projection'} of the model")
        chosen = {site: layer for site, layer in found.items() if site in set(sites)}
        shared = {
            id(layer.gate): site for site, layer in found.items() if site not in chosen and layer.gate is not None
        }
        for site, layer in chosen.items():
            if gated and id(layer.gate) in shared:
                raise AdapterError(f"{site} shares its gate with {shared[id(layer.gate)]}: choose both or neither")
        found = chosen
    if not found:
        raise AdapterError("the model has no mixtures: adapt it with MoELoRA" if gated else "the model is not adapted")
    for site, layer in found.items():
        for number in experts:
            if not 0 <= number < len(layer.experts):
                raise AdapterError(f"{site} has experts 0 to {len(layer.experts) - 1}, there is no {number}")
    return found


def chosen_gates(model: nn.Module, sites: Collection[str] | None) -> dict[str, Gate]:
    """The gates of the chosen projections, each once, by the dotted path of its first projection."""
    gates: dict[int, tuple[str, Gate]] = {}
    for site, layer in chosen_mixtures(model, sites).items():
        gates.setdefault(id(layer.gate), (site, gate_of(layer)))
    return dict(gates.values())


def gate_of(layer: MoELoRALinear) -> Gate:
    assert layer.gate is not None
    return layer.gate


def is_dense(gate: Gate) -> bool:
    return gate.policy.top_k is None or gate.policy.top_k == len(gate.weight)


def _keep_all(gate: Gate) -> None:
    """Make a gate whose top k is the number of its experts keep all of them, whatever their number becomes."""
    if gate.policy.top_k is not None:
        gate.policy = replace(gate.policy, top_k=None, order="softmax_first")


def check_perturbation(perturbation: float) -> None:
    if not (perturbation >= 0 and math.isfinite(perturbation)):
        raise AdapterError(f"perturbation is {perturbation}: give 0 or more")


def relative_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Gaussian noise in the shape of a tensor, with the tensor's own root mean square."""
    return like.square().mean().sqrt() * torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like)


def _check_offset(offset: float) -> None:
    if math.isnan(offset) or offset == math.inf:
        raise AdapterError(f"the logit offset is {offset}: give a number, or -inf for silence")


def _offsets(site: str, gate: Gate, experts: Iterable[int], offset: float) -> Tensor:
    """A gate's logit offsets, those of some experts replaced; refused if that would silence all experts."""
    offsets = gate.offsets()
    offsets[list(experts)] = offset
    if bool((offsets[: len(gate.weight)] == -math.inf).all()):
        raise AdapterError(
            f"{site}: no expert would be left that its gate can choose; keep one, or remove updates alone with "
            "knocked_out(..., redistribute=False)"
        )
    return offsets


def _check_not_extended(gates: Mapping[str, Gate]) -> None:
    for site, gate in gates.items():
        if gate.policy.added:
            raise AdapterError(
                f"{site} has been extended: experts that share its softmax would come after those that do not"
            )


def _reorder(gate: Gate, order: Sequence[int]) -> None:
    """Rebuild a gate from its own rows in another order, which may repeat rows or leave some out."""
    mixed = len(gate.weight)
    chosen = [number for number in order if number < mixed]
    gate.added = nn.ModuleList([gate.added[number - mixed] for number in order if number >= mixed])
    rows = {"weight": gate.weight[chosen]}
    if gate.noise_weight is not None:
        rows["noise_weight"] = gate.noise_weight[chosen]
    means = gate.policy.noise_mean
    _rebuild(gate, rows, gate.logit_offset[chosen], None if means is None else tuple(means[i] for i in chosen))


def _rebuild(gate: Gate, rows: Mapping[str, Tensor], offsets: Tensor, means: tuple[float, ...] | None) -> None:
    for name, values in rows.items():
        before = gate.get_parameter(name)
        setattr(gate, name, nn.Parameter(values.detach().clone(), requires_grad=before.requires_grad))
    gate.logit_offset = offsets.clone()
    gate.policy = replace(gate.policy, noise_mean=means, added=len(gate.added))
    if means is not None:
        gate.noise_mean = torch.tensor(means, dtype=torch.float32, device=offsets.device)

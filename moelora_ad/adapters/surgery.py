"""Changing the experts of an adapted model: start them, add, split, drop, freeze and knock them out.

Every function changes all mixtures of a model, or those at ``sites``, in place. New experts are new parameters: build
the optimiser afterwards.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from moelora_ad.adapters.errors import AdapterError
from moelora_ad.adapters.gate import Gate
from moelora_ad.adapters.injection import adapted_sites
from moelora_ad.adapters.layer import MoELoRALinear
from moelora_ad.adapters.lora import LoRAExpert
from moelora_ad.adapters.lora_files import LoRAUpdate, check_sites


@torch.no_grad()
def warm_start(
    model: nn.Module,
    update: Mapping[str, LoRAUpdate],
    perturbation: float = 0.01,
    generator: torch.Generator | None = None,
) -> None:
    """Start all experts of every mixture from one trained LoRA.

    Gates whose weights sum to 1 keep the LoRA's function exactly if the perturbation is 0; but then all experts get the
    same gradient, up to their gates. The perturbations of a projection's experts sum to 0.

    Args:
        model: adapted with MoELoRA, at the LoRA's projections and of its rank.
        update: see `read_lora` and `lora_updates`.
        perturbation: standard deviation of what is added to each lora_A, in parts of lora_A's own root mean square.
        generator: of the perturbation; None for torch's own.

    Raises:
        AdapterError: projections or shapes differ, or kept gate weights do not sum to 1. Nothing is changed then.
    """
    sites = _mixtures(model, None)
    for site, layer in sites.items():
        gate = _gate(layer)
        policy, dense = gate.policy, _is_dense(gate)
        if not (dense or policy.renormalise or policy.order == "top_k_first"):
            raise AdapterError(
                f"{site}: the kept weights of a top-{policy.top_k} gate sum to less than 1, so that the LoRA's update "
                "would shrink: renormalise, or start from a dense gate"
            )
    _put(sites, [update] * max(len(layer.experts) for layer in sites.values()))
    for layer in sites.values():
        downs = torch.stack([expert.lora_A for expert in layer.lora_experts()])
        noise = torch.randn(downs.shape, generator=generator, dtype=torch.float32).to(downs)
        noise = perturbation * downs.square().mean().sqrt() * (noise - noise.mean(0))
        for expert, change in zip(layer.lora_experts(), noise, strict=True):
            expert.lora_A.add_(change)


@torch.no_grad()
def mixture_of_loras(model: nn.Module, updates: Sequence[Mapping[str, LoRAUpdate]], freeze: bool = True) -> None:
    """Make each of N separately trained LoRAs an expert of every mixture.

    Args:
        model: adapted with MoELoRA, with N experts at the LoRAs' projections and of their rank.
        updates: of expert 0 to N - 1.
        freeze: train the gates alone.

    Raises:
        AdapterError: projections, shapes or the number of experts differ. Nothing is changed then.
    """
    sites = _mixtures(model, None)
    for site, layer in sites.items():
        if len(layer.experts) != len(updates):
            raise AdapterError(f"{site} has {len(layer.experts)} experts, there are {len(updates)} LoRAs")
    _put(sites, updates)
    if freeze:
        freeze_experts(model, range(len(updates)))


def freeze_experts(
    model: nn.Module, experts: Collection[int], frozen: bool = True, sites: Collection[str] | None = None
) -> None:
    """Exclude experts from training, or (``frozen=False``) take them in again.

    A frozen expert has no gradient, so that no optimiser moves it, weight decay included.

    Raises:
        AdapterError: there is no such expert or site.
    """
    for layer in _mixtures(model, sites, experts, gated=False).values():
        for number in experts:
            for parameter in layer.lora_experts()[number].parameters():
                parameter.requires_grad_(not frozen)
                parameter.grad = None


@torch.no_grad()
def add_expert(model: nn.Module, offset: float = -math.inf, sites: Collection[str] | None = None) -> None:
    """Add a new expert behind the others, initialised like any new one, with ``lora_B`` zero.

    Args:
        model: adapted with MoELoRA.
        offset: of its gate logit. -inf silences it: the model's function stays, and the expert learns nothing until
            `set_logit_offset` wakes it. Any other number gives it a share of the gate at once.
        sites: dotted paths; None for all mixtures.

    Raises:
        AdapterError: there is no such site.
    """
    for layer in _mixtures(model, sites).values():
        base, like = layer.base, layer.lora_experts()[-1].lora_A
        expert = LoRAExpert(base.in_features, base.out_features, layer.rank).to(like).train(layer.training)
        layer.experts.append(expert)
    for gate in _gates(model, sites):
        new = Gate(gate.weight.shape[1], 1).to(gate.weight)
        rows = {"weight": torch.cat([gate.weight, new.weight])}
        if gate.noise_weight is not None and new.noise_weight is not None:
            rows["noise_weight"] = torch.cat([gate.noise_weight, new.noise_weight])
        offsets = torch.cat([gate.logit_offset, gate.logit_offset.new_full((1,), offset)])
        means = gate.policy.noise_mean
        _rebuild(gate, rows, offsets, None if means is None else (*means, 0.0))


@torch.no_grad()
def set_logit_offset(model: nn.Module, expert: int, offset: float, sites: Collection[str] | None = None) -> None:
    """Set what is added to an expert's gate logit: 0 for nothing, -inf to silence it.

    Raises:
        AdapterError: there is no such expert or site.
    """
    _mixtures(model, sites, [expert])
    for gate in _gates(model, sites):
        gate.logit_offset[expert] = offset


@torch.no_grad()
def split_expert(
    model: nn.Module,
    expert: int,
    perturbation: float = 0.01,
    generator: torch.Generator | None = None,
    sites: Collection[str] | None = None,
) -> None:
    """Replace an expert by two halves, one in its place and one behind all others, without changing the function.

    Both get its matrices and gate rows, and half its gate weight by a logit offset of - log 2. A perturbation is added
    to lora_A of the one and taken from the other's, which cancels as long as their gates agree. (In training, noise is
    drawn for each half by itself.)

    Args:
        model: adapted with MoELoRA, with dense gates.
        expert: number of the expert.
        perturbation: standard deviation, in parts of the root mean square of lora_A.
        generator: of the perturbation; None for torch's own.
        sites: dotted paths; None for all mixtures.

    Raises:
        AdapterError: there is no such expert or site; or a gate keeps the top k, where two halves would be chosen
            instead of one expert and another.
    """
    mixtures = _mixtures(model, sites, [expert])
    for site, layer in mixtures.items():
        if not _is_dense(_gate(layer)):
            raise AdapterError(
                f"{site}: a top-{_gate(layer).policy.top_k} gate would keep both halves in the place of one expert and "
                "another; only experts of dense gates can be split"
            )
    for layer in mixtures.values():
        one = layer.lora_experts()[expert]
        other = LoRAExpert(layer.in_features, layer.out_features, layer.rank).to(one.lora_A).train(layer.training)
        noise = torch.randn(one.lora_A.shape, generator=generator, dtype=torch.float32).to(one.lora_A)
        noise = perturbation * one.lora_A.square().mean().sqrt() * noise
        other.lora_A.copy_(one.lora_A - noise)
        other.lora_B.copy_(one.lora_B)
        one.lora_A.add_(noise)
        other.requires_grad_(one.lora_A.requires_grad)
        layer.experts.append(other)
    for gate in _gates(model, sites):
        order = [*range(gate.num_experts), expert]
        gate.logit_offset[expert] -= math.log(2) * gate.policy.temperature
        if gate.policy.top_k is not None:  # as many as there were: all
            gate.policy = replace(gate.policy, top_k=None, order="softmax_first")
        _reorder(gate, order)


@torch.no_grad()
def drop_expert(model: nn.Module, expert: int, sites: Collection[str] | None = None) -> None:
    """Remove an expert; those behind it move up. The last one left loses its gate and is a plain LoRA.

    Raises:
        AdapterError: there is no such expert or site, or a gate's top-k exceeds what would be left.
    """
    mixtures = _mixtures(model, sites, [expert])
    gates = _gates(model, sites)
    for gate in gates:
        left = gate.num_experts - 1
        if gate.policy.top_k is not None and gate.policy.top_k > left:
            raise AdapterError(f"the gates keep the top {gate.policy.top_k}: {left} experts would be left")
    for layer in mixtures.values():
        layer.experts = nn.ModuleList([e for number, e in enumerate(layer.experts) if number != expert])
        if len(layer.experts) == 1:
            layer.remove_gate()
    for gate in gates:
        _reorder(gate, [number for number in range(gate.num_experts) if number != expert])


@contextmanager
def knocked_out(
    model: nn.Module, experts: Collection[int], redistribute: bool = True, sites: Collection[str] | None = None
) -> Iterator[None]:
    """Take experts out of the model within the block, for evaluation.

    Args:
        model: adapted.
        experts: their numbers.
        redistribute: the gate decides between those that remain, as if the others did not exist; False keeps every
            gate weight and takes away the experts' updates alone.
        sites: dotted paths; None for all.

    Raises:
        AdapterError: there is no such expert or site, or no expert remains for the gate to choose.
    """
    mixtures = _mixtures(model, sites, experts, gated=redistribute)
    tensors: list[tuple[Tensor, Tensor]] = []
    if redistribute:
        for site, layer in mixtures.items():
            if len(set(experts)) >= len(layer.experts):
                raise AdapterError(f"{site} has no other experts: take away their updates with redistribute=False")
        tensors += [(gate.logit_offset, gate.logit_offset.clone()) for gate in _gates(model, sites)]
    else:
        ups = [layer.lora_experts()[number].lora_B for layer in mixtures.values() for number in experts]
        tensors += [(up, up.detach().clone()) for up in ups]
    try:
        with torch.no_grad():
            for tensor, _ in tensors:
                if redistribute:
                    tensor[list(experts)] = -math.inf
                else:
                    tensor.zero_()
        yield
    finally:
        with torch.no_grad():
            for tensor, before in tensors:
                tensor.copy_(before)


def _mixtures(
    model: nn.Module, sites: Collection[str] | None, experts: Collection[int] = (), gated: bool = True
) -> dict[str, MoELoRALinear]:
    """The chosen projections, all of which have these experts."""
    found = {site: layer for site, layer in adapted_sites(model) if not gated or layer.gate is not None}
    if sites is not None:
        if missing := [site for site in sites if site not in found]:
            raise AdapterError(f"{missing[0]} is no {'mixture' if gated else 'adapted projection'} of the model")
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


def _gates(model: nn.Module, sites: Collection[str] | None) -> list[Gate]:
    """The gates of the chosen projections, each once."""
    gates = {id(layer.gate): _gate(layer) for layer in _mixtures(model, sites).values()}
    return list(gates.values())


def _gate(layer: MoELoRALinear) -> Gate:
    assert layer.gate is not None
    return layer.gate


def _is_dense(gate: Gate) -> bool:
    return gate.policy.top_k is None or gate.policy.top_k == gate.num_experts


def _put(sites: Mapping[str, MoELoRALinear], updates: Sequence[Mapping[str, LoRAUpdate]]) -> None:
    """Put update i into expert i of every projection."""
    for update in updates:
        check_sites(sites, update)
        for site, layer in sites.items():
            given, own = update[site], layer.lora_experts()[0]
            if (given.lora_A.shape, given.lora_B.shape) != (own.lora_A.shape, own.lora_B.shape):
                raise AdapterError(
                    f"{site}: the LoRA is {tuple(given.lora_A.shape)}, {tuple(given.lora_B.shape)}, the experts are "
                    f"{tuple(own.lora_A.shape)}, {tuple(own.lora_B.shape)}"
                )
    for site, layer in sites.items():
        for expert, update in zip(layer.lora_experts(), updates, strict=False):
            expert.lora_A.copy_(update[site].lora_A)
            expert.lora_B.copy_(update[site].lora_B.to(expert.lora_B) * (update[site].scaling / layer.scaling))


def _reorder(gate: Gate, order: Sequence[int]) -> None:
    """Give a gate some of its own rows, in a new order."""
    chosen = list(order)
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
    if means is not None:
        gate.policy = replace(gate.policy, noise_mean=means)
        gate.noise_mean = torch.tensor(means, dtype=torch.float32, device=offsets.device)

"""Merging adapters into the weights they adapt, and measuring what a static mixture loses."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from moelora_ad.adapters.errors import AdapterError
from moelora_ad.adapters.expert import LoRAExpert
from moelora_ad.adapters.gate import valid_of
from moelora_ad.adapters.injection import adapted_sites
from moelora_ad.adapters.layer import MoELoRALinear
from moelora_ad.adapters.peft.files import LoRAUpdate, check_sites, lora_updates
from moelora_ad.adapters.routing import Decision, watch_gates
from moelora_ad.float64 import float64_or_float32, in_float64


@torch.no_grad()
def static_mixture(model: nn.Module, mean_gates: Mapping[str, Tensor]) -> dict[str, LoRAUpdate]:
    """The mixtures of a model with constant gates, as one LoRA of rank N r each: sum_i g_i B_i A_i.

    Args:
        model: adapted with MoELoRA.
        mean_gates: the weight g (N,) of each expert at every projection: ``record_routing(...).mean_gates()`` over the
            data that the model is for.

    Raises:
        AdapterError: weights of a projection are missing, are of another shape, or belong to no mixture.
    """
    sites = dict(adapted_sites(model))
    check_sites({site: layer for site, layer in sites.items() if layer.gate is not None}, mean_gates)
    updates = {}
    for site, layer in sites.items():
        experts = layer.lora_experts()
        weights = mean_gates[site] if site in mean_gates else torch.ones(1)
        if weights.shape != (len(experts),):
            raise AdapterError(f"{site} has {len(experts)} experts, the mean gates are {tuple(weights.shape)}")
        ups = [weight.to(expert.lora_B) * expert.lora_B for weight, expert in zip(weights, experts, strict=True)]
        downs = torch.cat([expert.lora_A for expert in experts])
        updates[site] = LoRAUpdate(downs.detach().clone(), torch.cat(ups, dim=1), layer.scaling)
    return updates


class Merged:
    """A model whose adapters are merged into its weights, until `undo`.

    Attributes:
        sites: the dotted paths of the merged projections.

    Raises:
        AdapterError: the updates are not those of the adapted projections, or a projection is not a plain ``nn.Linear``
            (a quantised one, a subclass that computes something else). The model is unchanged then.
    """

    def __init__(self, model: nn.Module, updates: Mapping[str, LoRAUpdate]) -> None:
        self._model = model
        self._adapted = dict(adapted_sites(model))
        check_sites(self._adapted, updates)
        self.sites = tuple(self._adapted)
        for site, layer in self._adapted.items():
            kind, dtype = type(layer.base), layer.base.weight.dtype
            if kind.forward is not nn.Linear.forward or not dtype.is_floating_point:
                raise AdapterError(f"{site} is a {kind.__name__} of {dtype}, no plain nn.Linear: it cannot be merged")
        for site, layer in self._adapted.items():
            _put(model, layer, _merged_linear(layer, updates[site]))

    def undo(self) -> None:
        """Put the adapters and the untouched weights back: the model is restored bit for bit.

        Raises:
            AdapterError: the merge has already been undone.
        """
        if not self._adapted:
            raise AdapterError("the merge has already been undone")
        for site, layer in self._adapted.items():
            _put(self._model, self._model.get_submodule(site), layer)
        self._adapted = {}


def merge(model: nn.Module) -> Merged:
    """Replace every LoRA of a model by a plain ``nn.Linear`` with W_0 + (alpha / r) B A, computed in float64.

    Raises:
        AdapterError: the model has no adapters, or mixtures, which have no such weight: see `merge_static_mixture`; or
            a projection is not a plain ``nn.Linear``.
    """
    return Merged(model, lora_updates(model))


def merge_static_mixture(model: nn.Module, mean_gates: Mapping[str, Tensor]) -> Merged:
    """Replace every mixture of a model by a plain ``nn.Linear`` with W_0 + (alpha / r) sum_i g_i B_i A_i.

    `static_mixture_error` measures what this changes. Args and errors: see `static_mixture`.
    """
    return Merged(model, static_mixture(model, mean_gates))


def put_loras(model: nn.Module, updates: Mapping[str, LoRAUpdate]) -> None:
    """Replace a model's adapters by other LoRAs, which are its adapters from then on, and trained with it.

    Args:
        model: an adapted model.
        updates: one for every adapted projection, of any rank.

    Raises:
        AdapterError: an update is missing, belongs to no adapted projection, or has a higher rank than its projection.
    """
    adapted = dict(adapted_sites(model))
    check_sites(adapted, updates)
    made = {site: _lora_layer(layer, updates[site]) for site, layer in adapted.items()}
    for site, layer in adapted.items():
        _put(model, layer, made[site])


@contextmanager
def with_loras(model: nn.Module, updates: Mapping[str, LoRAUpdate]) -> Iterator[None]:
    """Replace a model's adapters by other LoRAs, within the block.

    They are not merged into the weights: in weights of half precision, most of an update would be rounded away.

    Args:
        model: an adapted model; restored afterwards.
        updates: one for every adapted projection, of any rank.

    Raises:
        AdapterError: an update is missing, belongs to no adapted projection, or has a higher rank than its projection.
    """
    adapted = dict(adapted_sites(model))
    put_loras(model, updates)
    try:
        yield
    finally:
        for site, layer in adapted.items():
            _put(model, model.get_submodule(site), layer)


def _lora_layer(layer: MoELoRALinear, update: LoRAUpdate) -> MoELoRALinear:
    base, rank = layer.base, len(update.lora_A)
    try:
        with torch.device("meta"):
            expert = LoRAExpert(base.in_features, base.out_features, rank)
    except ValueError as error:
        raise AdapterError(f"no LoRA: {error}") from None
    expert.lora_A = nn.Parameter(update.lora_A.to(base.weight.device))
    expert.lora_B = nn.Parameter(update.lora_B.to(base.weight.device))
    return MoELoRALinear(base, [expert], alpha=update.scaling * rank).train(layer.training)


@torch.no_grad()
def _merged_linear(layer: MoELoRALinear, update: LoRAUpdate) -> nn.Linear:
    base = layer.base
    with torch.device("meta"):
        merged = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None)
    delta = update.scaling * (in_float64(update.lora_B) @ in_float64(update.lora_A))
    exact = in_float64(base.weight)
    weight = (exact + delta.to(exact.device)).to(base.weight)
    merged.weight = nn.Parameter(weight, requires_grad=base.weight.requires_grad)
    merged.bias = base.bias
    return merged.train(layer.training)


def _put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a module in all its places by another."""
    places = [name for name, module in model.named_modules(remove_duplicate=False) if module is old]
    for place in places:
        path, _, child = place.rpartition(".")
        setattr(model.get_submodule(path), child, new)


class StaticError:
    """Relative error of static mixtures against what the gates decided, over the watched tokens."""

    def __init__(self, mean_gates: Mapping[str, Tensor]) -> None:
        self._gates = mean_gates
        self._sums: dict[str, Tensor] = {}  # site -> (squared error, squared norm)

    @property
    def sites(self) -> dict[str, float]:
        """sqrt(sum ||sum_i (G_i(x) - g_i) B_i A_i x||^2 / sum ||sum_i G_i(x) B_i A_i x||^2) of every projection."""
        return {site: _ratio(sums) for site, sums in self._sums.items()}

    @property
    def overall(self) -> float:
        """The relative error over all projections together."""
        if not self._sums:
            raise AdapterError("no forward pass was watched")
        return _ratio(torch.stack([sums.cpu() for sums in self._sums.values()]).sum(0))

    @torch.no_grad()
    def add(self, decision: Decision) -> None:
        """Count a decision."""
        layer, weights = decision.layer, decision.weights.float()
        experts = layer.lora_experts()
        with torch.autocast(decision.inputs.device.type, enabled=False):
            downs = torch.cat([expert.lora_A.float() for expert in experts])
            ups = torch.cat([expert.lora_B.float() for expert in experts], dim=1)
            low = nn.functional.linear(decision.inputs.float(), downs).unflatten(-1, (len(experts), -1))
            gram = layer.scaling**2 * (ups.T @ ups)
            gates = self._gates[decision.site].to(weights)
            squares = []
            for mix in (weights - gates, weights):
                mixed = (mix.unsqueeze(-1) * low).flatten(-2)
                squares.append(((mixed @ gram) * mixed).sum(-1).to(float64_or_float32(mixed.device)))
        numbers = torch.stack(squares, -1)
        valid = valid_of(numbers, decision.valid)
        if valid is not None:
            numbers = numbers.where(valid, 0.0)
        sums = numbers.flatten(0, -2).sum(0)
        self._sums[decision.site] = sums + self._sums.get(decision.site, 0.0)


def _ratio(sums: Tensor) -> float:
    error, norm = sums.tolist()
    return float((max(error, 0.0) / norm) ** 0.5) if norm > 0 else 0.0


@contextmanager
def static_mixture_error(model: nn.Module, mean_gates: Mapping[str, Tensor]) -> Iterator[StaticError]:
    """Measure, over the forward passes of the block, what constant gates would change.

    Args:
        model: adapted with MoELoRA, not merged.
        mean_gates: as for `static_mixture`.

    Raises:
        AdapterError: the model has no gates, or the weights are not those of its mixtures.
    """
    check_sites({site: layer for site, layer in adapted_sites(model) if layer.gate is not None}, mean_gates)
    error = StaticError(mean_gates)
    with watch_gates(model, error.add):
        yield error

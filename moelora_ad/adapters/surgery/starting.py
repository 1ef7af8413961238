"""Starting the experts of an adapted model from trained LoRAs."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from moelora_ad.adapters.errors import AdapterError
from moelora_ad.adapters.layer import MoELoRALinear
from moelora_ad.adapters.peft.files import LoRAUpdate, check_sites
from moelora_ad.adapters.surgery.experts import (
    check_perturbation,
    chosen_mixtures,
    freeze_experts,
    gate_of,
    is_dense,
    relative_noise,
)

Updates = Mapping[str, LoRAUpdate]


@torch.no_grad()
def warm_start(
    model: nn.Module,
    update: Updates,
    perturbation: float = 0.01,
    generator: torch.Generator | None = None,
    sites: Collection[str] | None = None,
) -> None:
    """Start all experts of every mixture from one trained LoRA.

    Gates whose weights sum to 1 keep the LoRA's function exactly if the perturbation is 0; but then all experts get the
    same gradient, up to their gates. The perturbations of a projection's experts sum to 0.

    Args:
        model: adapted with MoELoRA, at the LoRA's projections and of its rank.
        update: the trained LoRA, see `read_lora` and `lora_updates`.
        perturbation: standard deviation of what is added to each lora_A, relative to lora_A's own root mean square.
        generator: random generator of the perturbation, on the CPU; None for torch's own.
        sites: dotted paths of the mixtures to start, whatever else the LoRA has; None for all.

    Raises:
        AdapterError: projections or shapes differ, kept gate weights do not sum to 1, or the perturbation is not a
            number of 0 or more. The model is unchanged then.
    """
    check_perturbation(perturbation)
    mixtures = chosen_mixtures(model, sites)
    for site, layer in mixtures.items():
        gate = gate_of(layer)
        policy = gate.policy
        if policy.added:
            raise AdapterError(
                f"{site} has been extended: the weights of its experts sum to more than 1, so that the LoRA's update "
                "would grow"
            )
        if not (is_dense(gate) or policy.renormalise or policy.order == "top_k_first"):
            raise AdapterError(
                f"{site}: the kept weights of a top-{policy.top_k} gate sum to less than 1, so that the LoRA's update "
                "would shrink: renormalise, or start from a dense gate"
            )
    _put(mixtures, [update] * max(len(layer.experts) for layer in mixtures.values()), sites)
    for layer in mixtures.values():
        noise = relative_noise(torch.stack([expert.lora_A for expert in layer.lora_experts()]), generator)
        for expert, change in zip(layer.lora_experts(), perturbation * (noise - noise.mean(0)), strict=True):
            expert.lora_A.add_(change)


@torch.no_grad()
def mixture_of_loras(
    model: nn.Module, updates: Sequence[Updates], freeze: bool = True, sites: Collection[str] | None = None
) -> None:
    """Make each of N separately trained LoRAs an expert of every mixture.

    Args:
        model: adapted with MoELoRA, with N experts at the LoRAs' projections and of their rank.
        updates: the LoRAs of experts 0 to N - 1.
        freeze: freeze the experts, so that only the gates are trained.
        sites: dotted paths of the mixtures to make, whatever else the LoRAs have; None for all.

    Raises:
        AdapterError: projections, shapes or the number of experts differ. The model is unchanged then.
    """
    mixtures = chosen_mixtures(model, sites)
    for site, layer in mixtures.items():
        if len(layer.experts) != len(updates):
            raise AdapterError(f"{site} has {len(layer.experts)} experts, there are {len(updates)} LoRAs")
    _put(mixtures, updates, sites)
    if freeze:
        freeze_experts(model, range(len(updates)), sites=sites)


def _put(mixtures: Mapping[str, MoELoRALinear], updates: Sequence[Updates], sites: Collection[str] | None) -> None:
    """Put update i into expert i of every projection."""
    for update in updates:
        check_sites(mixtures, update if sites is None else {site: update[site] for site in mixtures if site in update})
        for site, layer in mixtures.items():
            given, own = update[site], layer.lora_experts()[0]
            if (given.lora_A.shape, given.lora_B.shape) != (own.lora_A.shape, own.lora_B.shape):
                raise AdapterError(
                    f"{site}: the LoRA is {tuple(given.lora_A.shape)}, {tuple(given.lora_B.shape)}, the experts are "
                    f"{tuple(own.lora_A.shape)}, {tuple(own.lora_B.shape)}"
                )
    for site, layer in mixtures.items():
        for expert, update in zip(layer.lora_experts(), updates, strict=False):
            expert.lora_A.copy_(update[site].lora_A)
            expert.lora_B.copy_(update[site].lora_B.to(expert.lora_B) * (update[site].scaling / layer.scaling))

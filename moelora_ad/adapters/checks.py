"""Checks of methods, and that a model's adapters are those of its method: others could not be loaded once saved, or
would compute something else."""

import math
from collections.abc import Collection

from torch import nn

from moelora_ad.adapters.errors import AdapterError
from moelora_ad.adapters.gate import GatePolicy
from moelora_ad.adapters.injection import adapted_sites
from moelora_ad.adapters.sites import layer_of


def check_alpha(alpha: float | None) -> None:
    """Check a method's alpha.

    Raises:
        ValueError: it is not above 0.
    """
    if alpha is not None and not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha is {alpha}: give a number above 0, or null for no scale")


def check_low_rank(encoder: nn.Module, sites: Collection[str], rank: int = 0, alpha: float | None = None) -> None:
    """Check that exactly some projections are adapted, with one rank and scaling.

    Raises:
        AdapterError: other projections are adapted, or otherwise.
    """
    layers = dict(adapted_sites(encoder))
    if missing := [site for site in sites if site not in layers]:
        raise AdapterError(f"{missing[0]} has no adapter, as after a merge (which can be undone)")
    for site, layer in layers.items():
        if site not in sites:
            raise AdapterError(f"{site} is adapted, the method leaves it as it is")
        scaling = 1.0 if alpha is None else alpha / rank
        if layer.rank != rank or not math.isclose(layer.scaling, scaling):
            raise AdapterError(
                f"{site} has rank {layer.rank} and scaling {layer.scaling:g}, the method makes {rank} and {scaling:g}"
            )


def check_lora(encoder: nn.Module) -> None:
    """Check that adapted projections are no mixtures.

    Raises:
        AdapterError: one is.
    """
    for site, layer in adapted_sites(encoder):
        if layer.gate is not None or len(layer.experts) != 1:
            raise AdapterError(f"{site} is a mixture of {len(layer.experts)} experts, the method makes one LoRA")


def check_mixtures(encoder: nn.Module, num_experts: int, policy: GatePolicy, share_gate: bool) -> None:
    """Check that adapted projections are mixtures of one number of experts, one policy and one way of sharing gates.

    Raises:
        AdapterError: they are not.
    """
    owners = set()
    for site, layer in adapted_sites(encoder):
        if len(layer.experts) != num_experts:
            raise AdapterError(f"{site} has {len(layer.experts)} experts, the method makes {num_experts}")
        if layer.gate is None or layer.gate.policy != policy:
            raise AdapterError(f"the gate of {site} follows another policy than the method's")
        owners.add((layer_of(site) if share_gate else site, id(layer.gate)))
    places, gates = zip(*owners, strict=True)
    if not len(owners) == len(set(places)) == len(set(gates)):
        raise AdapterError(f"the method's share_gate is {share_gate}, but gates are shared otherwise")

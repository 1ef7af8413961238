"""Putting adapted projections into a model, and what is whose afterwards."""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence

from torch import nn
from torch.utils.hooks import RemovableHandle

from moelora_ad.adapters.gate import Gate
from moelora_ad.adapters.layer import MoELoRALinear
from moelora_ad.adapters.lora import LoRAExpert


class InjectionError(ValueError):
    """The adapter does not fit the model; the message names the sites or the patterns."""


def inject(
    model: nn.Module, targets: str | Sequence[str], build: Callable[[nn.Linear], MoELoRALinear]
) -> tuple[str, ...]:
    """Replace every targeted ``nn.Linear`` of the model by ``build(linear)``, in place.

    Args:
        model: any module that has the projections below it.
        targets: module names, each matching the end of a dotted path (``q_proj`` matches ``layers.0.attn.q_proj``);
            or one string, a regular expression that must match the whole path. (peft's convention.)
        build: makes the adapted projection from the one that stands there.

    Returns:
        The dotted paths of the replaced projections, in the model's order.

    Raises:
        InjectionError: a target matches no ``nn.Linear``, or the model is adapted already.
    """
    if adapted := [name for name, _ in adapted_sites(model)]:
        raise InjectionError(f"the model is adapted already, first at {adapted[0]}: inject into a fresh model")
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    sites = _matches(list(linears), targets)
    for site in sites:
        parent, _, child = site.rpartition(".")
        with linears[site].weight.device:  # the adapter is made where the projection lies, the meta device included
            setattr(model.get_submodule(parent), child, build(linears[site]))
    return tuple(sites)


def _matches(names: list[str], targets: str | Sequence[str]) -> list[str]:
    if isinstance(targets, str):
        try:
            pattern = re.compile(targets)
        except re.error as error:
            raise InjectionError(f"targets: {targets!r} is not a regular expression: {error}") from None
        sites = [name for name in names if pattern.fullmatch(name)]
        if not sites:
            raise InjectionError(f"targets: {targets!r} matches no linear layer; the model has {_known(names)}")
        return sites
    for target in targets:
        if not any(_ends_with(name, target) for name in names):
            near = difflib.get_close_matches(target, sorted({name.rpartition(".")[2] for name in names}), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; the model has {_known(names)}"
            raise InjectionError(f"targets: {target!r} matches no linear layer{hint}")
    return [name for name in names if any(_ends_with(name, target) for target in targets)]


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _known(names: list[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names})) or "none at all"


def adapted_sites(model: nn.Module) -> Iterator[tuple[str, MoELoRALinear]]:
    """The adapted projections of the model with their dotted paths, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, MoELoRALinear):
            yield name, module


def adapter_modules(model: nn.Module) -> Iterator[tuple[str, LoRAExpert | Gate]]:
    """The experts and gates of the model with their dotted paths: what adaptation added to it."""
    for name, module in model.named_modules():
        if isinstance(module, LoRAExpert | Gate):
            yield name, module


class CallWatch:
    """Watches that every adapted projection is called.

    A model can read a projection's weight instead of calling the projection (WavLM's attention in transformers 5
    does); an adapter there would silently never act.
    """

    def __init__(self, model: nn.Module) -> None:
        self._uncalled = {name: None for name, _ in adapted_sites(model)}  # a dict keeps the model's order
        self._handles: list[RemovableHandle] = []
        for name, site in adapted_sites(model):
            self._handles.append(site.register_forward_pre_hook(lambda *_, name=name: self._uncalled.pop(name, None)))

    def finish(self) -> None:
        """Stop watching.

        Raises:
            InjectionError: some adapted projections were not called since the watch began; it names them.
        """
        for handle in self._handles:
            handle.remove()
        if self._uncalled:
            names = list(self._uncalled)
            raise InjectionError(
                f"{len(names)} adapted projections were never called, the model reads their weights past the adapter: "
                f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}; choose other targets"
            )

"""Putting adapted projections into a model, finding them again, and checking that the model calls them."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import nn

from moelora_ad.adapters.errors import InjectionError
from moelora_ad.adapters.expert import LoRAExpert
from moelora_ad.adapters.gate import Gate
from moelora_ad.adapters.layer import MoELoRALinear
from moelora_ad.adapters.patterns import bounded_pattern
from moelora_ad.adapters.sites import layer_of
from moelora_ad.torch_internals import uncompiled

Build = Callable[[nn.Linear, str], nn.Module]


@dataclass(frozen=True)
class LayerRange:
    """Some layers of a stack, by the number in their dotted paths (``encoder.layers.7.attention.q_proj``: 7).

    Args:
        first: number of the first layer, from 0; a negative number counts from the end, -1 is the last layer.
        last: number of the last layer, included; None for the last layer of the model.
    """

    first: int = 0
    last: int | None = None

    def numbers(self, num_layers: int) -> range:
        """The numbers of the chosen layers in a stack of ``num_layers``."""
        first, last = (
            end + num_layers if end < 0 else end for end in (self.first, -1 if self.last is None else self.last)
        )
        return range(max(first, 0), min(last, num_layers - 1) + 1)


def inject(
    model: nn.Module, targets: str | Sequence[str], build: Build, layers: LayerRange | None = None
) -> tuple[str, ...]:
    """Replace every targeted ``nn.Linear`` of the model by ``build(linear, site)``, in place.

    A projection that occurs in several places is replaced in all of them by the same adapted one. In
    ``nn.TransformerEncoderLayer`` the fused path of inference, which reads weights without calling any projection, is
    turned off, and in ``nn.TransformerEncoder`` the nested tensors, which are for that path only.

    Args:
        model: any module that contains the projections.
        targets: module names, each matching the end of a dotted path (``q_proj`` matches ``layers.0.attn.q_proj``);
            or one string, a regular expression that must match the whole path. (peft's convention.)
        build: makes the module that replaces a projection, from the original one and its dotted path.
        layers: the layers whose projections are replaced; None for all projections, in numbered layers or not.

    Returns:
        The dotted paths of the replaced projections, in the model's order.

    Raises:
        InjectionError: there is no target; a target matches no ``nn.Linear``, or one whose weight the model reads
            without calling it; the range is empty; ``build`` raised a ValueError; or the model is already adapted, or
            itself a projection. The model is unchanged then.
    """
    if adapted := [name for name, _ in adapted_sites(model)]:
        raise InjectionError(f"the model is already adapted, first at {adapted[0]}: inject into a fresh model")
    sites = targeted_sites(model, targets, layers)
    if "" in sites:
        raise InjectionError("the model is itself a projection: adapt a module that contains it, as nn.Sequential does")
    for site in sites:
        if isinstance(model.get_submodule(site.rpartition(".")[0]), nn.MultiheadAttention):
            raise InjectionError(
                f"{site}: nn.MultiheadAttention reads this projection's weight and never calls it; choose other targets"
            )
    places: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(name)
    made: dict[str, nn.Module] = {}  # all are built before the first is put in: after an error the model is as it was
    for site in sites:
        linear = cast(nn.Linear, model.get_submodule(site))
        try:
            with linear.weight.device:  # the adapter is made where the projection is, the meta device included
                made[site] = build(linear, site).train(linear.training)
        except ValueError as error:
            if type(error) is not ValueError:  # an error of a kind of its own, such as an InputError, says enough
                raise
            raise InjectionError(f"{site}: {error}") from error
    for site, projection in made.items():
        for place in places[id(model.get_submodule(site))]:
            path, _, child = place.rpartition(".")
            parent = model.get_submodule(path)
            setattr(parent, child, projection)
            if isinstance(parent, nn.TransformerEncoderLayer):
                parent.activation_relu_or_gelu = 0  # its fused path checks this first
    projections = set(made.values())
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and not projections.isdisjoint(module.modules()):
            module.use_nested_tensor = False
    return tuple(sites)


def targeted_sites(model: nn.Module, targets: str | Sequence[str], layers: LayerRange | None = None) -> list[str]:
    """The dotted paths of the projections, adapted already or not, that `inject` adapts; its arguments and errors."""
    bases = {layer.base for _, layer in adapted_sites(model)}
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | MoELoRALinear) and module not in bases
    ]
    sites = _matches(model, names, targets)
    return sites if layers is None else _in_range(sites, layers)


def _matches(model: nn.Module, names: list[str], targets: str | Sequence[str]) -> list[str]:
    if isinstance(targets, str):
        try:
            sites = [*filter(bounded_pattern(targets), names)]
        except ValueError as error:
            raise InjectionError(f"targets: {error}") from None
        if not sites and any(_ends_with(name, targets) for name in names):
            raise InjectionError(
                f"targets: {targets!r} is the end of paths, but one string is a regular expression for the whole path; "
                f"give a list of names: [{targets}]"
            )
        if not sites:
            raise InjectionError(f"targets: {targets!r} matches no linear layer; the model has {_known(names)}")
        return sites
    if not targets:
        raise InjectionError(f"targets is empty: name projections; the model has {_known(names)}")
    for target in targets:
        if not any(_ends_with(name, target) for name in names):
            raise InjectionError(f"targets: {target!r} matches no linear layer{_hint(model, names, target)}")
    return [name for name in names if any(_ends_with(name, target) for target in targets)]


def _hint(model: nn.Module, names: list[str], target: str) -> str:
    others = {type(module).__name__ for name, module in model.named_modules() if _ends_with(name, target)}
    if others:
        return f", it is {', '.join(sorted(others))}; the model has {_known(names)}"
    near = difflib.get_close_matches(target, sorted({name.rpartition(".")[2] for name in names}), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; the model has {_known(names)}"


def _in_range(sites: list[str], layers: LayerRange) -> list[str]:
    numbers = {site: int(layer.rpartition(".")[2]) for site in sites if (layer := layer_of(site)) is not None}
    wanted = layers.numbers(1 + max(numbers.values(), default=-1))
    chosen = [site for site, number in numbers.items() if number in wanted]
    if not chosen:
        have = f"layers {min(numbers.values())} to {max(numbers.values())}" if numbers else "no numbered layers"
        raise InjectionError(f"layers: no target is in {layers}; the targets are in {have}")
    return chosen


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _known(names: list[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names})) or "none at all"


def adapted_sites(model: nn.Module) -> Iterator[tuple[str, MoELoRALinear]]:
    """The adapted projections of the model with their dotted paths, in the model's order."""
    for name, module in uncompiled(model).named_modules():
        if isinstance(module, MoELoRALinear):
            yield name, module


def adapter_modules(model: nn.Module) -> Iterator[tuple[str, LoRAExpert | Gate]]:
    """The experts and gates of the model with their dotted paths: what adaptation added to it."""
    for name, module in uncompiled(model).named_modules():
        if isinstance(module, LoRAExpert | Gate):
            yield name, module


class CallWatch:
    """Checks whether every adapted projection is called in the forward passes within its ``with`` blocks.

    A model can read a projection's weight instead of calling the projection (WavLM's attention in transformers 5
    does); an adapter there would silently have no effect. What ``torch.compile`` has compiled runs eagerly within the
    blocks (see `running_eagerly`).

    Args:
        model: the adapted model.
        sites: dotted paths of the projections to watch; None for all `MoELoRALinear`.
    """

    def __init__(self, model: nn.Module, sites: Iterable[str] | None = None) -> None:
        given = adapted_sites(model) if sites is None else ((name, model.get_submodule(name)) for name in sites)
        self._sites: dict[str, nn.Module] = dict(given)
        self._uncalled = dict.fromkeys(self._sites)  # a dict keeps the model's order
        self._watching = ExitStack()

    def __enter__(self) -> "CallWatch":
        self._watching.enter_context(running_eagerly())
        for name, site in self._sites.items():
            called = partial(self._called, name)
            self._watching.callback(site.register_forward_pre_hook(called).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._watching.close()

    def _called(self, name: str, *_: object) -> None:
        self._uncalled.pop(name, None)

    @property
    def is_complete(self) -> bool:
        """Whether all watched projections were called within the blocks."""
        return not self._uncalled

    def check(self) -> None:
        """Check that all watched projections were called within the blocks.

        Raises:
            InjectionError: some were not; the message names them.
        """
        if self._uncalled:
            names = list(self._uncalled)
            raise InjectionError(
                f"{len(names)} adapted projections were never called, the model reads their weights past the adapter: "
                f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}; choose other targets"
            )


def running_eagerly() -> AbstractContextManager[None]:
    """Run all that ``torch.compile`` has compiled, anywhere in the process, eagerly within the block: compiled code
    does not call the hooks that observers rely on."""
    return torch.compiler.set_stance("force_eager")

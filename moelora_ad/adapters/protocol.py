"""What an adaptation method is, and who owns the modules and tensors of the encoder that it adapted.

A method changes an encoder in place. What the encoder contains afterwards and did not contain before is the method's
own; whatever else has ``requires_grad`` is what the method trains of the encoder. Everything else is frozen, and taken
from the pretrained encoder again whenever a trained one is loaded.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import ClassVar, Protocol

from torch import Tensor, nn

from moelora_ad.adapters.arguments import RemembersArguments
from moelora_ad.adapters.errors import AdapterError

OWN = "adapters"
"""Name of the part for what a method trains without naming it."""
WHOLE = "backbone"
"""Name of the part for what is trained of modules that are trained as a whole."""
TAKEN = (WHOLE, "classifier", "total")
"""Names that no part of a method can have: other figures have them."""


class AuxiliaryTerms(Protocol):
    """Losses that a method adds to that of the task."""

    def watch(self, model: nn.Module) -> AbstractContextManager[None]:
        """Gather what the losses need from the forward passes of the encoder within the block."""

    def terms(self) -> dict[str, Tensor]:
        """Return the weighted losses of the watched passes, by name, as scalars that gradients flow from; called once
        for each block, in every process."""


class AdaptationMethod(RemembersArguments, ABC):
    """Prepares an encoder for training: freezes it, puts modules into it, or leaves parts of it trainable.

    A subclass must define `adapt` only. The detector calls it once, when it is built, and calls `parts` and `whole`
    whenever it counts, saves or changes mode. The arguments of the method's constructor, plain values, are saved with a
    model.

    Attributes:
        initial_arguments: names of arguments that only say how training starts, each with a default; a saved detector
            does not have them.
        training_arguments: names of arguments that affect training only, not what is computed afterwards.
        casts_inputs: whether the method's modules, which stay in float32, take inputs of half precision. If not, an
            encoder whose frozen tensors are in half precision runs under autocast.
    """

    initial_arguments: ClassVar[tuple[str, ...]] = ()
    training_arguments: ClassVar[tuple[str, ...]] = ()
    casts_inputs: ClassVar[bool] = False

    @abstractmethod
    def adapt(self, encoder: nn.Module) -> Collection[str] | None:
        """Change the encoder in place and leave ``requires_grad`` on what should be trained.

        At first all parameters have ``requires_grad``, except those that the model keeps fixed or never calls: leave
        these as they are. The encoder may be on the meta device: no value of a tensor may be read. Its modules and
        parameters must stay the same objects: a copy counts as the method's own, and is saved with a model.

        Returns:
            The dotted paths of the modules that replaced others, each of which every forward pass must
            call; None to have them detected.

        Raises:
            InjectionError: the method's targets do not fit the encoder.
        """

    def parts(self, encoder: nn.Module) -> Mapping[str, Iterable[nn.Module | nn.Parameter]]:
        """Names for what the method trains in an adapted encoder: its modules or parameters by part.

        Tables and records use these names. ``model.adapter_lr`` is the learning rate of all of them but "gates", whose
        is ``model.gate_lr``. Whatever else the method trains is counted as the part "adapters".
        """
        return {}

    def apart(self, encoder: nn.Module) -> Mapping[str, Iterable[nn.Parameter]]:
        """Parameters of the parts that an account lists under names of their own."""
        return {}

    def whole(self, encoder: nn.Module) -> Iterable[nn.Module]:
        """The encoder's own modules that are trained as a whole.

        These modules run in training mode, with their dropout and batch statistics, and are the part "backbone", which
        has the optimiser's own learning rate and is not rounded. All else of an encoder is in evaluation mode, even if
        some of its parameters are trained.
        """
        return ()

    def initialise(self, encoder: nn.Module) -> None:
        """Give the adapters of an adapted encoder the weights that training starts from, if not those of ``adapt``.

        It is called once, before the first step of a training that does not continue an earlier one.

        Raises:
            AdapterError: the weights cannot be read, or do not fit.
        """

    def continued(self, encoder: nn.Module) -> Iterable[nn.Parameter]:
        """The parameters of an adapted encoder that an earlier training must have made: none starts without a model
        that has them (``model.init_weights``)."""
        return ()

    def check(self, encoder: nn.Module) -> None:
        """Check that the adapters of an encoder are still those that this method makes: surgery changes them.

        Raises:
            AdapterError: the adapters are no longer those.
        """

    def after_surgery(self, encoder: nn.Module) -> "AdaptationMethod":
        """The method that makes the adapters of an encoder after surgery: one with other arguments, or another one.

        A detector whose experts were changed can be saved once its ``adaptation`` is that method.

        Raises:
            AdapterError: no method makes these adapters, or a subclass does not implement this function.
        """
        raise AdapterError(f"{_name(self)} does not define the method after experts change: implement after_surgery")

    def auxiliary_losses(self) -> AuxiliaryTerms | None:
        """Losses that are added to that of the task in training; None for none."""
        return None


class Ownership:
    """Adapts an encoder, and records what in it is the method's own.

    It stores only names, those of the modules and tensors that were there before: what other changes add later, such as
    a further expert, is the method's too.

    Args:
        method: the method that adapts the encoder.
        encoder: changed in place.

    Attributes:
        sites: dotted paths of the modules that replaced others.

    Raises:
        AdapterError: the method does not fit the encoder, or contradicts itself.
    """

    def __init__(self, method: AdaptationMethod, encoder: nn.Module) -> None:
        modules = dict(encoder.named_modules(remove_duplicate=False))
        tensors = dict(_tensors(encoder))
        reported = method.adapt(encoder)
        self._encoder = encoder
        known = {id(module) for module in modules.values()}
        self._modules = {name for name, m in encoder.named_modules(remove_duplicate=False) if id(m) in known}
        names: dict[int, list[str]] = {}
        for name, tensor in tensors.items():
            names.setdefault(id(tensor), []).append(name)
        places: dict[int, int] = {}
        self._before = set(tensors)
        self._names: dict[str, str] = {}  # present name of an encoder's own tensor -> its earlier name
        self._own: set[str] = set()
        for name, tensor in _tensors(encoder):
            if id(tensor) not in names:
                self._own.add(name)
                continue
            place = places[id(tensor)] = places.get(id(tensor), -1) + 1
            self._names[name] = names[id(tensor)][min(place, len(names[id(tensor)]) - 1)]
        self.sites = self._replaced(modules) if reported is None else tuple(reported)
        self._check(method)

    def own_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """The method's modules with their dotted paths, in the encoder's order."""
        for name, module in self._encoder.named_modules():
            if name not in self._modules:
                yield name, module

    def pretrained(self) -> dict[str, Tensor]:
        """The encoder's own tensors by the names that they had in the pretrained encoder, each once."""
        found: dict[str, Tensor] = {}
        for name, tensor in self._encoder.state_dict().items():
            if not self._is_own(name):
                found.setdefault(self._names.get(name, name), tensor)
        return found

    def encoder_tensors(self) -> Iterator[Tensor]:
        """The encoder's own parameters and buffers."""
        for name, tensor in _tensors(self._encoder):
            if not self._is_own(name):
                yield tensor

    def trained(self, method: AdaptationMethod) -> dict[str, list[nn.Parameter]]:
        """The trained parameters by part: those that the method names, "adapters" if there is more, and "backbone".

        Raises:
            AdapterError: a name is taken, or a named parameter is not in the encoder.
        """
        part_of: dict[int, str] = {}
        trained: dict[str, list[nn.Parameter]] = {}
        inside = {id(parameter) for parameter in self._encoder.parameters()}
        for part, members in method.parts(self._encoder).items():
            if part in TAKEN:
                raise AdapterError(f"{_name(method)}: the name {part!r} is taken, give its part another one")
            trained[part] = []
            for member in members:
                parameters = [member] if isinstance(member, nn.Parameter) else [*member.parameters()]
                if any(id(parameter) not in inside for parameter in parameters):
                    raise AdapterError(
                        f"{_name(method)}: its part {part!r} has a parameter that is not in the encoder: adapt must "
                        "put it into one of the encoder's modules"
                    )
                for parameter in parameters:
                    part_of.setdefault(id(parameter), part)
        whole = {id(parameter) for module in method.whole(self._encoder) for parameter in module.parameters()}
        backbone: list[nn.Parameter] = []
        for name, parameter in self._encoder.named_parameters():
            if not parameter.requires_grad:
                continue
            if id(parameter) in whole and id(parameter) not in part_of and not self._is_own(name):
                backbone.append(parameter)
            else:
                trained.setdefault(part_of.get(id(parameter), OWN), []).append(parameter)
        return trained | {WHOLE: backbone}

    def train(self, method: AdaptationMethod, mode: bool) -> None:
        """Put what the method owns, and what it trains as a whole, into training or evaluation mode; nothing else."""
        for _, module in self.own_modules():
            module.training = mode
        for module in method.whole(self._encoder):
            module.train(mode)

    def kept_names(self, method: AdaptationMethod, all_in_training: bool = False) -> set[str]:
        """Names of the encoder's ``state_dict()`` that are not in the pretrained encoder: the method's own
        tensors, what is trained, and the buffers of modules in training mode, which training changes. A tensor that
        occurs in several places is named once.

        Args:
            method: the method that adapted the encoder.
            all_in_training: whether the whole encoder was in training mode.
        """
        tensors, seen, kept = dict(_tensors(self._encoder)), set(), set()
        in_training = {id(part) for module in method.whole(self._encoder) for part in module.modules()}
        for name in self._encoder.state_dict():
            tensor = tensors.get(name)  # missing if a strategy stores it elsewhere
            if tensor is not None and id(tensor) in seen:
                continue
            seen.add(id(tensor))
            if self._is_own(name) or (tensor is not None and tensor.requires_grad):
                kept.add(name)
            elif tensor is not None and not isinstance(tensor, nn.Parameter):
                owner = self._encoder.get_submodule(name.rpartition(".")[0])
                if all_in_training or id(owner) in in_training:
                    kept.add(name)
        return kept

    def frozen(self, kept: Collection[str]) -> dict[str, Tensor]:
        """The encoder's tensors that are not saved, by the names that they had in the pretrained encoder."""
        tensors = dict(_tensors(self._encoder))
        kept_tensors = {id(tensors[name]) for name in kept if name in tensors}
        return {
            self._names.get(name, name): tensor
            for name, tensor in self._encoder.state_dict().items()
            if name not in kept and (name not in tensors or id(tensors[name]) not in kept_tensors)
        }

    def _is_own(self, name: str) -> bool:
        # Merging an adapter into its projection brings back an earlier name that is in neither; it is not the method's.
        return name in self._own or not (name in self._names or name in self._before)

    def _replaced(self, modules: Collection[str]) -> tuple[str, ...]:
        sites: list[str] = []
        for name, _ in self.own_modules():
            if name in modules and not any(name.startswith(f"{site}.") for site in sites):
                sites.append(name)
        return tuple(sites)

    def _check(self, method: AdaptationMethod) -> None:
        known = dict(self._encoder.named_modules(remove_duplicate=False))
        if unknown := [site for site in self.sites if site not in known]:
            raise AdapterError(f"{_name(method)}: adapt returned {unknown[0]!r}, which is not a module of the encoder")
        parameters = inspect.signature(type(method)).parameters
        for name in method.initial_arguments:
            if name not in parameters or parameters[name].default is inspect.Parameter.empty:
                raise AdapterError(
                    f"{_name(method)}: its initial_arguments have {name!r}, which is not an argument with a default: a "
                    "saved model leaves it out"
                )
        self.trained(method)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _name(method: AdaptationMethod) -> str:
    return type(method).__name__

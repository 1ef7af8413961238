"""Adaptation methods: which parts of an encoder are trained, and how.

A method is a small class that a configuration builds by its class path. A new method is a new subclass of
``AdaptationMethod`` and needs no edit elsewhere.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from moelora_ad.adapters.checks import check_alpha, check_lora, check_low_rank, check_mixtures
from moelora_ad.adapters.errors import AdapterError, InjectionError
from moelora_ad.adapters.expert import LoRAExpert
from moelora_ad.adapters.extension import Extension
from moelora_ad.adapters.gate import Gate, GatePolicy
from moelora_ad.adapters.injection import Build, LayerRange, adapted_sites, adapter_modules, inject, targeted_sites
from moelora_ad.adapters.layer import MoELoRALinear
from moelora_ad.adapters.losses import AuxiliaryLosses, AuxiliaryWeights
from moelora_ad.adapters.peft.files import load_lora, read_lora
from moelora_ad.adapters.protocol import AdaptationMethod
from moelora_ad.adapters.sites import layer_of
from moelora_ad.adapters.surgery import experts as surgery
from moelora_ad.adapters.surgery import starting
from moelora_ad.torch_internals import uncompiled

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class _Ours(AdaptationMethod):
    """Base of our methods. All report the same parts to tables and records, some of them without parameters."""

    casts_inputs = True

    def parts(self, encoder: nn.Module) -> Mapping[str, Iterable[nn.Module | nn.Parameter]]:
        modules = [module for _, module in adapter_modules(encoder)]
        gates = [module for module in modules if isinstance(module, Gate)]
        return {"experts": [module for module in modules if not isinstance(module, Gate)], "gates": gates}

    def apart(self, encoder: nn.Module) -> Mapping[str, Iterable[nn.Parameter]]:
        gates = [module for _, module in adapter_modules(encoder) if isinstance(module, Gate)]
        return {"gate_noise": [gate.noise_weight for gate in gates if gate.noise_weight is not None]}

    def check(self, encoder: nn.Module) -> None:
        check_low_rank(encoder, ())


class FrozenBackbone(_Ours):
    """Freeze the encoder: only the classifier is trained."""

    def adapt(self, encoder: nn.Module) -> tuple[str, ...]:
        encoder.requires_grad_(False)
        return ()


class FullFineTuning(_Ours):
    """Train the whole encoder, except what the model itself keeps fixed (Whisper's sinusoidal positions)."""

    def adapt(self, encoder: nn.Module) -> tuple[str, ...]:
        return ()

    def whole(self, encoder: nn.Module) -> Iterable[nn.Module]:
        return (encoder,)


class TopLayers(_Ours):
    """Train the whole of the top transformer layers; everything below and behind them is frozen.

    Args:
        num_layers: L, the number of trained layers.
        stack: the name of the list of layers: the end of its dotted path.

    Raises:
        ValueError: fewer than one layer.
    """

    def __init__(self, num_layers: int, stack: str = "layers") -> None:
        if num_layers < 1:
            raise ValueError(f"num_layers is {num_layers}: train at least one, or use FrozenBackbone")
        self.num_layers = num_layers
        self.stack = stack

    def adapt(self, encoder: nn.Module) -> tuple[str, ...]:
        trained = {id(parameter) for layer in self.whole(encoder) for parameter in layer.parameters()}
        for parameter in encoder.parameters():  # what the model itself keeps fixed stays so
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in trained)
        return ()

    def whole(self, encoder: nn.Module) -> Iterable[nn.Module]:
        stacks = {name: module for name, module in encoder.named_modules() if isinstance(module, nn.ModuleList)}
        found = [name for name in stacks if name == self.stack or name.endswith(f".{self.stack}")]
        if len(found) != 1:
            which = (
                f"several: {', '.join(found)}" if found else f"none; the model has {', '.join(stacks) or 'no lists'}"
            )
            raise InjectionError(f"stack: {self.stack!r} must be the name of one list of layers, there are {which}")
        layers = stacks[found[0]]
        if self.num_layers > len(layers):
            raise InjectionError(f"num_layers is {self.num_layers}: {found[0]} has {len(layers)} layers")
        return list(layers)[-self.num_layers :]


class _LowRank(_Ours):
    """Freezes the encoder and replaces each targeted projection by an adapted one."""

    rank: int
    alpha: float | None
    targets: str | Sequence[str]
    layers: LayerRange | None

    def adapt(self, encoder: nn.Module) -> tuple[str, ...]:
        pretrained = list(encoder.parameters())
        sites = inject(encoder, self.targets, self._builder(), self.layers)
        for parameter in pretrained:
            parameter.requires_grad_(False)
        return sites

    def check(self, encoder: nn.Module) -> None:
        check_low_rank(encoder, targeted_sites(uncompiled(encoder), self.targets, self.layers), self.rank, self.alpha)

    def after_surgery(self, encoder: nn.Module) -> AdaptationMethod:
        """A `LoRA`, of whatever rank, if every projection has one expert without a gate; else a method of mixtures."""
        kinds = {(len(one.experts), one.rank, one.scaling, one.gate is None) for _, one in adapted_sites(encoder)}
        if len(kinds) != 1:
            raise AdapterError("no method produces these adapters: projections differ in experts, ranks or gates")
        ((count, rank, scaling, is_lora),) = kinds
        if not is_lora:
            return self._mixture(encoder, count)
        return LoRA(rank, None if scaling == 1 else scaling * rank, self.targets, self.layers)

    def _mixture(self, encoder: nn.Module, count: int) -> AdaptationMethod:
        """The method that makes an encoder's mixtures of ``count`` experts."""
        raise AdapterError(f"{type(self).__name__} does not make mixtures, but the encoder has some of {count} experts")

    @abstractmethod
    def _builder(self) -> Build:
        """Return the function that makes the adapted projections of one model from the original ones."""


class LoRA(_LowRank):
    """One low-rank update for each targeted projection; everything else is frozen (arXiv 2106.09685).

    Args:
        rank: r.
        alpha: the update is scaled by alpha / rank; None for no scale.
        targets: see ``moelora_ad.adapters.inject``.
        layers: the layers to adapt; None for all.
        init_from: folder of a trained LoRA to start from, see `read_lora`; None for a new one. It is read by
            ``initialise``, which ``fit`` calls: in a training loop of your own, call it after ``adapt``.

    Raises:
        ValueError: alpha is not above 0.
    """

    initial_arguments = ("init_from",)

    def __init__(
        self,
        rank: int = 8,
        alpha: float | None = None,
        targets: str | Sequence[str] = ATTENTION_PROJECTIONS,
        layers: LayerRange | None = None,
        init_from: str | None = None,
    ) -> None:
        check_alpha(alpha)
        self.rank = rank
        self.alpha = alpha
        self.targets = targets
        self.layers = layers
        self.init_from = init_from

    def initialise(self, encoder: nn.Module) -> None:
        if self.init_from is not None:
            load_lora(encoder, read_lora(self.init_from))

    def check(self, encoder: nn.Module) -> None:
        super().check(encoder)
        check_lora(encoder)

    def _builder(self) -> Build:
        def build(base: nn.Linear, site: str) -> MoELoRALinear:
            return MoELoRALinear(base, [LoRAExpert(base.in_features, base.out_features, self.rank)], alpha=self.alpha)

        return build


class MoELoRA(_LowRank):
    """A mixture of low-rank experts and a gate for each targeted projection (arXiv 2509.13878).

    Args:
        num_experts: N, at least 2 (one expert is ``LoRA``, which may be extended).
        rank: r of every expert.
        top_k: experts kept for each token; None keeps all of them. The same as ``gate.top_k``: give one of the two.
        gate: the gate's policy.
        alpha: the update is scaled by alpha / rank; None for no scale.
        targets: see ``moelora_ad.adapters.inject``.
        layers: the layers to adapt; None for all.
        share_gate: one gate for all projections of a layer, each of which applies it to its own input; they must have
            inputs of one width.
        auxiliary: weights of the auxiliary losses in training; None for no such losses.
        init_from: one folder of a trained LoRA, to start all experts from (`warm_start`); or N folders, one for each
            expert (`mixture_of_loras`); see `read_lora`. None for new experts. They are read by ``initialise``, which
            ``fit`` calls: in a training loop of your own, call it after ``adapt``.
        perturbation: size of the perturbation when all experts start from one LoRA, see `warm_start`.
        freeze_experts: numbers of experts that are not trained.
        extend: add an expert to the mixture that ``model.init_weights`` names, see `Extension`; the other arguments are
            those of that mixture, or of a LoRA with ``num_experts`` 1. None for a mixture that extends nothing.

    Raises:
        ValueError: the arguments contradict each other.
    """

    initial_arguments = ("init_from", "perturbation")
    training_arguments = ("auxiliary", "freeze_experts", "extend")

    def __init__(
        self,
        num_experts: int = 3,
        rank: int = 8,
        top_k: int | None = None,
        gate: GatePolicy | None = None,
        alpha: float | None = None,
        targets: str | Sequence[str] = ATTENTION_PROJECTIONS,
        layers: LayerRange | None = None,
        share_gate: bool = False,
        auxiliary: AuxiliaryWeights | None = None,
        init_from: str | Sequence[str] | None = None,
        perturbation: float = 0.01,
        freeze_experts: Sequence[int] = (),
        extend: Extension | None = None,
    ) -> None:
        policy = gate or GatePolicy()
        if extend is not None:
            if init_from is not None:
                raise ValueError("init_from with extend: the model that is extended is given by model.init_weights")
            num_experts, policy = num_experts + extend.experts, extend.policy_of(policy)
        if num_experts < 2:
            raise ValueError(f"num_experts is {num_experts}: a mixture has at least 2 (use LoRA for one)")
        if top_k is not None and policy.top_k not in (None, top_k):
            raise ValueError(f"top_k is {top_k}, but the gate's top_k is {policy.top_k}: give one of the two")
        self.policy = policy if top_k is None else replace(policy, top_k=top_k)
        self.policy.check_experts(num_experts)
        if not (init_from is None or isinstance(init_from, str) or len(init_from) == num_experts):
            raise ValueError(
                f"init_from names {len(init_from)} LoRAs: give one, or one for each of {num_experts} experts"
            )
        surgery.check_perturbation(perturbation)
        check_alpha(alpha)
        if wrong := [number for number in freeze_experts if not 0 <= number < num_experts]:
            raise ValueError(f"freeze_experts: there is no expert {wrong[0]}, they are 0 to {num_experts - 1}")
        self.num_experts = num_experts
        self.rank = rank
        self.alpha = alpha
        self.targets = targets
        self.layers = layers
        self.init_from = init_from
        self.perturbation = perturbation
        self.freeze_experts = freeze_experts
        self.share_gate = share_gate
        self.auxiliary = auxiliary or AuxiliaryWeights()
        self.extend = extend
        of_gates = self.auxiliary.active().keys() & {"importance", "load_balance", "z", "entropy"}
        if self.policy.added and of_gates:
            raise ValueError(
                f"auxiliary.{min(of_gates)} is of experts that share one softmax: an added one has its own"
            )

    def adapt(self, encoder: nn.Module) -> tuple[str, ...]:
        sites = super().adapt(encoder)
        if self.freeze_experts:
            surgery.freeze_experts(encoder, self.freeze_experts)
        if self.extend is not None:
            self.extend.prepare(encoder)
        return sites

    def continued(self, encoder: nn.Module) -> Iterable[nn.Parameter]:
        return () if self.extend is None else self.extend.continued(encoder)

    def initialise(self, encoder: nn.Module) -> None:
        if isinstance(self.init_from, str):
            starting.warm_start(encoder, read_lora(self.init_from), self.perturbation)
        elif self.init_from is not None:
            starting.mixture_of_loras(encoder, [read_lora(folder) for folder in self.init_from], freeze=False)

    def check(self, encoder: nn.Module) -> None:
        super().check(encoder)
        check_mixtures(encoder, self.num_experts, self.policy, self.share_gate)

    def _mixture(self, encoder: nn.Module, count: int) -> AdaptationMethod:
        layers = [layer for _, layer in adapted_sites(encoder)]
        policies = {layer.gate.policy for layer in layers if layer.gate is not None}
        if len(policies) != 1:
            raise AdapterError("no method produces these adapters: the gates of projections follow different policies")
        frozen = [
            number
            for number in range(count)
            if not any(p.requires_grad for layer in layers for p in layer.experts[number].parameters())
        ]
        changes = {"num_experts": count, "gate": policies.pop(), "freeze_experts": frozen}
        try:
            return type(self)(**(self.init_args | changes | {"top_k": None, "extend": None, "init_from": None}))
        except TypeError as error:  # a subclass with arguments of its own
            raise AdapterError(f"{type(self).__name__} needs its own _mixture: {error}") from None

    def auxiliary_losses(self) -> AuxiliaryLosses | None:
        return AuxiliaryLosses(self.auxiliary) if self.auxiliary.active() else None

    def _builder(self) -> Build:
        shared: dict[str, tuple[str, Gate]] = {}

        def build(base: nn.Linear, site: str) -> MoELoRALinear:
            experts = [LoRAExpert(base.in_features, base.out_features, self.rank) for _ in range(self.num_experts)]
            layer = layer_of(site) if self.share_gate else site
            if layer is None:
                raise InjectionError(f"share_gate: {site} is not in a numbered layer; choose other targets")
            owns = layer not in shared
            if owns:
                shared[layer] = site, Gate(base.in_features, self.num_experts, self.policy)
            owner, gate = shared[layer]
            if gate.weight.shape[1] != base.in_features:
                raise InjectionError(
                    f"share_gate: the input of {site} is {base.in_features} wide, that of {owner} "
                    f"{gate.weight.shape[1]}; choose targets of one width"
                )
            return MoELoRALinear(base, experts, gate, self.alpha, owns)

        return build

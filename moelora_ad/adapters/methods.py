"""Adaptation methods: which parts of an encoder are trained, and how.

A method is a small class that a configuration builds by its class path. A new method is a new subclass of
``AdaptationMethod`` and needs no edit elsewhere.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from moelora_ad.adapters.arguments import RemembersArguments
from moelora_ad.adapters.gate import Gate, GatePolicy
from moelora_ad.adapters.injection import inject
from moelora_ad.adapters.layer import MoELoRALinear
from moelora_ad.adapters.lora import LoRAExpert

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class AdaptationMethod(RemembersArguments, ABC):
    """Prepares an encoder for training: freezes, injects, and leaves ``requires_grad`` on what is to be trained."""

    @abstractmethod
    def adapt(self, encoder: nn.Module) -> tuple[str, ...]:
        """Change the encoder in place.

        Returns:
            The dotted paths of the adapted projections; empty for methods that add none.

        Raises:
            InjectionError: the method's targets do not fit the encoder.
        """


class FrozenBackbone(AdaptationMethod):
    """Train nothing of the encoder: the classifier alone learns."""

    def adapt(self, encoder: nn.Module) -> tuple[str, ...]:
        encoder.requires_grad_(False)
        return ()


class FullFineTuning(AdaptationMethod):
    """Train the whole encoder, except what the model itself keeps fixed (Whisper's sinusoidal positions)."""

    def adapt(self, encoder: nn.Module) -> tuple[str, ...]:
        return ()


class _LowRank(AdaptationMethod):
    """Freezes the encoder and puts an adapted projection in the place of each targeted one."""

    targets: str | Sequence[str]

    def adapt(self, encoder: nn.Module) -> tuple[str, ...]:
        encoder.requires_grad_(False)
        return inject(encoder, self.targets, self._build)

    @abstractmethod
    def _build(self, base: nn.Linear) -> MoELoRALinear:
        """The adapted projection made from the one that stands there."""


class LoRA(_LowRank):
    """One low-rank update for each targeted projection; everything else is frozen (arXiv 2106.09685).

    Args:
        rank: r.
        alpha: the update is scaled by alpha / rank; None for no scale.
        targets: see ``moelora_ad.adapters.inject``.
    """

    def __init__(
        self, rank: int = 8, alpha: float | None = None, targets: str | Sequence[str] = ATTENTION_PROJECTIONS
    ) -> None:
        self.rank = rank
        self.alpha = alpha
        self.targets = targets

    def _build(self, base: nn.Linear) -> MoELoRALinear:
        return MoELoRALinear(base, [LoRAExpert(base.in_features, base.out_features, self.rank)], alpha=self.alpha)


class MoELoRA(_LowRank):
    """A mixture of low-rank experts with its own gate for each targeted projection (arXiv 2509.13878).

    Args:
        num_experts: N, at least 2 (one expert is ``LoRA``).
        rank: r of every expert.
        top_k: experts kept for each token; None keeps all of them. The same as ``gate.top_k``: give one of the two.
        gate: the gate's policy.
        alpha: the update is scaled by alpha / rank; None for no scale.
        targets: see ``moelora_ad.adapters.inject``.

    Raises:
        ValueError: the arguments contradict each other.
    """

    def __init__(
        self,
        num_experts: int = 3,
        rank: int = 8,
        top_k: int | None = None,
        gate: GatePolicy | None = None,
        alpha: float | None = None,
        targets: str | Sequence[str] = ATTENTION_PROJECTIONS,
    ) -> None:
        if num_experts < 2:
            raise ValueError(f"num_experts is {num_experts}: a mixture has at least 2 (use LoRA for one)")
        policy = gate or GatePolicy()
        if top_k is not None and policy.top_k not in (None, top_k):
            raise ValueError(f"top_k is {top_k}, but the gate's top_k is {policy.top_k}: give one of the two")
        self.policy = policy if top_k is None else replace(policy, top_k=top_k)
        self.policy.check_experts(num_experts)
        self.num_experts = num_experts
        self.rank = rank
        self.alpha = alpha
        self.targets = targets

    def _build(self, base: nn.Linear) -> MoELoRALinear:
        experts = [LoRAExpert(base.in_features, base.out_features, self.rank) for _ in range(self.num_experts)]
        return MoELoRALinear(base, experts, Gate(base.in_features, self.num_experts, self.policy), self.alpha)

"""Extending a trained mixture by an expert, for what came after its training, such as a new attack.

The new expert is parallel to the mixture: y = old(x) + (alpha / r) sigmoid(w x + b) B A x, where old(x) is all that
the projection computed before. B starts at zero, so that the model's function is at first exactly the old one, while B
gets the gradient of an expert of weight ``start`` from the first step on; the gates of the old experts decide as
before, top-k included, and without the new expert the model is the old one. (Within the old experts' softmax, the new
expert would take weight from them, whatever its start.)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from moelora_ad.adapters.gate import Gate, GatePolicy
from moelora_ad.adapters.injection import adapted_sites
from moelora_ad.adapters.layer import MoELoRALinear


@dataclass(frozen=True)
class Extension:
    """Experts that are added beside a trained mixture, or beside a single LoRA. The last of them is new, and trained;
    those before it, and the mixture's own, are frozen, and come from the weights that training starts from.

    Args:
        experts: number of experts added in all: 1 for a first extension, one more for each further one.
        start: weight of the new expert, for every input, before its gate has learned.
        train_gates: train the old experts' gate rows too, with the noise that their policy has in training.

    Raises:
        ValueError: an argument is out of its range.
    """

    experts: int = 1
    start: float = 0.5
    train_gates: bool = False

    def __post_init__(self) -> None:
        if self.experts < 1:
            raise ValueError(f"extend: experts is {self.experts}: add at least one")
        if not 0 < self.start < 1:
            raise ValueError(f"extend: start is {self.start}: give a weight above 0 and below 1")

    def policy_of(self, policy: GatePolicy) -> GatePolicy:
        """Return a mixture's gate policy with the added experts.

        Raises:
            ValueError: the policy has added experts already.
        """
        if policy.added:
            raise ValueError("gate.added is set by extend.experts: give the latter alone")
        return replace(policy, added=self.experts)

    def prepare(self, encoder: nn.Module) -> None:
        """Freeze the earlier parts of an adapted encoder, and give the new gate rows their start."""
        for parameter in self._before(encoder):
            parameter.requires_grad_(False)
        for gate in _gates(encoder):
            odds = self.start / (1 - self.start)
            gate.added_rows()[-1].logit_offset.fill_(gate.policy.temperature * math.log(odds))
            for rows in (gate.weight, gate.noise_weight):
                if rows is not None:  # a single expert's gate has nothing to decide
                    rows.requires_grad_(self.train_gates and len(gate.weight) > 1)

    def continued(self, encoder: nn.Module) -> Iterator[nn.Parameter]:
        """The parameters that must have been trained before."""
        yield from self._before(encoder)
        for gate in _gates(encoder):
            if len(gate.weight) > 1:
                yield gate.weight

    def _before(self, encoder: nn.Module) -> Iterator[nn.Parameter]:
        for _, layer in adapted_sites(encoder):
            for expert in layer.lora_experts()[:-1]:
                yield from expert.parameters()
        for gate in _gates(encoder):
            for one in gate.added_rows()[:-1]:
                yield from one.parameters()


def _gates(encoder: nn.Module) -> list[Gate]:
    """The gates of an adapted encoder, each once."""
    layers: list[MoELoRALinear] = [layer for _, layer in adapted_sites(encoder)]
    return list({id(layer.gate): layer.gate for layer in layers if layer.gate is not None}.values())

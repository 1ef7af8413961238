"""The control of analyses of routing: what gates decide before they are trained."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from moelora_ad.adapters import Decision, GatePolicy, adapted_sites
from moelora_ad.adapters.gate import Gate
from moelora_ad.analysis.passes import check_least
from moelora_ad.evaluation.metrics.least import LEAST_PERMUTATIONS


def check_tests(permutations: int, draws: int) -> None:
    """Check the numbers of permutations and of draws of untrained gates; no draws are enough, too.

    Raises:
        InputError: a number is too small for a p value of 0.05.
    """
    check_least("permutations", permutations, LEAST_PERMUTATIONS)
    if draws:
        check_least("draws", draws, LEAST_PERMUTATIONS)


class UntrainedGates:
    """Gates drawn at random as they are before training, with the inputs of a model's own gates.

    Utterances of different attacks have different hidden states, which any gate distinguishes to some degree: only
    what exceeds this is an effect of training. Projections that share a gate share its drawn ones, too.

    Args:
        encoder: an encoder with gates; none of its experts was added later (``GatePolicy.added``).
        sites: S dotted paths of the projections that have a gate.
        draws: D, how often each gate is drawn.
        seed: seed of the drawn weights.

    Attributes:
        num_experts: N, the same at all sites.
    """

    def __init__(self, encoder: nn.Module, sites: Sequence[str], draws: int, seed: int) -> None:
        layers = dict(adapted_sites(encoder))
        gates = {id(gate): gate for site in sites if (gate := layers[site].gate) is not None}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._rows = {
                key: Gate(gate.weight.shape[1], draws * gate.num_experts, GatePolicy(noise="none")).weight.detach()
                for key, gate in gates.items()
            }
        self.num_experts = next(iter(gates.values())).num_experts
        self._sites, self._draws = sites, draws
        self._weights: dict[str, Tensor] = {}

    @classmethod
    def of(cls, encoder: nn.Module, sites: Sequence[str], draws: int, seed: int) -> "UntrainedGates | None":
        """Gates drawn for an encoder; None without draws, and for a mixture with experts that were added later."""
        added = any(len(layer.gate.added) for _, layer in adapted_sites(encoder) if layer.gate is not None)
        return None if added or not draws else cls(encoder, sites, draws, seed)

    def see(self, decision: Decision) -> None:
        """Let the drawn gates decide on the inputs of a decision of the model's gate."""
        gate = decision.layer.gate
        assert gate is not None
        inputs = decision.inputs if decision.inputs.dim() > 2 else decision.inputs.unsqueeze(1)  # rows of one token
        rows = self._rows[id(gate)] = self._rows[id(gate)].to(inputs.device)
        with torch.autocast(inputs.device.type, enabled=False):
            logits = functional.linear(inputs.float(), rows).unflatten(-1, (self._draws, -1))
            # forward and not a call, which would be watched; (D, B, T, N).
            weights = gate.forward(logits.movedim(-2, 0))
        self._weights[decision.site] = decision._replace(weights=weights).mean_weights()

    def weights(self, utterances: int) -> NDArray[np.float32]:
        """(D, B, S, N) mean weights of the experts for each of the B utterances of the last pass."""
        rows = torch.stack([self._weights[site] for site in self._sites], dim=2)  # (D, B C, S, N)
        return rows.unflatten(1, (utterances, -1)).mean(2).cpu().numpy()

"""The control of a routing analysis: how much gates depend on the class of an utterance before they are trained."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from moelora_ad.adapters import Decision, GatePolicy, adapted_sites
from moelora_ad.adapters.gate import Gate


class UntrainedGates:
    """Gates drawn at random as they are before training, with the inputs of a model's own gates.

    Utterances of different attacks have different hidden states, which any gate distinguishes to some degree: only
    what exceeds this is an effect of training. Projections that share a gate share its drawn ones, too.

    Args:
        encoder: an encoder with gates; none of its experts was added later (``GatePolicy.added``).
        sites: S dotted paths of the projections that have a gate.
        draws: D, how often each gate is drawn.
        seed: seed of the drawn weights.
        num_groups: G, how many groups of utterances are counted separately.

    Attributes:
        counts: (D, S, G, N) number of utterances of each group for which an expert has the largest mean weight.
    """

    def __init__(self, encoder: nn.Module, sites: Sequence[str], draws: int, seed: int, num_groups: int) -> None:
        layers = dict(adapted_sites(encoder))
        gates = {id(gate): gate for site in sites if (gate := layers[site].gate) is not None}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._rows = {
                key: Gate(gate.weight.shape[1], draws * gate.num_experts, GatePolicy(noise="none")).weight.detach()
                for key, gate in gates.items()
            }
        self._sites, self._draws = sites, draws
        self._weights: dict[str, Tensor] = {}
        num_experts = next(iter(gates.values())).num_experts
        self.counts = np.zeros((draws, len(sites), num_groups, num_experts), np.int64)

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

    def count(self, groups: NDArray[np.integer]) -> None:
        """Count the leading experts of the utterances in the last pass, by the groups (B,) of these."""
        rows = torch.stack([self._weights[site] for site in self._sites], dim=1)  # (D, S, B C, N)
        leading = rows.unflatten(2, (len(groups), -1)).mean(3).argmax(-1).cpu().numpy()
        draws, sites = np.ogrid[: leading.shape[0], : leading.shape[1]]
        for utterance, group in enumerate(groups):
            np.add.at(self.counts, (draws, sites, group, leading[:, :, utterance]), 1)

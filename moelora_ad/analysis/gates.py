"""What gates decide on a set: one pass, summarised by group, and utterance by utterance."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moelora_ad.adapters import (
    Decision,
    RoutingRecord,
    SiteRouting,
    adapted_sites,
    effective_experts,
    watch_gates,
)
from moelora_ad.analysis.passes import AudioPasses
from moelora_ad.analysis.trained import RequestError, TrainedDetector
from moelora_ad.corpora import TrialList
from moelora_ad.data.dataset import Batch


def gated_sites(trained: TrainedDetector) -> list[str]:
    """Return the dotted paths of the projections that have a gate, in the model's order."""
    return [site for site, layer in adapted_sites(trained.detector.backbone.encoder) if layer.gate is not None]


def require_gates(trained: TrainedDetector) -> list[str]:
    """Return the dotted paths of the projections that have a gate, after a check that there are some.

    Raises:
        RequestError: the model has no gates.
    """
    sites = gated_sites(trained)
    if not sites:
        raise RequestError(f"{trained.folder}: the model has no gates; give a run that was adapted with MoELoRA")
    return sites


class WatchedBatch(NamedTuple):
    """What the gates decided for a batch.

    Attributes:
        batch: the batch of trials.
        weights: (B, S, N) float32: the mean weights of the experts for each utterance, over its tokens and clips.
    """

    batch: Batch
    weights: NDArray[np.float32]


def watched(
    trained: TrainedDetector,
    trials: TrialList,
    passes: AudioPasses,
    before: Callable[[Batch], None] = lambda batch: None,
    see: Callable[[Decision], None] | None = None,
) -> Iterator[WatchedBatch]:
    """Pass the trials through the encoder and watch its gates; the classifier is not needed.

    Args:
        trained: a detector with gates.
        trials: what to read.
        passes: how to read it.
        before: called with each batch before it passes.
        see: called with every decision of a gate.

    Raises:
        InputError: a file cannot be read, or the model has no gates.
    """
    sites = require_gates(trained)
    weights: dict[str, Tensor] = {}

    def note(decision: Decision) -> None:
        weights[decision.site] = decision.mean_weights()
        if see is not None:
            see(decision)

    backbone = trained.detector.backbone
    with watch_gates(backbone.encoder, note):
        for batch in passes.batches(trained, trials, f"{trained.name}, seed {trained.seed}"):
            before(batch)
            backbone(batch.waveforms, batch.lengths)
            rows = torch.stack([weights[site] for site in sites], dim=1)  # (B C, S, N)
            of_trials = rows.unflatten(0, (len(batch.trials), -1)).mean(1)
            yield WatchedBatch(batch, of_trials.cpu().numpy())


class GateStatistics(NamedTuple):
    """How the gates of S sites used their N experts for some utterances: means over decisions, of tokens or whole
    utterances; see `SiteRouting`.

    Attributes:
        mean_gate: (S, N) weights of the experts.
        top1_share: (S, N) share of the decisions in which the expert leads.
        output_norm: (S, N) norm of (alpha / r) B_i A_i x.
        entropy: (S,) entropy of the weights of a decision, in nats.
    """

    mean_gate: NDArray[np.float64]
    top1_share: NDArray[np.float64]
    output_norm: NDArray[np.float64]
    entropy: NDArray[np.float64]

    @classmethod
    def of(cls, record: RoutingRecord, groups: Sequence[str], sites: Sequence[str]) -> "GateStatistics":
        """Compute the statistics of all utterances of some groups of a record."""
        by_group = [record.sites(group) for group in groups]
        counts = np.array([[one[site].num_decisions for site in sites] for one in by_group], np.float64)
        shares = counts / counts.sum(0)  # (groups, S)

        def mean(values: Callable[[SiteRouting], Tensor | float]) -> NDArray[np.float64]:
            of_groups = np.array([[np.asarray(values(one[site]), np.float64) for site in sites] for one in by_group])
            return np.einsum("gs,gs...->s...", shares, of_groups)

        return cls(
            mean(lambda one: one.mean_gate),
            mean(lambda one: one.top1_share),
            mean(lambda one: one.output_norm),
            mean(lambda one: one.entropy),
        )

    @property
    def effective_experts(self) -> NDArray[np.float64]:
        """(S,) exp of the entropy of the mean weights, from 1 to N."""
        return effective_experts(torch.from_numpy(self.mean_gate)).numpy()

    def deviation(self, other: "GateStatistics") -> NDArray[np.float64]:
        """Return how much weight (S,) goes to different experts than for the utterances of ``other``: half of
        sum |difference|, from 0 to 1."""
        return np.abs(self.mean_gate - other.mean_gate).sum(1) / 2

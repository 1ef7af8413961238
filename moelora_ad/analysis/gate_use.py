"""What gates do on a set: one pass, summed up by group, and utterance by utterance."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moelora_ad.adapters import Decision, RoutingRecord, SiteRouting, adapted_sites, watch_gates
from moelora_ad.analysis.batches import Reading, read
from moelora_ad.analysis.models import Trained, load_trained, trials_of
from moelora_ad.corpora import TrialList
from moelora_ad.data.dataset import Batch
from moelora_ad.errors import InputError
from moelora_ad.runs.record import RunRecord


def gated_sites(trained: Trained) -> list[str]:
    """Dotted paths of the projections that have a gate, in the model's order."""
    return [site for site, layer in adapted_sites(trained.detector.backbone.encoder) if layer.gate is not None]


def require_gates(trained: Trained) -> list[str]:
    """The same.

    Raises:
        InputError: the model has none.
    """
    sites = gated_sites(trained)
    if not sites:
        raise InputError(f"{trained.folder}: the model has no gates; give a run that was adapted with MoELoRA")
    return sites


class WatchedBatch(NamedTuple):
    """What the gates decided for a batch.

    Attributes:
        batch: its trials.
        weights: (B, S, N) float32: the mean weights of the experts for each utterance, over its tokens and clips.
    """

    batch: Batch
    weights: NDArray[np.float32]


def watched(
    trained: Trained,
    trials: TrialList,
    reading: Reading,
    before: Callable[[Batch], None] = lambda batch: None,
    see: Callable[[Decision], None] = lambda decision: None,
) -> Iterator[WatchedBatch]:
    """Pass the trials through the encoder and watch its gates; the classifier is not needed.

    Args:
        trained: a detector with gates.
        trials: what to read.
        reading: see `read`.
        before: called with each batch before it passes.
        see: called with every decision.

    Raises:
        InputError: a file cannot be read, or the model has no gates.
    """
    sites = require_gates(trained)
    weights: dict[str, Tensor] = {}

    def note(decision: Decision) -> None:
        weights[decision.site] = over_tokens(decision)
        see(decision)

    backbone = trained.detector.backbone
    words = f"{trained.name}, seed {trained.seed}"
    with torch.inference_mode(), watch_gates(backbone.encoder, note):
        for batch in read(trained, trials, reading, words):
            before(batch)
            backbone(batch.waveforms, batch.lengths)
            rows = torch.stack([weights[site] for site in sites], dim=1)  # (B C, S, N)
            of_trials = rows.unflatten(0, (len(batch.trials), -1)).mean(1)
            yield WatchedBatch(batch, of_trials.cpu().numpy())


def over_tokens(decision: Decision) -> Tensor:
    """Mean weights over the tokens of each row that are not padding: (rows, N) float32."""
    weights = decision.weights.float()
    if decision.valid is None or weights.shape[-2] != decision.valid.shape[-1]:
        return weights.mean(-2)
    valid = decision.valid.unsqueeze(-1)
    return weights.where(valid, 0.0).sum(-2) / valid.sum(-2).clamp(min=1)


class Usage(NamedTuple):
    """How the experts were used by some utterances: means over decisions, of tokens or whole utterances.

    Attributes:
        mean_gate: (S, N) weights.
        top1_share: (S, N) share of the decisions that the expert leads.
        output_norm: (S, N) of (alpha / r) B_i A_i x.
        entropy: (S,) of the weights of a decision, in nats.
    """

    mean_gate: NDArray[np.float64]
    top1_share: NDArray[np.float64]
    output_norm: NDArray[np.float64]
    entropy: NDArray[np.float64]

    @property
    def effective_experts(self) -> NDArray[np.float64]:
        """(S,) exp of the entropy of the mean weights."""
        share = self.mean_gate / self.mean_gate.sum(1, keepdims=True)
        return np.exp(-(share * np.log(np.maximum(share, np.finfo(float).tiny))).sum(1))

    def deviation(self, other: "Usage") -> NDArray[np.float64]:
        """(S,) how much weight goes to other experts than in another usage: half of sum |difference|, from 0 to 1."""
        return np.abs(self.mean_gate - other.mean_gate).sum(1) / 2


def usage_of(record: RoutingRecord, groups: list[str], sites: list[str]) -> Usage:
    """The usage by all utterances of some groups of a record."""
    found = [record.sites(group) for group in groups]
    counts = np.array([[one[site].num_decisions for site in sites] for one in found], np.float64)  # (groups, S)
    shares = counts / counts.sum(0)

    def mean(values: Callable[[SiteRouting], Tensor | float]) -> NDArray[np.float64]:
        of_groups = np.array([[np.asarray(values(one[site]), np.float64) for site in sites] for one in found])
        return np.einsum("gs,gs...->s...", shares, of_groups)

    return Usage(
        mean(lambda one: one.mean_gate),
        mean(lambda one: one.top1_share),
        mean(lambda one: one.output_norm),
        mean(lambda one: one.entropy),
    )


def gates_of_runs(
    records: Sequence[RunRecord], set_name: str, reading: Reading, backbone: str | None, allow: Collection[str]
) -> tuple[list[NDArray[np.float32]], list[str]] | None:
    """The mean weights (n, S, N) of each run for the n trials of a set, and the S sites; None for models without gates.

    Raises:
        InputError: the runs have other trials, gates at other places, or other numbers of experts.
    """
    gates: list[NDArray[np.float32]] = []
    sites: list[str] = []
    utterances: list[str] = []
    for record in records:  # one model in memory at a time
        trained = load_trained(record.folder, backbone, allow)
        found = gated_sites(trained)
        if not gates:
            if not found:
                return None
            sites = found
        trials = trials_of(trained, set_name)
        listed = list(trials.columns.utterance)
        utterances = utterances or listed
        if found != sites or listed != utterances:
            what = f"other trials in {set_name}" if found == sites else "gates at other places"
            raise InputError(f"{record.folder} has {what} than {records[0].folder}, so their routing does not compare")
        gates.append(np.concatenate([weights for _, weights in watched(trained, trials, reading)]))
        if gates[-1].shape != gates[0].shape:
            raise InputError(
                f"{record.folder} has {gates[-1].shape[-1]} experts and {records[0].folder} has {gates[0].shape[-1]}"
            )
    return gates, sites

"""The EER of a mixture without one of its experts, or with a single one."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moelora_ad.adapters import adapted_sites, knocked_out
from moelora_ad.analysis.gates import require_gates
from moelora_ad.analysis.passes import AudioPasses, Progress, check_least, silent
from moelora_ad.analysis.scoring import (
    Variant,
    check_both_classes,
    eer_difference,
    eers_by_attack,
    scores_of_variants,
    sets_to_score,
)
from moelora_ad.analysis.trained import RequestError, TrainedDetector, load_trained, trials_of
from moelora_ad.evaluation import ScoreTable
from moelora_ad.evaluation.metrics.intervals import Difference
from moelora_ad.evaluation.metrics.least import LEAST_RESAMPLES

BASE = "all experts"


class ScoreChanges(NamedTuple):
    """How scores change without experts.

    Attributes:
        kinds: "bona fide", and the attacks of the spoofs.
        variants: names of the variants without some experts.
        means: (kinds, variants) mean change of the score of the kind's trials, in log-odds.
    """

    kinds: Sequence[str]
    variants: Sequence[str]
    means: NDArray[np.float64]

    @classmethod
    def between(cls, scores: Mapping[str, ScoreTable]) -> "ScoreChanges":
        """Compute the changes from the scores of a set by variant."""
        base = scores[BASE]
        column, labels = base.trials.column("attack"), np.asarray(base.labels)
        attacks = np.array([value or "spoof" for value in column.values], dtype=object)[np.asarray(column.codes)]
        of_trials = np.where(labels == 1, "bona fide", attacks)
        kinds = ["bona fide", *sorted({str(kind) for kind in of_trials[labels == 0]})]
        variants = [variant for variant in scores if variant != BASE]
        means = [
            [float((scores[variant].scores - base.scores)[of_trials == kind].mean()) for variant in variants]
            for kind in kinds
        ]
        return cls(kinds, variants, np.array(means))


@dataclass(frozen=True, eq=False)
class ExpertAnalysis:
    """A mixture's figures without some of its experts.

    Variants are "all experts", "without I" and, of more than two experts, "I alone", counted from 0.

    Attributes:
        system: name of the run's system.
        seed: seed of the run.
        checkpoint: where the weights come from.
        keep_gates: whether gates kept their weights; otherwise the softmax was over the experts that remained.
        resamples: number of resamples of the bootstrap.
        scores: scores by set and variant.
        differences: differences of the EER to that of all experts, with a 95 % interval, by set and variant.
        notes: notes on the precision, a line each.
    """

    system: str
    seed: int
    checkpoint: Path
    keep_gates: bool
    resamples: int
    scores: Mapping[str, Mapping[str, ScoreTable]]
    differences: Mapping[str, Mapping[str, Difference]]
    notes: Sequence[str] = ()

    @property
    def eers_by_attack(self) -> dict[str, dict[str, dict[str, float]]]:
        """EERs of each attack's spoofs against all bona fide trials, by set, variant and attack."""
        return {
            name: {variant: eers_by_attack(table) for variant, table in of_set.items()}
            for name, of_set in self.scores.items()
        }

    @property
    def score_changes(self) -> dict[str, ScoreChanges]:
        """Mean changes of the scores without experts, by set."""
        return {name: ScoreChanges.between(of_set) for name, of_set in self.scores.items()}


def analyze_experts(
    run: str | Path,
    *,
    sets: Sequence[str] | None = None,
    keep_gates: bool = False,
    resamples: int = 1000,
    seed: int = 1,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str | torch.device | None = None,
    precision: str | None = None,
    backbone: str | None = None,
    allow: Collection[str] = (),
    progress: Progress = silent,
) -> ExpertAnalysis:
    """Score sets with each expert removed at all projections, and with each alone.

    Args:
        run: folder of a run of a mixture, or a checkpoint in it.
        sets: "dev", "train" or test sets of the run; None for all test sets.
        keep_gates: keep the gates' weights as they are; otherwise the softmax is over the experts that remain.
        resamples: number of resamples of the bootstrap, at least 20.
        seed: seed of the bootstrap.
        batch_size: as for `moelora_ad.analysis.passes.AudioPasses`, like ``workers``, ``device``, ``precision`` and
            ``progress``.
        backbone: where the encoder is, if not where the run found it.
        allow: packages besides ours whose classes the run's configuration may name.

    Raises:
        RequestError: there is no such run or set, or the model has no gates.
        InputError: a set lacks a class, or audio cannot be read.
    """
    check_least("resamples", resamples, LEAST_RESAMPLES)
    passes = AudioPasses(batch_size, workers, device, precision, progress)
    trained = load_trained(run, backbone, allow)
    number_of_experts(trained)
    trials = {name: trials_of(trained, name) for name in sets_to_score(trained, sets)}
    for name, of_set in trials.items():
        check_both_classes(of_set, name)
    variants = variants_of(trained, keep_gates)
    scores = {
        name: scores_of_variants(trained, of_set, variants, passes, f"{trained.name} on {name}")
        for name, of_set in trials.items()
    }
    differences = {
        name: {
            variant: eer_difference(table, by_variant[BASE], resamples, seed) for variant, table in by_variant.items()
        }
        for name, by_variant in scores.items()
    }
    return ExpertAnalysis(
        trained.name, trained.seed, trained.checkpoint, keep_gates, resamples, scores, differences, tuple(passes.notes)
    )


def number_of_experts(trained: TrainedDetector) -> int:
    """Return how many experts a mixture has at each projection.

    Raises:
        RequestError: the model has no gates, or projections have different numbers of experts.
    """
    require_gates(trained)
    sites = adapted_sites(trained.detector.backbone.encoder)
    counts = {len(layer.experts) for _, layer in sites if layer.gate is not None}
    if len(counts) > 1:
        raise RequestError(f"{trained.folder}: projections have {sorted(counts)} experts: there is no common numbering")
    return counts.pop()


def variants_of(trained: TrainedDetector, keep_gates: bool) -> dict[str, Variant]:
    """Return the variants of a model: as it is, without each expert, and with each expert alone."""
    encoder, count = trained.detector.backbone.encoder, number_of_experts(trained)
    without = partial(knocked_out, encoder, redistribute=not keep_gates)
    variants: dict[str, Variant] = {BASE: nullcontext}
    for number in range(count):
        variants[f"without {number}"] = partial(without, [number])
    if count > 2:  # of two experts, each is alone without the other
        for number in range(count):
            variants[f"{number} alone"] = partial(without, [other for other in range(count) if other != number])
    return variants

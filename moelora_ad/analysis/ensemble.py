"""Averages of independently trained LoRAs, compared with a mixture.

The scores of N detectors can be averaged, at N times the cost; or their updates B_i A_i and their classifiers, at the
cost of one. A mixture decides for each token instead; with its gates held at their means it is a static ensemble, too,
which shows what the dynamic routing is worth.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moelora_ad.adapters import LoRAUpdate, adapted_sites, lora_updates, record_routing, static_mixture
from moelora_ad.adapters.surgery.merging import with_loras
from moelora_ad.analysis.gates import gated_sites
from moelora_ad.analysis.passes import AudioPasses, Progress, check_least, silent
from moelora_ad.analysis.scoring import check_both_classes, eer_difference, scores_of_variants, sets_to_score
from moelora_ad.analysis.trained import RequestError, TrainedDetector, load_trained, trials_of
from moelora_ad.evaluation import ScoreTable
from moelora_ad.evaluation.metrics.intervals import Difference
from moelora_ad.evaluation.metrics.least import LEAST_RESAMPLES
from moelora_ad.float64 import in_float64
from moelora_ad.runs.record import DEV

SCORES, WEIGHTS = "scores averaged", "weights averaged"
MIXTURE, STATIC = "mixture", "mixture with constant gates"


@dataclass(frozen=True, eq=False)
class EnsembleAnalysis:
    """The figures of averages of LoRAs, and of a mixture.

    Variants are the members ("lora, seed 1"), `SCORES` and `WEIGHTS` averaged and, if there is a mixture, `MIXTURE`
    and `STATIC`.

    Attributes:
        system: name of the LoRAs' system.
        members: the variants that are averaged.
        reference: the variant that others are compared with: the mixture, or else the averaged scores.
        resamples: number of resamples of the bootstrap.
        scores: scores by set and variant.
        differences: differences of the EER to that of the reference, with a 95 % interval, by set and variant.
        notes: notes on the precision, a line each.
    """

    system: str
    members: Sequence[str]
    reference: str
    resamples: int
    scores: Mapping[str, Mapping[str, ScoreTable]]
    differences: Mapping[str, Mapping[str, Difference]]
    notes: Sequence[str] = ()

    def forward_passes(self, variant: str) -> int:
        """Return how many models process an utterance."""
        return len(self.members) if variant == SCORES else 1


def analyze_ensemble(
    runs: Sequence[str | Path],
    *,
    against: str | Path | None = None,
    sets: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 1,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str | torch.device | None = None,
    precision: str | None = None,
    backbone: str | None = None,
    allow: Collection[str] = (),
    progress: Progress = silent,
) -> EnsembleAnalysis:
    """Score sets with every LoRA, with their averages, and with a mixture and its static form.

    Args:
        runs: folders of at least two runs of LoRAs, or checkpoints in them.
        against: a run of a mixture.
        sets: "dev", "train" or test sets of the runs; None for all test sets of the first.
        resamples: number of resamples of the bootstrap, at least 20.
        seed: seed of the bootstrap.
        batch_size: as for `moelora_ad.analysis.passes.AudioPasses`, like ``workers``, ``device``, ``precision`` and
            ``progress``.
        backbone: where the encoder is, if not where the runs found it.
        allow: packages besides ours whose classes the runs' configurations may name.

    Raises:
        RequestError: there are not two LoRA runs, their parts differ, or a run has no such set.
        InputError: a set lacks a class, or audio cannot be read.
    """
    if len(runs) < 2:
        raise RequestError("an ensemble needs at least two LoRA runs")
    check_least("resamples", resamples, LEAST_RESAMPLES)
    passes = AudioPasses(batch_size, workers, device, precision, progress)
    first = load_trained(runs[0], backbone, allow)
    names = sets_to_score(first, sets)
    if against is not None:  # before hours of work
        _check_mixture(load_trained(against, backbone, allow), names)
    scored = _Scores({name: {} for name in names}, passes, runs[0])
    updates, classifiers = [], []
    for path in runs:  # one model in memory at a time
        trained = load_trained(path, backbone, allow)
        updates.append(_updates(trained))
        classifiers.append(_classifier(trained))
        _check_alike(first, trained, updates, classifiers)
        scored.add(trained, f"{trained.name}, seed {trained.seed}")
    members = tuple(scored.by_set[names[0]])
    for by_variant in scored.by_set.values():
        tables = list(by_variant.values())
        by_variant[SCORES] = tables[0].with_scores(np.mean([table.scores for table in tables], axis=0))
    with averaged(first, updates, classifiers):
        scored.add(first, WEIGHTS)
    if against is not None:
        _add_mixture(load_trained(against, backbone, allow), scored)
    reference = SCORES if against is None else MIXTURE
    differences = {
        name: {
            variant: eer_difference(table, by_variant[reference], resamples, seed)
            for variant, table in by_variant.items()
        }
        for name, by_variant in scored.by_set.items()
    }
    return EnsembleAnalysis(first.name, members, reference, resamples, scored.by_set, differences, tuple(passes.notes))


class _Scores:
    """The scores gathered so far, by set and variant."""

    def __init__(self, by_set: dict[str, dict[str, ScoreTable]], passes: AudioPasses, first: str | Path) -> None:
        self.by_set = by_set
        self.passes = passes
        self._first = first

    def add(self, trained: TrainedDetector, variant: str) -> None:
        for name, by_variant in self.by_set.items():
            trials = trials_of(trained, name)
            check_both_classes(trials, name)
            others = next(iter(by_variant.values())).trials if by_variant else trials
            if list(trials.columns.utterance) != list(others.columns.utterance):
                raise RequestError(f"{trained.folder} has other trials in {name} than {self._first}")
            if variant in by_variant:
                raise RequestError(f"{trained.folder}: a run of {variant} is given twice")
            words = f"{variant} on {name}"
            by_variant |= scores_of_variants(trained, trials, {variant: nullcontext}, self.passes, words)


def _check_mixture(mixture: TrainedDetector, sets: Sequence[str]) -> None:
    if not gated_sites(mixture):
        raise RequestError(f"--against: {mixture.folder} has no gates; give a run that was adapted with MoELoRA")
    for name in (*sets, DEV):
        trials_of(mixture, name)


def _add_mixture(mixture: TrainedDetector, scored: _Scores) -> None:
    encoder = mixture.detector.backbone.encoder
    scored.add(mixture, MIXTURE)
    with record_routing(encoder) as routing:
        for batch in scored.passes.batches(mixture, trials_of(mixture, DEV), f"mean gates on {DEV}"):
            mixture.detector.backbone(batch.waveforms, batch.lengths)
    with with_loras(encoder, static_mixture(encoder, routing.mean_gates())):
        scored.add(mixture, STATIC)


@contextmanager
def averaged(
    trained: TrainedDetector, updates: Sequence[Mapping[str, LoRAUpdate]], classifiers: Sequence[Mapping[str, Tensor]]
) -> Iterator[None]:
    """Give the detector the mean of the updates, (1 / n) sum_i s_i B_i A_i exactly, not the product of mean factors,
    and the mean of the classifiers' weights and batch statistics, within the block."""
    detector = trained.detector
    before = {name: tensor.clone() for name, tensor in detector.classifier.state_dict().items()}
    mean = {
        name: torch.stack([in_float64(state[name]) for state in classifiers]).mean(0).to(tensor)
        for name, tensor in before.items()
    }
    detector.classifier.load_state_dict(mean)
    try:
        with with_loras(detector.backbone.encoder, mean_updates(updates)):
            yield
    finally:
        detector.classifier.load_state_dict(before)


def mean_updates(updates: Sequence[Mapping[str, LoRAUpdate]]) -> dict[str, LoRAUpdate]:
    """Return the mean of n LoRAs of rank r as one LoRA of rank n r, whose factors are theirs side by side."""
    means = {}
    for site in updates[0]:
        parts = [update[site] for update in updates]
        ups = [part.scaling / len(parts) * part.lora_B for part in parts]
        means[site] = LoRAUpdate(torch.cat([part.lora_A for part in parts]), torch.cat(ups, dim=1), 1.0)
    return means


def _updates(trained: TrainedDetector) -> dict[str, LoRAUpdate]:
    encoder = trained.detector.backbone.encoder
    if gated_sites(trained) or not list(adapted_sites(encoder)):
        raise RequestError(f"{trained.folder} is not a run of a LoRA; give a mixture with --against")
    return {
        site: LoRAUpdate(one.lora_A.detach().cpu(), one.lora_B.detach().cpu(), one.scaling)
        for site, one in lora_updates(encoder).items()
    }


def _classifier(trained: TrainedDetector) -> dict[str, Tensor]:
    return {name: tensor.cpu().clone() for name, tensor in trained.detector.classifier.state_dict().items()}


def _check_alike(
    first: TrainedDetector,
    trained: TrainedDetector,
    updates: Sequence[Mapping[str, LoRAUpdate]],
    classifiers: Sequence[Mapping[str, Tensor]],
) -> None:
    backbones = [one.detector.backbone for one in (first, trained)]
    same_backbone = [type(one) for one in backbones] == [type(backbones[0])] * 2 and (
        backbones[0].init_args == backbones[1].init_args
    )
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in (classifiers[0], classifiers[-1])]
    same = (same_backbone, updates[0].keys() == updates[-1].keys(), shapes[0] == shapes[1])
    for part, alike in zip(("backbone", "adapted projections", "classifier"), same, strict=True):
        if not alike:
            raise RequestError(
                f"{trained.folder} has another {part} than {first.folder}: their weights cannot be averaged"
            )

"""Scores of a set by several variants of one model: every file is read once."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from moelora_ad.analysis.passes import AudioPasses
from moelora_ad.analysis.trained import RequestError, TrainedDetector
from moelora_ad.corpora import TrialList
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable
from moelora_ad.evaluation.metrics.intervals import Difference, compare
from moelora_ad.evaluation.metrics.options import FigureOptions
from moelora_ad.models.scores import trial_scores

Variant = Callable[[], AbstractContextManager[object]]


def scores_of_variants(
    trained: TrainedDetector, trials: TrialList, variants: Mapping[str, Variant], passes: AudioPasses, what: str
) -> dict[str, ScoreTable]:
    """Return the scores of a set by each variant; see `trial_scores`.

    Args:
        trained: the model.
        trials: trials of the set.
        variants: by name, functions that return a context in which the model's detector is this variant.
        passes: how the set is read.
        what: description for the progress.

    Raises:
        InputError: a file cannot be read.
    """
    scores: dict[str, list[NDArray[np.float64]]] = {name: [] for name in variants}
    for batch in passes.batches(trained, trials, what):
        for name, variant in variants.items():
            with variant():
                logits = trained.detector(batch.waveforms, batch.lengths)
            scores[name].append(trial_scores(logits, len(batch.trials)).cpu().double().numpy())
    return {name: ScoreTable(trials, np.concatenate(parts)) for name, parts in scores.items()}


def eer_difference(first: ScoreTable, second: ScoreTable, resamples: int, seed: int) -> Difference:
    """Return the EERs of two variants on the same trials, and the 95 % interval of their difference by a paired
    bootstrap.

    Raises:
        InputError: a class is missing.
    """
    return compare(first, second, FigureOptions(resamples=resamples, seed=seed))["eer"]


def eers_by_attack(table: ScoreTable) -> dict[str, float]:
    """Return the EER of the spoofs of each attack against all bona fide trials, by the attack's name."""
    column, labels = table.trials.column("attack"), np.asarray(table.labels)
    attacks = np.array(column.values, dtype=object)[np.asarray(column.codes)]
    eers = {}
    for attack in sorted({str(name) for name in attacks[labels == 0] if name}):
        chosen = np.flatnonzero((labels == 1) | ((labels == 0) & (attacks == attack)))
        eers[attack] = table.select(chosen).equal_error_rate().eer
    return eers


def sets_to_score(trained: TrainedDetector, sets: Sequence[str] | None) -> list[str]:
    """Return the requested sets, or all test sets of the run.

    Raises:
        RequestError: none was requested, and the run has no test set.
    """
    names = list(sets or trained.data.test)
    if not names:
        raise RequestError(f"{trained.folder} has no test set: name one by --set")
    return names


def check_both_classes(trials: TrialList, name: str) -> None:
    """Check that a set has trials of both classes.

    Raises:
        InputError: the set lacks bona fide or spoofed trials, so that it has no EER.
    """
    if not trials.num_bona_fide or not trials.num_spoof:
        raise InputError(f"{name} has no {'bona fide' if trials.num_spoof else 'spoofed'} trials, so no EER")

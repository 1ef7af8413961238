"""Scores of a set by several variants of one model: every file is read once."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray

from moelora_ad.analysis.batches import Reading, read
from moelora_ad.analysis.models import Trained
from moelora_ad.corpora import TrialList
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable
from moelora_ad.evaluation.metrics.intervals import Difference, compare
from moelora_ad.evaluation.metrics.options import FigureOptions

Variant = Callable[[], AbstractContextManager[object]]


def scores_of_variants(
    trained: Trained, trials: TrialList, variants: Mapping[str, Variant], reading: Reading, what: str
) -> dict[str, ScoreTable]:
    """The scores of a set by each variant: log-odds of bona fide, the mean over a trial's clips.

    Args:
        trained: its detector.
        trials: of the set.
        variants: by name, what makes the detector this variant within a ``with`` block.
        reading: see `read`.
        what: words beside the progress bar.

    Raises:
        InputError: a file cannot be read.
    """
    scores: dict[str, list[NDArray[np.float64]]] = {name: [] for name in variants}
    with torch.inference_mode():
        for batch in read(trained, trials, reading, what):
            for name, variant in variants.items():
                with variant():
                    logits = trained.detector(batch.waveforms, batch.lengths).float()
                odds = (logits[:, 1] - logits[:, 0]).reshape(len(batch.trials), -1).mean(dim=1)
                scores[name].append(odds.double().cpu().numpy())
    return {name: ScoreTable(trials, np.concatenate(parts)) for name, parts in scores.items()}


def eer_difference(first: ScoreTable, second: ScoreTable, resamples: int, seed: int) -> Difference:
    """The EERs of two variants on the same trials, and the 95 % interval of their difference by a paired bootstrap.

    Raises:
        InputError: a class is missing.
    """
    return compare(first, second, FigureOptions(resamples=resamples, seed=seed))["eer"]


def eers_by_attack(table: ScoreTable) -> dict[str, float]:
    """The EER of the spoofs of each attack against all bona fide trials, by the attack's name."""
    column, labels = table.trials.column("attack"), np.asarray(table.labels)
    attacks = np.array(column.values, dtype=object)[np.asarray(column.codes)]
    found = {}
    for attack in sorted({str(name) for name in attacks[labels == 0] if name}):
        chosen = np.flatnonzero((labels == 1) | ((labels == 0) & (attacks == attack)))
        found[attack] = table.select(chosen).equal_error_rate().eer
    return found


def check_classes(table_or_trials: TrialList, name: str) -> None:
    """
    Raises:
        InputError: the set lacks bona fide or spoofed trials, so that it has no EER.
    """
    if not table_or_trials.num_bona_fide or not table_or_trials.num_spoof:
        raise InputError(f"{name} has no {'bona fide' if table_or_trials.num_spoof else 'spoofed'} trials, so no EER")

"""The equal error rate, as ASVspoof defines it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from moelora_ad.errors import InputError


class ScoreError(InputError):
    """Scores or labels of which no figure can be computed."""


class EqualErrorRateResult(NamedTuple):
    """``eer`` in [0, 1]; a trial is accepted as bona fide if its score is above ``threshold``."""

    eer: float
    threshold: float


def equal_error_rate(scores: ArrayLike, labels: ArrayLike) -> EqualErrorRateResult:
    """The rate at which misses (bona fide rejected) and false alarms (spoof accepted) are closest to equal.

    Of all thresholds that separate the scores differently, the lowest one with the least |miss rate - false alarm rate|
    is taken, and the mean of the two rates reported. Without tied scores this is the figure of the ASVspoof evaluation
    packages, digit for digit. Tied scores are accepted or rejected together, so a constant scorer has 0.5 (the
    packages rank tied bona fide trials below tied spoofs, which reports 1.0).

    Args:
        scores: (n,) finite; higher is more bona fide.
        labels: (n,) 1 for bona fide, 0 for spoof.

    Raises:
        ScoreError: Scores and labels differ in length, a score is not finite, a label is neither 0 nor 1, or one of the
            classes has no trial.
    """
    scores, is_bona_fide = _checked(scores, labels)
    order = np.argsort(scores, kind="stable")
    scores = scores[order]
    bona_fide_rejected = np.cumsum(is_bona_fide[order])
    spoof_rejected = np.arange(1, len(scores) + 1) - bona_fide_rejected
    num_bona_fide, num_spoof = bona_fide_rejected[-1], spoof_rejected[-1]
    # Rejecting up to and including the i-th score is a threshold only where a run of tied scores ends.
    ends = np.append(scores[1:] != scores[:-1], True)
    miss = np.append(0.0, bona_fide_rejected[ends] / num_bona_fide)
    false_alarm = np.append(1.0, (num_spoof - spoof_rejected[ends]) / num_spoof)
    thresholds = np.append(scores[0] - 0.001, scores[ends])
    best = np.argmin(np.abs(miss - false_alarm))
    return EqualErrorRateResult(float((miss[best] + false_alarm[best]) / 2), float(thresholds[best]))


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """(n,) float64 scores and (n,) bool, true for bona fide."""
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ScoreError(f"scores and labels must be two lists of one length, not {scores.shape} and {labels.shape}")
    finite = np.isfinite(scores)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ScoreError(f"{int((~finite).sum())} scores are not finite; the first is number {first}: {scores[first]}")
    is_bona_fide = labels == 1
    odd = labels[~(is_bona_fide | (labels == 0))]
    if len(odd):
        raise ScoreError(f"labels must be 1 (bona fide) or 0 (spoof); {len(odd)} are not, for example {odd[0]}")
    num_bona_fide = int(is_bona_fide.sum())
    if num_bona_fide in (0, len(labels)):
        found = f"{num_bona_fide} bona fide and {len(labels) - num_bona_fide} spoof"
        raise ScoreError(f"an equal error rate needs trials of both classes, but there are {found}")
    return scores, is_bona_fide

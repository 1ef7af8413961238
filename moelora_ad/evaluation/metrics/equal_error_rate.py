"""The equal error rate, as ASVspoof defines it."""

import bisect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from moelora_ad.errors import InputError, counted


class ScoreError(InputError):
    """Scores or labels from which a figure cannot be computed."""


class EqualErrorRateResult(NamedTuple):
    """An ``eer`` in [0, 1] and its ``threshold``, the lowest accepted score: a trial is accepted as bona fide if its
    score is at or above it."""

    eer: float
    threshold: float


def equal_error_rate(scores: ArrayLike, labels: ArrayLike) -> EqualErrorRateResult:
    """Return the rate at which misses (bona fide rejected) and false alarms (spoof accepted) are closest to equal.

    Of all thresholds that separate the scores differently, the lowest one with the least |miss rate - false alarm rate|
    is taken, and the mean of the two rates reported. Without tied scores this is the figure of the ASVspoof evaluation
    packages, digit for digit. Tied scores are accepted or rejected together, so a constant scorer has 0.5 (the
    packages rank tied bona fide trials below tied spoofs, which reports 1.0). The threshold is the lowest accepted
    score; the packages name the score before it, the highest rejected one.

    Args:
        scores: (n,) finite; higher is more bona fide.
        labels: (n,) 1 for bona fide, 0 for spoof.

    Raises:
        ScoreError: Scores and labels differ in length, a score is not finite, a label is neither 0 nor 1, or one of the
            classes has no trial.
    """
    return equal_error_rate_of_sorted(*sorted_by_class(scores, labels))


def as_array(values: Any, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """Return numbers as an array; a tensor may be on a GPU, have gradients, or be of a type that numpy lacks."""
    if hasattr(values, "detach"):  # torch is not imported to ask for its type, as scores in files need none
        values = values.detach().cpu()
        try:
            values = values.numpy()
        except TypeError:  # numpy has no bfloat16
            values = values.float().numpy()
    return np.asarray(values, dtype)


def sorted_by_class(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the bona fide and the spoofed scores, each ascending; raises what `equal_error_rate` raises."""
    scores, labels = as_array(scores, np.float64), as_array(labels)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ScoreError(f"scores and labels must be two lists of one length, not {scores.shape} and {labels.shape}")
    is_bona_fide, is_spoof = labels == 1, labels == 0
    known = is_bona_fide | is_spoof
    # Two sorts of the classes, without a permutation, take a third of the time of one argsort of all scores.
    sides = scores.compress(is_bona_fide), scores.compress(is_spoof)
    for side in sides:
        side.sort()
    # Sorting puts NaN last, so the ends of a side show whether all of it is finite.
    if not (known.all() and all(np.isfinite(side[[0, -1]]).all() for side in sides if len(side))):
        _refuse(scores, labels[~known])
    check_classes(len(sides[0]), len(sides[1]))
    return sides


def check_classes(num_bona_fide: int, num_spoof: int) -> None:
    """Check that both classes have a trial.

    Raises:
        ScoreError: A class has none.
    """
    if not (num_bona_fide and num_spoof):
        found = f"{num_bona_fide} bona fide and {num_spoof} spoof"
        raise ScoreError(f"figures need trials of both classes, but there are {found}")


def _refuse(scores: NDArray[np.float64], odd_labels: NDArray[np.generic]) -> None:
    finite = np.isfinite(scores)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ScoreError(
            f"{counted(int((~finite).sum()), 'score')} not finite; the first is number {first}: {scores[first]}"
        )
    raise ScoreError(
        f"labels must be 1 (bona fide) or 0 (spoof); {len(odd_labels)} are not, for example {odd_labels[0]}"
    )


def equal_error_rate_of_sorted(bona_fide: NDArray[np.float64], spoof: NDArray[np.float64]) -> EqualErrorRateResult:
    """Return `equal_error_rate` of two ascending arrays, neither empty, in time logarithmic in their lengths."""

    def rates(threshold: float) -> tuple[float, float]:
        accepted_spoofs = len(spoof) - int(spoof.searchsorted(threshold))
        return int(bona_fide.searchsorted(threshold)) / len(bona_fide), accepted_spoofs / len(spoof)

    def misses_prevail(threshold: float) -> bool:
        miss, false_alarm = rates(threshold)
        return miss >= false_alarm

    # Miss rate - false alarm rate rises with the threshold, from -1 at the lowest score, which accepts all, to 1 at
    # infinity: it is closest to zero at the first score at which it is not negative, or at the score before.
    sides = (bona_fide, spoof)
    above = min(_first(misses_prevail, side) for side in sides)
    below = max(float(side[place - 1]) for side in sides if (place := int(side.searchsorted(above))) > 0)
    candidates = [(below, rates(below)), (above, rates(above))]
    threshold, (miss, false_alarm) = min(candidates, key=lambda one: abs(one[1][0] - one[1][1]))
    return EqualErrorRateResult((miss + false_alarm) / 2, threshold)


def _first(holds: Callable[[float], bool], ascending: NDArray[np.float64]) -> float:
    """Return the lowest value for which ``holds`` is true, or infinity; it must be true for all higher values too."""
    place = bisect.bisect_left(range(len(ascending)), True, key=lambda i: holds(float(ascending[i])))
    return float(ascending[place]) if place < len(ascending) else np.inf

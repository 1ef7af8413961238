"""All figures of a set of scores, from one sort."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moelora_ad.evaluation.metrics.costs import AsvErrorRates, DetectionCosts, TandemCosts2019, TandemCosts2021
from moelora_ad.evaluation.metrics.counted import (
    ASVSPOOF_5,
    ASVSPOOF_2021,
    CostResult,
    CountedTrials,
    Counts,
)
from moelora_ad.evaluation.metrics.equal_error_rate import (
    EqualErrorRateResult,
    ScoreError,
    equal_error_rate_of_sorted,
    sorted_by_class,
)

Floats = NDArray[np.float64]


class OperatingPoints(NamedTuple):
    """Ascending thresholds (n,) with the rates of each; the last is infinity, which rejects all."""

    thresholds: Floats
    miss: Floats
    false_alarm: Floats


def least_cost(costs: Callable[[Counts], tuple[Floats, Floats]], last: int) -> tuple[float, int]:
    """Return the least cost of the operating points 0 ... ``last``, and the first point that has it.

    Args:
        costs: Returns the cost of the misses and that of the false alarms at some points; from one point to the next,
            the first never falls and the second never rises.
        last: The number of the last point, at least 1.
    """
    # The misses at one point and the false alarms at a later one bound the cost of all points between from below. So a
    # few points rule out nearly all others.
    stride = math.isqrt(last)
    some = np.append(np.arange(0, last, stride), last)
    misses, false_alarms = costs(some)
    hopeful = np.flatnonzero(misses[:-1] + false_alarms[1:] <= (misses + false_alarms).min())
    points = np.minimum(some[hopeful, np.newaxis] + np.arange(stride + 1), last).ravel()
    hopeful_costs = np.add(*costs(points))
    best = int(hopeful_costs.argmin())
    return float(hopeful_costs[best]), int(points[best])


class ScoreCurve(CountedTrials):
    """Scores of both classes, each sorted once. Tied scores are accepted or rejected together.

    A trial is accepted as bona fide if its score is at or above a threshold.

    Args:
        scores: (n,) finite; higher is more bona fide.
        labels: (n,) 1 for bona fide, 0 for spoof.

    Raises:
        ScoreError: See `equal_error_rate`.

    Example:
        >>> curve = ScoreCurve([2.0, 0.5, 1.0, -1.0], [1, 1, 0, 0])
        >>> curve.equal_error_rate().eer, curve.min_dcf().cost, curve.auc()
        (0.5, 0.5, 0.75)
    """

    def __init__(self, scores: ArrayLike, labels: ArrayLike) -> None:
        self._bona_fide, self._spoof = sorted_by_class(scores, labels)
        self.num_bona_fide, self.num_spoof = len(self._bona_fide), len(self._spoof)

    def equal_error_rate(self) -> EqualErrorRateResult:
        return equal_error_rate_of_sorted(self._bona_fide, self._spoof)

    def operating_points(self) -> OperatingPoints:
        """Return the rates at all distinct scores and at infinity, which are all operating points."""
        thresholds = np.append(np.unique(np.concatenate([self._bona_fide, self._spoof])), np.inf)
        missed, rejected = self._bona_fide.searchsorted(thresholds), self._spoof.searchsorted(thresholds)
        return OperatingPoints(thresholds, missed / self.num_bona_fide, (self.num_spoof - rejected) / self.num_spoof)

    def _errors(self, threshold: float) -> tuple[int, int]:
        if math.isnan(threshold):
            raise ScoreError("a threshold must be a number, not nan")
        rejected_spoofs = int(self._spoof.searchsorted(threshold))
        return int(self._bona_fide.searchsorted(threshold)), self.num_spoof - rejected_spoofs

    def _least_cost(self, miss: float, false_alarm: float) -> CostResult:
        def costs(places: Counts) -> tuple[Floats, Floats]:
            missed, accepted_spoofs = self._candidates(places)
            weights = np.float64(miss / self.num_bona_fide), np.float64(false_alarm / self.num_spoof)
            return missed * weights[0], accepted_spoofs * weights[1]

        cost, place = least_cost(costs, min(self.num_bona_fide, self.num_spoof))
        missed = int(self._candidates(np.array([place]))[0][0])
        threshold = self._bona_fide[missed] if missed < self.num_bona_fide else np.inf
        return CostResult(cost, float(threshold))

    def _candidates(self, places: Counts) -> tuple[Counts, Counts]:
        """Return the bona fide trials missed and the spoofs accepted at ``places`` among the thresholds that can have
        the least cost.

        A higher threshold pays only if it rejects another spoof, and a lower one only if it accepts another bona fide
        trial: the thresholds at the scores of the smaller class, and one beyond them, are enough. Within a run of ties
        all counts but one are too high, so that those cannot have the least cost.
        """
        if self.num_bona_fide < self.num_spoof:  # place i rejects all below bona fide score i, the last one all
            scores = self._bona_fide.take(places, mode="clip")
            accepted_spoofs = self.num_spoof - self._spoof.searchsorted(scores)
            return places, np.where(places < self.num_bona_fide, accepted_spoofs, 0)
        # Place 0 rejects nothing, place i all up to and including spoof score i - 1.
        missed = self._bona_fide.searchsorted(self._spoof.take(places - 1, mode="clip"), "right")
        return np.where(places > 0, missed, 0), self.num_spoof - places

    def _softplus(self) -> tuple[float, float]:
        return _mean_softplus(-self._bona_fide), _mean_softplus(self._spoof)

    @cached_property
    def _groups(self) -> tuple[Counts, Counts]:
        """One group for each distinct score of the smaller class, with the ties of the larger class, and one for the
        trials of the larger class between two of them."""
        few, many = self._bona_fide, self._spoof
        if swapped := len(few) > len(many):
            few, many = many, few
        starts = np.flatnonzero(np.append(True, few[1:] != few[:-1]))
        counts = np.zeros((2, 2 * len(starts) + 1), np.int64)
        counts[0, 1::2] = np.diff(starts, append=len(few))
        borders = np.stack([many.searchsorted(few[starts], side) for side in ("left", "right")], axis=1)
        counts[1] = np.diff(borders.ravel(), prepend=0, append=len(many))
        counts = counts[:, counts.any(axis=0)]
        return (counts[1], counts[0]) if swapped else (counts[0], counts[1])


def _mean_softplus(values: Floats) -> float:
    """Return the mean of ln(1 + e^x), with an absolute error of at most 1e-15 beside the relative one of rounding."""
    # ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|), which cannot overflow. One logarithm of a product of 64 such numbers,
    # none of them above 2, is faster than 64 logarithms.
    factors = 1 + np.exp(-np.abs(values))
    products = np.multiply.reduceat(factors, np.arange(0, len(factors), 64))
    return float((np.maximum(values, 0) / len(values)).sum() + np.log(products).sum() / len(values))


def min_dcf(scores: ArrayLike, labels: ArrayLike, costs: DetectionCosts = ASVSPOOF_5) -> CostResult:
    """Return `ScoreCurve.min_dcf` of scores (n,) and labels (n,), 1 for bona fide and 0 for spoof."""
    return ScoreCurve(scores, labels).min_dcf(costs)


def act_dcf(scores: ArrayLike, labels: ArrayLike, costs: DetectionCosts = ASVSPOOF_5) -> float:
    """Return `ScoreCurve.act_dcf` of scores (n,) and labels (n,), 1 for bona fide and 0 for spoof; the scores must be
    log-likelihood ratios, that is calibrated."""
    return ScoreCurve(scores, labels).act_dcf(costs)


def min_tdcf(
    scores: ArrayLike,
    labels: ArrayLike,
    asv: AsvErrorRates,
    costs: TandemCosts2019 | TandemCosts2021 = ASVSPOOF_2021,
) -> CostResult:
    """Return `ScoreCurve.min_tdcf` of scores (n,) and labels (n,), 1 for bona fide and 0 for spoof; for ``asv`` see
    `asv_error_rates` and `read_asv_error_rates`."""
    return ScoreCurve(scores, labels).min_tdcf(asv, costs)


def cllr(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return `ScoreCurve.cllr` of scores (n,) and labels (n,), 1 for bona fide and 0 for spoof; the scores must be
    log-likelihood ratios, that is calibrated."""
    return ScoreCurve(scores, labels).cllr()


def min_cllr(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return `ScoreCurve.min_cllr` of scores (n,) and labels (n,), 1 for bona fide and 0 for spoof."""
    return ScoreCurve(scores, labels).min_cllr()


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return `ScoreCurve.auc` of scores (n,) and labels (n,), 1 for bona fide and 0 for spoof."""
    return ScoreCurve(scores, labels).auc()


def accuracy(scores: ArrayLike, labels: ArrayLike, threshold: float) -> float:
    """Return `ScoreCurve.accuracy` of scores (n,) and labels (n,), 1 for bona fide and 0 for spoof; a trial is accepted
    if its score is at or above the threshold."""
    return ScoreCurve(scores, labels).accuracy(threshold)

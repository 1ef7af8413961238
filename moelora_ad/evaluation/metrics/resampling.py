"""Figures of resampled trials, from one sort."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moelora_ad.evaluation.metrics.clusters import without_gaps
from moelora_ad.evaluation.metrics.counted import CostResult, CountedTrials, Counts
from moelora_ad.evaluation.metrics.curve import least_cost
from moelora_ad.evaluation.metrics.equal_error_rate import EqualErrorRateResult
from moelora_ad.evaluation.metrics.options import FigureOptions

Integers = NDArray[np.integer]
Floats = NDArray[np.float64]


class Strata:
    """Draws clusters with replacement, as many as there are.

    Clusters of only bona fide trials, of only spoofs and of both are drawn separately, each kind as often as it occurs:
    so both classes are in every resample, and their proportion stays about what it is by design. For the same reason
    pooled sets are drawn separately.

    Args:
        labels: (n,) 1 for bona fide, 0 for spoof.
        clusters: (n,) any numbers, the same for trials that belong together.
        sets: (n,) the number of each trial's set; None for a single set. All trials of a cluster are of one set.
    """

    def __init__(self, labels: Integers, clusters: Counts, sets: Counts | None = None) -> None:
        codes = without_gaps(clusters)
        has_bona_fide = np.bincount(codes, weights=labels == 1) > 0
        has_spoof = np.bincount(codes, weights=labels == 0) > 0
        kinds = has_bona_fide + 2 * has_spoof
        if sets is not None:
            of_cluster = np.empty(len(kinds), np.int64)
            of_cluster[codes] = sets
            kinds = kinds + 4 * of_cluster
        # Clusters are numbered kind by kind, so that the draws of the kinds only need to be concatenated.
        numbers = np.empty(len(kinds), np.int64)
        numbers[np.argsort(kinds, kind="stable")] = np.arange(len(kinds))
        self.clusters: Counts = numbers[codes]
        self.sizes: list[int] = np.unique(kinds, return_counts=True)[1].tolist()

    def draw(self, seed: int, number: int) -> Counts:
        """Return how often (k,) each of the ``clusters`` is in a resample; the same for the same seed and number."""
        generator = np.random.default_rng((seed, number))
        drawn = [np.bincount(generator.integers(size, size=size), minlength=size) for size in self.sizes]
        return np.concatenate(drawn)


class ResampledCurve:
    """The figures of `ScoreCurve` for trials that count several times, or not at all.

    Args:
        scores: (n,) finite; higher is more bona fide.
        labels: (n,) 1 for bona fide, 0 for spoof; both occur.
        clusters: (n,) the number of each trial's cluster, from 0 to k - 1.
        options: How the figures are computed.
    """

    def __init__(self, scores: Floats, labels: Integers, clusters: Counts, options: FigureOptions) -> None:
        order = np.argsort(scores)
        scores, is_bona_fide, clusters = scores[order], labels[order] == 1, clusters[order]
        self.options = options
        self.scores = scores[is_bona_fide], scores[~is_bona_fide]
        self.clusters = clusters[is_bona_fide], clusters[~is_bona_fide]
        self.largest_cluster = int(np.bincount(clusters).max())
        # Operating points: how many trials of each class are rejected; first none, then one more distinct score each.
        lasts = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
        bona_fide = np.append(0, is_bona_fide.cumsum()[lasts])
        spoof = np.append(0, lasts + 1) - bona_fide
        self.points = bona_fide, spoof
        self.thresholds = np.append(-np.inf, scores[lasts])
        # Costs and areas need only the corners: the points at which the class of the trials changes.
        adds_bona_fide, adds_spoof = np.diff(bona_fide) > 0, np.diff(spoof) > 0
        mixed = adds_bona_fide & adds_spoof
        corner = np.ones(len(bona_fide), bool)
        corner[1:-1] = mixed[1:] | mixed[:-1] | (adds_bona_fide[1:] != adds_bona_fide[:-1])
        self.corners = bona_fide[corner], spoof[corner], self.thresholds[corner]

    def figures(self, names: tuple[str, ...], counts: Counts) -> list[float]:
        """Return figures by their names in `Figures`, for trials that occur as often as their clusters.

        Args:
            names: The names of the figures.
            counts: (k,) how often each cluster occurs; each class must have a trial.
        """
        return self.figures_of_two(names, counts, counts)[0]

    def figures_of_two(self, names: tuple[str, ...], first: Counts, second: Counts) -> list[list[float]]:
        """Return `figures` of each of two resamples, whose trials are counted together.

        Args:
            names: The names of the figures.
            first: (k,) how often each cluster occurs in the first resample.
            second: (k,) how often each cluster occurs in the second.
        """
        in_halves = int(max(first.sum(), second.sum())) * self.largest_cluster < 2**31
        terms = np.empty((len(first), 2), np.int32 if in_halves else np.int64)
        terms[:, 0], terms[:, 1] = first, second
        bona_fide, spoof = (_running(terms, clusters) for clusters in self.clusters)
        resamples = (
            _Resample(self, counts, bona_fide[:, one], spoof[:, one]) for one, counts in enumerate((first, second))
        )
        return [[resample.figure(name, self.options) for name in names] for resample in resamples]

    @cached_property
    def softplus(self) -> tuple[Floats, Floats]:
        """What each cluster adds to the mean of ln(1 + e^-s) over bona fide trials, and to that of ln(1 + e^s) over
        spoofs, without resampling: (k,) each."""
        num_clusters = 1 + max(int(side.max()) for side in self.clusters)
        added: list[Floats] = []
        for sign, scores, clusters in zip((-1, 1), self.scores, self.clusters, strict=True):
            shares = np.logaddexp(0, sign * scores) / len(scores)
            added.append(np.bincount(clusters, shares, num_clusters).astype(np.float64))
        return added[0], added[1]


class _Resample(CountedTrials):
    """The trials of one resample."""

    def __init__(self, curve: ResampledCurve, counts: Counts, bona_fide: Integers, spoof: Integers) -> None:
        self.curve, self.counts = curve, counts
        # How many bona fide trials and spoofs are among the first i of the curve, i = 0 ... all of them.
        self.bona_fide, self.spoof = bona_fide, spoof
        self.num_bona_fide, self.num_spoof = int(bona_fide[-1]), int(spoof[-1])

    def equal_error_rate(self) -> EqualErrorRateResult:
        points_bona_fide, points_spoof = self.curve.points

        def rates(point: int) -> tuple[float, float]:
            missed, rejected = self.bona_fide.item(points_bona_fide[point]), self.spoof.item(points_spoof[point])
            return missed / self.num_bona_fide, (self.num_spoof - rejected) / self.num_spoof

        # Miss rate - false alarm rate rises from -1 to 1: it is closest to zero where it first is not negative, or at
        # the point before. Points whose trials count zero times have the rates of the point before and change nothing.
        below, above = 0, len(points_spoof) - 1
        while above - below > 1:
            middle = (below + above) // 2
            miss, false_alarm = rates(middle)
            below, above = (below, middle) if miss >= false_alarm else (middle, above)
        point = min((below, above), key=lambda one: abs(rates(one)[0] - rates(one)[1]))
        return EqualErrorRateResult(sum(rates(point)) / 2, float(self.curve.thresholds[point + 1]))

    def _least_cost(self, miss: float, false_alarm: float) -> CostResult:
        bona_fide, spoof, thresholds = self.curve.corners

        def costs(corners: Counts) -> tuple[Floats, Floats]:
            missed, rejected = self.bona_fide[bona_fide[corners]], self.spoof[spoof[corners]]
            return miss * (missed / self.num_bona_fide), false_alarm * ((self.num_spoof - rejected) / self.num_spoof)

        cost, corner = least_cost(costs, len(bona_fide) - 1)
        return CostResult(cost, float(thresholds[corner]))

    def _errors(self, threshold: float) -> tuple[int, int]:
        missed, rejected = (int(scores.searchsorted(threshold)) for scores in self.curve.scores)
        return int(self.bona_fide[missed]), self.num_spoof - int(self.spoof[rejected])

    @cached_property
    def _groups(self) -> tuple[Counts, Counts]:
        """The trials between two corners as one group, if this resample has any there."""
        missed, rejected, _ = self.curve.corners
        bona_fide, spoof = (
            np.diff(self.bona_fide[missed].astype(np.int64)),
            np.diff(self.spoof[rejected].astype(np.int64)),
        )
        some = np.flatnonzero(bona_fide + spoof > 0)  # faster than a mask
        return bona_fide.take(some), spoof.take(some)

    def _softplus(self) -> tuple[float, float]:
        """Sum what the clusters add without resampling, and scale it to the numbers of resampled trials."""
        bona_fide, spoof = (float(self.counts @ added) for added in self.curve.softplus)
        of_bona_fide, of_spoof = (len(scores) for scores in self.curve.scores)
        return bona_fide * of_bona_fide / self.num_bona_fide, spoof * of_spoof / self.num_spoof


def _running(counts: Integers, clusters: Counts) -> Integers:
    """Return running counts (n + 1, 2) of two resamples: how many trials are among the first i of n, each counted as
    often as its cluster.

    Args:
        counts: (k, 2) how often each cluster occurs. Two counts of 32 bits are summed together, as the halves of a
            number of 64 bits; no sum may then take more than 31 bits.
        clusters: (n,) the number of each trial's cluster.
    """
    terms = counts.view(np.int64)
    sums = np.empty((len(clusters) + 1, terms.shape[1]), np.int64)
    sums[0] = 0
    np.cumsum(terms.take(clusters, axis=0), axis=0, out=sums[1:])
    return sums.view(counts.dtype)

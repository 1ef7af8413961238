"""Whether a system is better than another one, whatever their seeds and the trials: one interval for both.

The EER of a run varies with its seed and with the trials that it is tested on, and all runs are tested on the same
trials: more seeds reduce the first part, but not the second. This is the design of studies in which several
readers read the same cases, and it is judged as they are: readers are seeds, cases are clusters of trials.

With d_i the difference of two systems with seed i, and their mean over n seeds,

    variance of the mean = s² / n + max(0, c)

where s² is the variance of d_i over seeds, and c the covariance of d_i and d_j over other trials, mean over all i != j,
from resamples of clusters that all runs share (Obuchowski and Rockette, Communications in Statistics - Simulation and
Computation 24, 1995; their F of two tests is the square of this t). What trials do to each d_i alone is within s², so
it counts once. Of k clusters, resamples show but the share (k - 1) / k of their variance, which is made good. Student's
t has the degrees of freedom of such a sum (Satterthwaite, Biometrics Bulletin 2, 1946): n - 1 of the first part, as
Hillis (Statistics in Medicine 26, 2007) has it, and k - 1 of the second, k the clusters of the class that has fewer.

`python benchmarks/comparison_coverage.py` measures how often 95 % intervals have the true difference inside, where that
is known. Of 1,000 simulated comparisons each, of 3, 5 and 10 seeds: with moderate spread over seeds and over 20 + 40
clusters of trials 93.9, 94.1 and 96.8 %; with 8 + 24 clusters 96.1, 95.8 and 95.2 %; with little spread over seeds
94.7, 95.4 and 96.3 %; with so much of it that EERs are far from normal 92.3, 93.5 and 96.1 %. A hierarchical bootstrap,
which resamples seeds, has 81.5, 86.3 and 93.0 % in the last case: three or five seeds are too few to draw from.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from moelora_ad.evaluation.metrics.intervals import Interval

LEVEL, POWER = 0.05, 0.8
MOST_SEEDS = 10_000
"""More seeds are not considered: see `seeds_needed`."""

Floats = NDArray[np.float64]


class Variance(NamedTuple):
    """An estimated variance and its degrees of freedom; infinity if it is known."""

    value: float
    df: float = math.inf


class SeedDifference(NamedTuple):
    """A figure of one system less that of another one; a share of 1, and negative if the first has less.

    Args:
        first: Mean over the first system's seeds.
        second: Mean over the second system's.
        difference: First - second.
        interval: 95 %, for other seeds and other trials; None if the variation of the difference is unknown.
        effect_size: The difference in standard deviations over seeds, mean of both systems (root mean square), with
            Hedges' correction for few seeds (Journal of Educational Statistics 6, 1981); None for one seed, and without
            any spread.
        probability: That the first has less: Student's t about the difference, which is the posterior of a Bayesian
            without prior knowledge (Benavoli et al., Journal of Machine Learning Research 18, 2017, section 3). None
            without an interval.
        p_value: That a difference at least as large, to either side, is chance. None without an interval.
        seeds: How many of the first and of the second system.
        of_one_seed: The variance of the difference of one seed of each; None if a system has a single one.
        of_trials: The variance over other trials.
    """

    first: float
    second: float
    difference: float
    interval: Interval | None
    effect_size: float | None
    probability: float | None
    p_value: float | None
    seeds: tuple[int, int]
    of_one_seed: float | None
    of_trials: Variance


def seed_difference(first: Floats, second: Floats, is_paired: bool, of_trials: Variance) -> SeedDifference:
    """The difference of two systems over seeds and trials.

    Args:
        first: (n,) the figure of each seed.
        second: (m,) of the other system.
        is_paired: Whether the two have the same seeds, in the same order: what a seed makes harder for both then does
            not widen the interval.
        of_trials: See `variance_of_trials`; of an average over sets `mean_variance` of theirs.
    """
    mean, seeds = float(first.mean() - second.mean()), (len(first), len(second))
    of_one_seed, parts = None, [of_trials]
    if min(seeds) > 1:
        sides = [first - second] if is_paired else [first, second]
        spreads = [float(side.var(ddof=1)) for side in sides]
        of_one_seed = sum(spreads)
        parts += [Variance(s / len(side), len(side) - 1) for s, side in zip(spreads, sides, strict=True)]
    total = _sum(parts)
    interval, probability, p_value = None, None, None
    if total.value > 0:
        error = math.sqrt(total.value)
        reach = float(stats.t.ppf(1 - LEVEL / 2, total.df)) * error
        interval = Interval(mean - reach, mean + reach)
        probability = float(stats.t.cdf(-mean / error, total.df))
        p_value = float(2 * stats.t.sf(abs(mean) / error, total.df))
    elif mean == 0:  # a system and itself
        interval, probability, p_value = Interval(0.0, 0.0), 0.5, 1.0
    size = _effect_size(first, second)
    values = (float(first.mean()), float(second.mean()), mean)
    return SeedDifference(*values, interval, size, probability, p_value, seeds, of_one_seed, of_trials)


def variance_of_trials(first: Floats, second: Floats, is_paired: bool, num_clusters: int) -> Variance:
    """The variance over other trials of the difference of two systems, however many seeds there are.

    Args:
        first: (n, B) the figure of each seed in every resample of the trials; all runs have the same resamples.
        second: (m, B) of the other system.
        is_paired: Whether the two have the same seeds, in the same order.
        num_clusters: Those of the class that has fewer.

    Returns:
        If one of the systems has one seed, all that other trials would change, as a single seed cannot separate that.
    """
    n, m = len(first), len(second)
    if min(n, m) == 1:
        value = float(np.var(first.mean(0) - second.mean(0)))
    elif is_paired:
        value = _shared(np.cov(first - second, ddof=0))
    else:
        both = np.cov(np.concatenate([first, second]), ddof=0)
        value = _shared(both[:n, :n]) + _shared(both[n:, n:]) - 2 * float(both[:n, n:].mean())
    df = max(num_clusters - 1, 1)
    return Variance(max(value, 0.0) * (df + 1) / df, df)


def mean_variance(parts: Sequence[Variance]) -> Variance:
    """Of the mean of independent figures."""
    number = len(parts)
    return _sum([Variance(part.value / number**2, part.df) for part in parts])


def seeds_needed(found: SeedDifference, difference: float) -> int | None:
    """How many seeds of each system would show a difference: with a power of 80 % at a level of 5 %, two-sided.

    The power is that of Student's t with its noncentral distribution; variances are taken as estimated, so a
    number that rests on few seeds is rough.

    Args:
        found: Of at least two seeds of each system.
        difference: A share of 1, above 0.

    Returns:
        None if no number suffices: the variance over trials is too large, and seeds do not reduce it.
    """
    of_one = found.of_one_seed
    assert of_one is not None

    def suffices(seeds: int) -> bool:
        total = _sum([Variance(of_one / seeds, seeds - 1), found.of_trials])
        return _power(difference, total) >= POWER

    few, many = 1, 2
    while not suffices(many):
        few, many = many, 2 * many
        if few >= MOST_SEEDS:
            return None
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if suffices(middle) else (middle, many)
    return many


def holm(p_values: Floats) -> Floats:
    """p values corrected for their number (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    order = np.argsort(p_values)
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def _power(difference: float, variance: Variance) -> float:
    if not variance.value:
        return 1.0
    away = difference / math.sqrt(variance.value)
    if variance.df > 1e4:  # normal
        return float(stats.norm.sf(stats.norm.isf(LEVEL / 2) - away))
    beyond = float(stats.t.isf(LEVEL / 2, variance.df))
    if away > 10 * beyond:
        return 1.0
    return float(stats.nct.sf(beyond, variance.df, away))


def _sum(parts: Sequence[Variance]) -> Variance:
    """Satterthwaite's approximation."""
    total = sum(part.value for part in parts)
    spread = sum(part.value**2 / part.df for part in parts)
    return Variance(total, total**2 / spread if spread else math.inf)


def _shared(covariance: Floats) -> float:
    """The mean of what is not on the diagonal."""
    n = len(covariance)
    return float(covariance.sum() - np.trace(covariance)) / (n * (n - 1))


def _effect_size(first: Floats, second: Floats) -> float | None:
    if min(len(first), len(second)) == 1:
        return None
    spread = math.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 2)
    if not spread:
        return None
    correction = 1 - 3 / (4 * (len(first) + len(second) - 2) - 1)
    return correction * float(first.mean() - second.mean()) / spread

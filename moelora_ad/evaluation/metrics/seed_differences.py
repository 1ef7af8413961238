"""Whether a system is better than another one: an interval of their difference for other seeds and other trials.

The EER of a run varies with its seed and with the trials that it is tested on, and all runs are tested on the same
trials: more seeds reduce the first part, but not the second. This is the design of studies in which several
readers read the same cases, and it is analysed as they are: readers are seeds, cases are clusters of trials.

With d_i the difference of two systems with seed i, and the mean of d_i over n seeds,

    variance of the mean = s² / n + max(0, c)

where s² is the variance of d_i over seeds, and c the covariance of d_i and d_j over other trials, mean over all i != j,
from resamples of clusters that all runs share (Obuchowski and Rockette, Communications in Statistics - Simulation and
Computation 24, 1995; their F of two tests is the square of this t). What trials do to each d_i alone is within s², so
it counts once. With k clusters, resamples show only the share (k - 1) / k of their variance, which is corrected.
Student's t has the degrees of freedom of such a sum (Satterthwaite, Biometrics Bulletin 2, 1946): n - 1 for the first
part, as in Hillis (Statistics in Medicine 26, 2007), and k - 1 for the second, k being the number of clusters of the
class that has fewer.

`python benchmarks/comparison_coverage.py` measures how often 95 % intervals include the true difference, where it is
known. In 1,000 simulated comparisons each, with 3, 5 and 10 seeds, they do in 93.9, 94.1 and 96.8 % with moderate
spread over seeds and over 20 + 40 clusters of trials; in 96.1, 95.8 and 95.2 % with 8 + 24 clusters; in 94.7, 95.4 and
96.3 % with little spread over seeds; and in 92.3, 93.5 and 96.1 % with so much of it that EERs are far from normal. A
hierarchical bootstrap, which resamples seeds, has 81.5, 86.3 and 93.0 % in the last case: three or five seeds are too
few to draw from.
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
    """An estimated variance and its degrees of freedom, which are infinite if the variance is known."""

    value: float
    df: float = math.inf


class SeedDifference(NamedTuple):
    """The difference of a figure between two systems, a share of 1; it is negative if the first system's is lower.

    Args:
        first: Mean over the first system's seeds.
        second: Mean over the second system's seeds.
        difference: First - second.
        interval: 95 % interval for other seeds and other trials; None if the variation of the difference is unknown.
        effect_size: The difference in standard deviations over seeds (root mean square of both systems), with Hedges'
            correction for few seeds (Journal of Educational Statistics 6, 1981); None for one seed, and without any
            spread.
        probability: The probability that the first system's figure is lower: Student's t about the difference, which is
            the posterior of a Bayesian without prior knowledge (Benavoli et al., Journal of Machine Learning Research
            18, 2017, section 3). None without an interval.
        p_value: The probability of a difference at least as large, to either side, if the systems did not differ. None
            without an interval.
        seeds: The numbers of seeds of the first and of the second system.
        of_one_seed: The variance of the difference with one seed of each system; None if a system has a single one.
        of_trials: The variance of the difference over other trials.
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
    """Return the difference of two systems over seeds and trials.

    Args:
        first: (n,) the figure of each seed of the first system.
        second: (m,) the figure of each seed of the second system.
        is_paired: Whether the two have the same seeds, in the same order: what a seed makes harder for both then does
            not widen the interval.
        of_trials: See `variance_of_trials`; for an average over sets, the `mean_variance` of those of the sets.
    """
    mean, seeds = float(first.mean() - second.mean()), (len(first), len(second))
    of_one_seed, parts = None, [of_trials]
    if min(seeds) > 1:
        sides = [first - second] if is_paired else [first, second]
        spreads = [float(side.var(ddof=1)) for side in sides]
        of_one_seed = sum(spreads)
        parts += [Variance(s / len(side), len(side) - 1) for s, side in zip(spreads, sides, strict=True)]
    total = total_variance(parts)
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
    """Return the variance over other trials of the difference of two systems, however many seeds there are.

    Args:
        first: (n, B) the figure of each seed in every resample of the trials; all runs have the same resamples.
        second: (m, B) the same of the other system.
        is_paired: Whether the two have the same seeds, in the same order.
        num_clusters: The number of clusters of the class that has fewer.

    Returns:
        The variance that seeds share; if a system has a single seed, the whole variance over trials, as the share
        cannot be separated then.
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
    """Return the variance of the mean of independent figures."""
    number = len(parts)
    return total_variance([Variance(part.value / number**2, part.df) for part in parts])


def seeds_needed(found: SeedDifference, difference: float) -> int | None:
    """Return how many seeds of each system would show a difference with a power of 80 % at a level of 5 %, two-sided.

    The power is that of Student's t with its noncentral distribution; variances are taken as estimated, so a
    number that rests on few seeds is rough.

    Args:
        found: The comparison of at least two seeds of each system.
        difference: The difference to show, a share of 1, above 0.

    Returns:
        The number of seeds; None if none suffices, as seeds do not reduce the variance over trials, which is too large.
    """
    of_one = found.of_one_seed
    assert of_one is not None

    def suffices(seeds: int) -> bool:
        total = total_variance([Variance(of_one / seeds, seeds - 1), found.of_trials])
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
    """Return p values corrected for their number (Holm, Scandinavian Journal of Statistics 6, 1979)."""
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


def total_variance(parts: Sequence[Variance]) -> Variance:
    """Return the sum of independent variances, with Satterthwaite's approximation of its degrees of freedom."""
    total = sum(part.value for part in parts)
    spread = sum(part.value**2 / part.df for part in parts)
    return Variance(total, total**2 / spread if spread else math.inf)


def _shared(covariance: Floats) -> float:
    """Return the mean of the entries off the diagonal."""
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

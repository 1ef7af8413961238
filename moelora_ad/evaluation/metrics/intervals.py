"""The uncertainty of figures: a bootstrap over clusters of trials."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moelora_ad.corpora.protocols.columns import Texts
from moelora_ad.errors import counted
from moelora_ad.evaluation.metrics.clusters import paired_clusters, without_gaps
from moelora_ad.evaluation.metrics.equal_error_rate import ScoreError, as_array, sorted_by_class
from moelora_ad.evaluation.metrics.options import FigureOptions
from moelora_ad.evaluation.metrics.resampling import ResampledCurve, Strata
from moelora_ad.evaluation.score_table import ScoreTable

_MOST_THREADS = 8  # more threads only wait for the memory
_FEW = 30_000  # resamples of fewer trials are mostly Python, and threads wait for its lock longer than they save
_BLOCK = 20  # resamples that a thread makes in a row, two at a time
_LIMITS = (2.5, 97.5)


class Interval(NamedTuple):
    """The limits of a 95 % interval."""

    low: float
    high: float


class OneCluster(ScoreError):
    """The clusters of trials are so few that all resamples are the same, so that there is no interval."""


class Difference(NamedTuple):
    """A figure of two systems on the same trials, and its difference.

    Attributes:
        first: The first system's figure.
        second: The second system's figure.
        difference: First - second.
        interval: The 95 % interval of the difference; if it includes 0, no difference is shown.
    """

    first: float
    second: float
    difference: float
    interval: Interval


def bootstrap(
    scores: ArrayLike,
    labels: ArrayLike,
    clusters: ArrayLike,
    options: FigureOptions | None = None,
    figures: Sequence[str] | None = None,
    sets: ArrayLike | None = None,
    threads: int | None = None,
) -> dict[str, Interval]:
    """Return 95 % percentile intervals of figures (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 13).

    Whole clusters of trials are drawn with replacement, since the trials of a speaker or an attack are not independent.
    The same seed gives the same intervals, whatever the number of threads.

    Args:
        scores: (n,) finite; higher is more bona fide.
        labels: (n,) 1 for bona fide, 0 for spoof.
        clusters: (n,) any numbers or texts, the same for trials that belong together; see `default_clusters`.
        options: How the figures are computed, the number of resamples, and their seed.
        figures: The names of the figures; None for all that the options define.
        sets: (n,) any numbers or texts, the same for trials of one set, if several are pooled. Each set is resampled
            separately, and a cluster of two sets is two clusters.
        threads: None for as many as there are processors, eight at most; one for few trials.

    Raises:
        OneCluster: The trials of each class are in a single cluster, in every set.
        ScoreError: The lengths differ, scores or labels are faulty (see `equal_error_rate`), a cluster or set is NaN or
            None, the options do not define a figure, or there are no resamples.
    """
    options = options or FigureOptions()
    _check_resamples(options)
    names = options.figures if figures is None else tuple(figures)
    for name in names:
        if name not in options.figures:
            raise ScoreError(f"these options define no figure {name!r}, only {', '.join(options.figures)}")
    values, strata = _checked(scores, labels, clusters, sets)
    _check_several(strata)
    curve = ResampledCurve(values[0], values[1], strata.clusters, options)
    drawn = _resampled([curve], names, strata, options, threads)[0]
    return dict(zip(names, _intervals(drawn), strict=True))


def compare(
    first: ScoreTable, second: ScoreTable, options: FigureOptions | None = None, threads: int | None = None
) -> dict[str, Difference]:
    """Return every figure of two systems on the same trials, and the interval of the difference.

    Both systems have the same resamples, so what makes a resample easy or hard for both does not widen the interval.
    Resampled are `paired_clusters`.

    Args:
        first: Scores of one system.
        second: Scores of the other system, in any order.
        options: How the figures are computed; there must be resamples.
        threads: See `bootstrap`.

    Raises:
        ScoreError: The two do not have the same trials, their labels differ or are unknown, or one class is missing.
    """
    options = options or FigureOptions()
    values, drawn = _compared(first, second, options.figures, options, threads)
    return {
        name: Difference(one, other, one - other, interval)
        for name, one, other, interval in zip(options.figures, *values, _intervals(drawn), strict=True)
    }


def mean_difference(
    pairs: Sequence[tuple[ScoreTable, ScoreTable]],
    figure: str = "eer",
    options: FigureOptions | None = None,
    threads: int | None = None,
) -> Difference:
    """Return the mean over sets of a figure of two systems, and the interval of its difference; each set is resampled
    separately.

    Args:
        pairs: The scores of both systems on each set.
        figure: The name of the figure.
        options: See `compare`.
        threads: See `bootstrap`.

    Raises:
        ScoreError: See `compare`, for any of the sets; or there is no set.
    """
    if not pairs:
        raise ScoreError("the mean over an empty list of sets is not defined")
    options = options or FigureOptions()
    found = [
        _compared(*pair, (figure,), replace(options, seed=options.seed + number), threads)
        for number, pair in enumerate(pairs)
    ]
    one, other = np.mean([values for values, _ in found], axis=0)[:, 0].tolist()
    drawn = np.mean([drawn for _, drawn in found], axis=0)
    return Difference(one, other, one - other, _intervals(drawn)[0])


def _compared(
    first: ScoreTable, second: ScoreTable, names: tuple[str, ...], options: FigureOptions, threads: int | None
) -> tuple[list[list[float]], NDArray[np.float64]]:
    """Return the figures of both systems, and their differences (resamples, figures) in resamples that both share."""
    _check_resamples(options)
    others = second.scores[_places(first, second)]
    clusters = paired_clusters(first.trials, first.labels, options.clusters).codes
    values, strata = _checked(first.scores, first.labels, clusters)
    curves = [ResampledCurve(scores, values[1], strata.clusters, options) for scores in (values[0], others)]
    drawn = _resampled(curves, names, strata, options, threads)
    once = np.ones(sum(strata.sizes), np.int64)
    return [curve.figures(names, once) for curve in curves], drawn[0] - drawn[1]


def resampled_eers(
    scores: NDArray[np.float64], labels: ArrayLike, clusters: ArrayLike, options: FigureOptions
) -> NDArray[np.float64]:
    """Return the EERs (n, resamples) of the scores (n, trials) of several runs, all with the same resamples.

    Raises:
        ScoreError: Scores or labels are faulty (see `equal_error_rate`), or there are no resamples.
    """
    _check_resamples(options)
    drawn = []
    for of_run in scores:  # one after another, as a curve takes several times the memory of its scores
        values, strata = _checked(of_run, labels, clusters)
        curve = ResampledCurve(values[0], values[1], strata.clusters, options)
        drawn.append(_resampled([curve], ("eer",), strata, options, None)[0, :, 0])
    return np.array(drawn)


def _check_resamples(options: FigureOptions) -> None:
    if not options.resamples:
        raise ScoreError("an interval needs resamples; give 1000")


def _check_several(strata: Strata) -> None:
    if max(strata.sizes) == 1:
        raise OneCluster(
            "no interval: the trials of each class are in a single cluster, so that resamples do not differ; "
            "choose smaller clusters, and leave the speaker empty where it is unknown"
        )


def _checked(
    scores: ArrayLike, labels: ArrayLike, clusters: ArrayLike, sets: ArrayLike | None = None
) -> tuple[tuple[NDArray[np.float64], NDArray[np.integer]], Strata]:
    sorted_by_class(scores, labels)
    scores, labels = as_array(scores, np.float64), as_array(labels)
    codes = _numbered("clusters", clusters, len(scores))
    of_sets = None if sets is None else _numbered("sets", sets, len(scores))
    if of_sets is not None:
        codes = codes + of_sets * (codes.max() + 1)
    return (scores, labels), Strata(labels, codes, of_sets)


def _numbered(what: str, given: ArrayLike, num_trials: int) -> NDArray[np.int64]:
    """Number the different values from 0 on; NaN and None are none."""
    values = as_array(given)
    if values.shape != (num_trials,):
        raise ScoreError(f"{what}: {num_trials} trials need as many, not an array of shape {values.shape}")
    if values.dtype.kind not in "biuU":
        for place, value in enumerate(values.tolist()):
            if value is None or value != value:
                raise ScoreError(f"{what}: trial number {place} has none; give trials without one a value of their own")
    return without_gaps(values)


def _resampled(
    curves: Sequence[ResampledCurve],
    names: tuple[str, ...],
    strata: Strata,
    options: FigureOptions,
    threads: int | None,
) -> NDArray[np.float64]:
    """Return resampled figures (curves, resamples, figures); all curves have the same resamples."""

    drawn = np.empty((len(curves), options.resamples + 1, len(names)))  # drawn in pairs: one more if odd

    def draw(start: int) -> None:
        for number in range(start, min(start + _BLOCK, options.resamples), 2):
            counts = (strata.draw(options.seed, number), strata.draw(options.seed, number + 1))
            drawn[:, number : number + 2] = [curve.figures_of_two(names, *counts) for curve in curves]

    helpful = 1 if len(strata.clusters) < _FEW else min(os.cpu_count() or 1, _MOST_THREADS)
    with ThreadPoolExecutor(threads or helpful) as pool:
        for _ in pool.map(draw, range(0, options.resamples, _BLOCK)):  # numpy works without the interpreter's lock
            pass
    return drawn[:, : options.resamples]


def _intervals(drawn: NDArray[np.float64]) -> list[Interval]:
    """Return the interval of each of the figures (resamples, figures)."""
    low, high = np.percentile(drawn, _LIMITS, axis=0).tolist()
    return [Interval(*limits) for limits in zip(low, high, strict=True)]


def _places(first: ScoreTable, second: ScoreTable) -> NDArray[np.int64]:
    """Return the places in the second table of the trials of the first one."""
    wanted, found = list(_utterances(first)), list(_utterances(second))
    numbers = {utterance: number for number, utterance in enumerate(found)}
    known = set(wanted)
    only_first = [utterance for utterance in wanted if utterance not in numbers]
    only_second = [utterance for utterance in found if utterance not in known]
    if only_first or only_second:
        example = (only_first or only_second)[0]
        raise ScoreError(
            f"two systems are compared on the same trials, but {len(only_first):,} are only in the first and "
            f"{len(only_second):,} only in the second, for example {example!r}"
        )
    places = np.array([numbers[utterance] for utterance in wanted])
    differ = np.flatnonzero(first.labels != second.labels[places])
    if len(differ):
        raise ScoreError(
            f"{counted(len(differ), 'trial')} with two labels; the first is of utterance {wanted[differ[0]]!r}"
        )
    return places


def _utterances(table: ScoreTable) -> Texts:
    return table.trials.columns.utterance

"""Pairs of systems, compared over their seeds and the trials of every set."""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moelora_ad.errors import InputError, counted
from moelora_ad.evaluation.comparison.scored_runs import ScoredRun
from moelora_ad.evaluation.comparison.systems import Comparison
from moelora_ad.evaluation.metrics.clusters import clusters_of
from moelora_ad.evaluation.metrics.equal_error_rate import ScoreError, equal_error_rate
from moelora_ad.evaluation.metrics.intervals import resampled_eers
from moelora_ad.evaluation.metrics.options import FigureOptions
from moelora_ad.evaluation.metrics.seed_differences import (
    SeedDifference,
    Variance,
    holm,
    mean_variance,
    seed_difference,
    variance_of_trials,
)
from moelora_ad.evaluation.score_files.labelled import ScoreReader
from moelora_ad.evaluation.score_table import ScoreTable
from moelora_ad.runs.record import DEV

Pair = tuple[str, str]
"""Two systems by their names."""
Key = tuple[str, int]
"""A run: its system and its seed."""
Show = Callable[[str, float, int], None]


class SeedsOfPair(NamedTuple):
    """The seeds of both systems whose runs are compared; if paired, both have the same ones."""

    first: tuple[int, ...]
    second: tuple[int, ...]
    is_paired: bool


@dataclass(frozen=True)
class PairFigures:
    """The comparison of two systems on one set, or on an average over sets.

    Args:
        seeds: The seeds of the compared runs.
        difference: The difference of their equal error rates.
        corrected: The p value corrected by Holm's method over all pairs and sets, or over all pairs and averages.
    """

    seeds: SeedsOfPair
    difference: SeedDifference
    corrected: float | None = None


@dataclass(frozen=True)
class ComparedPairs:
    """The comparison of some pairs of systems.

    Args:
        figures: The comparisons by pair, and by set or average.
        tests: How many p values were corrected together: of sets, and of averages.
        options: Options of the resamples.
        notes: Notes for the reader.
    """

    figures: Mapping[Pair, Mapping[str, PairFigures]]
    tests: tuple[int, int]
    options: FigureOptions
    notes: tuple[str, ...] = ()


def pairs_of(systems: Sequence[str], reference: str | None, every: Iterable[str]) -> list[Pair]:
    """Return all pairs of ``systems``, and of every other system with a reference, each once."""
    found = [*combinations(systems, 2)]
    if reference is not None:
        found += [(system, reference) for system in every if system != reference]
    return list({frozenset(pair): pair for pair in reversed(found)}.values())[::-1]


def compare_systems(
    comparison: Comparison,
    pairs: Sequence[Pair],
    options: FigureOptions | None = None,
    show: Show = lambda what, done, total: None,
) -> ComparedPairs:
    """Compare systems set by set, and by the averages over sets.

    Seeds that both systems have are paired, and no others are used; if fewer than two are in common, all seeds of both
    are used, unpaired, unless both have only the same one. Every run on a set is evaluated on the trials that all runs
    on it have scored, and on the same resamples of these. Sets are resampled separately, as if no two had trials in
    common.

    Args:
        comparison: The runs.
        pairs: Pairs of names of systems.
        options: The number of resamples, their seed, and what is resampled together.
        show: Called with the name of the set that is read, the number of runs that are done, and that of all runs.

    Raises:
        InputError: The systems of no pair have a test set in common, or a score file is faulty.
    """
    options = options or FigureOptions()
    names = dict.fromkeys(system for pair in pairs for system in pair)
    sets = [name for name in comparison.sets if name != DEV]
    runs = {name: [r for s in names for r in comparison.systems[s] if name in r.sets] for name in sets}
    total, done = sum(map(len, runs.values())), 0
    found: dict[Pair, dict[str, PairFigures]] = {pair: {} for pair in pairs}
    of_trials: dict[tuple[Pair, str], Variance] = {}
    eers: dict[str, dict[Key, float]] = {}
    notes = []
    for name in sets:
        if not runs[name]:
            continue
        show(name, done, total)
        resampled = _resampled(name, runs[name], options)
        notes += [f"{name}: {note}" for note in resampled.notes]
        eers[name] = resampled.eers
        for pair in pairs:
            seeds = _seeds(comparison, pair, name)
            if seeds is not None:
                sides = [resampled.draws_of(system, of) for system, of in zip(pair, seeds[:2], strict=True)]
                variance = variance_of_trials(sides[0], sides[1], seeds.is_paired, resampled.num_clusters)
                of_trials[pair, name] = variance
                found[pair][name] = _figures(pair, seeds, resampled.eers, variance)
        done += len(runs[name])
    for average, of_average in comparison.averages.items():
        means = {
            key: float(np.mean([eers[name][key] for name in of_average]))
            for key in set.intersection(*(set(eers[name]) for name in of_average))
        }
        for pair in pairs:
            seeds = _seeds(comparison, pair, average)
            if seeds is not None:
                variance = mean_variance([of_trials[pair, name] for name in of_average])
                found[pair][average] = _figures(pair, seeds, means, variance)
    apart = [f"{first} and {second} have no test set in common" for (first, second), one in found.items() if not one]
    found = {pair: figures for pair, figures in found.items() if figures}
    if not found:
        raise InputError("; ".join(apart))
    notes += apart
    of_sets = _corrected(found, sets)
    of_averages = _corrected(found, list(comparison.averages))
    return ComparedPairs(found, (of_sets, of_averages), options, tuple(notes))


class _Resampled(NamedTuple):
    eers: dict[Key, float]
    draws: dict[Key, NDArray[np.float64]]
    num_clusters: int
    notes: list[str]

    def draws_of(self, system: str, seeds: Sequence[int]) -> NDArray[np.float64]:
        return np.array([self.draws[system, seed] for seed in seeds])


def _resampled(name: str, runs: Sequence[ScoredRun], options: FigureOptions) -> _Resampled:
    """Return the equal error rates of runs on the trials of a set that all of them have scored, and on resamples."""
    first, scores, notes = _scores(name, runs)
    clusters = clusters_of(first.trials, options.clusters)
    notes += clusters.notes
    of_classes = [len(np.unique(clusters.codes[first.labels == label])) for label in (1, 0)]
    for number, what in zip(of_classes, ("bona fide trials", "spoofs"), strict=True):
        if number == 1:
            notes.append(f"all {what} are of one cluster: the intervals do not cover others")
    # Sets have resamples of their own, which do not depend on the other sets.
    own = replace(options, seed=zlib.crc32(f"{options.seed} {name}".encode()))
    keys = [(run.record.system, run.record.seed) for run in runs]
    draws = resampled_eers(scores, first.labels, clusters.codes, own)
    eers = [equal_error_rate(of_run, first.labels).eer for of_run in scores]
    several = [number for number in of_classes if number > 1]
    return _Resampled(
        dict(zip(keys, eers, strict=True)), dict(zip(keys, draws, strict=True)), min(several, default=1), notes
    )


def _scores(name: str, runs: Sequence[ScoredRun]) -> tuple[ScoreTable, NDArray[np.float64], list[str]]:
    """Return the trials that all runs have scored with the scores of the first run, the scores (runs, trials) of all
    runs, and notes.

    Raises:
        InputError: A trial has two labels, or the trials are of one class.
    """
    table = _read(name, runs[0])
    places = {utterance: place for place, utterance in enumerate(table.trials.columns.utterance)}
    scores = np.full((len(runs), len(places)), np.nan)
    scores[0] = table.scores
    most = len(table)
    for number, run in enumerate(runs[1:], 1):
        other = _read(name, run)
        most = max(most, len(other))
        at = np.array([places.get(utterance, -1) for utterance in other.trials.columns.utterance], np.int64)
        known = at >= 0
        at = at[known]
        if (table.labels[at] != other.labels[known]).any():
            raise ScoreError(f"{_path(name, run)} and {_path(name, runs[0])} have other labels for the same trials")
        scores[number, at] = other.scores[known]
    kept = np.flatnonzero(~np.isnan(scores).any(axis=0))
    if len(kept) == most:
        return table, scores, []
    return (
        table.select(kept),
        scores[:, kept],
        [f"{counted(len(kept), 'trial')}, those that all of these runs have scored"],
    )


def _read(name: str, run: ScoredRun) -> ScoreTable:
    return ScoreReader().read(_path(name, run)).table


def _path(name: str, run: ScoredRun) -> str:
    assert run.record.score_folder is not None
    return str(run.record.score_folder / f"{name}.csv")


def _seeds(comparison: Comparison, pair: Pair, column: str) -> SeedsOfPair | None:
    """Return the seeds to compare; None if a system has no run."""
    first, second = (set(comparison.eers(system, column)) for system in pair)
    if not first or not second:
        return None
    shared = tuple(sorted(first & second))
    if len(shared) > 1 or first == second:
        return SeedsOfPair(shared, shared, True)
    return SeedsOfPair(tuple(sorted(first)), tuple(sorted(second)), False)


def _figures(pair: Pair, seeds: SeedsOfPair, eers: Mapping[Key, float], variance: Variance) -> PairFigures:
    sides = [np.array([eers[system, seed] for seed in of]) for system, of in zip(pair, seeds[:2], strict=True)]
    return PairFigures(seeds, seed_difference(sides[0], sides[1], seeds.is_paired, variance))


def _corrected(found: dict[Pair, dict[str, PairFigures]], columns: Sequence[str]) -> int:
    """Set the corrected p values of all pairs in some columns; return their number."""
    tests = [
        (figures, column, one.difference.p_value)
        for figures in found.values()
        for column, one in figures.items()
        if column in columns and one.difference.p_value is not None
    ]
    corrected = holm(np.array([p_value for *_, p_value in tests]))
    for (figures, column, _), p_value in zip(tests, corrected.tolist(), strict=True):
        figures[column] = replace(figures[column], corrected=p_value)
    return len(tests)

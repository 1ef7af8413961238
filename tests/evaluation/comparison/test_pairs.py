"""Pairs of systems: the seeds and trials compared, the resampling, and the joint correction of p-values."""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable
from moelora_ad.evaluation.comparison.pair_tables import pair_rows, pair_tables
from moelora_ad.evaluation.comparison.pairs import compare_systems, pairs_of
from moelora_ad.evaluation.comparison.scored_runs import read_runs
from moelora_ad.evaluation.comparison.systems import Comparison
from moelora_ad.evaluation.metrics.options import FigureOptions
from moelora_ad.evaluation.metrics.seed_differences import holm
from moelora_ad.runs.record import find_records

MakeRun = Callable[..., Path]
OPTIONS = FigureOptions(resamples=100)
SETS = {"dev": "MiniLA", "in": "MiniLA", "one": "MiniOOD", "two": "Other"}


def comparison_of(path: Path) -> Comparison:
    return Comparison(read_runs(find_records([path]))[0])


def share_trials(folder: Path) -> None:
    """Give every trial one score component that all runs share, and one that the seeds of a system share."""
    for path in folder.rglob("scores/best/*.csv"):
        system = path.parents[3].name
        table = ScoreTable.read(path)
        parts = [np.random.default_rng(zlib.crc32(f"{path.stem} {of}".encode())) for of in ("", system)]
        shared = sum(part.normal(0, 1.5, len(table)) for part in parts)
        table.with_scores(table.scores / 2 + shared + 2 * table.labels).write(path)


def by_hand(comparison: Comparison, name: str, pair: tuple[str, str], seeds: int) -> tuple[float, float, float]:
    """The difference, its standard error and degrees of freedom, one resample after another and trial by trial."""
    tables = [
        [ScoreTable.read(run.record.folder / f"scores/best/{name}.csv") for run in comparison.systems[s]] for s in pair
    ]
    labels = tables[0][0].labels
    clusters: dict[tuple, list[int]] = {}
    for place, trial in enumerate(tables[0][0].trials):
        clusters.setdefault((trial.label, trial.speaker, trial.attack), []).append(place)
    kinds = [[c for key, c in clusters.items() if key[0] == label] for label in (1, 0)]
    draw = np.random.default_rng(7)
    drawn = []
    for _ in range(800):
        places = np.concatenate([kind[i] for kind in kinds for i in draw.integers(len(kind), size=len(kind))])
        eers = [[_eer(table.scores[places], labels[places]) for table in side] for side in tables]
        drawn.append(np.subtract(*eers))
    covariance = np.cov(np.array(drawn).T)
    shared = max(covariance[~np.eye(seeds, dtype=bool)].mean(), 0)
    fewest = min(map(len, kinds))
    trials = shared * fewest / (fewest - 1)
    apart = np.subtract(*[[table.equal_error_rate().eer for table in side] for side in tables])
    seeds_part = apart.var(ddof=1) / seeds
    df = (seeds_part + trials) ** 2 / (seeds_part**2 / (seeds - 1) + trials**2 / (fewest - 1))
    return apart.mean(), np.sqrt(seeds_part + trials), df


def _eer(scores: np.ndarray, labels: np.ndarray) -> float:
    order = np.argsort(scores)
    miss = np.append(0, np.cumsum(labels[order] == 1)) / (labels == 1).sum()
    alarm = 1 - np.append(0, np.cumsum(labels[order] == 0)) / (labels == 0).sum()
    distinct = np.append(np.append(True, np.diff(scores[order]) > 0), True)
    nearest = np.abs(miss - alarm)[distinct].argmin()
    return float((miss + alarm)[distinct][nearest] / 2)


def test_every_figure_is_that_of_the_score_files(make_run: MakeRun, tmp_path: Path) -> None:
    for system in ("a", "b"):
        for seed in (1, 2, 3):
            make_run(system, seed, sets=SETS)
    share_trials(tmp_path)
    comparison = comparison_of(tmp_path)
    compared = compare_systems(comparison, [("a", "b")], FigureOptions(resamples=800))
    figures = compared.figures["a", "b"]
    assert list(figures) == ["in", "one", "two", "macro_ood", "macro_all"]
    mean, error, df = by_hand(comparison, "one", ("a", "b"), 3)
    found = figures["one"].difference
    assert found.of_trials.value > found.of_one_seed / 3  # otherwise the part of trials would be too small to check
    assert found.difference == pytest.approx(mean)
    reach = stats.t.ppf(0.975, df) * error  # the resamples differ: 800 of them agree within a few percent
    assert found.interval == pytest.approx((mean - reach, mean + reach), abs=0.1 * reach)
    macro = figures["macro_ood"].difference
    assert macro.difference == pytest.approx((found.difference + figures["two"].difference.difference) / 2)
    sets = [figures[name].difference.of_trials.value for name in ("one", "two")]
    assert macro.of_trials.value == pytest.approx(sum(sets) / 4)
    apart = [comparison.eers("a", "macro_ood")[s] - comparison.eers("b", "macro_ood")[s] for s in (1, 2, 3)]
    assert macro.of_one_seed == pytest.approx(np.var(apart, ddof=1))
    raw = np.array([figures[name].difference.p_value for name in ("in", "one", "two")])
    assert [figures[name].corrected for name in ("in", "one", "two")] == pytest.approx(holm(raw))
    assert compared.tests == (3, 2)


def test_resamples_hang_on_the_seed_and_the_set_alone(make_run: MakeRun, tmp_path: Path) -> None:
    for system in ("a", "b", "c"):
        for seed in (1, 2):
            make_run(system, seed)
    share_trials(tmp_path)
    comparison = comparison_of(tmp_path)
    first = compare_systems(comparison, [("a", "b")], OPTIONS).figures["a", "b"]["in_domain"].difference
    three = compare_systems(comparison, pairs_of(["c", "a", "b"], None, []), OPTIONS)
    assert list(three.figures) == [("c", "a"), ("c", "b"), ("a", "b")]
    assert three.figures["a", "b"]["in_domain"].difference == first
    other = compare_systems(comparison, [("a", "b")], FigureOptions(resamples=100, seed=2))
    assert other.figures["a", "b"]["in_domain"].difference.of_trials != first.of_trials
    swapped = compare_systems(comparison, [("b", "a")], OPTIONS).figures["b", "a"]["in_domain"].difference
    assert swapped.difference == -first.difference
    assert swapped.probability == pytest.approx(1 - first.probability)


def test_seeds_of_both_are_paired_and_too_few_are_not(make_run: MakeRun, tmp_path: Path) -> None:
    for system, seeds in (("a", (1, 2, 3)), ("b", (2, 3, 4)), ("c", (3, 8)), ("d", (3,))):
        for seed in seeds:
            make_run(system, seed)
    comparison = comparison_of(tmp_path)
    compared = compare_systems(comparison, pairs_of(["a", "b", "c", "d"], None, []), OPTIONS)
    seeds = {pair: figures["macro_all"].seeds for pair, figures in compared.figures.items()}
    assert seeds["a", "b"] == ((2, 3), (2, 3), True)
    assert seeds["a", "c"] == ((1, 2, 3), (3, 8), False)
    assert seeds["c", "d"] == ((3, 8), (3,), False)
    of_one = compared.figures["c", "d"]["in_domain"].difference
    assert (of_one.of_one_seed, of_one.effect_size) == (None, None)
    told = ["\n".join(table.notes) for table in pair_tables(compared)]
    assert "2 seeds, paired: 2, 3" in told[0]
    assert "not paired, as fewer than two seeds are in common: A 1, 2, 3; B 3, 8" in told[1]
    assert "of a system with one seed the interval does not cover other seeds" in told[2]
    assert len(pair_rows(compared)) == 6 * 4


def test_trials_that_a_run_has_not_scored_are_left_out_for_all(
    make_run: MakeRun, tmp_path: Path, make_scores: Callable[..., ScoreTable]
) -> None:
    for system in ("a", "b"):
        for seed in (1, 2):
            make_run(system, seed)
    path = tmp_path / "runs/b/seed_2/scores/best/in_domain.csv"
    whole = ScoreTable.read(path)
    turned = whole.select(np.arange(len(whole) - 1, 5, -1))  # another order, and six trials fewer
    turned.write(path)
    beside = path.with_suffix(".json")
    beside.write_text(beside.read_text().replace('"complete": true', '"complete": false'))
    comparison = comparison_of(tmp_path)
    compared = compare_systems(comparison, [("a", "b")], OPTIONS)
    assert compared.notes == ("in_domain: 54 trials, those that all of these runs have scored",)
    expected = turned.equal_error_rate().eer
    other = ScoreTable.read(tmp_path / "runs/b/seed_1/scores/best/in_domain.csv")
    expected += other.select(np.arange(6, len(other))).equal_error_rate().eer
    assert compared.figures["a", "b"]["in_domain"].difference.second == pytest.approx(expected / 2)


def test_single_clusters_are_told_and_nothing_in_common_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    for system in ("a", "b"):
        for seed in (1, 2):
            make_run(system, seed)
    comparison = comparison_of(tmp_path)
    compared = compare_systems(comparison, [("a", "b")], FigureOptions(resamples=50, clusters=("split",)))
    assert "out_of_domain: all spoofs are of one cluster: the intervals do not cover others" in (compared.notes)
    make_run("c", 1, sets={"dev": "MiniLA"})
    comparison = comparison_of(tmp_path)
    with pytest.raises(InputError, match="a and c have no test set in common"):
        compare_systems(comparison, [("a", "c")], OPTIONS)
    some = compare_systems(comparison, [("a", "c"), ("a", "b")], FigureOptions(resamples=20))
    assert list(some.figures) == [("a", "b")]
    assert "a and c have no test set in common" in some.notes


def test_pairs_are_named_once() -> None:
    every = ["a", "b", "c"]
    assert pairs_of(["a", "b"], "b", every) == [("a", "b"), ("c", "b")]
    assert pairs_of([], "b", every) == [("a", "b"), ("c", "b")]
    assert pairs_of(["b", "a"], None, every) == [("b", "a")]

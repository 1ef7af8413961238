"""Intervals over seeds and trials against formulas by hand, other tests, and simulations with known truth."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from moelora_ad.evaluation.metrics.equal_error_rate import equal_error_rate
from moelora_ad.evaluation.metrics.seed_differences import (
    SeedDifference,
    Variance,
    holm,
    mean_variance,
    seed_difference,
    seeds_needed,
    variance_of_trials,
)

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
simulation = pytest.importorskip("comparison_coverage")

A, B = np.array([0.10, 0.15, 0.11, 0.12]), np.array([0.12, 0.14, 0.20, 0.15])
NOTHING = Variance(0.0, 10)


def test_without_other_trials_it_is_the_paired_or_welchs_t_test() -> None:
    for second, is_paired, test in (
        (B, True, stats.ttest_rel(A, B)),
        (np.append(B, 0.3), False, stats.ttest_ind(A, np.append(B, 0.3), equal_var=False)),
    ):
        found = seed_difference(A, second, is_paired, NOTHING)
        assert found.difference == pytest.approx(A.mean() - second.mean())
        assert found.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
        assert found.p_value == pytest.approx(test.pvalue)
        assert found.probability == pytest.approx(1 - test.pvalue / 2)  # probability that the first system is better


def test_with_other_trials_it_is_the_test_of_readers_and_cases() -> None:
    """The F test of Obuchowski and Rockette for two tests, with Hillis' degrees of freedom, by its own formulas."""
    shared, n = 0.0004, 4  # Cov2 - Cov3: covariances between readers, within a test and across tests
    values = np.stack([A, B])
    residual = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    mean_square = (residual**2).sum() / (n - 1)
    between = n * ((values.mean(1) - values.mean()) ** 2).sum()
    f = between / (mean_square + n * shared)
    df = (mean_square + n * shared) ** 2 / (mean_square**2 / (n - 1))
    found = seed_difference(A, B, True, Variance(2 * shared))
    assert found.p_value == pytest.approx(stats.f.sf(f, 1, df))


def test_the_part_of_trials_is_what_runs_share() -> None:
    draw = np.random.default_rng(1)
    of_systems = draw.normal(0, [[0.03], [0.02]], (2, 200_000))  # the part that all seeds of a system share
    of_runs = draw.normal(0, 0.05, (2, 5, 200_000))
    first, second = of_systems[:, None] + of_runs
    expected = 0.03**2 + 0.02**2
    for is_paired in (True, False):
        found = variance_of_trials(first, second, is_paired, 21)
        assert found.df == 20
        assert found.value == pytest.approx(expected * 21 / 20, rel=0.03)
    of_one = variance_of_trials(first[:1], second[:1], True, 21)  # one seed cannot separate the run's own part from it
    assert of_one.value == pytest.approx((expected + 2 * 0.05**2) * 21 / 20, rel=0.03)
    both = draw.normal(0, 0.05, (1, 200_000))
    assert variance_of_trials(first + both, second + both, True, 21).value == pytest.approx(found.value, rel=0.03)
    assert variance_of_trials(first, first, True, 21).value == 0


def test_of_one_seed_the_interval_is_of_trials_alone() -> None:
    found = seed_difference(A[:1], B[:1], True, Variance(0.0001, 30))
    assert np.ptp(found.interval) == pytest.approx(2 * stats.t.ppf(0.975, 30) * 0.01)
    assert (found.effect_size, found.of_one_seed) == (None, None)


def test_a_system_and_itself_and_what_cannot_be_told() -> None:
    same = seed_difference(A, A, True, NOTHING)
    assert (same.difference, same.interval, same.probability, same.p_value) == (0, (0, 0), 0.5, 1)
    lone = seed_difference(A[:1], B[:1], True, NOTHING)
    assert (lone.interval, lone.probability, lone.p_value) == (None, None, None)


def test_the_effect_size_by_hand() -> None:
    found = seed_difference(A, B, True, NOTHING)
    spread = np.sqrt((A.var(ddof=1) + B.var(ddof=1)) / 2)
    assert found.effect_size == pytest.approx((A.mean() - B.mean()) / spread * (1 - 3 / 23))


def test_averages_over_sets_add_variances() -> None:
    assert mean_variance([Variance(0.04, 10), Variance(0.02, 5)]) == pytest.approx((0.015, 0.06**2 / (0.00016 + 8e-5)))


def of_variances(of_one_seed: float, of_trials: Variance) -> SeedDifference:
    return SeedDifference(0, 0, 0, None, None, None, None, (5, 5), of_one_seed, of_trials)


def test_seeds_needed_are_those_of_the_books() -> None:
    # Cohen, Statistical Power Analysis (1988), and G*Power: paired t test, d = 0.5 needs 34 pairs, d = 1 needs 10.
    assert seeds_needed(of_variances(1.0, NOTHING), 0.5) == 34
    assert seeds_needed(of_variances(1.0, NOTHING), 1.0) == 10


def test_seeds_do_not_help_against_trials() -> None:
    # The trials' standard error times (1.96 + 0.8416) exceeds the difference, so no number of seeds is enough.
    limit = 0.01 / (stats.norm.ppf(0.975) + stats.norm.ppf(0.8))
    assert seeds_needed(of_variances(1e-5, Variance((1.01 * limit) ** 2)), 0.01) is None
    enough = seeds_needed(of_variances(1e-5, Variance((0.9 * limit) ** 2)), 0.01)
    assert enough is not None
    assert enough > seeds_needed(of_variances(1e-5, NOTHING), 0.01)


def test_the_power_is_what_simulations_have() -> None:
    found = of_variances(0.02**2, Variance(0.0015**2, 40))
    needed = seeds_needed(found, 0.01)
    assert needed is not None
    draw = np.random.default_rng(1)
    shown = []
    for seeds in (needed // 2, needed):
        apart = -0.01 + draw.normal(0, 0.02, (4_000, seeds)) + draw.normal(0, 0.0015, (4_000, 1))
        chi = draw.chisquare(40, 4_000) / 40  # random factor of the estimated variance of trials
        results = [
            seed_difference(row, np.zeros(seeds), True, Variance(0.0015**2 * c, 40)).p_value
            for row, c in zip(apart[:1_000], chi, strict=False)
        ]
        shown.append(np.mean(np.array(results) < 0.05))
    assert shown[1] == pytest.approx(0.8, abs=0.04)
    assert shown[0] < 0.65


def test_holm_by_hand() -> None:
    # Holm's p-values are 0.01 x 3, 0.02 x 2 and 0.04 x 1, each at least as large as the one before.
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.02])), [0.04, 0.03, 0.04])
    np.testing.assert_allclose(holm(np.array([0.5, 0.9])), [1.0, 1.0])
    assert holm(np.array([])).shape == (0,)


def test_the_simulations_error_rates_are_ours() -> None:
    case, draw = simulation.Case(0.25, 6, 9, 4), np.random.default_rng(1)
    scores, clusters = simulation.drawn_scores(case, 2, draw)
    labels = (clusters < 6).astype(int)
    counts = draw.integers(0, 3, (3, len(labels)))
    found = simulation.eers(scores, labels == 1, counts)
    for run, row in zip(scores, found, strict=True):
        for weights, eer in zip(counts, row, strict=True):
            assert eer == pytest.approx(equal_error_rate(np.repeat(run, weights), np.repeat(labels, weights)).eer)


def test_the_simulations_truth_is_what_many_trials_and_seeds_have() -> None:
    case, draw = simulation.Case(0.25, 3_000, 3_000, 1), np.random.default_rng(1)
    scores, clusters = simulation.drawn_scores(case, 60, draw)
    eers = [equal_error_rate(run, clusters < 3_000).eer for run in scores]
    assert np.mean(eers[:60]) - np.mean(eers[60:]) == pytest.approx(simulation.true_difference(case), abs=0.015)


@pytest.mark.parametrize(("seeds", "comparisons"), [(3, 500), (10, 400)])
def test_intervals_have_the_truth_inside_as_often_as_they_say(seeds: int, comparisons: int) -> None:
    found = simulation.coverage(simulation.Case(0.25, 20, 40, 5), seeds, comparisons, resamples=60)
    assert found[simulation.OURS] == pytest.approx(0.95, abs=0.02)
    assert found["trials alone"] < 0.93
    assert found["seeds alone"] < 0.95

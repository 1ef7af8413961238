"""Bootstrap intervals against resamples written out trial by trial, and against known results for normal scores."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from moelora_ad.corpora.trial import Trial
from moelora_ad.evaluation.metrics.costs import AsvErrorRates, DetectionCosts, TandemCosts2019, TandemCosts2021
from moelora_ad.evaluation.metrics.curve import ScoreCurve
from moelora_ad.evaluation.metrics.equal_error_rate import ScoreError
from moelora_ad.evaluation.metrics.intervals import Difference, OneCluster, bootstrap, compare
from moelora_ad.evaluation.metrics.options import FigureOptions
from moelora_ad.evaluation.metrics.resampling import ResampledCurve, Strata
from moelora_ad.evaluation.score_table import ScoreTable

ALL = FigureOptions(calibrated=True, threshold=0.5, asv=AsvErrorRates(0.02, 0.03, 0.4), tandem=TandemCosts2019())
NAMES = ("eer", "min_dcf", "auc", "min_cllr", "act_dcf", "cllr", "accuracy", "min_tdcf")
SOME_SCORES = st.one_of(st.integers(-3, 3).map(float), st.floats(-20, 20), st.sampled_from([-1e6, 1e6, -math.log(1.9)]))


@st.composite
def trials(draw: st.DrawFn) -> tuple[list[float], list[int], list[int]]:
    """Scores, labels and clusters, with trials of both classes."""
    rows = draw(st.lists(st.tuples(SOME_SCORES, st.integers(0, 1), st.integers(0, 5)), min_size=0, max_size=25))
    rows += [(draw(SOME_SCORES), 1, draw(st.integers(0, 5))), (draw(SOME_SCORES), 0, draw(st.integers(0, 5)))]
    scores, labels, clusters = zip(*draw(st.permutations(rows)), strict=True)
    return list(scores), list(labels), list(clusters)


def least_cllr(bona_fide: list[float], spoof: list[float]) -> float:
    """Minimum Cllr: neighbouring scores are pooled until the share of bona fide trials rises; one ratio a pool."""
    pools: list[tuple[int, int]] = []
    for score in sorted({*bona_fide, *spoof}):
        pools.append((bona_fide.count(score), spoof.count(score)))
        while len(pools) > 1 and pools[-2][0] * pools[-1][1] >= pools[-1][0] * pools[-2][1]:
            (a, b), (c, d) = pools.pop(), pools.pop()
            pools.append((a + c, b + d))
    bits = 0.0
    for b, s in pools:
        hits, false_alarms = b / len(bona_fide), s / len(spoof)
        if b and s:
            bits += hits * math.log2(1 + false_alarms / hits) + false_alarms * math.log2(1 + hits / false_alarms)
    return bits / 2


def by_definition(bona_fide: list[float], spoof: list[float]) -> dict[str, float]:
    """All figures of ``ALL``, threshold by threshold and pair by pair."""
    distinct = sorted({*bona_fide, *spoof})
    points = []
    for threshold in [-math.inf, *distinct]:
        miss = sum(score <= threshold for score in bona_fide) / len(bona_fide)
        points.append((miss, sum(score > threshold for score in spoof) / len(spoof)))
    nearest = min(points, key=lambda rates: abs(rates[0] - rates[1]))
    c1 = 0.9405 * (1 - 0.02) - 0.0095 * 10 * 0.03
    c2 = 10 * 0.05 * 0.4
    missed = sum(score < -math.log(1.9) for score in bona_fide) / len(bona_fide)
    accepted = sum(score >= -math.log(1.9) for score in spoof) / len(spoof)
    right = sum(score >= 0.5 for score in bona_fide) + sum(score < 0.5 for score in spoof)
    labels = [1] * len(bona_fide) + [0] * len(spoof)

    def bits(log_odds: float) -> float:
        return (max(log_odds, 0) + math.log1p(math.exp(-abs(log_odds)))) / math.log(2)

    return {
        "eer": sum(nearest) / 2,
        "min_dcf": min(0.95 * miss + 0.5 * false_alarm for miss, false_alarm in points) / 0.5,
        "auc": float(roc_auc_score(labels, [*bona_fide, *spoof])),
        "min_cllr": least_cllr(bona_fide, spoof),
        "act_dcf": (0.95 * missed + 0.5 * accepted) / 0.5,
        "cllr": (sum(bits(-s) for s in bona_fide) / len(bona_fide) + sum(bits(s) for s in spoof) / len(spoof)) / 2,
        "accuracy": right / len(labels),
        "min_tdcf": min(c1 * miss + c2 * false_alarm for miss, false_alarm in points) / min(c1, c2),
    }


@settings(deadline=None, max_examples=300)
@given(trials(), st.lists(st.integers(0, 4), min_size=6, max_size=6))
def test_a_resample_has_the_figures_of_its_trials_written_out(
    given_trials: tuple[list[float], list[int], list[int]], counts: list[int]
) -> None:
    scores, labels, clusters = given_trials
    repeated = [(s, b) for s, b, cluster in zip(scores, labels, clusters, strict=True) for _ in range(counts[cluster])]
    bona_fide, spoof = ([s for s, label in repeated if label == kind] for kind in (1, 0))
    if not (bona_fide and spoof):
        return
    curve = ResampledCurve(np.array(scores), np.array(labels), np.array(clusters), ALL)
    found = dict(zip(NAMES, curve.figures(NAMES, np.array(counts[: max(clusters) + 1])), strict=True))
    assert found == pytest.approx(by_definition(bona_fide, spoof), rel=1e-12, abs=1e-12)


@settings(deadline=None, max_examples=200)
@given(trials(), st.sampled_from([TandemCosts2019(), TandemCosts2021()]))
def test_counts_of_one_give_the_figures_of_the_score_curve(
    given_trials: tuple[list[float], list[int], list[int]], tandem: TandemCosts2019 | TandemCosts2021
) -> None:
    scores, labels, clusters = map(np.array, given_trials)
    options = FigureOptions(DetectionCosts(0.3, 1, 2), True, -1.0, asv=AsvErrorRates(0.1, 0.1, 0.9), tandem=tandem)
    found = ResampledCurve(scores, labels, clusters, options).figures(NAMES, np.ones(clusters.max() + 1, int))
    curve = ScoreCurve(scores, labels)
    wanted = [
        curve.equal_error_rate().eer,
        curve.min_dcf(options.costs).cost,
        curve.auc(),
        curve.min_cllr(),
        curve.act_dcf(options.costs),
        curve.cllr(),
        curve.accuracy(-1.0),
        curve.min_tdcf(options.asv, tandem).cost,
    ]
    assert found == pytest.approx(wanted, rel=1e-12, abs=1e-12)


def normal_scores(seed: int, num: int = 400, shift: float = 2.0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    labels = (np.arange(num) % 4 == 0).astype(int)
    return np.random.default_rng(seed).normal(shift * labels), labels


def of_repeated_trials(scores: NDArray[np.float64], labels: NDArray[np.int64], times: NDArray[np.int64]) -> list[float]:
    """EER and minDCF of a list in which each trial occurs as often as ``times`` says."""
    sides = [np.sort(np.repeat(scores, times)[np.repeat(labels, times) == label]) for label in (1, 0)]
    thresholds = np.append(-np.inf, np.unique(np.concatenate(sides)))
    miss, rejected = (side.searchsorted(thresholds, "right") / len(side) for side in sides)
    nearest = np.abs(miss - (1 - rejected)).argmin()
    return [(miss[nearest] + 1 - rejected[nearest]) / 2, (0.95 * miss + 0.5 * (1 - rejected)).min() / 0.5]


@pytest.mark.parametrize("shift", [0.0, 1.5, -1.5, 50.0])
@pytest.mark.parametrize("decimals", [0, 1, 15])
def test_two_resamples_at_once_have_the_figures_of_either(shift: float, decimals: int) -> None:
    draw = np.random.default_rng(decimals)
    labels = (draw.random(3_000) < 0.2).astype(int)
    scores = draw.normal(shift * labels, 1.0).round(decimals)
    clusters = np.append(draw.integers(0, 40, 2_998), [39, 38])
    curve = ResampledCurve(scores, labels, clusters, ALL)
    for _ in range(5):
        counts = draw.poisson(1, (2, 40)) * draw.integers(0, 2, (2, 40))  # many clusters are in neither resample
        found = curve.figures_of_two(NAMES, *counts)
        assert found == [curve.figures(NAMES, one) for one in counts]
        for figures, one in zip(found, counts, strict=True):
            assert figures[:2] == pytest.approx(of_repeated_trials(scores, labels, one[clusters]), rel=1e-12, abs=1e-12)


def test_more_trials_than_31_bits_count_are_not_mixed_up() -> None:
    scores, labels = normal_scores(4, 40)
    curve = ResampledCurve(scores, labels, np.arange(40) % 5, ALL)  # ten bona fide trials and thirty spoofs
    first, second = np.array([3, 0, 2, 4, 3]), np.array([0, 1, 5, 2, 4])
    wanted = [curve.figures(NAMES, one) for one in (first, second)]
    times = 2**25
    assert 6 * times * first.sum() > 2**31  # number of resampled spoofs
    assert curve.figures_of_two(NAMES, times * first, times * second) == wanted


@pytest.mark.parametrize("resamples", [20, 21])
def test_every_number_of_resamples_is_drawn_from_the_first_on(resamples: int) -> None:
    scores, labels = normal_scores(6)
    clusters = np.arange(400) // 5
    strata = Strata(labels, clusters)
    times = [strata.draw(1, number)[strata.clusters] for number in range(resamples)]
    wanted = np.percentile([of_repeated_trials(scores, labels, one)[0] for one in times], [2.5, 97.5])
    found = bootstrap(scores, labels, clusters, FigureOptions(resamples=resamples), ("eer",))
    assert found["eer"] == pytest.approx(wanted, rel=1e-12)


def test_intervals_are_percentiles_over_the_drawn_clusters() -> None:
    scores, labels = normal_scores(5, 60)
    clusters = np.where(labels == 1, np.arange(60) // 12, 100 + np.arange(60) // 9)
    options = FigureOptions(resamples=40, seed=9, calibrated=True, threshold=0.5, asv=ALL.asv, tandem=ALL.tandem)
    strata = Strata(labels, clusters)
    resampled = []
    for number in range(40):
        times = strata.draw(9, number)[strata.clusters]
        drawn = np.repeat(np.arange(60), times)
        resampled.append(
            by_definition(scores[drawn][labels[drawn] == 1].tolist(), scores[drawn][labels[drawn] == 0].tolist())
        )
    found = bootstrap(scores, labels, clusters, options)
    assert tuple(found) == NAMES
    for name, (low, high) in found.items():
        values = sorted(figures[name] for figures in resampled)
        # The 2.5th percentile of 40 values is at index 0.975 of 0 ... 39, counted from either end.
        assert low == pytest.approx(values[0] + 0.975 * (values[1] - values[0]), abs=1e-12)
        assert high == pytest.approx(values[39] - 0.975 * (values[39] - values[38]), abs=1e-12)


def test_each_kind_of_cluster_is_drawn_as_often_as_there_are() -> None:
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 1, 0, 1, 0, 0])
    clusters = np.array([7, 7, 8, 3, 3, 4, 5, 9, 9, 2, 2, 5])  # clusters: two bona fide, three spoofed, two mixed
    strata = Strata(labels, clusters)
    kinds = {number: {int(x) for x in labels[strata.clusters == number]} for number in range(7)}
    seen = []
    for number in range(50):
        counts = strata.draw(1, number)
        drawn = {
            kind: sum(int(counts[c]) for c, of in kinds.items() if of == set(kind)) for kind in ((0,), (1,), (0, 1))
        }
        assert drawn == {(1,): 2, (0,): 3, (0, 1): 2}
        seen.append(tuple(counts.tolist()))
    assert len(set(seen)) > 20
    assert all(max(column) > 1 and min(column) == 0 for column in zip(*seen, strict=True))
    assert [tuple(strata.draw(1, number).tolist()) for number in range(50)] == seen
    assert [tuple(strata.draw(2, number).tolist()) for number in range(50)] != seen


def test_sets_of_a_pool_are_drawn_apart() -> None:
    labels = np.tile([1, 0], 30)
    sets = np.repeat([0, 1, 2], 20)
    strata = Strata(labels, np.arange(60), sets)
    for number in range(20):
        times = strata.draw(1, number)[strata.clusters]
        assert [times[(sets == one) & (labels == kind)].sum() for one in range(3) for kind in (0, 1)] == [10] * 6


SPEAKERS, HALVES = np.arange(400) % 20, np.repeat([0, 1], 200)


@pytest.mark.parametrize(
    ("clusters", "sets"),
    [
        (SPEAKERS, np.where(HALVES, 0.2, 0.1)),  # not whole numbers
        (SPEAKERS / 7, HALVES - 5),
        (np.char.add("s", np.arange(10, 30).astype(str))[SPEAKERS], np.array(["a", "b"])[HALVES]),
        (np.array([f"{10 + one}" for one in SPEAKERS], object), HALVES.astype(bool)),
        (SPEAKERS + 100 * HALVES, HALVES),  # a cluster that occurs in two sets is two clusters
    ],
    ids=["fractions", "negative", "texts", "objects", "apart"],
)
def test_clusters_and_sets_may_be_named_by_any_numbers_and_texts(clusters: NDArray, sets: NDArray) -> None:
    scores, labels = normal_scores(4)
    scores, options = scores + 3 * HALVES, FigureOptions(resamples=30)
    wanted = bootstrap(scores, labels, SPEAKERS + 20 * HALVES, options, ("eer",), HALVES)
    assert wanted != bootstrap(scores, labels, SPEAKERS + 20 * HALVES, options, ("eer",))
    assert bootstrap(scores, labels, clusters, options, ("eer",), sets) == wanted


@pytest.mark.parametrize("unknown", [[1.0, math.nan, 2.0, 1.0], [1, None, 2, 1], ["a", None, "b", "a"]])
@pytest.mark.parametrize("of", ["clusters", "sets"])
def test_a_trial_without_a_cluster_or_set_is_refused(unknown: list, of: str) -> None:
    given = {"clusters": [1, 2, 3, 4], "sets": [1, 1, 1, 1]} | {of: unknown}
    with pytest.raises(ScoreError, match=f"^{of}: trial number 1 has none; give "):
        bootstrap([1.0, 2.0, 3.0, 4.0], [1, 0, 1, 0], **given)


@pytest.mark.parametrize("clusters", [[0, 0, 0, 0], [7, 8, 7, 8]])
def test_resamples_that_cannot_differ_give_no_interval(clusters: list[int]) -> None:
    """One cluster, or one of each class: every interval would have a width of 0, as if it were sure."""
    scores, labels = [1.0, 2.0, 3.0, 0.0], [1, 0, 1, 0]
    with pytest.raises(OneCluster, match="single cluster, so that resamples do not differ"):
        bootstrap(scores, labels, clusters)


def test_systems_on_single_clusters_are_compared_trial_by_trial() -> None:
    draw = np.random.default_rng(3)
    labels = np.arange(60) % 2
    scores = draw.normal(labels, 1, (2, 60))

    def compared(speakers: list[str]) -> Difference:
        trials = [Trial(f"u{i}", "", label=int(labels[i]), speaker=speakers[i]) for i in range(60)]
        first, second = (ScoreTable(trials, one) for one in scores)
        return compare(first, second, FigureOptions(clusters=("speaker",), resamples=100))["eer"]

    alone = compared([f"s{i}" for i in range(60)])
    assert alone.interval.low < alone.interval.high
    assert compared(["s"] * 60) == compared([f"s{label}" for label in labels]) == alone
    assert compared([f"s{i % 4}" for i in range(60)]) != alone


def test_copies_of_a_trial_in_its_cluster_do_not_narrow_the_interval() -> None:
    scores, labels = normal_scores(3, 200)
    clusters = np.arange(200)
    options = FigureOptions(resamples=100, calibrated=True, threshold=1.0)
    once = bootstrap(scores, labels, clusters, options)
    tenfold = bootstrap(*(np.repeat(x, 10) for x in (scores, labels, clusters)), options)
    independent = bootstrap(np.repeat(scores, 10), np.repeat(labels, 10), np.arange(2000), options)
    for name, interval in once.items():
        assert tenfold[name] == pytest.approx(interval, abs=1e-12)
        # Ten independent trials for each one would give an interval narrower by the square root of ten.
        assert independent[name].high - independent[name].low < 0.5 * (interval.high - interval.low)


def test_threads_change_nothing_and_the_seed_does() -> None:
    scores, labels = normal_scores(1)
    options = FigureOptions(resamples=50, calibrated=True)
    runs = [bootstrap(scores, labels, np.arange(400) // 3, options, threads=threads) for threads in (1, 2, 5, None)]
    assert all(run == runs[0] for run in runs)
    other = bootstrap(scores, labels, np.arange(400) // 3, FigureOptions(resamples=50, calibrated=True, seed=2))
    assert all(other[name] != runs[0][name] for name in other)


def test_the_order_of_the_trials_and_the_names_of_clusters_change_nothing_of_single_trials() -> None:
    scores, labels = normal_scores(2, 300)
    clusters = np.repeat(np.arange(100), 3)
    options = FigureOptions(resamples=30)
    order = np.random.default_rng(0).permutation(300)
    once = bootstrap(scores, labels, clusters, options)
    again = bootstrap(scores[order], labels[order], 5 * clusters[order] - 70, options)
    assert again == once


def test_intervals_cover_the_true_rate_about_as_often_as_they_say() -> None:
    true_eer, true_auc = norm.cdf(-1), norm.cdf(2 / math.sqrt(2))
    covered = np.zeros(2)
    for seed in range(160):
        scores, labels = normal_scores(seed)
        found = bootstrap(scores, labels, np.arange(400), FigureOptions(resamples=80), ("eer", "auc"), threads=1)
        covered += [
            found["eer"].low <= true_eer <= found["eer"].high,
            found["auc"].low <= true_auc <= found["auc"].high,
        ]
    assert all(0.85 <= share < 1 for share in covered / 160)


def table(scores: NDArray[np.float64], labels: NDArray[np.int64], order: NDArray[np.int64] | None = None) -> ScoreTable:
    trials = [
        Trial(f"u{i}", "", label=int(label), speaker=f"s{i % 20}", attack=None if label else f"A{i % 3}")
        for i, label in enumerate(labels)
    ]
    order = np.arange(len(trials)) if order is None else order
    return ScoreTable([trials[i] for i in order], scores[order])


def test_a_system_does_not_differ_from_itself() -> None:
    scores, labels = normal_scores(7)
    order = np.random.default_rng(1).permutation(400)
    options = FigureOptions(resamples=30, calibrated=True, threshold=0.0)
    found = compare(table(scores, labels), table(scores, labels, order), options)
    assert set(found) == set(options.figures)
    for one in found.values():
        assert one.first == one.second
        assert (one.difference, *one.interval) == (0, 0, 0)


def test_differences_are_paired() -> None:
    scores, labels = normal_scores(7)
    noise = np.random.default_rng(8).normal(size=400)
    good, worse = table(scores, labels), table(scores + 0.9 * noise, labels)
    options = FigureOptions(resamples=200)
    found = compare(good, worse, options)
    for name, one in found.items():
        assert one.difference == one.first - one.second
        flipped = compare(worse, good, options)[name]
        assert flipped.interval == pytest.approx((-one.interval.high, -one.interval.low), abs=1e-15)
    assert found["eer"].first == good.equal_error_rate().eer
    assert found["eer"].second == worse.equal_error_rate().eer
    assert found["eer"].interval.high < 0 < found["auc"].interval.low
    # The paired interval is narrower than that of two unrelated samples.
    clusters = np.array([20 * (3 if label else i % 3) + i % 20 for i, label in enumerate(labels)])
    widths = [np.ptp(bootstrap(one.scores, labels, clusters, options)["auc"]) for one in (good, worse)]
    assert np.ptp(found["auc"].interval) < math.hypot(*widths)


def test_only_the_same_trials_are_compared() -> None:
    scores, labels = normal_scores(7, 40)
    first = table(scores, labels)
    fewer = ScoreTable([first.trials[i] for i in range(3, 40)], scores[3:])
    with pytest.raises(ScoreError, match=r"3 are only in the first and 0 only in the second, for example 'u0'"):
        compare(first, fewer)
    with pytest.raises(ScoreError, match=r"0 are only in the first and 3 only in the second, for example 'u0'"):
        compare(fewer, first)
    flipped = labels.copy()
    flipped[[5, 9]] = 1 - flipped[[5, 9]]
    with pytest.raises(ScoreError, match=r"2 trials with two labels; the first is of utterance 'u5'"):
        compare(first, table(scores, flipped))


@pytest.mark.parametrize(
    ("options", "figures", "message"),
    [
        (FigureOptions(resamples=0), None, "needs resamples"),
        (FigureOptions(), ("eer", "cllr"), "define no figure 'cllr'"),
        (FigureOptions(), ("tpr",), "define no figure 'tpr'"),
        (FigureOptions(asv=AsvErrorRates(1.0, 1.0, 0.0)), None, "no t-DCF beside this ASV system"),
    ],
)
def test_what_has_no_interval_is_refused(options: FigureOptions, figures: tuple[str, ...] | None, message: str) -> None:
    scores, labels = normal_scores(1, 40)
    with pytest.raises(ScoreError, match=message):
        bootstrap(scores, labels, np.arange(40), options, figures)


def test_faulty_trials_are_refused() -> None:
    with pytest.raises(ScoreError, match="both classes"):
        bootstrap([1.0, 2.0], [1, 1], [0, 1])
    with pytest.raises(ScoreError, match="not finite"):
        bootstrap([1.0, np.nan], [1, 0], [0, 1])
    with pytest.raises(ScoreError, match=r"^clusters: 2 trials need as many, not an array of shape \(3,\)"):
        bootstrap([1.0, 2.0], [1, 0], [0, 1, 2])
    with pytest.raises(ScoreError, match=r"^sets: 2 trials need as many, not an array of shape \(2, 1\)"):
        bootstrap([1.0, 2.0], [1, 0], [0, 1], sets=[[0], [1]])


@pytest.mark.parametrize(
    ("given_options", "message"),
    [
        ({"resamples": -1}, "must not be negative"),
        ({"resamples": 19}, "19 is too few for an interval; give 20 or more"),
        ({"seed": -1}, "must not be negative"),
        ({"threshold": math.nan}, "a threshold must be finite"),
        ({"clusters": ("speaker", "sex")}, "trials have no field 'sex'"),
    ],
)
def test_faulty_options_are_refused(given_options: dict, message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        FigureOptions(**given_options)

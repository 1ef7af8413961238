import math
from fractions import Fraction

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moelora_ad.evaluation import (
    AsvErrorRates,
    DetectionCosts,
    ScoreCurve,
    ScoreError,
    TandemCosts2019,
    TandemCosts2021,
    accuracy,
    act_dcf,
    auc,
    cllr,
    equal_error_rate,
    min_cllr,
    min_dcf,
    min_tdcf,
)

CLOSE = {"rel": 1e-12, "abs": 1e-12}

COARSE = st.integers(-4, 4).map(float)
BAYES = st.just(-math.log(1.9))
HUGE = st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 1e6, -1e6, 1e300, -1e300])
FINE = st.floats(-40, 40) | st.floats(-1e6, 1e6)
SCORES = st.lists(COARSE | BAYES | FINE | HUGE, min_size=1, max_size=16)
COSTS = st.builds(DetectionCosts, st.floats(0.01, 0.99), st.floats(0.1, 20), st.floats(0.1, 20))
ASV = st.builds(AsvErrorRates, st.floats(0, 0.6), st.floats(0, 0.6), st.floats(0.01, 1))


def curve_of(bona_fide, spoof):
    return ScoreCurve([*bona_fide, *spoof], [1] * len(bona_fide) + [0] * len(spoof))


def rates(bona_fide, spoof, threshold):
    """Miss and false alarm rates by definition: bona fide scores below the threshold, and spoofs at or above it."""
    miss = sum(score < threshold for score in bona_fide) / len(bona_fide)
    return miss, sum(score >= threshold for score in spoof) / len(spoof)


def least(bona_fide, spoof, cost):
    """The least cost(miss, false alarm) over all thresholds."""
    return min(cost(*rates(bona_fide, spoof, t)) for t in [*bona_fide, *spoof, math.inf])


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def cllr_by_hand(bona_fide, spoof):
    ratio = math.fsum(softplus(-s) / len(bona_fide) for s in bona_fide)
    return (ratio + math.fsum(softplus(s) / len(spoof) for s in spoof)) / (2 * math.log(2))


def min_cllr_by_hand(bona_fide, spoof):
    """Pool adjacent violators in exact fractions: merge blocks until the share of bona fide trials rises."""
    blocks = []
    for score in sorted({*bona_fide, *spoof}):
        blocks.append([bona_fide.count(score), spoof.count(score)])
        while len(blocks) > 1 and Fraction(blocks[-2][0], sum(blocks[-2])) >= Fraction(blocks[-1][0], sum(blocks[-1])):
            last = blocks.pop()
            blocks[-1] = [blocks[-1][0] + last[0], blocks[-1][1] + last[1]]
    total = 0.0
    for bona_fides, spoofs in blocks:
        if bona_fides and spoofs:
            ratio = math.log(bona_fides / len(bona_fide)) - math.log(spoofs / len(spoof))
            total += bona_fides / len(bona_fide) * softplus(-ratio) + spoofs / len(spoof) * softplus(ratio)
    return total / (2 * math.log(2))


@settings(deadline=None, max_examples=300)
@given(SCORES, SCORES, COSTS)
@example([0.0], [0.0], DetectionCosts())
@example([-math.log(1.9)], [-math.log(1.9)], DetectionCosts())
def test_detection_costs_by_brute_force(bona_fide, spoof, costs):
    curve = curve_of(bona_fide, spoof)
    for drawn in (costs, DetectionCosts()):
        prior, miss, false_alarm = drawn.spoof_prior, drawn.miss, drawn.false_alarm
        least_trivial = min(miss * (1 - prior), false_alarm * prior)

        def dcf(p_miss, p_fa, c=(miss * (1 - prior), false_alarm * prior), over=least_trivial):
            return (c[0] * p_miss + c[1] * p_fa) / over

        found = curve.min_dcf(drawn)
        assert found.cost == pytest.approx(least(bona_fide, spoof, dcf), **CLOSE)
        assert dcf(*rates(bona_fide, spoof, found.threshold)) == pytest.approx(found.cost, **CLOSE)
        assert found.threshold in [*bona_fide, math.inf]
        assert found.cost <= 1 + 1e-12
    at_bayes = dcf(*rates(bona_fide, spoof, -math.log(1.9)))
    assert curve.act_dcf() == pytest.approx(at_bayes, **CLOSE)
    assert curve.act_dcf() >= curve.min_dcf().cost - 1e-12


@settings(deadline=None, max_examples=300)
@given(SCORES, SCORES, ASV)
def test_tandem_costs_by_brute_force(bona_fide, spoof, asv):
    curve = curve_of(bona_fide, spoof)
    p_miss_asv, p_fa_asv, p_fa_spoof_asv = asv

    c1 = 0.9405 * (1 - 1 * p_miss_asv) - 0.0095 * 10 * p_fa_asv
    c2 = 10 * 0.05 * (1 - (1 - p_fa_spoof_asv))
    expected = least(bona_fide, spoof, lambda miss, fa: (c1 * miss + c2 * fa) / min(c1, c2))
    found = curve.min_tdcf(asv, TandemCosts2019())
    assert found.cost == pytest.approx(expected, **CLOSE)
    miss, false_alarm = rates(bona_fide, spoof, found.threshold)
    assert (c1 * miss + c2 * false_alarm) / min(c1, c2) == pytest.approx(expected, **CLOSE)

    c0 = 0.9405 * 1 * p_miss_asv + 0.0095 * 10 * p_fa_asv
    c1 = 0.9405 * 1 - c0
    c2 = 0.05 * 10 * p_fa_spoof_asv
    expected = least(bona_fide, spoof, lambda miss, fa: (c0 + c1 * miss + c2 * fa) / (c0 + min(c1, c2)))
    assert curve.min_tdcf(asv, TandemCosts2021()).cost == pytest.approx(expected, **CLOSE)
    assert curve.min_tdcf(asv) == curve.min_tdcf(asv, TandemCosts2021())


@settings(deadline=None, max_examples=300)
@given(SCORES, SCORES)
@example([1e300], [-1e300])
@example([-1e300, 5e-324], [1e300, 0.0])
def test_log_likelihood_ratio_costs_by_hand(bona_fide, spoof):
    curve = curve_of(bona_fide, spoof)
    assert curve.cllr() == pytest.approx(cllr_by_hand(bona_fide, spoof), **CLOSE)
    assert curve.min_cllr() == pytest.approx(min_cllr_by_hand(bona_fide, spoof), **CLOSE)
    assert -1e-12 <= curve.min_cllr() <= min(1.0, curve.cllr()) + 1e-12


@settings(deadline=None, max_examples=200)
@given(SCORES, SCORES)
def test_area_by_counting_pairs_and_by_sklearn(bona_fide, spoof):
    pairs = [(b > s) + (b == s) / 2 for b in bona_fide for s in spoof]
    curve = curve_of(bona_fide, spoof)
    assert curve.auc() == pytest.approx(sum(pairs) / len(pairs), **CLOSE)
    labels = [1] * len(bona_fide) + [0] * len(spoof)
    assert curve.auc() == pytest.approx(sklearn.metrics.roc_auc_score(labels, [*bona_fide, *spoof]), **CLOSE)


@settings(deadline=None, max_examples=300)
@given(SCORES, SCORES, COARSE | BAYES | HUGE | st.sampled_from([math.inf, -math.inf]))
def test_rates_and_accuracy_at_a_threshold(bona_fide, spoof, threshold):
    curve = curve_of(bona_fide, spoof)
    assert curve.error_rates(threshold) == rates(bona_fide, spoof, threshold)
    right = sum(b >= threshold for b in bona_fide) + sum(s < threshold for s in spoof)
    assert curve.accuracy(threshold) == right / (len(bona_fide) + len(spoof))


@settings(deadline=None, max_examples=300)
@given(SCORES, SCORES)
def test_operating_points_are_all_there_are(bona_fide, spoof):
    points = curve_of(bona_fide, spoof).operating_points()
    thresholds = [*sorted({*bona_fide, *spoof}), math.inf]
    assert points.thresholds.tolist() == thresholds
    expected = [rates(bona_fide, spoof, t) for t in thresholds]
    assert list(zip(points.miss.tolist(), points.false_alarm.tolist(), strict=True)) == expected
    assert (expected[0], expected[-1]) == ((0.0, 1.0), (1.0, 0.0))


@settings(deadline=None)
@given(SCORES, SCORES)
def test_the_curve_has_the_equal_error_rate_of_the_function(bona_fide, spoof):
    labels = [1] * len(bona_fide) + [0] * len(spoof)
    assert curve_of(bona_fide, spoof).equal_error_rate() == equal_error_rate([*bona_fide, *spoof], labels)


FEW = st.lists(COARSE | FINE | HUGE, min_size=1, max_size=10)


@settings(deadline=None)
@given(FEW, FEW, st.randoms())
def test_neither_the_order_of_the_trials_nor_a_rising_map_matters(bona_fide, spoof, random):
    pairs = [(s, 1) for s in bona_fide] + [(s, 0) for s in spoof]
    before = curve_of(bona_fide, spoof)
    random.shuffle(pairs)
    ranks = {score: rank for rank, score in enumerate(sorted({*bona_fide, *spoof}))}
    after = ScoreCurve([math.exp(ranks[score]) for score, _ in pairs], [label for _, label in pairs])
    assert (before.min_dcf().cost, before.auc()) == (after.min_dcf().cost, after.auc())
    assert before.min_cllr() == pytest.approx(after.min_cllr(), **CLOSE)


def test_by_hand():
    # From the lowest threshold up, (miss, false alarm) = (0, 1), (0, 1/2), (1/2, 1/2), (1/2, 0), (1, 0).
    curve = curve_of([0.5, 2.0], [-1.0, 1.0])
    assert curve.min_dcf() == (pytest.approx(0.5 / 2 / 0.5), 0.5)
    assert curve.min_dcf(DetectionCosts(0.5, 1.0, 10.0)) == (pytest.approx(0.5), 2.0)
    assert curve.act_dcf() == pytest.approx(0.5)  # only the spoof's -1 is below the threshold -ln 1.9
    assert curve.auc() == 0.75
    assert curve.error_rates(1.0) == (0.5, 0.5)
    assert curve.accuracy(1.5) == 0.75
    assert (curve.num_bona_fide, curve.num_spoof) == (2, 2)


def test_at_the_bayes_threshold_a_spoof_is_a_false_alarm_and_bona_fide_no_miss():
    threshold = DetectionCosts().bayes_threshold
    assert threshold == pytest.approx(-math.log(1.9), abs=1e-15)
    assert curve_of([threshold], [threshold]).act_dcf() == pytest.approx(1.0)
    below = math.nextafter(threshold, -1)
    assert curve_of([below], [below]).act_dcf() == pytest.approx(0.95 / 0.5)


@pytest.mark.parametrize("score", [0.0, 7.5, -1e6, 1e300, -1e300, 5e-324])
@pytest.mark.parametrize(("num_bona_fide", "num_spoof"), [(1, 1), (3, 40), (40, 3)])
def test_a_constant_scorer_knows_nothing(score, num_bona_fide, num_spoof):
    curve = curve_of([score] * num_bona_fide, [score] * num_spoof)
    assert curve.equal_error_rate().eer == 0.5
    assert curve.auc() == 0.5
    assert curve.min_dcf() == (1.0, score)  # accepting all trials costs less than rejecting all
    assert curve.min_cllr() == pytest.approx(1.0)
    assert curve.min_tdcf(AsvErrorRates(0.02, 0.02, 0.5)).cost == pytest.approx(1.0)
    if score == 0:
        assert curve.cllr() == pytest.approx(1.0)


@pytest.mark.parametrize("size", [5e-324, 1e-300, 1.0, 1e6, 1e300, 1.7e308])
def test_separated_scores_of_any_size(size):
    curve = curve_of([size] * 3, [-size] * 5)
    assert curve.equal_error_rate().eer == 0.0
    assert curve.min_dcf() == (0.0, size)
    assert curve.min_cllr() == 0.0
    assert curve.auc() == 1.0
    expected = 0.0 if size > 1e3 else math.log2(1 + math.exp(-size))
    assert curve.cllr() == pytest.approx(expected, abs=1e-15)
    reversed_curve = curve_of([-size] * 3, [size] * 5)
    assert (reversed_curve.equal_error_rate().eer, reversed_curve.auc()) == (1.0, 0.0)
    assert reversed_curve.min_cllr() == pytest.approx(1.0)
    if 1e3 < size < 1e307:
        assert reversed_curve.cllr() == pytest.approx(size / math.log(2))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_or_of_one_class_has_no_figure(bad):
    with pytest.raises(ScoreError, match="1 score not finite; the first is number 2"):
        ScoreCurve([0.0, 1.0, bad, 2.0], [0, 1, 0, 1])
    with pytest.raises(ScoreError, match="2 bona fide and 0 spoof"):
        ScoreCurve([0.0, 1.0], [1, 1])
    with pytest.raises(ScoreError, match="must be a number, not nan"):
        ScoreCurve([0.0, 1.0], [0, 1]).error_rates(math.nan)


def test_the_callers_arrays_stay_as_they_are():
    scores, labels = np.array([3.0, 1.0, 2.0]), np.array([1, 0, 0], np.int8)
    scores.flags.writeable = False
    ScoreCurve(scores, labels).cllr()
    assert scores.tolist() == [3.0, 1.0, 2.0]


def straightforward(scores, labels):
    """EER, minDCF, actDCF, Cllr and AUC in plain NumPy, over every distinct threshold."""
    thresholds, place = np.unique(scores, return_inverse=True)
    bona_fide = np.bincount(place[labels == 1], minlength=len(thresholds))
    spoof = np.bincount(place[labels == 0], minlength=len(thresholds))
    miss = np.append(0, bona_fide.cumsum()) / bona_fide.sum()
    false_alarm = np.append(spoof[::-1].cumsum()[::-1], 0) / spoof.sum()
    best = np.argmin(np.abs(miss - false_alarm))
    actual = 0.95 * (scores[labels == 1] < -np.log(1.9)).mean() + 0.5 * (scores[labels == 0] >= -np.log(1.9)).mean()
    log_costs = [np.logaddexp(0, -scores[labels == 1]).mean(), np.logaddexp(0, scores[labels == 0]).mean()]
    return [
        (miss[best] + false_alarm[best]) / 2,
        (0.95 * miss + 0.5 * false_alarm).min() / 0.5,
        actual / 0.5,
        sum(log_costs) / 2 / np.log(2),
        1 - np.trapezoid(miss, 1 - false_alarm),
    ]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("decimals", [1, 15])
def test_600_000_scores_have_the_straightforward_figures(share, decimals):
    generator = np.random.default_rng(0)
    labels = (generator.random(600_000) < share).astype(np.int8)
    scores = generator.normal(2.0 * labels - 1, 2.0).round(decimals)
    curve = ScoreCurve(scores, labels)
    figures = [curve.equal_error_rate().eer, curve.min_dcf().cost, curve.act_dcf(), curve.cllr(), curve.auc()]
    assert figures == pytest.approx(straightforward(scores, labels), **CLOSE)


@pytest.mark.parametrize("seed", range(40))
def test_the_least_cost_is_not_missed_between_candidates(seed):
    generator = np.random.default_rng(seed)
    num = generator.integers(1, 3_000, 2)
    bona_fide, spoof = generator.normal(0.5, 1, num[0]), generator.standard_cauchy(num[1])
    if seed % 2:
        bona_fide, spoof = bona_fide.round(1), spoof.round(1)
    curve = curve_of(bona_fide, spoof)
    points = curve.operating_points()
    for costs in (DetectionCosts(), DetectionCosts(0.5, 1, 1), DetectionCosts(0.99, 1, 1), DetectionCosts(0.01, 1, 1)):
        miss, false_alarm = costs.miss * (1 - costs.spoof_prior), costs.false_alarm * costs.spoof_prior
        all_costs = (miss * points.miss + false_alarm * points.false_alarm) / min(miss, false_alarm)
        assert curve.min_dcf(costs).cost == pytest.approx(all_costs.min(), **CLOSE)


def test_the_functions_over_arrays_are_those_of_the_curve():
    generator = np.random.default_rng(1)
    labels = np.repeat([1, 0], [50, 200])
    scores = generator.normal(labels, 1.0)
    curve, asv, costs = ScoreCurve(scores, labels), AsvErrorRates(0.02, 0.03, 0.4), DetectionCosts(0.2, 2.0, 3.0)
    assert min_dcf(scores, labels) == curve.min_dcf()
    assert min_dcf(scores, labels, costs) == curve.min_dcf(costs) != curve.min_dcf()
    assert act_dcf(scores, labels, costs) == curve.act_dcf(costs) != curve.act_dcf()
    assert min_tdcf(scores, labels, asv, TandemCosts2019()) == curve.min_tdcf(asv, TandemCosts2019())
    assert (cllr(scores, labels), min_cllr(scores, labels)) == (curve.cllr(), curve.min_cllr())
    assert (auc(scores, labels), accuracy(scores, labels, 0.5)) == (curve.auc(), curve.accuracy(0.5))

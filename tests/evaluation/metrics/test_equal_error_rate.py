import math
import time

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moelora_ad.corpora import Trial
from moelora_ad.errors import InputError
from moelora_ad.evaluation import (
    ScoreCurve,
    ScoreError,
    ScoreTable,
    accuracy,
    asv_error_rates,
    bootstrap,
    equal_error_rate,
    evaluate,
    fit_calibration,
    min_dcf,
    probability_of_bona_fide,
)


def brute_force(scores, labels):
    """EER and threshold by definition: t accepts the scores >= t, and the first least |miss - false alarm| counts."""
    bona_fide = [s for s, label in zip(scores, labels, strict=True) if label == 1]
    spoof = [s for s, label in zip(scores, labels, strict=True) if label == 0]
    best = None
    for t in [*sorted(set(scores)), math.inf]:
        miss = sum(s < t for s in bona_fide) / len(bona_fide)
        false_alarm = sum(s >= t for s in spoof) / len(spoof)
        if best is None or abs(miss - false_alarm) < best[0]:
            best = (abs(miss - false_alarm), (miss + false_alarm) / 2, t)
    return best[1:]


def official(bona_fide, spoof):
    """EER as in the ASVspoof packages, for scores without ties: one threshold after every score; and the next score,
    as the packages name the highest rejected one."""
    labels = [1] * len(bona_fide) + [0] * len(spoof)
    ranked = sorted(zip([*bona_fide, *spoof], labels, strict=True), key=lambda pair: pair[0])
    misses, false_alarms = [0.0], [1.0]
    rejected = {0: 0, 1: 0}
    for _, label in ranked:
        rejected[label] += 1
        misses.append(rejected[1] / len(bona_fide))
        false_alarms.append((len(spoof) - rejected[0]) / len(spoof))
    gaps = [abs(miss - false_alarm) for miss, false_alarm in zip(misses, false_alarms, strict=True)]
    best = gaps.index(min(gaps))
    return (misses[best] + false_alarms[best]) / 2, ranked[best][0]


@pytest.mark.parametrize(
    ("bona_fide", "spoof", "eer", "threshold"),
    [
        ([3, 4], [1, 2], 0.0, 3),  # separated classes
        ([1, 2], [3, 4], 1.0, 3),  # classes in the wrong order
        ([1, 3], [2, 4], 0.5, 3),
        ([1, 4, 5, 6], [0, 2, 3, 7], 0.25, 4),
        ([0], [0], 0.5, 0),  # one tied score: all trials accepted, or none
        ([1, 2, 3], [0, 1, 0.5, -1], (0 + 1 / 4) / 2, 1),  # both rates jump at the tied score 1
    ],
)
def test_by_hand(bona_fide, spoof, eer, threshold):
    result = equal_error_rate([*bona_fide, *spoof], [1] * len(bona_fide) + [0] * len(spoof))
    assert result == pytest.approx((eer, threshold))
    assert (result.eer, result.threshold) == tuple(result)


@pytest.mark.parametrize(("num_bona_fide", "num_spoof"), [(1, 1), (5, 5), (2, 90), (90, 2)])
def test_a_constant_scorer_has_one_half(num_bona_fide, num_spoof):
    labels = [1] * num_bona_fide + [0] * num_spoof
    assert equal_error_rate([7.5] * len(labels), labels).eer == 0.5


COARSE = st.integers(-3, 3).map(float)
FINE = st.floats(-1e6, 1e6) | st.floats(allow_nan=False, allow_infinity=False, width=16)


@settings(deadline=None)
@given(st.lists(st.tuples(COARSE | FINE, st.integers(0, 1)), min_size=2, max_size=30), st.randoms())
def test_brute_force_with_ties(pairs, random):
    scores, labels = [score for score, _ in pairs], [label for _, label in pairs]
    if len(set(labels)) == 1:
        with pytest.raises(ScoreError, match="both classes"):
            equal_error_rate(scores, labels)
        return
    result = equal_error_rate(scores, labels)
    assert tuple(result) == brute_force(scores, labels)
    random.shuffle(pairs)
    assert equal_error_rate([score for score, _ in pairs], [label for _, label in pairs]) == result


@pytest.mark.parametrize("seed", range(30))
def test_without_ties_it_is_the_official_figure_digit_for_digit(seed):
    generator = np.random.default_rng(seed)
    bona_fide = generator.normal(1.0, 1.0, generator.integers(1, 60))
    spoof = generator.normal(0.0, 2.0, generator.integers(1, 200))
    labels = np.repeat([1, 0], [len(bona_fide), len(spoof)])
    scores = np.concatenate([bona_fide, spoof])
    assert tuple(equal_error_rate(scores, labels)) == official(bona_fide.tolist(), spoof.tolist())


@pytest.mark.parametrize("seed", range(10))
def test_sklearns_roc_curve_crosses_at_the_same_place(seed):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat([1, 0], [500, 4_500]))
    scores = generator.normal(labels * 2.0, 1.0)
    false_alarm, hit, _ = sklearn.metrics.roc_curve(labels, scores, drop_intermediate=False)
    crossing = np.argmin(np.abs(false_alarm - (1 - hit)))
    expected = (false_alarm[crossing] + 1 - hit[crossing]) / 2
    assert equal_error_rate(scores, labels).eer == pytest.approx(expected, abs=1 / 500)
    # Normal scores of unit variance at a distance of 2 have an EER of Phi(-1).
    assert equal_error_rate(scores, labels).eer == pytest.approx(0.1587, abs=0.04)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 1)), min_size=2, max_size=40))
def test_only_the_order_of_the_scores_matters(pairs):
    scores, labels = np.array([score for score, _ in pairs], float), [label for _, label in pairs]
    if len(set(labels)) == 2:
        assert equal_error_rate(scores, labels).eer == equal_error_rate(np.exp(scores / 10) - 5, labels).eer


@pytest.mark.parametrize("decimals", [0, 1, 15])
def test_the_threshold_gives_the_two_rates_that_were_averaged(decimals):
    generator = np.random.default_rng(3)
    labels = np.repeat([1, 0], [300, 700])
    scores = generator.normal(labels, 1.0).round(decimals)
    eer, threshold = equal_error_rate(scores, labels)
    miss, false_alarm = (scores[labels == 1] < threshold).mean(), (scores[labels == 0] >= threshold).mean()
    assert (miss + false_alarm) / 2 == eer
    assert decimals < 15 or abs(miss - false_alarm) <= 1 / 300
    # Every other function that takes a threshold gives these rates too.
    assert ScoreCurve(scores, labels).error_rates(threshold) == (miss, false_alarm)
    assert accuracy(scores, labels, threshold) == pytest.approx(1 - 0.3 * miss - 0.7 * false_alarm)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_scores_that_are_not_finite_never_give_a_number(bad, place):
    scores = [0.1, 0.2, 0.3, 0.4, 0.5]
    scores[place] = bad
    with pytest.raises(ScoreError, match=f"1 score not finite; the first is number {place}: {bad}"):
        equal_error_rate(scores, [0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    ("scores", "labels", "told"),
    [
        ([], [], "both classes"),
        ([1.0, 2.0], [1, 1], "2 bona fide and 0 spoof"),
        ([1.0, 2.0], [0, 0], "0 bona fide and 2 spoof"),
        ([1.0, 2.0, 3.0], [0, 1], "one length"),
        ([[1.0], [2.0]], [[0], [1]], "one length"),
        (1.0, 1, "one length"),
        ([1.0, 2.0, 3.0], [0, 1, -1], "1 are not, for example -1"),
        ([1.0, 2.0, 3.0], [0, 1, 2], "1 are not, for example 2"),
        ([1.0, 2.0, 3.0], [0, 1, 0.5], "1 are not, for example 0.5"),
        ([1.0, 2.0, 3.0], [0, 1, np.nan], "1 are not, for example nan"),
        ([1.0, 2.0], ["0", "1"], "2 are not"),
    ],
)
def test_other_faults_are_told(scores, labels, told):
    with pytest.raises(ScoreError, match=told) as error:
        equal_error_rate(scores, labels)
    assert isinstance(error.value, InputError)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_tensors_of_every_precision_are_taken_also_with_gradients(dtype):
    scores, labels = torch.tensor([2.0, 0.5, 1.0, -1.0], dtype=dtype, requires_grad=True), torch.tensor([1, 1, 0, 0])
    wanted = equal_error_rate([2.0, 0.5, 1.0, -1.0], [1, 1, 0, 0])
    assert equal_error_rate(scores, labels) == equal_error_rate(scores, labels.to(dtype)) == wanted
    assert min_dcf(scores, labels) == min_dcf([2.0, 0.5, 1.0, -1.0], [1, 1, 0, 0])
    clusters = torch.arange(4).to(dtype)
    assert bootstrap(scores, labels, clusters) == bootstrap(scores.tolist(), labels.tolist(), [0, 1, 2, 3])
    assert evaluate(scores, labels, resamples=0).overall.eer == wanted.eer
    assert asv_error_rates(scores, scores, scores) == asv_error_rates(*[scores.tolist()] * 3)
    fitted = fit_calibration(scores, labels, "dev")
    assert fitted == fit_calibration(scores.tolist(), labels.tolist(), "dev")
    assert fitted.apply(scores).tolist() == fitted.apply(scores.tolist()).tolist()
    assert probability_of_bona_fide(scores, 0.5).tolist() == probability_of_bona_fide(scores.tolist(), 0.5).tolist()
    trials = [Trial(f"u{i}", "", label=label) for i, label in enumerate(labels.tolist())]
    assert ScoreTable(trials, scores).equal_error_rate() == wanted


def test_the_largest_test_set_takes_a_moment():
    generator = np.random.default_rng(0)
    labels = (generator.random(700_000) < 0.2).astype(np.int8)
    scores = generator.normal(labels, 1.0)
    begin = time.perf_counter()
    equal_error_rate(scores, labels)
    assert time.perf_counter() - begin < 5

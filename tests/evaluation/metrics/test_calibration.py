import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from moelora_ad.corpora.trial import Trial
from moelora_ad.evaluation import (
    Calibration,
    ScoreCurve,
    ScoreError,
    ScoreTable,
    fit_calibration,
    probability_of_bona_fide,
)
from moelora_ad.evaluation.metrics.calibration import refuse_own_calibration


def two_normals(num_bona_fide, num_spoof, seed=0, distance=2.0):
    generator = np.random.default_rng(seed)
    labels = np.repeat([1, 0], [num_bona_fide, num_spoof])
    return generator.normal(distance * labels, 1.0), labels


def by_sklearn(scores, labels):
    """Unregularised logistic regression: each trial counts as both classes by Platt's targets; a class weighs 1/2."""
    num = {label: int((labels == label).sum()) for label in (0, 1)}
    target = np.where(labels == 1, (num[1] + 1) / (num[1] + 2), 1 / (num[0] + 2))
    share = np.where(labels == 1, 0.5 / num[1], 0.5 / num[0])
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-13, max_iter=1_000)
    doubled = np.tile(scores, 2)[:, np.newaxis]
    weights = np.concatenate([share * target, share * (1 - target)]) * len(scores)
    model.fit(doubled, np.repeat([1, 0], len(scores)), sample_weight=weights)
    return model.coef_[0, 0], model.intercept_[0]


@pytest.mark.parametrize(("num_bona_fide", "num_spoof"), [(1, 1), (2, 300), (300, 2), (100, 100), (500, 4_500)])
@pytest.mark.parametrize("distance", [0.5, 2.0, 20.0])
def test_sklearn_fits_the_same_line(num_bona_fide, num_spoof, distance):
    scores, labels = two_normals(num_bona_fide, num_spoof, seed=1, distance=distance)
    if num_bona_fide == num_spoof == 1:
        scores = np.array([distance, 0.0])
    found = fit_calibration(scores, labels, "dev")
    assert (found.scale, found.offset) == pytest.approx(by_sklearn(scores, labels), rel=1e-6, abs=1e-6)
    assert (found.fitted_on, found.num_bona_fide, found.num_spoof) == ("dev", num_bona_fide, num_spoof)


def test_two_normals_have_the_log_likelihood_ratio_of_the_formula():
    # For N(2, 1) against N(0, 1), the log-likelihood ratio is 2 s - 2, whatever the class proportions.
    for num_bona_fide, num_spoof in [(100_000, 100_000), (20_000, 200_000)]:
        found = fit_calibration(*two_normals(num_bona_fide, num_spoof, seed=2), "dev")
        assert (found.scale, found.offset) == pytest.approx((2.0, -2.0), abs=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_calibrated_scores_cost_nearly_the_least(seed):
    scores, labels = two_normals(500, 3_000, seed)
    raw = 30 * scores + 100
    calibrated = fit_calibration(raw, labels, "dev").apply(raw)
    before, after = ScoreCurve(raw, labels), ScoreCurve(calibrated, labels)
    assert after.cllr() < 1 < before.cllr()
    assert after.cllr() - after.min_cllr() < 0.03
    assert after.min_dcf().cost <= after.act_dcf() < after.min_dcf().cost + 0.1
    assert (after.equal_error_rate().eer, after.min_dcf().cost) == (
        before.equal_error_rate().eer,
        before.min_dcf().cost,
    )


@pytest.mark.parametrize(("scale", "shift"), [(1e-9, 0.0), (1e9, 0.0), (1.0, 1e6), (1e300, 0.0), (1e-3, -5.0)])
def test_the_ratios_do_not_depend_on_the_scale_of_the_scores(scale, shift):
    scores, labels = two_normals(200, 800)
    expected = fit_calibration(scores, labels, "dev").apply(scores)
    moved = scores * scale + shift
    np.testing.assert_allclose(fit_calibration(moved, labels, "dev").apply(moved), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [1e-300, 1.0, 1e6, 1e300, 1.7e308])
def test_separated_classes_have_a_finite_line(size):
    scores, labels = np.array([-size, -size, size, size, size]), [0, 0, 1, 1, 1]
    found = fit_calibration(scores, labels, "dev")
    # Platt's targets: the log-odds of the classes are ln 4 (three trials) and -ln 3 (two).
    np.testing.assert_allclose(found.apply(scores), [-math.log(3)] * 2 + [math.log(4)] * 3, rtol=1e-9)


@pytest.mark.parametrize("outlier", [100.0, -100.0, 1e6])
def test_outliers_do_not_stop_the_search_before_the_optimum(outlier):
    scores, labels = two_normals(200, 800)
    scores[0] = outlier
    found = fit_calibration(scores, labels, "dev")
    targets = np.where(labels == 1, 201 / 202, 1 / 802)
    errors = np.where(labels == 1, 0.5 / 200, 0.5 / 800) * (1 / (1 + np.exp(-found.apply(scores))) - targets)
    # At the optimum, the errors have zero mean and no correlation with the scores.
    assert errors.sum() == pytest.approx(0, abs=1e-12)
    assert errors @ scores == pytest.approx(0, abs=1e-12 * np.abs(scores).max())


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        ([1.0, 2.0, 3.0, 4.0], [1, 1, 0, 0]),
        ([5.0, 5.0, 5.0], [1, 0, 0]),
        ([0.0, 0.0], [1, 0]),
        ([1.0, -1.0, 1.0, -1.0], [1, 1, 0, 0]),
    ],
)
def test_reversed_and_worthless_scores_are_refused(scores, labels):
    with pytest.raises(ScoreError, match=r"mydev: no calibration, .* reversed"):
        fit_calibration(scores, labels, "mydev")


def test_one_class_and_nan_are_refused():
    with pytest.raises(ScoreError, match="both classes"):
        fit_calibration([1.0, 2.0], [1, 1], "dev")
    with pytest.raises(ScoreError, match="not finite"):
        fit_calibration([1.0, math.nan], [1, 0], "dev")


def test_apply_is_a_line():
    calibration = Calibration(2.0, -1.0, "dev", 3, 4)
    assert calibration.apply([0.0, 1.0, -3.5]).tolist() == [-1.0, 1.0, -8.0]
    assert calibration.apply(np.zeros((2, 3), np.float32)).dtype == np.float64
    assert calibration.apply(np.zeros((2, 3))).shape == (2, 3)


@given(st.floats(1e-300, 1e300), st.floats(-1e300, 1e300), st.text(), st.integers(1, 10**9), st.integers(1, 10**9))
def test_a_calibration_survives_json(scale, offset, fitted_on, num_bona_fide, num_spoof):
    calibration = Calibration(scale, offset, fitted_on, num_bona_fide, num_spoof)
    content = json.loads(json.dumps(calibration.as_dict()))
    assert Calibration.from_dict(content) == calibration
    del content["precision"]  # a field that earlier versions did not write
    assert Calibration.from_dict(content) == calibration


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"scale": 0.0}, "scale must be a positive number, not 0.0"),
        ({"scale": -1.0}, "scale must be a positive number"),
        ({"scale": math.inf}, "scale must be a positive number"),
        ({"scale": "2"}, "scale must be a positive number, not '2'"),
        ({"scale": True}, "scale must be a positive number"),
        ({"scale": 10**400}, "scale must be a positive number"),
        ({"offset": math.nan}, "offset must be a finite number"),
        ({"offset": None}, "offset must be a finite number"),
        ({"fitted_on": 3}, "fitted_on must be a name"),
        ({"num_spoof": 0}, "num_spoof must be a positive whole number"),
        ({"num_bona_fide": 2.0}, "num_bona_fide must be a positive whole number"),
        ({"precision": 16}, "precision must be a name, not 16"),
        ({"more": 1}, "needs the fields fitted_on, num_bona_fide, num_spoof, offset, scale"),
    ],
)
def test_faulty_content_is_refused(change, told):
    content = Calibration(2.0, -1.0, "dev", 3, 4).as_dict()
    with pytest.raises(ScoreError, match=f"calibration: {told}") as error:
        Calibration.from_dict(content | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [{}, {"scale": 1.0}, [], None, "scale"])
def test_other_content_is_refused(content):
    with pytest.raises(ScoreError, match="needs the fields"):
        Calibration.from_dict(content)


@settings(deadline=None)
@given(st.floats(-30, 30), st.floats(0.001, 0.999))
def test_probability_by_bayes(ratio, prior):
    expected = prior * math.exp(ratio) / (prior * math.exp(ratio) + 1 - prior)
    assert probability_of_bona_fide([ratio], prior)[0] == pytest.approx(expected, rel=1e-12)


def test_probability_of_huge_ratios():
    with np.errstate(all="raise", under="ignore"):
        ratios = [-1.7e308, -1e6, -40.0, 0.0, 1e6, 1.7e308]
        probabilities = probability_of_bona_fide(ratios, 0.5)
    assert probabilities.tolist() == [0.0, 0.0, pytest.approx(math.exp(-40)), 0.5, 1.0, 1.0]
    assert probability_of_bona_fide(0.0, 0.95) == pytest.approx(0.95)
    for prior in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(ScoreError, match="between 0 and 1"):
            probability_of_bona_fide([0.0], prior)


def table(*trials):
    return ScoreTable(
        [Trial(utterance, "", i % 2, corpus=corpus) for i, (corpus, utterance) in enumerate(trials)],
        [0.0] * len(trials),
    )


def test_a_calibration_on_the_reported_trials_is_refused():
    development = table(("A", "u1"), ("A", "u2"), ("B", "u3"), ("", "u4"))
    refuse_own_calibration(development, table(("A", "u9"), ("B", "u1"), ("A", "u3")))  # the same ids in other corpora
    with pytest.raises(ScoreError, match="fitted on 1 of 2 trials, the first of them 'u2'; calibrate on a"):
        refuse_own_calibration(development, table(("A", "u8"), ("A", "u2")))
    with pytest.raises(ScoreError, match="fitted on 2 of 3 trials, the first of them 'u4'"):  # unknown corpus
        refuse_own_calibration(development, table(("A", "u4"), ("C", "u5"), ("", "u1")))
    with pytest.raises(ScoreError, match="fitted on 4 of 4 trials, the first of them 'u1'"):
        refuse_own_calibration(development, development)

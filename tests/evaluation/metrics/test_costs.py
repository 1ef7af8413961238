import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelora_ad.errors import InputError
from moelora_ad.evaluation import (
    AsvErrorRates,
    DetectionCosts,
    ScoreCurve,
    ScoreError,
    TandemCosts2019,
    TandemCosts2021,
    asv_error_rates,
    read_asv_error_rates,
)


def test_the_defaults_are_those_of_asvspoof_5():
    assert DetectionCosts() == DetectionCosts(spoof_prior=0.05, miss=1.0, false_alarm=10.0)
    assert DetectionCosts().weights == pytest.approx((0.95, 0.5))
    assert DetectionCosts().bayes_threshold == pytest.approx(-math.log(1.9), abs=1e-15)


@given(st.floats(0.001, 0.999), st.floats(0.01, 100), st.floats(0.01, 100))
def test_at_the_bayes_threshold_both_decisions_cost_the_same(spoof_prior, miss, false_alarm):
    ratio = math.exp(DetectionCosts(spoof_prior, miss, false_alarm).bayes_threshold)
    bona_fide = (1 - spoof_prior) * ratio / ((1 - spoof_prior) * ratio + spoof_prior)
    assert bona_fide * miss == pytest.approx((1 - bona_fide) * false_alarm)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"spoof_prior": 0.0}, "spoof_prior must be between 0 and 1, not 0.0"),
        ({"spoof_prior": 1.0}, "spoof_prior must be between 0 and 1"),
        ({"spoof_prior": math.nan}, "spoof_prior must be between 0 and 1"),
        ({"miss": 0.0}, "miss must be positive"),
        ({"miss": -1.0}, "miss must be positive"),
        ({"false_alarm": math.inf}, "false_alarm must be positive"),
    ],
)
@pytest.mark.parametrize("costs", [DetectionCosts, TandemCosts2019, TandemCosts2021])
def test_costs_that_make_no_sense_are_refused(costs, wrong, told):
    with pytest.raises(ScoreError, match=told):
        costs(**wrong)


@pytest.mark.parametrize("costs", [TandemCosts2019, TandemCosts2021])
def test_the_three_priors_of_a_tandem_cost_sum_to_one(costs):
    with pytest.raises(ScoreError, match=r"costs: .* must sum to 1, not 2.7$"):
        costs(target_prior=0.9, nontarget_prior=0.9, spoof_prior=0.9)
    with pytest.raises(ScoreError, match=r"must sum to 1, not 1.05$"):
        costs(spoof_prior=0.1)
    assert costs(target_prior=0.1, nontarget_prior=0.2, spoof_prior=0.7).spoof_prior == 0.7  # 0.1 + 0.2 + 0.7 < 1


@pytest.mark.parametrize("rates", [(0.5, 0.5, 30.0), (2.0, 0.1, 0.3), (0.1, -0.1, 0.3), (math.nan, 0.1, 0.3)])
@pytest.mark.parametrize("costs", [TandemCosts2019(), TandemCosts2021()])
def test_asv_error_rates_in_percent_are_refused(rates, costs):
    with pytest.raises(ScoreError, match=r"error rates of the ASV system must be in \[0, 1\], not in percent: "):
        ScoreCurve([2.0, 0.5, 1.0, -1.0], [1, 1, 0, 0]).min_tdcf(AsvErrorRates(*rates), costs)


def official_asv_error_rates(target, nontarget, spoof):
    """ASV error rates as ASVspoof defines them, at the lowest score with the least |rejected - accepted|.

    The search rejects tied scores together; the threshold then accepts scores that are at or above it.
    """
    best = None
    for t in [min(target + nontarget) - 0.001, *sorted({*target, *nontarget})]:
        rejected = sum(s <= t for s in target) / len(target)
        gap = abs(rejected - sum(s > t for s in nontarget) / len(nontarget))
        if best is None or gap < best[0]:
            best = (gap, t)
    threshold = best[1]
    return (
        sum(s < threshold for s in target) / len(target),
        sum(s >= threshold for s in nontarget) / len(nontarget),
        sum(s >= threshold for s in spoof) / len(spoof),
    )


ASV_SCORES = st.lists(st.integers(-4, 4).map(float) | st.floats(-100, 100), min_size=1, max_size=20)


@settings(deadline=None, max_examples=500)
@given(ASV_SCORES, ASV_SCORES, ASV_SCORES)
def test_asv_error_rates_by_brute_force(target, nontarget, spoof):
    assert asv_error_rates(target, nontarget, spoof) == official_asv_error_rates(target, nontarget, spoof)


@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf], [[1.0]]])
def test_asv_scores_that_have_no_rates(kind, bad):
    scores = [[1.0, 2.0], [0.0], [0.5]]
    scores[kind] = bad
    with pytest.raises(ScoreError, match=f"ASV scores: {('target', 'nontarget', 'spoof')[kind]} needs"):
        asv_error_rates(*scores)


def test_tandem_weights_by_hand():
    asv = AsvErrorRates(miss=0.1, false_alarm=0.2, spoof_false_alarm=0.4)
    # C1 = 0.9405 * (1 - 0.1) - 0.0095 * 10 * 0.2, and C2 = 10 * 0.05 * 0.4
    assert TandemCosts2019().weights(asv) == pytest.approx((0.0, 0.82745, 0.2))
    # C0 = 0.9405 * 0.1 + 0.0095 * 10 * 0.2, C1 = 0.9405 - C0, and C2 = 0.05 * 10 * 0.4
    assert TandemCosts2021().weights(asv) == pytest.approx((0.11305, 0.82745, 0.2))


def test_a_perfect_countermeasure_leaves_the_cost_of_the_asv_in_2021_and_nothing_in_2019():
    curve, asv = ScoreCurve([1.0, 0.0], [1, 0]), AsvErrorRates(0.1, 0.2, 0.4)
    assert curve.min_tdcf(asv, TandemCosts2019()) == (0.0, 1.0)
    assert curve.min_tdcf(asv, TandemCosts2021()) == (pytest.approx(0.11305 / 0.31305), 1.0)


@pytest.mark.parametrize(
    ("asv", "costs"),
    [
        (AsvErrorRates(0.99, 0.9, 0.5), TandemCosts2019()),  # C1 < 0
        (AsvErrorRates(0.99, 0.9, 0.5), TandemCosts2021()),
        (AsvErrorRates(0.0, 0.0, 0.0), TandemCosts2019()),  # C2 = 0: no spoof deceives this ASV system
        (AsvErrorRates(0.0, 0.0, 0.0), TandemCosts2021()),
    ],
)
def test_an_asv_system_without_a_tandem_cost(asv, costs):
    told = r"no t-DCF beside this ASV system .* must not be negative, and C0 \+ min\(C1, C2\) must be positive"
    with pytest.raises(ScoreError, match=told) as error:
        ScoreCurve([1.0, 0.0], [1, 0]).min_tdcf(asv, costs)
    assert "\n" not in str(error.value)


def test_a_tandem_cost_may_have_a_weight_of_zero():
    """C2 = 0 in the form of 2021: no spoof deceives the ASV system, so accepting all adds nothing to its own cost."""
    assert ScoreCurve([1.0, 0.0], [1, 0]).min_tdcf(AsvErrorRates(0.1, 0.2, 0.0), TandemCosts2021()).cost == 1.0


def asv_trials(num=300):
    generator = np.random.default_rng(4)
    kinds = generator.choice(["target", "nontarget", "spoof"], num)
    means = {"target": 3.0, "nontarget": -3.0, "spoof": 1.0}
    return kinds.tolist(), generator.normal([means[kind] for kind in kinds], 2.0).tolist()


def of_kind(kinds, scores, kind):
    return [score for one, score in zip(kinds, scores, strict=True) if one == kind]


def rates_of(kinds, scores):
    return official_asv_error_rates(*(of_kind(kinds, scores, kind) for kind in ("target", "nontarget", "spoof")))


def test_the_scores_of_2019(tmp_path):
    kinds, scores = asv_trials()
    path = tmp_path / "ASVspoof2019.LA.asv.eval.gi.trl.scores.txt"
    sources = ["A07" if kind == "spoof" else "bonafide" for kind in kinds]
    path.write_text("".join(f"{x} {k} {s!r}\n" for x, k, s in zip(sources, kinds, scores, strict=True)))
    assert read_asv_error_rates(path) == rates_of(kinds, scores)
    assert read_asv_error_rates(str(path)) == rates_of(kinds, scores)


def folder_of_2021(tmp_path, kinds, scores):
    """Write keys/LA/ASV with these scores, every third trial in the progress phase; return the score file."""
    path = tmp_path / "keys/LA/ASV/ASVTorch_Kaldi/score.txt"
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"LA_0040 LA_E_{i} {score!r}\n" for i, score in enumerate(scores)))
    rows = (
        f"LA_0040 LA_E_{i} alaw ita_tx {'A07' if kind == 'spoof' else 'bonafide'} {kind} notrim {phase}\n"
        for i, kind in enumerate(kinds)
        for phase in ["progress" if i % 3 == 0 else "eval"]
    )
    (tmp_path / "keys/LA/ASV/trial_metadata.txt").write_text("".join(rows))
    return path


def test_the_scores_of_2021_with_the_key_two_folders_up(tmp_path, monkeypatch):
    kinds, scores = asv_trials()
    path = folder_of_2021(tmp_path, kinds, scores)
    evaluated = [i for i in range(len(kinds)) if i % 3]
    assert read_asv_error_rates(path) == rates_of([kinds[i] for i in evaluated], [scores[i] for i in evaluated])
    assert read_asv_error_rates(path, phase="progress") == rates_of(kinds[::3], scores[::3])
    monkeypatch.chdir(path.parent)
    assert read_asv_error_rates("score.txt") == read_asv_error_rates(path)
    with pytest.raises(ScoreError, match="has no target and no nontarget and no spoof trial"):
        read_asv_error_rates(path, phase="hidden")
    key = tmp_path / "keys/LA/ASV/trial_metadata.txt"
    key.write_text(key.read_text().replace(" eval\n", " hidden_track\n"))
    expected = rates_of([kinds[i] for i in evaluated], [scores[i] for i in evaluated])
    assert read_asv_error_rates(path, phase="hidden") == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no target and no nontarget and no spoof trial"),
        ("A07 spoof 1.0\nx target 2.0\n", "has no nontarget trial, which a t-DCF needs"),
        ("A07 spoof 1.0\nx targt 2.0\n", "line 2: 'targt' is not one of target, nontarget, spoof"),
        ("A07 spoof 1.0\nx target nan\n", "line 2, column 'score': nan is not finite"),
        ("A07 spoof 1.0\n\nx target 1,5\n", "line 3, column 'score': '1,5' is not a number"),
        ("A07 spoof 1.0\nx target 1.0 2.0\n", "line 2: 4 columns where 3 are needed"),
        ("LA_E_1 1.0\n", "line 1: 2 columns where 3 are needed"),
        ("x LA_E_1 1.0\n", "trial_metadata.txt: no such file"),
        ("A07 spoof \x1b[31m\n", r"'\\+x1b\[31m' is not a number"),
    ],
)
def test_faulty_asv_scores_are_told_in_one_line(tmp_path, text, told):
    path = tmp_path / "a/b/scores.txt"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(InputError, match=told) as error:
        read_asv_error_rates(path)
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_asv_error_rates(tmp_path / "nosuch.txt")


def test_scores_and_key_of_2021_that_do_not_fit(tmp_path):
    kinds, scores = asv_trials(30)
    path = folder_of_2021(tmp_path, kinds, scores)
    text = path.read_text()
    path.write_text(text.replace("LA_E_7 ", "LA_E_8 "))
    with pytest.raises(ScoreError, match=r"score.txt, line 8: is of 'LA_E_8', but .*trial_metadata.txt has 'LA_E_7'"):
        read_asv_error_rates(path)
    path.write_text("".join(text.splitlines(keepends=True)[:-1]))
    with pytest.raises(ScoreError, match=r"has 29 scores, but .*trial_metadata.txt has 30 trials"):
        read_asv_error_rates(path)

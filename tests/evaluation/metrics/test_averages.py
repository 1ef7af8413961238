"""Averages over sets and over seeds."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moelora_ad.evaluation.metrics.averages import MacroAverage, macro_averages, over_seeds
from moelora_ad.evaluation.metrics.equal_error_rate import ScoreError
from moelora_ad.evaluation.metrics.set_evaluation import Figures, SetEvaluation


def evaluation(name: str, num: int, eer: float, cllr: float | None = None) -> SetEvaluation:
    return SetEvaluation(name, Figures(num, num, eer, 0.0, min_dcf=eer / 2, auc=1 - eer, min_cllr=eer, cllr=cllr))


SETS = {
    "own eval": evaluation("own eval", 10, 0.01, cllr=0.5),
    "wild": evaluation("wild", 1000, 0.2, cllr=0.7),
    "famous": evaluation("famous", 50, 0.1),
}


def test_each_average_is_an_unweighted_mean_and_names_its_sets() -> None:
    found = {(one.name, one.figure): one for one in macro_averages(SETS, own=["own eval"])}
    ood, everything = found["macro_ood", "eer"], found["macro_all", "eer"]
    assert ood == MacroAverage("macro_ood", "eer", pytest.approx(0.15), ("wild", "famous"))
    assert everything == MacroAverage("macro_all", "eer", pytest.approx(0.31 / 3), ("own eval", "wild", "famous"))
    assert found["macro_ood", "auc"].value == pytest.approx(0.85)
    assert found["macro_all", "min_dcf"].value == pytest.approx(0.31 / 6)


def test_a_figure_that_a_set_lacks_has_no_average() -> None:
    two = {name: SETS[name] for name in ("own eval", "wild")}
    assert [one.value for one in macro_averages(two, ["own eval"]) if one.figure == "cllr"] == [0.7, pytest.approx(0.6)]
    assert all(one.figure != "cllr" for one in macro_averages(SETS, own=["own eval"]))
    assert all(one.figure != "accuracy" for one in macro_averages(SETS, own=["own eval"]))


def test_without_a_set_out_of_domain_there_is_no_macro_ood() -> None:
    assert {one.name for one in macro_averages({"wild": SETS["wild"]}, own=["wild"])} == {"macro_all"}
    assert macro_averages({}, own=[]) == []


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.booleans())
def test_a_summary_over_seeds(values: list[float], higher_is_better: bool) -> None:
    found = over_seeds(values, higher_is_better)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.std == pytest.approx(statistics.stdev(values), abs=1e-12)
    assert (found.best, found.worst)[:: -1 if higher_is_better else 1] == (min(values), max(values))
    assert found.num == len(values)


def test_one_seed_has_no_deviation() -> None:
    assert over_seeds([0.25]) == (0.25, None, 0.25, 0.25, 1)


@pytest.mark.parametrize("values", [[], [0.1, math.nan]])
def test_what_is_no_figure_is_refused(values: list[float]) -> None:
    with pytest.raises(ScoreError, match="needs at least one figure, all finite"):
        over_seeds(values)

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import moelora_ad
from moelora_ad.evaluation import (
    ActualDetectionCost,
    AreaUnderCurve,
    AsvErrorRates,
    DetectionCosts,
    EqualErrorRate,
    LogLikelihoodRatioCost,
    MinDetectionCost,
    MinLogLikelihoodRatioCost,
    MinTandemDetectionCost,
    ScoreError,
    TandemCosts2019,
    TrialScores,
    act_dcf,
    auc,
    cllr,
    equal_error_rate,
    min_cllr,
    min_dcf,
    min_tdcf,
)


def test_equal_error_rate_over_batches_is_that_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(1_000, generator=generator) < 0.3).long()
    scores = torch.randn(1_000, generator=generator) + labels
    metric = EqualErrorRate()
    for batch in torch.arange(1_000).split(64):
        metric.update(scores[batch], labels[batch])
    assert metric.compute().item() == equal_error_rate(scores.numpy(), labels.numpy()).eer
    metric.reset()
    metric.update(torch.tensor([1.0, 0.0]), torch.tensor([1, 0]))
    assert metric.compute() == 0.0


ASV = AsvErrorRates(0.02, 0.03, 0.4)
COSTS = DetectionCosts(0.5, 1.0, 3.0)


@pytest.mark.parametrize(
    ("metric", "function", "higher_is_better"),
    [
        (AreaUnderCurve(), auc, True),
        (LogLikelihoodRatioCost(), cllr, False),
        (MinLogLikelihoodRatioCost(), min_cllr, False),
        (MinDetectionCost(), lambda *trials: min_dcf(*trials).cost, False),
        (MinDetectionCost(COSTS), lambda *trials: min_dcf(*trials, COSTS).cost, False),
        (ActualDetectionCost(), act_dcf, False),
        (ActualDetectionCost(COSTS), lambda *trials: act_dcf(*trials, COSTS), False),
        (MinTandemDetectionCost(ASV), lambda *trials: min_tdcf(*trials, ASV).cost, False),
        (
            MinTandemDetectionCost(ASV, TandemCosts2019()),
            lambda *trials: min_tdcf(*trials, ASV, TandemCosts2019()).cost,
            False,
        ),
    ],
)
def test_figures_over_batches_are_those_of_the_whole(metric, function, higher_is_better):
    generator = torch.Generator().manual_seed(1)
    labels = (torch.rand(500, generator=generator) < 0.3).long()
    scores = 2 * torch.randn(500, generator=generator) + labels
    for batch in torch.arange(500).split(64):
        metric.update(scores[batch], labels[batch])
    found = pickle.loads(pickle.dumps(metric)).compute()
    assert found.dtype == torch.float64
    assert found.shape == ()
    assert found.item() == function(scores.numpy(), labels.numpy())
    assert metric.higher_is_better is higher_is_better
    metric.reset()
    metric.update(torch.tensor([1.0]), torch.tensor([1]))
    with pytest.raises(ScoreError, match="both classes"):
        metric.compute()


def test_float64_scores_are_not_rounded():
    metric = EqualErrorRate()
    metric.update(torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64), torch.tensor([0, 1]))
    assert metric.compute() == 0.0


def test_equal_error_rate_takes_half_precision_with_gradients():
    metric = EqualErrorRate()
    metric.update(torch.tensor([2.0, -2.0], dtype=torch.bfloat16, requires_grad=True), torch.tensor([True, False]))
    assert metric.compute() == 0.0
    assert not metric.scores[0].requires_grad


@pytest.mark.parametrize(("scores", "labels"), [((3,), (2,)), ((2,), (3,)), ((2, 1), (2, 1)), ((), ())])
def test_a_score_needs_a_label(scores, labels):
    metric = EqualErrorRate()
    metric.update(torch.tensor([1.0, 0.0]), torch.tensor([1, 0]))
    with pytest.raises(ScoreError, match="one label for each score"):
        metric.update(torch.zeros(scores), torch.zeros(labels))
    assert metric.compute() == 0.0  # nothing of the batch was kept


def test_equal_error_rate_refuses_as_the_function_does():
    metric = EqualErrorRate()
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([1, 1]))
    with pytest.raises(ScoreError, match="both classes"):
        metric.compute()
    metric.update(torch.tensor([float("nan")]), torch.tensor([0]))
    with pytest.raises(ScoreError, match="not finite"):
        metric.compute()
    with pytest.warns(UserWarning, match="before the ``update``"), pytest.raises(ScoreError, match="both classes"):
        EqualErrorRate().compute()


def test_what_lightning_asks_a_metric():
    assert EqualErrorRate.higher_is_better is False
    assert EqualErrorRate.is_differentiable is False
    assert EqualErrorRate.full_state_update is False
    assert EqualErrorRate().state_dict() == {}


def test_trial_scores_come_back_in_the_order_of_the_trials():
    metric = TrialScores(num_trials=100)
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(100))
    for batch in shuffled.split(7):
        metric.update(batch, batch * 0.5 - 1)
    indices, scores = metric.compute()
    assert indices.dtype == torch.int64
    assert indices.tolist() == list(range(100))
    np.testing.assert_array_equal(scores.numpy(), np.arange(100) * 0.5 - 1)


def test_a_single_trial_stays_a_list():
    metric = TrialScores(num_trials=1)
    metric.update(torch.tensor([0]), torch.tensor([0.1]))
    indices, scores = pickle.loads(pickle.dumps(metric)).compute()
    assert indices.tolist() == [0]
    assert scores.tolist() == [np.float32(0.1)]


@pytest.mark.parametrize(
    ("indices", "told"),
    [
        ([0, 1, 3], "of 5 trials, 2 have no score and 0 were scored more than once"),
        ([0, 1, 2, 3, 4, 4, 1, 1], "of 5 trials, 0 have no score and 2 were scored more than once"),
        ([0, 0, 2], "of 5 trials, 3 have no score and 1 were scored more than once"),
        ([0, 1, 2, 3, 5], "1 trial indices are outside 0 to 4"),
        ([0, 1, 2, 3, 4, -1], "1 trial indices are outside 0 to 4"),
    ],
)
def test_a_complete_run_scores_every_trial_once(indices, told):
    metric = TrialScores(num_trials=5)
    metric.update(torch.tensor(indices), torch.zeros(len(indices)))
    with pytest.raises(RuntimeError, match=told):
        metric.compute()


def test_an_incomplete_run_may_miss_trials_but_not_repeat_them():
    metric = TrialScores(num_trials=5, complete=False)
    metric.update(torch.tensor([3]), torch.tensor([1.5]))
    metric.update(torch.tensor([1]), torch.tensor([-1.5]))
    assert [values.tolist() for values in metric.compute()] == [[1, 3], [-1.5, 1.5]]
    metric.update(torch.tensor([3]), torch.tensor([1.5]))
    with pytest.raises(RuntimeError, match="0 have no score and 1 were scored more than once"):
        metric.compute()
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert [values.tolist() for values in metric.compute()] == [[], []]


@pytest.mark.parametrize(("indices", "scores"), [((2,), (3,)), ((2,), (2, 1)), ((), ())])
def test_an_index_needs_a_score(indices, scores):
    with pytest.raises(ValueError, match="one score for each index"):
        TrialScores(num_trials=5).update(torch.zeros(indices, dtype=torch.int64), torch.zeros(scores))


@pytest.fixture(scope="module")
def from_two_processes(tmp_path_factory):
    """What gathering_processes.py computed on process 0 and on process 1."""
    folder = tmp_path_factory.mktemp("gathering")
    script = Path(__file__).with_name("gathering_processes.py")
    environment = os.environ | {"PYTHONPATH": str(Path(moelora_ad.__file__).parents[1])}
    subprocess.run([sys.executable, script, folder], env=environment, timeout=120, check=True)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("case", ["uneven", "again", "one_empty"])
def test_two_processes_agree_with_one(from_two_processes, rank, case):
    # Bona fide 1 + 1e-12 and 1 lie above spoof 1 - 1e-12, bona fide 0.25 below spoof 0.3: |1/3 - 1/4| is least.
    assert from_two_processes[rank][case] == {
        "eer": pytest.approx((1 / 3 + 1 / 4) / 2, abs=1e-15),
        "indices": list(range(7)),
        "scores": [0.3, 1.0, -2.0, 1.0 + 1e-12, 0.25, -0.5, 1.0 - 1e-12],
    }


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_have_the_figures_of_all_trials(from_two_processes, rank):
    scores, labels = [0.3, 1.0, -2.0, 1.0 + 1e-12, 0.25, -0.5, 1.0 - 1e-12], [0, 1, 0, 1, 1, 0, 0]
    assert from_two_processes[rank]["figures"] == {
        "auc": auc(scores, labels),
        "min_dcf": min_dcf(scores, labels).cost,
        "act_dcf": act_dcf(scores, labels),
        "cllr": pytest.approx(cllr(scores, labels), rel=1e-14),
        "min_cllr": min_cllr(scores, labels),
        "min_tdcf": min_tdcf(scores, labels, ASV).cost,
    }
    assert from_two_processes[rank]["figures"]["auc"] == 10 / 12  # 0.25 loses two of the 3 x 4 pairs


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_see_each_others_repetitions_and_parts(from_two_processes, rank):
    assert from_two_processes[rank]["twice"] == "of 7 trials, 0 have no score and 1 were scored more than once"
    assert from_two_processes[rank]["part"] == [[4, 5], [1.5, 0.5]]

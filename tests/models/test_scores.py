"""Scores from logits, against values by hand, and the choice of a device."""

import math

import pytest
import torch

from moelora_ad.errors import InputError
from moelora_ad.models.devices import usable_device
from moelora_ad.models.scores import log_odds, trial_scores


def test_log_odds_are_those_of_the_softmax():
    logits = torch.tensor([[0.5, 2.0], [3.0, -1.0], [0.0, 0.0]])
    expected = [math.log(p[1] / p[0]) for p in torch.softmax(logits.double(), -1).tolist()]
    assert log_odds(logits).tolist() == pytest.approx(expected)
    assert log_odds(logits.half()).dtype == torch.float32


def test_a_trials_score_is_the_mean_of_its_clips():
    logits = torch.tensor([[0.0, 1.0], [0.0, 3.0], [2.0, 0.0], [0.0, 4.0]])
    assert trial_scores(logits, 2).tolist() == [2.0, 1.0]
    assert trial_scores(logits, 4).tolist() == [1.0, 3.0, -2.0, 4.0]


@pytest.mark.parametrize("shape", [(4, 3), (4, 1), (4,), (4, 5, 2)])
def test_what_are_no_two_logits_for_each_clip_is_refused(shape):
    with pytest.raises(
        InputError, match=r"^the head gives \(4.*for 4 clips, not \(4, 2\): two logits for each, spoof an"
    ):
        trial_scores(torch.zeros(shape), 4)
    with pytest.raises(InputError, match=r"^the head gives "):
        log_odds(torch.zeros(shape))


def test_devices():
    assert usable_device("cpu") == torch.device("cpu")
    assert usable_device(torch.device("cpu")) == torch.device("cpu")
    assert usable_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(InputError, match="device 'abacus' cannot be used: "):
        usable_device("abacus")
    with pytest.raises(InputError, match="--device: 'cuda:99' cannot be used: "):
        usable_device("cuda:99", "--device:")

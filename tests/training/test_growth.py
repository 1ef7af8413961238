"""What evaluation takes does not grow with the number of batches or of sets."""

import multiprocessing

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from moelora_ad.adapters import LoRA
from moelora_ad.corpora import Trial, TrialList
from moelora_ad.evaluation import TrialFailures, TrialScores
from moelora_ad.models import MeanPooling, WhisperBackbone
from moelora_ad.training import Batch, DetectionModule
from moelora_ad.training.scoring import SetScores


class CountedProcesses(Callback):
    """The most processes at any batch of an evaluation."""

    most = 0

    def count(self, *arguments, **named) -> None:
        self.most = max(self.most, len(multiprocessing.active_children()))

    on_test_batch_start = on_predict_batch_start = on_test_end = count


@pytest.mark.parametrize("verb", ["test", "predict"])
def test_the_workers_of_a_set_end_with_it(data, trainer, tmp_path, small_whisper, verb):
    model = DetectionModule(WhisperBackbone(small_whisper), LoRA(2), MeanPooling)
    corpus = data().test["in_domain"]
    source = data(num_workers=1, test=dict.fromkeys(("a", "b", "c", "d"), corpus))
    processes = CountedProcesses()
    before = len(multiprocessing.active_children())
    getattr(trainer(tmp_path, callbacks=[processes]), verb)(model, datamodule=source)
    assert processes.most - before == 1
    assert len(multiprocessing.active_children()) == before


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_batch_does_not_walk_the_batches_before_it(monkeypatch, device):
    trials = TrialList([Trial(f"u{number}", "") for number in range(40)])
    part = SetScores("x", trials, complete=True, device=device)
    assert part.scores.device.type == part.failures.device.type == device
    moves = []
    for metric in (TrialScores, TrialFailures):
        monkeypatch.setattr(metric, "_apply", lambda self, *arguments, **named: moves.append(self) or self)
    scores = np.random.default_rng(0).normal(size=40)
    for first in range(0, 40, 4):
        places = torch.arange(first, first + 4)
        logits = torch.stack([torch.zeros(4), torch.tensor(scores[first : first + 4], dtype=torch.float32)], dim=1)
        part.update(Batch(torch.zeros(4, 1), None, torch.zeros(4), places, []), logits)
    assert not moves
    if device == "cpu":
        np.testing.assert_array_equal(part.result().table.scores, scores.astype(np.float32).astype(np.float64))

"""The resources of an evaluation do not grow with the number of batches or of sets."""

import multiprocessing
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from moelora_ad.adapters import LoRA
from moelora_ad.audio import FullUtterance, audio_length
from moelora_ad.corpora import Trial, TrialList
from moelora_ad.data.lengths import lengths_of
from moelora_ad.evaluation import TrialFailures, TrialScores
from moelora_ad.models import MeanPooling, WhisperBackbone
from moelora_ad.training import Batch, DetectionModule
from moelora_ad.training.scoring import SetScores


class CountedProcesses(Callback):
    """The largest number of processes at any batch of an evaluation."""

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


def test_the_headers_of_a_set_are_read_at_once_and_only_once(data, monkeypatch):
    asked, several = [], threading.Barrier(2)

    def length(source, name):
        asked.append(name)
        several.wait(timeout=60)  # fails unless another thread comes
        return audio_length(source, name)

    monkeypatch.setattr("moelora_ad.data.lengths.audio_length", length)
    source = data(eval_segment=FullUtterance())
    source.setup("validate")
    source.val_dataloader()
    paths = list(source.eval_trials["dev"].columns.audio)
    assert sorted(asked) == sorted(paths)
    assert source._lengths["dev"].tolist() == [audio_length(path) for path in paths]
    source.setup("fit")
    source.val_dataloader()
    assert len(asked) == len(paths)


def test_lengths_in_an_archive_are_those_of_its_members(data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trials = data().test["in_domain"].trials()
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for trial in trials:
            archive.add(trial.audio, Path(trial.audio).name)
    inside = [f"{tmp_path}/a.tar!/{Path(trial.audio).name}" for trial in trials]
    packed = TrialList([Trial(str(number), place) for number, place in enumerate(10 * inside)])
    found = lengths_of(packed, "x", None).tolist()
    assert found == 10 * [audio_length(trial.audio) for trial in trials]

"""Audio that cannot be read: the rest is scored, failed trials are listed and counted, and nothing is lost."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from moelora_ad.adapters import LoRA
from moelora_ad.audio import AudioError, FullUtterance
from moelora_ad.corpora import Trial, TrialList
from moelora_ad.data.dataset import FailedTrial
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable, TrialFailures, equal_error_rate
from moelora_ad.models import MeanPooling, WhisperBackbone
from moelora_ad.runs.failures import write_failures
from moelora_ad.training import Batch, DetectionModule
from moelora_ad.training.losses.loss_module import weighted_mean
from moelora_ad.training.scoring import SetScores


@pytest.fixture
def model(small_whisper) -> DetectionModule:
    torch.manual_seed(0)
    return DetectionModule(WhisperBackbone(small_whisper), LoRA(2), MeanPooling)


def spoil(manifest: Path, *utterances: int) -> list[str]:
    """Make the audio files of some utterances missing, empty or not audio; return the ids in the manifest's order."""
    rows = list(csv.reader(manifest.read_text().splitlines()))
    for turn, number in enumerate(utterances):
        path = manifest.with_name(f"spoilt{number}.wav")
        if turn % 3 == 1:
            soundfile.write(path, np.zeros(0), 16_000)
        elif turn % 3 == 2:
            path.write_text("no audio")
        rows[1 + number][0] = str(path)
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return [rows[1 + number][1] for number in sorted(utterances)]


def failed(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("workers", [0, 1])
def test_failed_trials_are_listed_and_the_others_keep_their_scores(model, data, trainer, tmp_path, workers):
    source = data(num_workers=workers)
    trainer(tmp_path / "whole").test(model, datamodule=source, verbose=False)
    whole = ScoreTable.read(tmp_path / "whole" / "scores" / "in_domain.csv")
    wanted = {trial.utterance: score for trial, score in zip(whole.trials, whole.scores.tolist(), strict=True)}
    lost = spoil(Path(source.test["in_domain"].path), 5, 0, 2)
    trainer(tmp_path).test(model, datamodule=data(num_workers=workers), verbose=False)
    table = ScoreTable.read(tmp_path / "scores" / "in_domain.csv")
    rest = {trial.utterance: score for trial, score in zip(table.trials, table.scores.tolist(), strict=True)}
    assert rest == pytest.approx({u: score for u, score in wanted.items() if u not in lost}, abs=1e-5)
    rows = failed(tmp_path / "scores" / "in_domain.failed.csv")
    assert [row["utterance"] for row in rows] == lost
    reasons = {Path(row["audio"]).stem: row["reason"] for row in rows}
    assert "no such" in reasons["spoilt5"]
    assert "zero samples" in reasons["spoilt0"]
    assert "spoilt2.wav" in reasons["spoilt2"]
    figures = model.evaluated["in_domain"]
    assert (figures.num_scored, figures.num_failed) == (5, 3)
    assert figures.eer == equal_error_rate(table.scores, table.labels).eer
    assert not (tmp_path / "scores" / "out_of_domain.failed.csv").exists()


def test_the_list_of_an_earlier_run_goes_away(tmp_path):
    trials = TrialList([Trial("u", "a,b.wav")])
    path = tmp_path / "scores" / "x.failed.csv"
    write_failures(path, trials, {0: 'it said "no"'})
    assert failed(path) == [{"utterance": "u", "audio": "a,b.wav", "reason": 'it said "no"'}]
    assert [entry.name for entry in path.parent.iterdir()] == ["x.failed.csv"]
    write_failures(path, trials, {})
    assert not path.exists()
    write_failures(path, trials, {})


def test_a_score_of_a_read_trial_that_is_not_finite_is_no_failure():
    """Scores of a model that diverged must not pass for files that cannot be read."""
    part = SetScores("x", TrialList([Trial("a", ""), Trial("b", "")]), complete=True)
    batch = Batch(torch.zeros(2, 1), None, torch.tensor([0, 1]), torch.tensor([0, 1]), [FailedTrial(0, "gone")])
    part.update(batch, torch.tensor([[0.0, 1.0], [0.0, math.nan]]))
    with pytest.raises(ValueError, match="1 score not finite; the first is of utterance 'b'"):
        part.result()


def test_reasons_are_gathered_whatever_their_script():
    gathered = TrialFailures()
    gathered.update([])
    assert gathered.compute() == {}
    gathered.reset()
    gathered.update([(7, "später"), (2, "早い")])
    gathered.update([(3, "")])
    assert gathered.compute() == {2: "早い", 3: "", 7: "später"}


def test_evaluation_stops_if_it_is_told_to(model, data, trainer, tmp_path):
    source = data(eval_on_error="raise")
    spoil(Path(source.test["in_domain"].path), 3)
    with pytest.raises(AudioError, match=r"spoilt3\.wav"):
        trainer(tmp_path).test(model, datamodule=source, verbose=False)


def test_validation_within_fit_always_stops(model, data, trainer, tmp_path):
    source = data(eval_on_error="report", train_on_error="report")
    spoil(Path(source.val.path), 3)
    with pytest.raises(AudioError, match=r"spoilt3\.wav"):
        trainer(tmp_path).fit(model, datamodule=source)


def test_training_stops_at_an_unreadable_file_unless_it_is_to_report_it(model, data, trainer, tmp_path):
    spoil(Path(data().train.path), 1)
    with pytest.raises(AudioError, match=r"spoilt1\.wav"):
        trainer(tmp_path).fit(model, datamodule=data())


def test_failed_trials_have_no_part_in_training(model, data, trainer, tmp_path):
    """The loss of a batch with failed trials is that of the batch without their rows."""
    lost = spoil(Path(data().train.path), 1, 8)
    run = trainer(tmp_path, max_epochs=2)
    run.fit(model, datamodule=data(train_on_error="report"))
    assert [row["utterance"] for row in failed(tmp_path / "scores" / "train.failed.csv")] == lost
    assert sorted(model.train_failures) == [1, 8]

    torch.manual_seed(0)
    batch = Batch(torch.randn(3, 8_000), None, torch.tensor([0, 1, 1]), torch.tensor([4, 5, 6]), [FailedTrial(5, "")])
    rest = Batch(batch.waveforms[[0, 2]], None, batch.labels[[0, 2]], batch.trials[[0, 2]], [])
    with torch.no_grad():
        torch.testing.assert_close(
            weighted_mean(*model._weighted(model(batch.waveforms), batch)),
            weighted_mean(*model._weighted(model(rest.waveforms), rest)),
            rtol=1e-5,
            atol=1e-6,
        )


def test_training_on_nothing_ends_with_the_first_epoch(model, data, trainer, tmp_path):
    spoil(Path(data().train.path), *range(len(data().train.trials())))
    with pytest.raises(InputError, match=r"^in this epoch no file of data\.train could be read: cannot decode "):
        trainer(tmp_path, max_epochs=2).fit(model, datamodule=data(train_on_error="report"))
    assert len(failed(tmp_path / "scores" / "train.failed.csv")) == len(data().train.trials())


def test_a_batch_of_failures_alone_gives_gradients_of_zero(model):
    batch = Batch(
        torch.zeros(2, 8_000),
        None,
        torch.tensor([0, 1]),
        torch.tensor([4, 5]),
        [FailedTrial(4, ""), FailedTrial(5, "")],
    )
    loss = weighted_mean(*model._weighted(model(batch.waveforms), batch))
    assert loss.item() == 0
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_files_that_cannot_be_read_do_not_stop_the_scan_of_lengths(model, data, trainer, tmp_path):
    whole = {"eval_segment": FullUtterance(), "eval_batch_size": 1}
    lost = spoil(Path(data().test["in_domain"].path), 6, 1, 4)
    trainer(tmp_path).test(model, datamodule=data(**whole), verbose=False)
    assert [row["utterance"] for row in failed(tmp_path / "scores" / "in_domain.failed.csv")] == lost
    assert len(ScoreTable.read(tmp_path / "scores" / "in_domain.csv")) == 5

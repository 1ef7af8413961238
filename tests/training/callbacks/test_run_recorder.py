"""The record of a run: through its life, and when it fails, is interrupted, or resumes."""

import json
from pathlib import Path

import pytest
from lightning.pytorch import Callback

from moelora_ad.adapters import MoELoRA
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable, equal_error_rate
from moelora_ad.models import MeanPooling, WhisperBackbone
from moelora_ad.runs.record import read_record
from moelora_ad.training import DetectionModule
from moelora_ad.training.callbacks.run_recorder import RunRecorder


class Watcher(Callback):
    """Reads the record at the start of every epoch, and may stop the run with an error."""

    def __init__(self, folder: Path, error: BaseException | None = None) -> None:
        self.folder = folder
        self.error = error
        self.seen = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.seen.append(read_record(self.folder))
        if trainer.current_epoch == 1 and self.error is not None:
            raise self.error


@pytest.fixture
def fit(small_whisper, data, trainer, tmp_path):
    def run(watcher: Watcher, **arguments) -> None:
        model = DetectionModule(WhisperBackbone(small_whisper), MoELoRA(2, 2), MeanPooling)
        callbacks = [RunRecorder("mixture", ("fit", "--x")), watcher]
        trainer(tmp_path, max_epochs=3, callbacks=callbacks, **arguments).fit(model, datamodule=data())

    return run


def test_a_finished_run(lightning, experiment, write_config, tmp_path):
    config = write_config(experiment)
    assert lightning("fit", "--config", config, "--system", "mixture", "--seed_everything", 5)[0] == 0
    folder = tmp_path / "runs" / "tiny" / "version_0"
    record = read_record(folder)
    assert (record.system, record.seed, record.state, record.attempts) == ("mixture", 5, "finished", 1)
    assert (record.epoch, record.max_epochs, record.step, record.max_steps) == (2, 2, 6, 6)
    assert record.training_corpora == ("train",)
    assert {name: found.corpus for name, found in record.sets.items()} == {
        "dev": "dev",
        "in_domain": "eval",
        "out_of_domain": "ood",
    }
    for name, found in record.sets.items():
        table = ScoreTable.read(record.score_folder / f"{name}.csv")
        assert found.eer == pytest.approx(equal_error_rate(table.scores, table.labels).eer)
        assert (found.num_bona_fide, found.num_spoof) == (sum(table.labels == 1), sum(table.labels == 0))
    assert record.checkpoint_path.is_file()
    assert record.best_dev_eer == pytest.approx(record.sets["dev"].eer, abs=1e-6)
    # 2 layers, 4 projections, 2 experts: A and B of rank 2 and width 32; gates with weight and noise; a head of 32 + 1.
    assert record.parameters["experts"] == 2 * 4 * 2 * (2 * 2 * 32)
    assert record.parameters["gates"] == 2 * 4 * (2 * 2 * 32)
    assert record.trained == sum(n for part, n in record.parameters.items() if part != "total")
    assert record.seconds > 0
    assert record.peak_memory_bytes["host"] > 100e6
    assert record.command[:2] == ("fit", "--config")


def test_a_record_is_up_to_date_while_the_run_goes_on(fit, tmp_path):
    watcher = Watcher(tmp_path)
    fit(watcher)
    assert [(seen.state, seen.epoch, seen.step) for seen in watcher.seen] == [
        ("running", 0, 0),
        ("running", 1, 3),
        ("running", 2, 6),
    ]
    assert watcher.seen[0].dev_eer is None
    assert watcher.seen[0].max_steps == 9
    assert 0 <= watcher.seen[1].best_dev_eer <= 1


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (InputError("train.csv: is not there"), "failed", "train.csv: is not there"),
        (ValueError("two\n lines"), "failed", "two lines"),
        (SystemExit(), "interrupted", "SystemExit"),
    ],
)
def test_a_run_that_ends_early_says_why(fit, tmp_path, error, state, reason):
    with pytest.raises(type(error)):
        fit(Watcher(tmp_path, error))
    record = read_record(tmp_path)
    assert (record.state, record.reason, record.epoch) == (state, reason, 1)


def test_a_second_attempt_goes_on_with_the_record(fit, tmp_path):
    with pytest.raises(ValueError, match="x"):
        fit(Watcher(tmp_path, ValueError("x")))
    first = read_record(tmp_path)
    content = json.loads((tmp_path / "run.json").read_text())
    content["seconds"] = 1000.0
    (tmp_path / "run.json").write_text(json.dumps(content))
    watcher = Watcher(tmp_path)
    fit(watcher)
    assert (watcher.seen[0].state, watcher.seen[0].reason, watcher.seen[0].attempts) == ("running", None, 2)
    assert watcher.seen[0].started == first.started
    assert 1000 < read_record(tmp_path).seconds < 1300


def test_trying_one_batch_leaves_no_record(fit, tmp_path):
    watcher = Watcher(tmp_path)
    watcher.on_train_epoch_start = lambda *_: None
    fit(watcher, fast_dev_run=True)
    assert not (tmp_path / "run.json").exists()

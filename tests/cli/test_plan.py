"""The command plan: counts checked by hand and against Lightning, sums of times, and no files left behind."""

import json
import math
import os
import statistics
import tempfile
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from moelora_ad.cli.lightning_cli import measurement
from moelora_ad.cli.lightning_cli.planning import _batches, _hints, _length, _validations
from moelora_ad.training import DetectionModule
from moelora_ad.training.callbacks.measuring import Measured, Seconds, _by_step, total


@pytest.fixture
def planned(lightning, tmp_path, monkeypatch):
    """Runs the verb with a temporary folder of its own; returns exit code, output and errors."""
    with tempfile.TemporaryDirectory() as scratch:  # readers make sockets there, whose paths must be short
        monkeypatch.setattr(tempfile, "tempdir", scratch)
        monkeypatch.chdir(tmp_path)
        yield lambda *arguments: lightning("plan", *arguments)


def test_the_plan_of_a_run(experiment, write_config, planned, tmp_path):
    config = write_config(experiment)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = planned("--config", config, "--steps", "4", "--format", "json")
    assert (code, err) == (0, "")
    assert sorted(tmp_path.rglob("*")) == before  # no run folder was made
    assert not os.listdir(tempfile.gettempdir())

    plan = json.loads(out)
    assert plan["batches"] == {"train": 12 // 4, "dev": math.ceil(8 / 3), "test": {"in_domain": 3, "out_of_domain": 2}}
    assert plan["steps"] == {"per_epoch": 3, "total": 6}
    assert (plan["epochs"], plan["validations"]) == (2, 3)  # after each epoch, and of the best checkpoint
    measured, seconds = plan["measured"], plan["seconds"]
    assert len(measured["steps"]) == len(measured["waits"]) == 4
    assert len(measured["evaluation"]) == 2  # three batches, the first of which is warm-up
    assert all(0 < wait < step for wait, step in zip(measured["waits"], measured["steps"], strict=True))
    computing = statistics.fmean(measured["steps"]) - statistics.fmean(measured["waits"])
    assert plan["data_wait_share"] == pytest.approx(1 - computing / statistics.fmean(measured["steps"]))
    for key, of in (("expected", statistics.fmean), ("low", min), ("high", max)):
        step, batch = of(measured["steps"]), of(measured["evaluation"])
        assert seconds["train_epoch"][key] == pytest.approx(3 * step)
        assert seconds["validation"][key] == pytest.approx(3 * batch)
        assert seconds["test"]["out_of_domain"][key] == pytest.approx(2 * batch)
        assert seconds["run"][key] == pytest.approx(6 * step + (3 * 3 + 3 + 2) * batch)
    assert measured["peak_memory_bytes"]["cuda"] is None
    assert measured["peak_memory_bytes"]["host"] > 100 * 2**20  # torch alone takes more


def test_the_plan_as_a_person_reads_it(experiment, write_config, planned):
    experiment["trainer"]["accumulate_grad_batches"] = 2
    experiment["data"]["num_workers"] = 1
    code, out, err = planned("--config", write_config(experiment), "--steps", "2", "--test_after_fit", "false")
    assert (code, err) == (0, "")
    lines = dict(line.split(":", 1) for line in out.splitlines())
    assert lines["batch"].strip() == "8 trials, 1 s each: 4 x 2 batches accumulated"
    assert "median of 2 (" in lines["step"]
    assert lines["epoch"].endswith(": 2 steps")  # three batches, accumulated in twos
    assert lines["validation"].endswith(": 3 batches")
    assert lines["whole run"].endswith(": 2 epochs, 4 steps, 2 validations; less if it stops early")
    assert not any(name.startswith("test") for name in lines)
    assert lines["memory"].endswith("without its 1 reader")


def test_mistakes_are_one_line(experiment, write_config, planned, tmp_path):
    config = write_config(experiment)
    for arguments, code, told in (
        ((), 2, "--config"),
        (("--config", config, "--steps", "1"), 2, "--steps is 1"),
        (("--config", config, "--step", "3"), 2, "unknown option --step; did you mean --steps?"),
        (("--config", "adapters/lora_r8"), 2, "name one before it, such as --config quickstart"),
        (("--config", config, "--data.batchsize", "3"), 2, "did you mean --data.batch_size?"),
        (("--config", config, "--data.batch_size", "40"), 1, "lower data.batch_size"),
        (("--config", config, "--trainer.limit_val_batches", "0"), 1, "limit_val_batches"),
    ):
        found = planned(*arguments)
        assert found[:2] == (code, "")
        assert found[2].startswith("lightning plan: error: ")
        assert found[2].count("\n") == 1
        assert told in found[2]


def test_a_test_set_that_is_not_there_is_told_before_anything_is_measured(
    experiment, write_config, planned, monkeypatch
):
    experiment["data"]["test"]["ood"] = {
        "class_path": "moelora_ad.corpora.Manifest",
        "init_args": {"path": "nowhere.csv", "name": "ood"},
    }
    monkeypatch.setattr(measurement, "_measure", lambda command: pytest.fail("measured"))
    code, _, err = planned("--config", write_config(experiment))
    assert code == 1
    assert err.count("\n") == 1
    assert "nowhere.csv" in err


def test_what_does_not_fit_into_memory_is_told(experiment, write_config, planned, monkeypatch, tmp_path):
    def training_step(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(DetectionModule, "training_step", training_step)
    code, out, err = planned("--config", write_config(experiment))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "out of memory" in err
    assert not os.listdir(tempfile.gettempdir())


def measured(steps, waits, reading=None) -> Measured:
    return Measured(steps, waits, [1.0, 3.0], reading, 10, 5, {"host": None, "cuda": None})


def test_readers_that_cannot_keep_up_set_the_pace():
    seen = measured([1.0, 1.2, 0.8], [0.1, 0.1, 0.1], reading=8.0)
    assert seen.step(workers=10, accumulated=1) == Seconds(1.0, 0.8, 1.2)  # ten readers take 0.8 s for a batch
    assert seen.step(workers=4, accumulated=1) == Seconds(2.0, 2.0, 2.0)
    assert seen.step(workers=8, accumulated=2) == Seconds(2.0, 2.0, 2.0)
    assert seen.data_wait_share(workers=10, accumulated=1) == pytest.approx(0.1)
    assert seen.data_wait_share(workers=4, accumulated=1) == pytest.approx((2.0 - 0.9) / 2.0)


def test_batches_belong_to_steps_that_end_with_an_epoch():
    assert _by_step([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], epoch=3, accumulated=2) == [3.0, 4.0, 24.0, 32.0]


def test_total():
    assert total([Seconds(2.0, 1.0, 4.0), Seconds(3.0, 2.0, 5.0)]) == Seconds(5.0, 3.0, 9.0)
    assert total([]) == Seconds(0.0, 0.0, 0.0)


class Counts(Callback):
    def __init__(self) -> None:
        self.validations = 0

    def on_validation_end(self, trainer, pl_module):
        self.validations += 1


@pytest.mark.parametrize(
    "wanted",
    [
        {"max_epochs": 3},
        {"max_epochs": 3, "val_check_interval": 0.25},
        {"max_epochs": 3, "val_check_interval": 5},
        {"max_epochs": 5, "check_val_every_n_epoch": 2},
        {"max_epochs": 2, "accumulate_grad_batches": 3},
        {"max_epochs": 3, "max_steps": 32},
        {"max_epochs": -1, "max_steps": 32},
        {"max_steps": 32},
        {"max_steps": 40},
        {"max_steps": 42, "val_check_interval": 0.25},
        {"max_epochs": 7, "max_steps": 15, "accumulate_grad_batches": 3, "check_val_every_n_epoch": 2},
        {"max_epochs": 2, "val_check_interval": 12, "check_val_every_n_epoch": None},
    ],
)
def test_length_of_a_run_is_lightnings(wanted, tmp_path):
    """The expected numbers are those of a run of Lightning's own model, with its 64 batches of one cut to 16."""
    counts = Counts()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[counts],
        default_root_dir=tmp_path,
        limit_train_batches=16,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        **quiet,
        **wanted,
    )
    trainer.fit(BoringModel())
    per_epoch = -(-16 // trainer.accumulate_grad_batches)
    epochs, steps = _length(wanted, per_epoch)
    assert steps == trainer.global_step
    assert epochs == trainer.current_epoch
    assert _validations(wanted, steps, per_epoch, 16) == counts.validations


def test_a_run_without_end():
    assert _length({"max_epochs": -1, "max_steps": -1}, 10) == (None, None)
    assert _length({}, 10) == (1_000, 10_000)  # Lightning's default limit


def test_batches_of_a_test_set():
    data, two = SimpleNamespace(eval_batch_size=3), SimpleNamespace(world_size=2)
    assert _batches(10, two, data, {}) == 2  # four batches, two for each process
    assert _batches(10, two, data, {"limit_test_batches": 1}) == 1
    assert _batches(60, two, data, {"limit_test_batches": 0.5}) == 5


def test_hints():
    def given(seen, workers=0, samples=16_000):
        data = SimpleNamespace(num_workers=workers, eval_segment=SimpleNamespace(samples=samples))
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        return " ".join(_hints(SimpleNamespace(accumulate_grad_batches=1, strategy=strategy), data, seen))

    assert given(measured([1.0, 1.1], [0.05, 0.05])) == ""
    assert "waits for data 50 %" in given(measured([1.0, 1.0], [0.5, 0.5]))
    assert "num_workers" in given(measured([1.0, 1.0], [0.5, 0.5]))
    assert "num_workers" not in given(measured([1.0, 1.0], [0.5, 0.5]), workers=4_096)
    assert "very different" in given(measured([1.0, 2.5], [0.0, 0.0]))
    assert "longest" in given(measured([1.0, 1.0], [0.0, 0.0]), samples=None)

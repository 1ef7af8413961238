"""Training that cannot go on reports why, where and what to do, and no spoilt weights are kept."""

import math
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from moelora_ad.adapters import LoRA, adapter_modules
from moelora_ad.models import MeanPooling, WhisperBackbone
from moelora_ad.runs.checkpoints import checkpoint_of
from moelora_ad.runs.record import read_record
from moelora_ad.sweeps.run_folder import resumable
from moelora_ad.training import DetectionModule
from moelora_ad.training.callbacks.divergence import DivergenceError


class Spoil(Callback):
    """Spoils weights of the classifier or of an expert, or the waveform of one utterance, at a given step."""

    def __init__(self, step: int, what: str) -> None:
        self.step = step
        self.what = what

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            if self.what == "audio":
                batch.waveforms[1, 7] = math.inf
                trials = trainer.datamodule.train_trials.columns.utterance
                self.utterance = trials[batch.trials[1]]
            if self.what == "loss":
                pl_module.detector.classifier.output.bias.data.fill_(math.nan)
            if self.what == "explosion":
                pl_module.detector.classifier.output.weight.data.mul_(1e9)
            self.batch = [trainer.datamodule.train_trials.columns.utterance[t] for t in batch.trials.tolist()]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and self.what == "weights":
            _, expert = next(iter(adapter_modules(pl_module.detector.backbone.encoder)))
            next(expert.parameters()).data[0] = math.nan


class OutOfMemory(Callback):
    """Raises the errors of a device or a system without memory."""

    def __init__(self, error: str, stage: str = "train", step: int = 1) -> None:
        kinds = {"cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "python": MemoryError()}
        cpu = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
        cublas = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        kinds |= {"cpu": cpu, "worker": killed, "cublas": cublas, "real": None}
        self.error = kinds[error]
        self.stage = stage
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, *_):
        if self.stage == "train" and trainer.global_step == self.step:
            if self.error is None:
                torch.empty(2**50, device=pl_module.device)
            raise self.error

    def on_before_optimizer_step(self, *_):
        if self.stage == "first step":
            raise self.error

    def on_validation_batch_start(self, trainer, *_):
        if self.stage == "dev" and not trainer.sanity_checking:
            raise self.error


@pytest.fixture
def fit(lightning, experiment, write_config, tmp_path, monkeypatch):
    """Runs fit with one more callback; returns the exit code, the error lines and the run's folder."""

    def run(callback: Callback, *arguments: str) -> tuple[int, list[str], Path]:
        # The callback is given as an object, not through the YAML.
        monkeypatch.setattr(DetectionModule, "configure_callbacks", lambda self: [callback])
        code, _, err = lightning("fit", "--config", write_config(experiment), *arguments)
        told = [line for line in err.splitlines() if "error:" in line or line.startswith("saved")]
        assert "Traceback" not in err
        return code, told, tmp_path / "runs" / "tiny" / "version_0"

    return run


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("loss", "step 4: the loss is nan in the batch of "),
        ("audio", "step 4: the loss is nan, because the audio of "),
        ("explosion", r"step 4: the loss is \S+, beyond 1000, in the batch of "),
        ("weights", r"step \d: the weights detector\.\S+ are no longer finite, and were not saved"),
    ],
)
def test_training_that_diverges_stops_and_keeps_the_last_good_checkpoint(fit, what, words):
    """The second epoch of three steps diverges, and the checkpoint of the first epoch stays as it is."""
    spoil = Spoil(6 if what == "weights" else 4, what)
    code, told, folder = fit(spoil)
    assert code == 1
    (line,) = told
    assert re.search(words, line)
    last = folder / "checkpoints" / "last.ckpt"
    assert f"the last good checkpoint is {os.path.relpath(last)}" in line
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] == 3
    assert all(bool(torch.isfinite(t).all()) for t in saved["state_dict"].values() if t.is_floating_point())
    if what == "audio":
        assert f"the audio of {spoil.utterance} is not finite" in line
    elif what != "weights":
        assert ", ".join(spoil.batch) in line
        assert "lower the learning rate" in line
    record = read_record(folder)
    assert record.state == "failed"
    # Spoilt weights are noticed by their scores, and the record has that reason.
    assert record.reason in line or what == "weights"


def test_the_last_checkpoint_is_of_every_epoch(lightning, experiment, write_config, tmp_path):
    """last.ckpt is saved after every epoch, although the monitored figure never gets better after the first."""
    experiment["checkpoint"] = {"monitor": "routing/constant"}
    given = {**experiment, "trainer": {**experiment["trainer"], "max_epochs": 3}, "test_after_fit": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DetectionModule, "on_validation_start", lambda self: self.log("routing/constant", 0.5))
        code, _, err = lightning("fit", "--config", write_config(given))
    assert code == 0, err
    folder = tmp_path / "runs" / "tiny" / "version_0" / "checkpoints"
    last = torch.load(folder / "last.ckpt", weights_only=True)
    (best,) = (path for path in folder.iterdir() if path.name != "last.ckpt")
    assert (torch.load(best, weights_only=True)["global_step"], last["global_step"]) == (3, 9)


def test_a_run_that_had_stopped_early_is_not_trained_on(lightning, experiment, write_config, tmp_path):
    given = {**experiment, "trainer": {**experiment["trainer"], "max_epochs": 5}, "test_after_fit": False}
    given["early_stopping"] = {"patience": 1, "min_delta": 2.0}  # no EER can improve by that much
    run = tmp_path / "runs" / "tiny" / "version_0"
    resumed = ("--ckpt_path", run / "checkpoints" / "last.ckpt")
    longer = (*resumed, "--early_stopping.patience", 2)
    for attempt, (arguments, step) in enumerate([((), 6), (resumed, 6), (longer, 9)], 1):
        code, _, err = lightning("fit", "--config", write_config(given), *arguments)
        assert code == 0, err
        record = read_record(run)
        assert (record.attempts, record.step) == (attempt, step)


def test_long_batches_are_named_in_part(data, trainer, small_whisper, tmp_path):
    module = DetectionModule(WhisperBackbone(small_whisper), LoRA(2), MeanPooling)
    with pytest.raises(DivergenceError, match=r"step 0: .* and 2 more; no checkpoint has been saved yet;"):
        trainer(tmp_path, callbacks=[Spoil(0, "loss")]).fit(module, datamodule=data(batch_size=10))


@pytest.mark.parametrize(
    ("error", "stage", "words"),
    [
        ("cuda", "train", "out of memory in step 1 with a data.batch_size of 4 segments of 16,000 samples: lower"),
        ("cpu", "train", "model.gradient_checkpointing true, or set trainer.precision bf16-mixed"),
        ("python", "train", "trainer.accumulate_grad_batches keeps 4 for each step"),
        ("cublas", "train", "out of memory in step 1 with a data.batch_size of 4"),
        ("cuda", "dev", "out of memory in evaluation with data.eval_batch_size 3: lower it"),
        ("worker", "train", "a process that reads audio was killed"),
    ],
)
def test_a_lack_of_memory_says_what_to_change(fit, error, stage, words):
    code, told, _ = fit(OutOfMemory(error, stage))
    assert code == 1
    assert words in told[-1]


def test_a_lack_of_memory_of_a_device_says_what_to_change(fit, device):
    """The error comes from the device's own allocator."""
    code, told, folder = fit(OutOfMemory("real"), "--trainer.accelerator", device.type, "--trainer.devices", "1")
    assert code == 1
    (line,) = [line for line in told if "error:" in line]
    assert "out of memory in step 1 with a data.batch_size of 4 segments of 16,000 samples: lower data.batch" in line
    assert "set model.gradient_checkpointing true, or set trainer.precision bf16-mixed or bf16-true" in line
    assert read_record(folder).state == "failed"


def test_other_errors_are_not_taken_for_a_lack_of_memory(fit):
    callback = OutOfMemory("cpu")
    callback.error = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        fit(callback)


def test_a_checkpoint_of_an_error_is_called_interrupted_and_goes_on(fit, lightning, experiment, write_config):
    """The error comes in the second epoch of three steps, when the last known EER is that of the first epoch."""
    callback = OutOfMemory("python", step=4)
    code, told, folder = fit(callback, "--test_after_fit", "false")
    assert code == 1
    checkpoints = folder / "checkpoints"
    assert f"{os.path.relpath(checkpoints)}/last-interrupted.ckpt is the last checkpoint" in told[-1]
    (best,) = checkpoints.glob("epoch00-dev_eer*.ckpt")
    saved = {path.name: torch.load(path, weights_only=True)["global_step"] for path in checkpoints.iterdir()}
    assert saved == {best.name: 3, "last.ckpt": 3, "last-interrupted.ckpt": 4}
    interrupted = checkpoints / "last-interrupted.ckpt"
    assert checkpoint_of(folder, "last", "fit") == str(interrupted)
    assert resumable(folder) == interrupted
    callback.stage = "never"
    arguments = ("--test_after_fit", "false", "--ckpt_path", "last", "--trainer.logger.init_args.version", "0")
    code, _, err = lightning("fit", "--config", write_config(experiment), *arguments)
    assert code == 0, err
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 6
    assert checkpoint_of(folder, "last", "fit") == str(checkpoints / "last.ckpt")
    assert resumable(folder) == checkpoints / "last.ckpt"


@pytest.mark.parametrize("stage", ["checkpoint", "first batch", "first step"])
def test_a_start_that_fails_leaves_no_folder(fit, tmp_path, stage):
    """The folder stays only if it was there before."""
    arguments = ()
    if stage == "checkpoint":
        path = tmp_path / "other.ckpt"
        torch.save({"state_dict": {"x": torch.zeros(1)}, "pytorch-lightning_version": "2.0.0"}, path)
        arguments = ("--ckpt_path", path)
    callback = OutOfMemory("python", stage={"first batch": "train"}.get(stage, stage), step=0)
    for there in (False, True):
        folder = tmp_path / "runs" / "tiny" / "version_0"
        if there:
            (folder / "mine").mkdir(parents=True)
            arguments += ("--trainer.logger.init_args.version", "0")
        code, _, _ = fit(callback, *arguments)
        assert code == 1
        assert folder.exists() == there
    assert (folder / "mine").is_dir()


TERMINATED = """
import os, signal
from lightning.pytorch import Callback

class Terminated(Callback):
    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.forks
def test_sigterm_saves_and_the_run_goes_on_from_there(
    experiment, write_config, lightning, forked, tmp_path, monkeypatch
):
    """SIGTERM comes in the second of three epochs; the continued run ends with an uninterrupted run's weights."""
    (tmp_path / "terminated.py").write_text(TERMINATED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "terminated", raising=False)
    experiment["trainer"]["max_epochs"] = 3
    experiment["trainer"]["num_sanity_val_steps"] = 0
    config = write_config(experiment)

    def arguments(name: str, *more: str) -> list[str]:
        options = ["--trainer.logger.init_args.name", name, *more]
        return ["fit", "--config", str(config), "--test_after_fit", "false", *options]

    def state(name: str) -> dict:
        path = tmp_path / "runs" / name / "version_0" / "checkpoints" / "last.ckpt"
        return torch.load(path, weights_only=True)

    code, _, errors = forked(*arguments("cut", "--trainer.callbacks", "terminated.Terminated"))
    assert code == 143, errors
    assert "Traceback" not in errors
    record = read_record(tmp_path / "runs" / "cut" / "version_0")
    assert (record.state, record.epoch) == ("interrupted", 1)
    saved = re.search(r"saved (\S+); give it as --ckpt_path to continue", errors)
    assert saved is not None, errors
    for name, more in (("whole", ()), ("rest", ("--ckpt_path", saved[1]))):
        code, _, errors = lightning(*arguments(name, *more))
        assert code == 0, errors
    assert state("rest")["global_step"] == state("whole")["global_step"]
    for name, tensor in state("whole")["state_dict"].items():
        assert torch.equal(state("rest")["state_dict"][name], tensor), name

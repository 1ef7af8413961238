"""A run that was cut off anywhere continues with exactly the batches and the weights of an uninterrupted one."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from moelora_ad.adapters import LoRA, MoELoRA
from moelora_ad.audio import RawBoost
from moelora_ad.models import AASIST, MeanPooling, WhisperBackbone
from moelora_ad.training import DetectionModule, WarmupCosine
from moelora_ad.training.callbacks.checkpoints import WholeCheckpoint
from moelora_ad.training.callbacks.early_stopping import LastingEarlyStopping

STEPS = 4  # batches in an epoch
KILLER = """
import os, signal
from lightning.pytorch import Callback

class KillAfter(Callback):
    def __init__(self, batches: int) -> None:
        self.left = batches

    def on_train_batch_end(self, *_) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
"""


class Recorder(Callback):
    """Keeps the batches that were trained on and the epochs that were validated; may cut the run off."""

    def __init__(self, cut: str | None = None, time: int = 1) -> None:
        self.trained: list[tuple[int, list[int], str]] = []
        self.validated: list[tuple[int, float]] = []
        self.cut = cut
        self.times_left = time

    def on_train_batch_start(self, trainer, module, batch, number):
        waveforms = hashlib.sha256(batch.waveforms.cpu().numpy().tobytes()).hexdigest()
        self.trained.append((trainer.current_epoch, batch.trials.tolist(), waveforms))

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self._here("step")

    def on_validation_batch_end(self, *_):
        self._here("validation")

    def on_validation_end(self, trainer, module):
        self._here("validation's end")
        self.validated.append((trainer.current_epoch, float(trainer.callback_metrics["dev/eer"])))

    def on_train_batch_end(self, trainer, module, outputs, batch, number):
        if self.cut == "sigterm" and len(self.trained) == self.times_left:
            trainer._signal_connector.received_sigterm = True  # as Lightning's handler does

    def _here(self, place: str) -> None:
        if place == self.cut:
            self.times_left -= 1
            if self.times_left == 0:
                raise ConnectionAbortedError


@pytest.fixture
def fit(small_whisper, data, trainer, tmp_path):
    """Trains three epochs of four batches with RawBoost and random crops; returns the final weights."""

    def run(
        *callbacks: Callback, checkpoint: Path | None = None, workers: int = 0, noisy: bool = False, **arguments
    ) -> dict:
        seed_everything(4)
        parts = (MoELoRA(num_experts=3, rank=2, top_k=2), AASIST) if noisy else (LoRA(2), MeanPooling)
        model = DetectionModule(WhisperBackbone(small_whisper), *parts, schedule=WarmupCosine(0.25))
        source = data(batch_size=3, eval_batch_size=3, num_workers=workers, train_augmentation=RawBoost(algorithm=5))
        limits = {"max_epochs": 3} | arguments
        trainer(tmp_path, callbacks=list(callbacks), **limits).fit(
            model, datamodule=source, ckpt_path=checkpoint, weights_only=True
        )
        return model.state_dict()

    return run


def check_resumed(fit, checkpoint: Path, done: int, whole: Recorder, weights: dict, **arguments) -> Recorder:
    rest = Recorder()
    resumed = fit(rest, checkpoint=checkpoint, **arguments)
    assert rest.trained == whole.trained[done:]
    for name, tensor in weights.items():
        assert torch.equal(resumed[name], tensor), name
    return rest


@pytest.fixture(autouse=True)
def _determinism_ends():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_epochs": None, "max_steps": 3 * STEPS}])
def test_from_a_checkpoint_of_any_step_and_of_any_epochs_end(fit, tmp_path, limit):
    folder, whole = tmp_path / "checkpoints", Recorder()
    every = {"dirpath": folder, "monitor": "dev/eer", "save_top_k": -1, "auto_insert_metric_name": False}
    steps = ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    validated = ModelCheckpoint(**every, filename="validated-step={step}", save_on_train_epoch_end=False)
    ended = ModelCheckpoint(**every, filename="ended-step={step}", save_on_train_epoch_end=True, mode="max")
    weights = fit(whole, steps, validated, ended, **limit)
    assert len(whole.trained) == 3 * STEPS
    chosen = [f"step={step}" for step in (1, 3, 4, 6)] + ["validated-step=4", "ended-step=4"]
    for name in chosen:
        done = int(name.rpartition("=")[2])
        rest = check_resumed(fit, folder / f"{name}.ckpt", done, whole, weights, **limit)
        again = whole.validated if name.startswith("step") and done <= STEPS else whole.validated[1:]
        assert rest.validated == again, name


@pytest.mark.parametrize(
    ("cut", "time", "done", "validations"), [("step", 6, 5, 2), ("step", 4, 3, 3), ("validation", 2, 4, 3)]
)
def test_from_what_was_saved_when_the_run_was_cut_off(fit, tmp_path, cut, time, done, validations):
    """The cut is within a step, within the last step of an epoch, or within validation."""
    whole, folder = Recorder(), tmp_path / "cut"
    weights = fit(whole)
    saved = ModelCheckpoint(dirpath=folder, save_last=True, save_on_exception=True, every_n_epochs=100)
    with pytest.raises(ConnectionAbortedError):
        fit(Recorder(cut, time), saved)
    rest = check_resumed(fit, folder / "last.ckpt", done, whole, weights)
    assert rest.validated == whole.validated[3 - validations :]


@pytest.mark.parametrize(
    ("cut", "time", "done"),
    [("validation", 1, 2), ("validation", 5, 4), ("validation's end", 1, 2), ("validation's end", 2, 4)]
    + [("sigterm", steps, steps) for steps in (1, 2, 4)],
)
def test_a_validation_that_was_cut_off_is_made_again_as_if_it_had_not_begun(fit, tmp_path, cut, time, done):
    """Each epoch has two validations of three batches; the cut may come after early stopping has counted, too."""

    def watching(folder: str) -> list[Callback]:
        stopping = LastingEarlyStopping(monitor="dev/loss", patience=100, min_delta=100.0)  # counts all but the first
        saving = WholeCheckpoint(
            dirpath=tmp_path / folder, filename="{step}", monitor="dev/eer", save_last=True, save_on_exception=True
        )
        return [stopping, saving]

    whole = Recorder()
    stopping, _ = watching("whole")
    weights = fit(stopping, whole, val_check_interval=2)
    with pytest.raises((ConnectionAbortedError, SystemExit)):
        fit(*watching("cut"), Recorder(cut, time), val_check_interval=2)
    rest, again = Recorder(), watching("cut")
    checkpoint = tmp_path / "cut" / "last-interrupted.ckpt"
    resumed = fit(*again, rest, checkpoint=checkpoint, val_check_interval=2)
    assert rest.trained == whole.trained[done:]
    assert rest.validated == whole.validated[(done - 1) // 2 :]
    assert again[0].wait_count == stopping.wait_count == len(whole.validated) - 1
    assert all(torch.equal(resumed[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("batches", [2, 3, 5, 7])
def test_sigterm_between_accumulated_batches(fit, tmp_path, batches):
    """SIGTERM comes at the end of a step, or after the first of a step's two batches, which is done again."""
    whole, saved = Recorder(), WholeCheckpoint(dirpath=tmp_path, save_on_exception=True, every_n_epochs=100)
    weights = fit(whole, accumulate_grad_batches=2)
    with pytest.raises(SystemExit):
        fit(Recorder("sigterm", batches), saved, accumulate_grad_batches=2)
    check_resumed(fit, tmp_path / "last-interrupted.ckpt", batches // 2 * 2, whole, weights, accumulate_grad_batches=2)


def test_a_run_that_was_moved_keeps_its_best_checkpoint(fit, tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    first, second = (
        WholeCheckpoint(dirpath=folder, filename="{epoch}", monitor="train/loss", mode="max", save_last=True)
        for folder in (before, after)
    )
    fit(first, max_epochs=1)
    before.rename(after)
    fit(second, checkpoint=after / "last.ckpt", max_epochs=2)
    assert second.best_model_path == str(after / "epoch=0.ckpt")
    assert sorted(os.listdir(after)) == ["epoch=0.ckpt", "last.ckpt"]


def test_with_workers_that_read_ahead(fit, tmp_path):
    whole = Recorder()
    steps = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    weights = fit(whole, steps, workers=2)
    alone = Recorder()
    fit(alone)
    assert alone.trained == whole.trained
    for step in (2, 4):
        check_resumed(fit, tmp_path / f"step={step}.ckpt", step, whole, weights, workers=2)


def test_with_gate_noise_dropout_half_precision_and_accumulated_batches(fit, tmp_path, device):
    """Resumes from the end of an epoch's first step, of two batches, and from within the second epoch."""
    whole = Recorder()
    given = {"noisy": True, "workers": 1, "precision": "bf16-mixed", "accumulate_grad_batches": 2, "max_epochs": 2}
    given |= {"accelerator": device.type, "deterministic": True}
    steps = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    weights = fit(whole, steps, **given)
    assert len(whole.trained) == 2 * STEPS
    for step in (1, 3):
        check_resumed(fit, tmp_path / f"step={step}.ckpt", 2 * step, whole, weights, **given)


@pytest.mark.gpu
def test_kill_9_on_a_gpu_and_the_same_command_again(experiment, tmp_path, gpu):
    """A run killed after the first epoch's checkpoint ends with exactly the weights of an uninterrupted run."""
    (tmp_path / "killer.py").write_text(KILLER)
    experiment["trainer"] |= {"accelerator": gpu.type, "devices": 1, "deterministic": True}
    experiment["model"]["classifier"] = "moelora_ad.models.AASIST"
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(experiment))
    places = (str(tmp_path), str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}

    def run(name: str, *more: str) -> tuple[int, str]:
        logger = ("--trainer.logger.init_args.version", name)
        command = [sys.executable, "-m", "moelora_ad", "fit", "--config", str(config), "--test_after_fit", "false"]
        done = subprocess.run([*command, *logger, *more], capture_output=True, text=True, env=environment, timeout=280)
        return done.returncode, done.stderr

    code, err = run("whole")
    assert code == 0, err
    killed = ("--trainer.callbacks", "killer.KillAfter", "--trainer.callbacks.batches", "5")
    assert run("killed", *killed)[0] == -signal.SIGKILL
    code, err = run("killed", "--ckpt_path", "last")
    assert code == 0, err
    folder = tmp_path / "runs" / "tiny"
    whole, resumed = (
        torch.load(folder / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "killed")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())

"""Results of a GPU are read once they are there: the loss a step later, scores of a test some batches later."""

import pytest
import torch
from lightning.pytorch import Callback

from moelora_ad.adapters import MoELoRA
from moelora_ad.corpora import Trial, TrialList
from moelora_ad.models import AASIST, MeanPooling, Wav2Vec2Backbone, WhisperBackbone
from moelora_ad.models.devices import HostCopy
from moelora_ad.runs.scores import KeptScores
from moelora_ad.torch_internals import FakeTensorMode
from moelora_ad.training import Batch, DetectionModule
from moelora_ad.training.callbacks.divergence import DivergenceError
from moelora_ad.training.optimizers import fused
from moelora_ad.training.scoring import SetScores


class Late(HostCopy):
    """A copy as from a GPU: it is there when somebody waits for it, and not before ``arrived``."""

    arrived = False
    is_immediate = False

    @property
    def is_there(self) -> bool:
        return Late.arrived


@pytest.fixture
def late(monkeypatch):
    monkeypatch.setattr("moelora_ad.training.callbacks.divergence.HostCopy", Late)
    monkeypatch.setattr("moelora_ad.training.scoring.HostCopy", Late)
    monkeypatch.setattr(Late, "arrived", False)


class Spoil(Callback):
    """Makes the loss of a step NaN, and keeps the steps that begin and the save that is tried."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.begun: list[int] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.begun.append(trainer.global_step)
        if trainer.global_step == self.step:
            pl_module.detector.classifier.output.bias.data.fill_(torch.nan)
            self.named = [trainer.datamodule.train_trials.columns.utterance[t] for t in batch.trials.tolist()]


def fit(source, data, trainer, folder, step: int, **arguments) -> tuple[Spoil, str]:
    spoil = Spoil(step)
    model = DetectionModule(WhisperBackbone(source), MoELoRA(2, 2), MeanPooling)
    with pytest.raises(DivergenceError) as stopped:
        trainer(folder, callbacks=[spoil], **arguments).fit(model, datamodule=data())
    return spoil, str(stopped.value)


def test_a_loss_is_read_one_step_later_and_told_as_that_of_its_own_step(small_whisper, data, trainer, tmp_path, late):
    spoil, told = fit(small_whisper, data, trainer, tmp_path, step=1, limit_val_batches=0)
    assert spoil.begun == [0, 1, 2]
    assert told.startswith(f"step 1: the loss is nan in the batch of {', '.join(spoil.named)}; ")


def test_the_last_loss_of_an_epoch_is_read_before_it_is_evaluated(small_whisper, data, trainer, tmp_path, late):
    spoil, told = fit(small_whisper, data, trainer, tmp_path, step=2)
    assert spoil.begun == [0, 1, 2]
    assert "step 2: the loss is nan" in told


def test_nothing_is_saved_after_a_loss_that_has_not_been_read(small_whisper, data, trainer, tmp_path, late):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.save_checkpoint(tmp_path / f"{batch_idx}.ckpt")

    spoil = Spoil(1)
    model = DetectionModule(WhisperBackbone(small_whisper), MoELoRA(2, 2), MeanPooling)
    with pytest.raises(DivergenceError, match="step 1: the loss is nan"):
        trainer(tmp_path, callbacks=[spoil, Save()]).fit(model, datamodule=data())
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["0.ckpt"]


def test_scores_are_kept_in_order_as_they_come(tmp_path, late):
    trials = TrialList([Trial(f"u{number}", "") for number in range(6)])
    kept = KeptScores(tmp_path, "x", trials, {"model": "a"})
    part = SetScores("x", trials, complete=True, kept=kept)

    def add(first: int) -> None:
        logits = torch.stack([torch.zeros(2), torch.arange(first, first + 2.0)], dim=1)
        part.update(Batch(torch.zeros(2, 1), None, torch.tensor([0, 1]), torch.arange(first, first + 2), []), logits)

    def written() -> int:
        return sum(len(path.read_text().splitlines()) - 1 for path in tmp_path.glob(".x.parts/*.csv"))

    add(0)
    add(2)
    assert written() == 0
    Late.arrived = True
    add(4)
    assert written() == 6
    Late.arrived = False
    assert part.result().table.scores.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_batch_goes_to_the_device_without_its_trials():
    batch = Batch(torch.zeros(2, 4), torch.tensor([4, 3]), torch.tensor([0, 1]), torch.tensor([5, 9]), [])
    there = batch.to("meta")
    assert {value.device.type for value in (there.waveforms, there.lengths, there.labels, there.read)} == {"meta"}
    assert there.trials.tolist() == [5, 9]
    assert batch.waveforms.device.type == "cpu"


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_an_optimizer_on_a_gpu_is_fused(optimizer):
    with FakeTensorMode():
        weights = [torch.nn.Parameter(torch.empty(3, device=device)) for device in ("cuda", "cuda", "cpu")]
    groups = [{"params": [weights[0]], "name": "gates", "lr": 0.5}, {"params": [weights[1]], "name": "experts"}]
    given = optimizer(groups, lr=0.25, weight_decay=0.125)
    made = fused(given, scales_gradients=False)
    assert type(made) is optimizer
    assert [(g["name"], g["lr"], g["weight_decay"], g["fused"]) for g in made.param_groups] == [
        ("gates", 0.5, 0.125, True),
        ("experts", 0.25, 0.125, True),
    ]
    assert made.defaults | {"fused": None} == given.defaults
    for stays in (optimizer(groups, lr=1.0, foreach=True), optimizer(groups, lr=1.0, fused=False)):
        assert fused(stays, scales_gradients=False) is stays
    on_cpu = optimizer([weights[2]], lr=1.0)
    assert fused(on_cpu, scales_gradients=False) is on_cpu
    assert fused(given, scales_gradients=True) is given


def test_an_optimizer_of_another_kind_stays():
    with FakeTensorMode():
        weight = torch.nn.Parameter(torch.empty(3, device="cuda"))
    for given in (torch.optim.RMSprop([weight]), type("Own", (torch.optim.SGD,), {})([weight], lr=1.0)):
        assert fused(given, scales_gradients=False) is given


class NoWaiting(Callback):
    """Makes every wait for the GPU an error, from the third step to the fifth, in training and in a test."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def _mode(self, mode: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_sync_debug_mode(mode)

    def _batch(self, number: int) -> None:
        self._mode("error" if 2 <= number < 5 else "default")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._batch(batch_idx)

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self._batch(batch_idx)

    def on_exception(self, *_):
        self._mode("default")

    on_train_end = on_test_end = on_exception


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_steady_steps_of_a_fit_and_a_test_wait_for_nothing(gpu, small_wav2vec2, data, trainer, tmp_path, precision):
    steady = {"gradient_clip_val": 1.0, "log_every_n_steps": 1_000, "limit_val_batches": 0}
    run = trainer(tmp_path, accelerator=gpu.type, precision=precision, callbacks=[NoWaiting(gpu)], **steady)
    model = DetectionModule(Wav2Vec2Backbone(small_wav2vec2), MoELoRA(2, 2), AASIST)
    source = data(batch_size=2, eval_batch_size=1, num_workers=2)
    run.fit(model, datamodule=source)
    run.test(model, datamodule=source, verbose=False)
    assert model.evaluated["in_domain"].num_scored == 8

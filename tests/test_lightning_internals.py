"""The private names of Lightning that the package uses: what they must do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from moelora_ad.lightning_internals import (
    OpenModelCheckpoint,
    accumulates,
    checkpoint_content,
    last_path,
    logged_step,
    saves_shards,
    starts_functions,
    validation_is_due,
)

BATCHES = 4  # batches in an epoch


class Line(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.layer(batch).square().mean()

    def validation_step(self, batch: torch.Tensor) -> None:
        self.log("dev", self.layer(batch).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Figures(Logger):
    """Keeps the steps under which figures are logged."""

    name, version = "figures", "0"

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[str, list[int]] = {}

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        for name in metrics:
            self.steps.setdefault(name, []).append(step)


def fit(folder: Path, *callbacks: Callback, validates: bool = False, **arguments: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, "logger": False}
    settings = {"max_epochs": 4, "limit_val_batches": 1.0 if validates else 0} | quiet | arguments
    trainer = Trainer(accelerator="cpu", default_root_dir=folder, callbacks=[*callbacks], **settings)
    batches = DataLoader(torch.ones(BATCHES, 1))
    trainer.fit(Line(), batches, batches)
    return trainer


class Asked(OpenModelCheckpoint):
    """Notes the epochs at whose end, or after whose validation, a checkpoint is due, and checks that it is saved."""

    def __init__(self, folder: Path, **arguments: Any) -> None:
        super().__init__(folder, save_top_k=-1, **arguments)
        self.at_end: list[int] = []
        self.after_validation: list[int] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note(self.at_end, trainer, lambda: super(Asked, self).on_train_epoch_end(trainer, pl_module), True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note(
            self.after_validation, trainer, lambda: super(Asked, self).on_validation_end(trainer, pl_module), False
        )

    def _note(self, epochs: list[int], trainer: Trainer, save: Any, at_epoch_end: bool) -> None:
        before, is_due = set(Path(str(self.dirpath)).glob("*")), self.is_due(trainer, at_epoch_end)
        was_saved = self.is_saved(trainer)
        save()
        new = set(Path(str(self.dirpath)).glob("*")) - before
        assert bool(new) == is_due  # Lightning saves when it was expected to
        if is_due:
            epochs.append(trainer.current_epoch)
            assert (was_saved, self.is_saved(trainer)) == (False, True)
            assert [last_path(self)] == [str(path) for path in new]


@pytest.mark.parametrize(
    ("when", "trainer", "at_end", "after_validation"),
    [
        ({}, {}, [0, 1, 2, 3], []),
        ({"every_n_epochs": 2}, {}, [1, 3], []),
        ({"every_n_epochs": 0, "every_n_train_steps": BATCHES}, {}, [], []),  # saved within the epoch
        ({}, {"validates": True}, [0, 1, 2, 3], []),
        ({}, {"validates": True, "check_val_every_n_epoch": 2}, [], [1, 3]),
        ({"save_on_train_epoch_end": False}, {"validates": True}, [], [0, 1, 2, 3]),
        ({}, {"fast_dev_run": True}, [], []),
    ],
)
def test_when_a_checkpoint_is_due(tmp_path, when, trainer, at_end, after_validation):
    asked = Asked(tmp_path / "kept", **when)
    fit(tmp_path, asked, **trainer)
    assert (asked.at_end, asked.after_validation) == (at_end, after_validation)


def test_the_last_one_and_one_that_was_saved_elsewhere(tmp_path):
    class Saving(OpenModelCheckpoint):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            step = trainer.global_step
            if step == 2:
                assert self.saves_after_exception(trainer)
                self.save_as_last(trainer)
                assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
                assert last_path(self) == str(tmp_path / "last.ckpt")
                assert self.is_saved(trainer)
            if step == BATCHES:
                assert not self.is_saved(trainer)
                self.note_saved(trainer, "elsewhere.ckpt")
                assert not self.saves_after_exception(trainer)

    saving = Saving(tmp_path, save_last=True, save_on_exception=True)
    assert last_path(saving) == ""
    fit(tmp_path, saving, max_epochs=1)
    assert last_path(saving) == "elsewhere.ckpt"
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["last.ckpt"]  # the end saves nothing more


@pytest.mark.parametrize("weights_only", [False, True])
def test_the_content_is_that_of_a_saved_checkpoint(tmp_path, weights_only):
    trainer = fit(tmp_path, max_epochs=1, enable_checkpointing=False)
    trainer.save_checkpoint(tmp_path / "saved.ckpt", weights_only)
    saved, content = torch.load(tmp_path / "saved.ckpt", weights_only=True), checkpoint_content(trainer, weights_only)
    assert saved.keys() == content.keys()
    assert ("optimizer_states" in saved) != weights_only
    assert torch.equal(saved["state_dict"]["layer.weight"], content["state_dict"]["layer.weight"])
    assert saved["global_step"] == content["global_step"] == BATCHES


@pytest.mark.parametrize("interval", [1.0, 0.5])
def test_the_step_of_what_is_logged_in_a_validation(tmp_path, interval):
    class Step(Callback):
        steps: tuple[int, ...] = ()

        def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.steps += (logged_step(trainer),)

    step, logger = Step(), Figures()
    fit(tmp_path, step, logger=logger, validates=True, val_check_interval=interval, max_epochs=2)
    between = int(BATCHES * interval)
    assert list(step.steps) == logger.steps["dev"] == [n - 1 for n in range(between, 2 * BATCHES + 1, between)]


def test_what_follows_on_a_batch(tmp_path):
    class Seen(Callback):
        batches: tuple[tuple[bool, bool], ...] = ()

        def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
            self.batches += ((validation_is_due(trainer), accumulates(trainer)),)

    seen = Seen()
    fit(tmp_path, seen, validates=True, max_epochs=1, accumulate_grad_batches=2)
    assert [due for due, _ in seen.batches] == [False] * (BATCHES - 1) + [True]
    assert [waits for _, waits in seen.batches] == [
        number % 2 == 0 and number < BATCHES - 1 for number in range(BATCHES)
    ]


@pytest.mark.parametrize(("given", "sharded"), [({}, False), ({"state_dict_type": "sharded"}, True)])
def test_whether_each_process_saves_its_part(given, sharded):
    assert saves_shards(FSDPStrategy(**given)) == sharded


@pytest.mark.parametrize(
    ("strategy", "starts"),
    [("ddp", False), ("auto", False), ("ddp_spawn", True), ("ddp_fork", True), ("ddp_notebook", True)],
)
def test_whether_processes_are_started_for_each_function(strategy, starts):
    devices = 1 if strategy == "auto" else 2
    made = Trainer(accelerator="cpu", devices=devices, strategy=strategy, logger=False, enable_checkpointing=False)
    assert starts_functions(made.strategy) == starts

"""The callback that saves the checkpoints of a run."""

import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from moelora_ad.data.resuming import CUT_OFF, VALIDATION
from moelora_ad.data.trainer_state import is_fast_dev_run, shards_the_model
from moelora_ad.lightning_internals import OpenModelCheckpoint, callbacks_state, checkpoint_content
from moelora_ad.training.callbacks.divergence import DivergenceError
from moelora_ad.training.checkpoint_writing import UnwrittenCheckpointError
from moelora_ad.training.interruptions.lost_processes import is_of_lost_process, outlive_other_processes
from moelora_ad.training.interruptions.signals import StoppedAtOnce

INTERRUPTED = "last-interrupted.ckpt"  # Lightning and sweeps look for last*.ckpt


class WholeCheckpoint(OpenModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, with five differences.

    With ``save_last`` true, the last checkpoint is saved after every epoch, not only after those among the best: an
    interrupted run loses no more than an epoch. With ``save_on_exception`` true, an interruption or an error saves
    ``last-interrupted.ckpt``: it has no figure to be named after, and ``last.ckpt`` stays that of a whole epoch;
    callbacks are saved as they were before an interrupted validation. If training diverges, nothing is saved, and the
    last checkpoint stays: the present weights and batch statistics are useless. A checkpoint that a killed run saved at
    the same step under the same name is replaced, where Lightning would choose another name. A run that was moved keeps
    its best checkpoints.
    """

    _has_begun = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take a run that was moved, or is continued from another current folder, for the same run: Lightning would
        forget the best checkpoint of before."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        state, here = checkpoint["callbacks"].get(self.state_key), self.dirpath
        if state is None or here is None or trainer.ckpt_path is None:
            return
        if Path(trainer.ckpt_path).parent.resolve() != Path(here).resolve():  # another run branches off
            return

        def moved(path: str) -> str:
            return os.path.join(here, os.path.basename(path)) if os.path.dirname(path) == state["dirpath"] else path

        paths = {name: moved(state[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        models = {moved(path): score for path, score in state["best_k_models"].items()}
        checkpoint["callbacks"][self.state_key] = state | paths | {"best_k_models": models, "dirpath": here}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._has_begun = True  # the checkpoint to resume from, if any, has been loaded

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self._before_validation = deepcopy(callbacks_state(trainer))

    def file_exists(self, filepath: str | Path, trainer: Trainer) -> bool:
        is_other = super().file_exists(filepath, trainer)
        if is_other and trainer.is_global_zero and os.path.isfile(filepath):
            there = torch.load(filepath, weights_only=True, map_location="meta")
            is_other = there["global_step"] != trainer.global_step
        return trainer.strategy.reduce_boolean_decision(is_other and trainer.is_global_zero, all=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_due = self.is_due(trainer, at_epoch_end=True)
        super().on_train_epoch_end(trainer, pl_module)
        self._keep_last(trainer, is_due)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_due = self.is_due(trainer, at_epoch_end=False)
        super().on_validation_end(trainer, pl_module)
        self._keep_last(trainer, is_due)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_fast_dev_run(trainer):  # in which Lightning's save_last would save, too
            super().on_train_end(trainer, pl_module)

    def _keep_last(self, trainer: Trainer, is_due: bool) -> None:
        if is_due and self.save_last is True and not self.is_saved(trainer):
            self.save_as_last(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if is_of_lost_process(exception):
            outlive_other_processes(trainer)
        if (
            isinstance(exception, DivergenceError | UnwrittenCheckpointError | StoppedAtOnce)
            or trainer.state.fn != "fit"
            or not self._has_begun
            or not self.saves_after_exception(trainer)
        ):
            return
        assert self.dirpath is not None
        path = os.path.join(self.dirpath, INTERRUPTED)
        together = trainer.world_size == 1 or isinstance(exception, KeyboardInterrupt | SIGTERMException)
        if not together and (not trainer.is_global_zero or shards_the_model(trainer)):  # other processes may have ended
            return
        checkpoint = checkpoint_content(trainer, self.save_weights_only)
        if trainer.validating and not self.save_weights_only:
            checkpoint |= {"callbacks": self._before_validation}
            checkpoint[CUT_OFF] = checkpoint.get(CUT_OFF, {}) | {VALIDATION: True}
        trainer.strategy.save_checkpoint(checkpoint, path)
        if together:
            trainer.strategy.barrier()
        self.note_saved(trainer, path)

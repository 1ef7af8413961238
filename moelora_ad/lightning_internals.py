"""All uses of what has no public name in Lightning, each with a test."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, Strategy
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.trainer import call


class OpenModelCheckpoint(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, with names for its decisions and its state."""

    def is_due(self, trainer: Trainer, at_epoch_end: bool) -> bool:
        """Whether a checkpoint of this epoch is to be saved now, at its end or after its validation."""
        return (
            not self._should_skip_saving_checkpoint(trainer)
            and self._should_save_on_train_epoch_end(trainer) == at_epoch_end
            and self._every_n_epochs >= 1
            and (trainer.current_epoch + 1) % self._every_n_epochs == 0
        )

    def is_saved(self, trainer: Trainer) -> bool:
        """Whether a checkpoint of the present step has been saved."""
        return self._last_global_step_saved == trainer.global_step

    def saves_after_exception(self, trainer: Trainer) -> bool:
        """Whether a checkpoint is to be saved after an error or an interruption."""
        return self._should_save_on_exception(trainer)

    def save_as_last(self, trainer: Trainer) -> None:
        """Save ``last.ckpt``."""
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def note_saved(self, trainer: Trainer, path: str) -> None:
        """Count a checkpoint that other code has saved as that of the present step."""
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = path


def last_path(callback: ModelCheckpoint) -> str:
    """The path of the checkpoint that a callback saved last in this process; "" if there is none."""
    return callback._last_checkpoint_saved


def checkpoint_content(trainer: Trainer, weights_only: bool) -> dict[str, Any]:
    """What ``Trainer.save_checkpoint`` saves, without waiting for other processes."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only)


def callbacks_state(trainer: Trainer) -> dict[str, Any]:
    """The present state of the callbacks, as a checkpoint stores it."""
    return call._call_callbacks_state_dict(trainer)


def logged_step(trainer: Trainer) -> int:
    """The step under which Lightning logs what is logged now; in a validation it is one behind the global step."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def validation_is_due(trainer: Trainer) -> bool:
    """Whether a validation follows the training batch that has just ended; false before the first batch."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def accumulates(trainer: Trainer) -> bool:
    """Whether the gradients of the training batch that has just ended are added to those of the next one."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def starts_functions(strategy: Strategy) -> bool:
    """Whether a strategy runs in processes that it forks or spawns for each of the trainer's functions (``ddp_spawn``,
    ``ddp_fork``, ``ddp_notebook``): only weights come back from them."""
    return isinstance(strategy.launcher, _MultiProcessingLauncher)


def saves_shards(strategy: FSDPStrategy) -> bool:
    """Whether each process saves its part of the model (``state_dict_type`` "sharded")."""
    return strategy._state_dict_type == "sharded"

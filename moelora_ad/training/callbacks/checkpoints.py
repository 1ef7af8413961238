"""Which checkpoints of a run are kept."""

import os

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from moelora_ad.data.trainer_state import shards_the_model
from moelora_ad.training.callbacks.divergence import DivergenceError
from moelora_ad.training.checkpoint_writing import UnwrittenCheckpointError
from moelora_ad.training.lightning_internals import OpenModelCheckpoint, checkpoint_content
from moelora_ad.training.lost_processes import is_of_lost_process, outlive_other_processes

INTERRUPTED = "last-interrupted.ckpt"  # Lightning and sweeps look for last*.ckpt


class WholeCheckpoint(OpenModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, with three differences.

    With ``save_last`` true the last checkpoint is one of every epoch, not only of those that were among the best: a run
    that is cut off loses no more than an epoch. With ``save_on_exception`` true the one of an interruption or an error
    is ``last-interrupted.ckpt``: it has no figure to be named after, and ``last.ckpt`` stays that of a whole epoch. And
    if training diverges, what was saved last is kept: the weights and batch statistics of that moment are spoilt.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_due = self.is_due(trainer, at_epoch_end=True)
        super().on_train_epoch_end(trainer, pl_module)
        self._keep_last(trainer, is_due)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_due = self.is_due(trainer, at_epoch_end=False)
        super().on_validation_end(trainer, pl_module)
        self._keep_last(trainer, is_due)

    def _keep_last(self, trainer: Trainer, is_due: bool) -> None:
        if is_due and self.save_last is True and not self.is_saved(trainer):
            self.save_as_last(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if is_of_lost_process(exception):
            outlive_other_processes(trainer)
        if (
            isinstance(exception, DivergenceError | UnwrittenCheckpointError)
            or trainer.state.fn != "fit"
            or not self.saves_after_exception(trainer)
        ):
            return
        assert self.dirpath is not None
        path = os.path.join(self.dirpath, INTERRUPTED)
        if trainer.world_size == 1 or isinstance(exception, KeyboardInterrupt | SIGTERMException):
            trainer.save_checkpoint(path, self.save_weights_only)
        elif trainer.is_global_zero and not shards_the_model(trainer):  # alone: the others may have ended
            trainer.strategy.save_checkpoint(checkpoint_content(trainer, self.save_weights_only), path)
        else:
            return
        self.note_saved(trainer, path)

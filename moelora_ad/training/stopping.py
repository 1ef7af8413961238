"""Training that cannot go on: what is told, and that nothing spoilt is kept."""

import errno
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, distributed

from moelora_ad.errors import InputError
from moelora_ad.evaluation.run_records import RECORD, read_record
from moelora_ad.training.dataset import Batch
from moelora_ad.training.reading import starved
from moelora_ad.training.resuming import CUT_OFF, VALIDATION
from moelora_ad.training.run import is_fast_dev_run, shards_the_model
from moelora_ad.training.whole_checkpoints import UnwrittenCheckpointError

if TYPE_CHECKING:
    from moelora_ad.training.data_module import AudioDeepfakeDataModule

INTERRUPTED = "last-interrupted.ckpt"  # Lightning and sweeps look for last*.ckpt
EXPLODED = 1e3  # no cross entropy of two classes is this large unless the logits have left their range
_NAMED = 8  # utterances that an error names
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "ALLOC_FAILED")
_KILLED_WORKER = "killed by signal: Killed"
# What gloo and NCCL say; PyTorch has classes of its own for some of it only.
_LOST_WORDS = ("connection closed by peer", "connection reset by peer", "remote process exited", "broken pipe")
_TELLING = 5.0  # seconds that the first process has to say that it lives
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class DivergenceError(InputError):
    """The loss or the weights are no numbers any more, or the loss has exploded."""


class LostProcessError(InputError):
    """Another process of the run has ended; the message is empty in all processes but the one that tells."""


class StoppedAtOnce(KeyboardInterrupt):
    """Ctrl-C in the middle of whatever was done: a step may be half taken, and is not saved."""


class WholeCheckpoint(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, with four differences.

    With ``save_last`` true the last checkpoint is one of every epoch, not only of those that were among the best: a run
    that is cut off loses no more than an epoch. With ``save_on_exception`` true the one of an interruption or an error
    is ``last-interrupted.ckpt``: it has no figure to be named after, and ``last.ckpt`` stays that of a whole epoch;
    callbacks are as they were before a validation that was cut off. If training diverges, what was saved last is kept:
    the weights and batch statistics of that moment are spoilt. And what a killed run had saved at the same step under
    the same name is replaced, where Lightning would take another name.
    """

    _has_begun = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._has_begun = True  # what the run goes on from is loaded

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self._before_validation = deepcopy(call._call_callbacks_state_dict(trainer))

    def file_exists(self, filepath: str | Path, trainer: Trainer) -> bool:
        is_other = super().file_exists(filepath, trainer)
        if is_other and trainer.is_global_zero and os.path.isfile(filepath):
            there = torch.load(filepath, weights_only=True, map_location="meta")
            is_other = there["global_step"] != trainer.global_step
        return trainer.strategy.reduce_boolean_decision(is_other and trainer.is_global_zero, all=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_due = self._is_due(trainer, at_epoch_end=True)
        super().on_train_epoch_end(trainer, pl_module)
        self._keep_last(trainer, is_due)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_due = self._is_due(trainer, at_epoch_end=False)
        super().on_validation_end(trainer, pl_module)
        self._keep_last(trainer, is_due)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_fast_dev_run(trainer):  # Lightning's save_last would save here
            super().on_train_end(trainer, pl_module)

    def _is_due(self, trainer: Trainer, at_epoch_end: bool) -> bool:
        return (
            not self._should_skip_saving_checkpoint(trainer)
            and self._should_save_on_train_epoch_end(trainer) == at_epoch_end
            and self._every_n_epochs >= 1
            and (trainer.current_epoch + 1) % self._every_n_epochs == 0
        )

    def _keep_last(self, trainer: Trainer, is_due: bool) -> None:
        if is_due and self.save_last is True and self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if is_of_lost_process(exception):
            _outlive(trainer)
        if (
            isinstance(exception, DivergenceError | UnwrittenCheckpointError | StoppedAtOnce)
            or trainer.state.fn != "fit"
            or not self._has_begun
            or not self._should_save_on_exception(trainer)
        ):
            return
        assert self.dirpath is not None
        path = os.path.join(self.dirpath, INTERRUPTED)
        together = trainer.world_size == 1 or isinstance(exception, KeyboardInterrupt | SIGTERMException)
        if not together and (not trainer.is_global_zero or shards_the_model(trainer)):  # the others may have ended
            return
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(self.save_weights_only)
        if trainer.validating and not self.save_weights_only:
            checkpoint |= {"callbacks": self._before_validation}
            checkpoint[CUT_OFF] = checkpoint.get(CUT_OFF, {}) | {VALIDATION: True}
        trainer.strategy.save_checkpoint(checkpoint, path)
        if together:
            trainer.strategy.barrier()
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = path


class LastingEarlyStopping(EarlyStopping):
    """Lightning's ``EarlyStopping``; a run that it had ended, cut off in its test, is not trained on when it goes on,
    unless ``patience`` was raised."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})  # the configuration's counts

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.stopped_epoch > 0 and self.wait_count >= self.patience:
            trainer.should_stop = True


def check_loss(trainer: Trainer, loss: Tensor, batch: Batch) -> None:
    """Stop before the backward pass of a loss that is not finite, or above 1,000. Every process stops if one has to.

    Args:
        trainer: in training.
        loss: of this process, a scalar.
        batch: what it is of.

    Raises:
        DivergenceError: says the step, the loss, the batch's utterances and the last good checkpoint.
    """
    bad = ~(loss.detach().abs() <= EXPLODED)  # true for NaN
    if trainer.world_size > 1:
        together = trainer.strategy.reduce(bad.float(), reduce_op="sum")
        assert isinstance(together, Tensor)
        if not together.item():
            return
        told: list[Any] = [None] * trainer.world_size
        distributed.all_gather_object(told, _told(trainer, loss, batch) if bad.item() else None)
        raise DivergenceError(next(filter(None, told)))
    if bad.item():
        raise DivergenceError(_told(trainer, loss, batch))


def check_weights(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Refuse to save weights that are not finite.

    Raises:
        DivergenceError: names the first such tensor and the last good checkpoint.
    """
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            if name.endswith("logit_offset"):  # -inf silences an expert
                continue
            raise DivergenceError(
                f"step {trainer.global_step}: the weights {name} are not finite any more, and were not saved; "
                f"{_last_good(trainer)}; {_ADVICE}"
            )


_ADVICE = "lower the learning rate, warm up for longer, or clip gradients (trainer.gradient_clip_val)"


def _told(trainer: Trainer, loss: Tensor, batch: Batch) -> str:
    data: AudioDeepfakeDataModule = trainer.datamodule  # type: ignore[attr-defined]
    assert data.train_trials is not None
    utterances = data.train_trials.columns.utterance
    clips = len(batch.waveforms) // len(batch.trials)
    unfit = ~torch.isfinite(batch.waveforms).all(1).view(-1, clips).all(1)
    value = f"step {trainer.global_step}: the loss is {loss.item():g}"
    if bool(unfit.any()):
        names = _listed([utterances[trial] for trial in batch.trials[unfit].tolist()])
        return (
            f"{value}, because the audio of {names} is not finite; {_last_good(trainer)}; mend or leave out the audio"
        )
    names = _listed([utterances[trial] for trial in batch.trials.tolist()])
    return f"{value} in the batch of {names}; {_last_good(trainer)}; {_ADVICE}"


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _last_good(trainer: Trainer) -> str:
    saved = last_saved(trainer)
    return f"the last good checkpoint is {saved}" if saved else "no checkpoint has been saved yet"


def last_saved(trainer: Trainer) -> str | None:
    """The path from here of the last checkpoint, None if there is none."""
    callback = trainer.checkpoint_callback
    if not isinstance(callback, ModelCheckpoint):
        return None
    found = (callback._last_checkpoint_saved, callback.last_model_path, callback.best_model_path)
    return next((os.path.relpath(path) for path in found if path and Path(path).exists()), None)


@contextmanager
def memory_told(trainer: Trainer, data: "AudioDeepfakeDataModule") -> Iterator[None]:
    """Make a lack of memory or open files within the block an `InputError` that says what to change.

    Raises:
        InputError: instead of PyTorch's error or Python's.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:  # torch.OutOfMemoryError is one
        if (told := starved(error, data.num_workers)) is not None:
            raise InputError(told + _saved(trainer)) from None
        if isinstance(error, OSError):
            raise
        words = str(error)
        if _KILLED_WORKER in words:
            raise InputError(
                f"a process that reads audio was killed, most likely for want of memory: lower data.num_workers "
                f"(now {data.num_workers}){_saved(trainer)}"
            ) from None
        if not isinstance(error, MemoryError) and not any(part in words for part in _MEMORY_WORDS):
            raise
        raise InputError(_advice(trainer, data) + _saved(trainer)) from None


@contextmanager
def lost_told(trainer: Trainer) -> Iterator[None]:
    """Make what happens within the block because another process has ended, or a disk is full, an `InputError` that
    says how to go on.

    Raises:
        InputError: instead of PyTorch's error, or the system's.
    """
    try:
        yield
    except UnwrittenCheckpointError as error:
        raise InputError(f"{error}{_saved(trainer)}") from None
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        where = os.path.relpath(error.filename) if isinstance(error.filename, str) else "a file of the run"
        raise InputError(f"{where} cannot be written: {error.strerror}{_saved(trainer)}") from None
    except RuntimeError as error:
        if trainer.world_size == 1 or not is_of_lost_process(error):
            raise
        raise LostProcessError(_lost(trainer) if _tells(trainer) else "") from None


def is_of_lost_process(error: BaseException) -> bool:
    """Whether an error in what several processes do together says that one of them has ended."""
    words = str(error).lower()
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and any(part in words for part in _LOST_WORDS)
    )


def _outlive(trainer: Trainer) -> None:
    """Lightning's launcher would kill this process seconds after another one's end, before it has saved and told."""
    processes = getattr(trainer.strategy.launcher, "procs", None)
    if isinstance(processes, list):
        processes.clear()


def _lost(trainer: Trainer) -> str:
    # Lightning has reset its own stage by now.
    saved = last_saved(trainer) if trainer.lightning_module.training else None
    again = f"give --ckpt_path {saved} to continue" if saved else "run the same command again"
    return f"another process of this run was killed, has failed or is out of reach; {again}"


def _tells(trainer: Trainer) -> bool:
    """The first process does, and the second if the first one is that which has ended: a training run's record still
    says that it goes on."""
    if trainer.is_global_zero or trainer.global_rank > 1:
        return trainer.is_global_zero
    callback = trainer.checkpoint_callback
    if not isinstance(callback, ModelCheckpoint) or not callback.dirpath:
        return True
    run, until = Path(callback.dirpath).parent, time.monotonic() + _TELLING
    while (run / RECORD).is_file():
        if read_record(run).state != "running":
            return False
        if time.monotonic() > until:
            break
        time.sleep(0.1)
    return True


def _advice(trainer: Trainer, data: "AudioDeepfakeDataModule") -> str:
    # Lightning has reset its own stage by now.
    if not trainer.lightning_module.training:
        return f"out of memory in evaluation with data.eval_batch_size {data.eval_batch_size}: lower it"
    samples = data.train_segment.samples
    segments = f" segments of {samples:,} samples" if samples else " whole utterances"
    remedies = [f"lower data.batch_size (trainer.accumulate_grad_batches keeps {data.batch_size} for each step)"]
    if not getattr(trainer.lightning_module, "gradient_checkpointing", True):
        remedies.append("set model.gradient_checkpointing true")
    if str(trainer.precision).startswith("32"):
        remedies.append("set trainer.precision bf16-mixed or bf16-true")
    return (
        f"out of memory in step {trainer.global_step} with a data.batch_size of {data.batch_size}{segments}: "
        f"{', or '.join(remedies)}"
    )


def _saved(trainer: Trainer) -> str:
    saved = last_saved(trainer)
    return f"; {saved} is the last checkpoint (--ckpt_path)" if saved else ""

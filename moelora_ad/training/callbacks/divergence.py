"""Stops training at a loss or weights that are not finite; earlier checkpoints remain."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, distributed

from moelora_ad.data.data_module import known_data
from moelora_ad.data.dataset import Batch
from moelora_ad.errors import InputError
from moelora_ad.models.devices import HostCopy
from moelora_ad.training.checkpoint_writing import last_saved
from moelora_ad.training.losses.loss_module import SharedLoss

EXPLODED = 1e3  # no cross entropy of two classes is this large unless the logits have left their range
_NAMED = 8  # utterances that an error names
_ADVICE = "lower the learning rate, warm up for longer, or clip gradients (trainer.gradient_clip_val)"


class DivergenceError(InputError):
    """The loss or the weights are not finite, or the loss has exploded."""


class LossCheck:
    """Stops training, in every process, at a loss of all processes together that is not finite or above 1,000.

    On a CPU this happens before the backward pass. On a GPU, the loss of a step is read while the next step is being
    queued, so that nothing waits for the GPU; the optimiser then takes one step with a bad loss. The result is not
    saved, as `read` is called before every evaluation and every checkpoint but that of an interruption or an error.

    Args:
        trainer: the trainer of the run.

    Attributes:
        value: the last loss that was read.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._unread: tuple[HostCopy, int, Batch] | None = None
        self.value: float | None = None

    def add(self, loss: SharedLoss, batch: Batch) -> None:
        """Check a step's loss, or on a GPU that of the step before.

        Args:
            loss: loss of the step.
            batch: the batch of this process.

        Raises:
            DivergenceError: names the step, the loss, the batch's utterances and the last good checkpoint.
        """
        self.read()
        values = HostCopy(torch.stack([loss.of_all, loss.own.detach()]))
        self._unread = values, self._trainer.global_step, batch
        if values.is_immediate:
            self.read()

    def read(self) -> None:
        """Check the loss that has not been read yet, if any; raises as `add` does."""
        if self._unread is None:
            return
        (values, step, batch), self._unread = self._unread, None
        self.value, own = values.tensor().tolist()
        if abs(self.value) <= EXPLODED:  # false for NaN
            return
        told: list[Any] = [None if abs(own) <= EXPLODED else _message(self._trainer, step, own, batch)]
        if self._trainer.world_size > 1:
            mine, told = told[0], [None] * self._trainer.world_size
            distributed.all_gather_object(told, mine)
        raise DivergenceError(next(filter(None, told)))


def check_weights(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Refuse to save weights that are not finite.

    Raises:
        DivergenceError: names the first such tensor and the last good checkpoint.
    """
    for name in _not_finite(state):
        raise DivergenceError(
            f"step {trainer.global_step}: the weights {name} are no longer finite, and were not saved; "
            f"{_last_good(trainer)}; {_ADVICE}"
        )


def check_start(state: Mapping[str, Any]) -> None:
    """Refuse to train a model with tensors that could not be saved.

    Raises:
        InputError: names the first tensor that is not finite before training.
    """
    for name in _not_finite(state):
        raise InputError(
            f"{name} is not finite before training, and could not be saved: a mask of infinities is a buffer with "
            "persistent=False"
        )


def _not_finite(state: Mapping[str, Any]) -> Iterator[str]:
    for name, tensor in state.items():
        if name.endswith("logit_offset"):  # -inf silences an expert
            continue
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            yield name


def _message(trainer: Trainer, step: int, loss: float, batch: Batch) -> str:
    clips = len(batch.waveforms) // len(batch.trials)
    unfit = ~torch.isfinite(batch.waveforms).all(1).view(-1, clips).all(1).cpu()
    value = f"step {step}: the loss is {loss:g}{f', beyond {EXPLODED:g},' if math.isfinite(loss) else ''}"
    if bool(unfit.any()):
        names = _named(trainer, batch.trials[unfit].tolist())
        return (
            f"{value}, because the audio of {names} is not finite; {_last_good(trainer)}; repair or leave out the audio"
        )
    names = _named(trainer, batch.trials.tolist())
    return f"{value} in the batch of {names}; {_last_good(trainer)}; {_ADVICE}"


def _named(trainer: Trainer, trials: list[int]) -> str:
    """The ids of utterances, or their numbers if the list of trials is not known."""
    data = known_data(trainer)
    if data is None or data.train_trials is None:
        names = [f"trial {trial}" for trial in trials]
    else:
        names = [data.train_trials.columns.utterance[trial] for trial in trials]
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _last_good(trainer: Trainer) -> str:
    saved = last_saved(trainer)
    return f"the last good checkpoint is {saved}" if saved else "no checkpoint has been saved yet"

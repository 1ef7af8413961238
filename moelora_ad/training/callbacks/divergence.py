"""A loss or weights that are not finite: training stops, and what was saved before stays."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, distributed

from moelora_ad.data.data_module import known_data
from moelora_ad.data.dataset import Batch
from moelora_ad.errors import InputError
from moelora_ad.training.checkpoint_writing import last_saved

EXPLODED = 1e3  # no cross entropy of two classes is this large unless the logits have left their range
_NAMED = 8  # utterances that an error names
_ADVICE = "lower the learning rate, warm up for longer, or clip gradients (trainer.gradient_clip_val)"


class DivergenceError(InputError):
    """The loss or the weights are no numbers any more, or the loss has exploded."""


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
        distributed.all_gather_object(told, _message(trainer, loss, batch) if bad.item() else None)
        raise DivergenceError(next(filter(None, told)))
    if bad.item():
        raise DivergenceError(_message(trainer, loss, batch))


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


def _message(trainer: Trainer, loss: Tensor, batch: Batch) -> str:
    clips = len(batch.waveforms) // len(batch.trials)
    unfit = ~torch.isfinite(batch.waveforms).all(1).view(-1, clips).all(1)
    value = f"step {trainer.global_step}: the loss is {loss.item():g}"
    if bool(unfit.any()):
        names = _named(trainer, batch.trials[unfit].tolist())
        return (
            f"{value}, because the audio of {names} is not finite; {_last_good(trainer)}; mend or leave out the audio"
        )
    names = _named(trainer, batch.trials.tolist())
    return f"{value} in the batch of {names}; {_last_good(trainer)}; {_ADVICE}"


def _named(trainer: Trainer, trials: list[int]) -> str:
    """Utterances by their ids, or their numbers if no list of trials is known."""
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

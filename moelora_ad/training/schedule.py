"""Learning rate over a run."""

import math

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from moelora_ad.errors import InputError


class WarmupCosine:
    """Linear warm-up, then a half cosine to zero, step by step over the whole run.

    Args:
        warmup: fraction of all steps spent on warm-up.

    Raises:
        InputError: the fraction is not in [0, 1).
    """

    def __init__(self, warmup: float = 0.1) -> None:
        if not 0 <= warmup < 1:
            raise InputError(f"warmup is {warmup}: give the fraction of all steps, at least 0 and below 1")
        self.warmup = warmup

    def build(self, optimizer: Optimizer, total_steps: float) -> LambdaLR:
        """Return the scheduler of a run of so many steps.

        Raises:
            InputError: their number is infinite: the run ends by time alone, or its epochs have no known length.
        """
        if math.isinf(total_steps):
            raise InputError(
                "model.schedule: WarmupCosine needs an end: set trainer.max_epochs or trainer.max_steps (of training "
                "data without a length the latter)"
            )
        from transformers import get_cosine_schedule_with_warmup  # it imports peft, where that is installed

        return get_cosine_schedule_with_warmup(optimizer, round(self.warmup * total_steps), int(total_steps))


def accumulated_batches(trainer: Trainer, epoch: int) -> int:
    """The number of batches in an optimiser step of an epoch."""
    scheduler = _accumulation(trainer)
    return trainer.accumulate_grad_batches if scheduler is None else scheduler.get_accumulate_grad_batches(epoch)


def most_accumulated_batches(trainer: Trainer) -> int:
    """The largest number of batches in an optimiser step of any epoch."""
    scheduler = _accumulation(trainer)
    return trainer.accumulate_grad_batches if scheduler is None else max(scheduler.scheduling.values())


def _accumulation(trainer: Trainer) -> GradientAccumulationScheduler | None:
    schedulers = [one for one in trainer.callbacks if isinstance(one, GradientAccumulationScheduler)]  # type: ignore[attr-defined]
    return schedulers[-1] if schedulers else None


def optimizer_steps(trainer: Trainer) -> float:
    """The number of optimiser steps of a training; infinity if it has no end, or its epochs have no known length.

    Lightning's own estimate takes the present accumulation for all epochs, and is -1 without a known length.
    """
    estimated, batches = trainer.estimated_stepping_batches, trainer.num_training_batches
    if estimated < 0:
        return math.inf
    if trainer.max_epochs in (None, -1) or math.isinf(batches):
        return estimated
    epochs = range(max(trainer.max_epochs, 1))
    steps = sum(math.ceil(batches / accumulated_batches(trainer, epoch)) for epoch in epochs)
    return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)


def accumulate_as_scheduled(trainer: Trainer) -> None:
    """Set the present epoch's accumulation: Lightning does so at an epoch's start, and not for one that is resumed."""
    trainer.accumulate_grad_batches = accumulated_batches(trainer, trainer.current_epoch)

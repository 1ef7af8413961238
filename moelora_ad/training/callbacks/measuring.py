"""Measures a few training steps, and estimates from them how long a whole run takes."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from moelora_ad.training.callbacks.run_recorder import peak_of_host


class Seconds(NamedTuple):
    """An estimated time: the expected one, and those if everything went as fast as the fastest, or as slow as the
    slowest, measurement."""

    expected: float
    low: float
    high: float

    def times(self, count: int) -> "Seconds":
        return Seconds(*(count * value for value in self))


def total(parts: Sequence[Seconds]) -> Seconds:
    """The sum of estimates, field by field."""
    return Seconds(*(math.fsum(values) for values in zip(*parts, strict=True))) if parts else Seconds(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Measured:
    """Measurements of the first process.

    Attributes:
        steps: seconds of each optimiser step, with all its batches and the waiting for them.
        waits: seconds of each step that were spent waiting for data.
        evaluation: seconds of each batch of dev.
        reading: seconds that one worker takes to read a training batch; None without workers, where ``waits`` includes
            all reading.
        train_batches: number of batches in an epoch.
        dev_batches: number of batches in a validation.
        peak_memory_bytes: peak memory of this process (``host``), and of its GPU (``cuda``, None without one).
    """

    steps: list[float]
    waits: list[float]
    evaluation: list[float]
    reading: float | None
    train_batches: int
    dev_batches: int
    peak_memory_bytes: dict[str, int | None]

    def step(self, workers: int, accumulated: int) -> Seconds:
        """The time of a step in the long run. Measured steps use batches that ``workers`` processes have read ahead. If
        these cannot keep up, a step takes as long as they need to read its ``accumulated`` batches.

        The expected time is the mean, since an epoch is the sum of many steps.
        """
        slowest_reader = 0.0 if self.reading is None else accumulated * self.reading / workers
        measured = Seconds(statistics.fmean(self.steps), min(self.steps), max(self.steps))
        return Seconds(*(max(value, slowest_reader) for value in measured))

    def data_wait_share(self, workers: int, accumulated: int) -> float:
        """Share of a step in the long run in which nothing is computed, for lack of data."""
        computing = statistics.fmean(self.steps) - statistics.fmean(self.waits)
        return 1 - computing / self.step(workers, accumulated).expected

    def evaluation_batch(self) -> Seconds:
        return Seconds(statistics.fmean(self.evaluation), min(self.evaluation), max(self.evaluation))


class StepTimer(Callback):
    """Measures the batches of dev in Lightning's sanity check, and training steps.

    Args:
        warm_up: number of first steps that are not measured. Neither is the first batch of dev, if there are more.

    Attributes:
        tell: called with the present task, in a few words.
        measured: the measurements; None before the end, and in processes other than the first.
        training: whether training has begun.
    """

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.tell: Callable[[str], None] = lambda words: None
        self.measured: Measured | None = None
        self.training = False
        self._last = 0.0  # when the previous batch ended
        self._periods: list[float] = []
        self._waits: list[float] = []
        self._evaluation: list[float] = []

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = self._now(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        now = self._now(trainer)
        self._evaluation.append(now - self._last)
        self._last = now
        self.tell(f"measuring dev, batch {len(self._evaluation)}")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.training = True
        self._last = self._now(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._waits.append(time.perf_counter() - self._last)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        now = self._now(trainer)
        self._periods.append(now - self._last)
        self._last = now
        self.tell(f"measuring training, step {trainer.global_step} of {trainer.max_steps}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        loader: Any = trainer.train_dataloader
        device = trainer.strategy.root_device
        accumulated, batches = trainer.accumulate_grad_batches, int(trainer.num_training_batches)
        self.measured = Measured(
            steps=_by_step(self._periods, batches, accumulated)[self.warm_up :],
            waits=_by_step(self._waits, batches, accumulated)[self.warm_up :],
            evaluation=self._evaluation[1:] or self._evaluation,
            reading=_reading(loader) if loader.num_workers else None,
            train_batches=batches,
            dev_batches=sum(int(count) for count in trainer.num_val_batches),
            peak_memory_bytes={
                "host": peak_of_host(),
                "cuda": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            },
        )

    @staticmethod
    def _now(trainer: Trainer) -> float:
        """The time when the device has done all work so far."""
        if trainer.strategy.root_device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()


def _by_step(of_batches: list[float], epoch: int, accumulated: int) -> list[float]:
    """Sums over the batches of each optimiser step; the last step of an epoch may have fewer."""
    sums = []
    for start in range(0, len(of_batches), epoch):
        part = of_batches[start : start + epoch]
        sums += [math.fsum(part[first : first + accumulated]) for first in range(0, len(part), accumulated)]
    return sums


def _reading(loader: Any) -> float:
    """Seconds that this process alone takes to read a batch, from the last two of an epoch, which are new to it."""
    keys = list(loader.sampler)[-2:]
    begun = time.perf_counter()
    for batch in keys:
        loader.dataset[batch]
    return (time.perf_counter() - begun) / len(keys)

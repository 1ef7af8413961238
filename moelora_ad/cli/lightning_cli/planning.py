"""How long a run will take, estimated from a few measured steps."""

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer

from moelora_ad.data.data_module import AudioDeepfakeDataModule
from moelora_ad.runs.record import DEV
from moelora_ad.training.callbacks.measuring import Measured, total


@dataclass(frozen=True)
class Plan:
    """The estimate of a run.

    Attributes:
        setting: the settings of the run that matter for its cost.
        steps: ``per_epoch`` and ``total`` optimiser steps; None where the run has no end.
        epochs: number of epochs; None where the run has no end.
        batches: number of batches of an epoch (``train``), of a validation (``dev``), and of each test set by name.
        validations: number of validations in the whole run, including the last one, of the best checkpoint; None where
            the run has no end.
        seconds: time of a ``step``, of an epoch's training (``train_epoch``), of a ``validation``, of the ``test`` sets
            by name, and of the whole ``run``; None where the run has no end.
        measured: the measurements that the estimate is made from.
        data_wait_share: share of a step that is spent waiting for data, in the long run.
        checkpoint_bytes: size of the tensors of one checkpoint.
        hints: what could be improved, in sentences.
    """

    setting: dict[str, Any]
    steps: dict[str, int | None]
    epochs: int | None
    batches: dict[str, Any]
    validations: int | None
    seconds: dict[str, Any]
    measured: Measured
    data_wait_share: float
    checkpoint_bytes: int
    hints: list[str]


def plan_of(
    measured: Measured,
    trainer: Trainer,
    data: AudioDeepfakeDataModule,
    wanted: dict[str, Any],
    test_sizes: dict[str, int] | None,
    checkpoint_bytes: int,
) -> Plan:
    """Estimate a run from what was measured.

    Args:
        measured: the measurements of a `StepTimer`.
        trainer: the trainer of the measured steps.
        data: the run's data module.
        wanted: the arguments of the run's own trainer.
        test_sizes: trials of the test sets; None if fit ends without a test, and without the validation before it.
        checkpoint_bytes: size of the tensors of one checkpoint.
    """
    accumulated = trainer.accumulate_grad_batches
    per_epoch = -(-measured.train_batches // accumulated)
    epochs, steps = _length(wanted, per_epoch)
    test_batches = {name: _batches(size, trainer, data, wanted) for name, size in (test_sizes or {}).items()}
    validations = None
    if steps is not None:
        validations = _validations(wanted, steps, per_epoch, measured.train_batches) + (test_sizes is not None)

    step, evaluation = measured.step(data.num_workers, accumulated), measured.evaluation_batch()
    validation = evaluation.times(measured.dev_batches)
    tests = {name: evaluation.times(count) for name, count in test_batches.items()}
    whole = None
    if steps is not None and validations is not None:
        whole = total([step.times(steps), validation.times(validations), *tests.values()])
    return Plan(
        setting={
            "batch_size": data.batch_size,
            "accumulate_grad_batches": accumulated,
            "processes": trainer.world_size,
            "num_workers": data.num_workers,
            "device": trainer.strategy.root_device.type,
            "precision": str(trainer.precision),
        },
        steps={"per_epoch": per_epoch, "total": steps},
        epochs=epochs,
        batches={"train": measured.train_batches, DEV: measured.dev_batches, "test": test_batches},
        validations=validations,
        seconds={
            "step": step._asdict(),
            "train_epoch": step.times(per_epoch)._asdict(),
            "validation": validation._asdict(),
            "test": {name: seconds._asdict() for name, seconds in tests.items()},
            "run": None if whole is None else whole._asdict(),
        },
        measured=measured,
        data_wait_share=measured.data_wait_share(data.num_workers, accumulated),
        checkpoint_bytes=checkpoint_bytes,
        hints=_hints(trainer, data, measured),
    )


def _length(wanted: dict[str, Any], per_epoch: int) -> tuple[int | None, int | None]:
    """Epochs and steps of the run that the trainer's arguments describe; None if it has no end."""
    epochs, steps = wanted.get("max_epochs"), wanted.get("max_steps", -1)
    if epochs is None:
        epochs = 1_000 if steps == -1 else -1  # Lightning's default
    if epochs == -1:
        return (None, None) if steps == -1 else (-(-steps // per_epoch), steps)
    if steps == -1:
        return epochs, epochs * per_epoch
    steps = min(steps, epochs * per_epoch)
    return -(-steps // per_epoch), steps


def _validations(wanted: dict[str, Any], steps: int, per_epoch: int, batches: int) -> int:
    """How often a run of ``steps`` validates; an epoch has ``per_epoch`` steps and ``batches`` batches."""
    interval, every = wanted.get("val_check_interval") or 1.0, wanted.get("check_val_every_n_epoch", 1)
    if not isinstance(interval, int | float):  # the time between two validations
        return steps // per_epoch
    between = max(1, int(batches * interval)) if isinstance(interval, float) else interval
    epochs, rest = divmod(steps, per_epoch)
    rest *= wanted.get("accumulate_grad_batches", 1)
    if every is None:
        return (epochs * batches + rest) // between
    last = rest // between if (epochs + 1) % every == 0 else 0
    return (epochs // every) * (batches // between) + last


def _batches(trials: int, trainer: Trainer, data: AudioDeepfakeDataModule, wanted: dict[str, Any]) -> int:
    """Batches of a test set, in each process."""
    count = math.ceil(math.ceil(trials / data.eval_batch_size) / trainer.world_size)
    limit = wanted.get("limit_test_batches")
    if limit is None:
        return count
    return min(limit, count) if isinstance(limit, int) else int(limit * count)


def _hints(trainer: Trainer, data: AudioDeepfakeDataModule, measured: Measured) -> list[str]:
    hints = []
    share, cores = measured.data_wait_share(data.num_workers, trainer.accumulate_grad_batches), os.cpu_count() or 1
    if share > 0.1:
        remedy = (
            f"raise data.num_workers ({data.num_workers} now, {cores} cores here)"
            if data.num_workers < cores
            else "unpack archives, bring the corpus nearer, or leave out augmentations"
        )
        hints.append(f"training waits for data {100 * share:.0f} % of the time: {remedy}")
    if max(measured.steps) > 2 * min(measured.steps):
        hints.append("the steps took very different times: something else may be running here, or measure more --steps")
    device, used = trainer.strategy.root_device, measured.peak_memory_bytes["cuda"]
    if used is not None and used > 0.9 * torch.cuda.get_device_properties(device).total_memory:
        hints.append("the GPU's memory is nearly full: a lower data.batch_size is safer")
    if device.type == "cpu" and torch.cuda.is_available():
        hints.append("there is a GPU that is not used: leave out trainer.accelerator")
    if data.eval_segment.samples is None:
        hints.append("dev begins with its longest utterances: evaluation will take less time than estimated")
    return hints

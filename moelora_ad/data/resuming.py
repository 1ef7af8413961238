"""Continuing an interrupted run at the batch that comes next, by Lightning's own counters."""

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Trainer

from moelora_ad.corpora import Corpus, TrialList
from moelora_ad.data.dataset import Batch
from moelora_ad.data.samplers import TrainingBatches
from moelora_ad.data.shares import by_name
from moelora_ad.errors import InputError, counted
from moelora_ad.lightning_internals import accumulates, validation_is_due
from moelora_ad.runs.record import trials_hash
from moelora_ad.torch_internals import WatchedLoader

TRAINING_DATA = "training_data"  # key in a checkpoint
CUT_OFF, VALIDATION, BATCHES = "cut_off", "validation", "batches"


class TrainingLoader(WatchedLoader[Batch]):
    """Leaves out the batches of an epoch that an interrupted run has trained on.

    Lightning asks for the iterator before it has loaded the counters of a checkpoint, so nothing is read, and no worker
    started, before the first batch is asked for.

    Args:
        trainer: counts the batches; None for all batches of each epoch.
        sampler: makes the batches.
        arguments: those of ``DataLoader``, see `WatchedLoader`.
    """

    sampler: TrainingBatches

    def __init__(self, trainer: Trainer | None, sampler: TrainingBatches, **arguments: Any) -> None:
        super().__init__(sampler=sampler, **arguments)
        self._trainer = trainer

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.sampler.first = (
            0 if self._trainer is None else self._trainer.fit_loop.epoch_loop.batch_progress.current.ready
        )
        yield from super().__iter__()


def training_data(train: Corpus | Mapping[str, Corpus] | None, trials: TrialList) -> dict[str, Any]:
    """What a checkpoint stores about its training trials, so that it is resumed with no others; plain values.

    Args:
        train: the training corpora.
        trials: the trials of all these corpora.
    """
    corpora = sorted({corpus.name for corpus in by_name(train).values()})
    return {"corpora": corpora, "trials": len(trials), "sha256": trials_hash(trials)}


def check_training_data(checkpoint: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Check that a checkpoint is resumed on the trials that its schedule and its optimiser belong to.

    Args:
        checkpoint: as Lightning saves it; one without a record of its data passes.
        own: what this run trains on; empty if that is not known.

    Raises:
        InputError: this run trains on other trials.
    """
    theirs = checkpoint.get(TRAINING_DATA)
    if not theirs or not own or theirs["sha256"] == own["sha256"]:
        return
    told = [f"{', '.join(data['corpora'])} ({counted(data['trials'], 'trial')})" for data in (theirs, own)]
    raise InputError(
        f"--ckpt_path resumes the same training, but the checkpoint was trained on {told[0]} and the "
        f"configuration trains on {told[1]}; to start from its weights with new data, optimiser and schedule, give "
        "--model.init_weights CHECKPOINT instead of --ckpt_path"
    )


def cut_off(trainer: Trainer, validated: int | None) -> dict[str, Any]:
    """What a checkpoint within fit stores about work that has begun and not ended; plain values.

    Args:
        trainer: a trainer in fit.
        validated: how many training batches there had been when the last validation ended.

    Returns:
        ``validation``: whether a validation follows the training batch that has just ended; ``batches``: the number of
        batches whose gradients no optimiser step has used yet.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    counts: Any = progress.current
    done, ready = counts.processed, counts.ready
    is_due = done == ready > 0 and validation_is_due(trainer)
    has_stepped = done == ready and not accumulates(trainer)
    return {
        VALIDATION: is_due and validated != progress.total.ready,
        BATCHES: 0 if has_stepped else done % trainer.accumulate_grad_batches,
    }


def redo_what_was_cut_off(checkpoint: dict[str, Any], by_steps: bool) -> None:
    """Change the counters of a checkpoint, in place, so that Lightning repeats, as a whole, the training step or the
    validation that was cut off, or begins the one that was due.

    Args:
        checkpoint: as Lightning saves it.
        by_steps: whether the run's length is given in steps; Lightning would then skip the epoch after one that has
            ended, so it is made to end that epoch again.
    """
    loops = checkpoint.get("loops", {}).get("fit_loop", {})
    if not loops:
        return
    epochs = loops["epoch_progress"]
    if by_steps and epochs["current"]["processed"] == epochs["current"]["ready"] > 0:
        for count in ("total", "current"):
            epochs[count]["processed"] -= 1
            epochs[count]["completed"] = epochs[count]["processed"]
    training, validation = loops["epoch_loop.batch_progress"], loops["epoch_loop.val_loop.batch_progress"]
    validation["current"] = dict.fromkeys(validation["current"], 0)
    told = checkpoint.get(CUT_OFF)
    if told is None:  # of an earlier version: a validation at an epoch's end may be due
        is_validated = validation["is_last_batch"] and validation["total"]["completed"]
        told = {VALIDATION: training["is_last_batch"] and not is_validated, BATCHES: 0}
    if told[BATCHES]:
        again = training["current"]["ready"] - training["current"]["processed"] + told[BATCHES]
        for progress in (training["total"], training["current"]):
            progress |= dict.fromkeys(progress, progress["ready"] - again)
        training["is_last_batch"] = False
    elif training["current"]["processed"] < training["current"]["ready"]:
        training["is_last_batch"] = False
    elif told[VALIDATION]:
        for count in ("total", "current"):
            training[count]["completed"] = training[count]["processed"]
        validation["total"] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}  # Lightning: one has begun

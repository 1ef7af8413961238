"""The summary of a run that is printed at its start."""

import inspect
import os
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary
from rich import get_console

from moelora_ad.audio import SAMPLE_RATE, AudioError, audio_length
from moelora_ad.corpora import TrialList
from moelora_ad.data.data_module import AudioDeepfakeDataModule
from moelora_ad.data.shares import by_name
from moelora_ad.data.trainer_state import is_fast_dev_run, run_directory
from moelora_ad.errors import counted
from moelora_ad.models.accounting.memory import checkpoint_bytes
from moelora_ad.runs.folder import shown
from moelora_ad.runs.record import DEV
from moelora_ad.training.callbacks.end_summary import line, trainable
from moelora_ad.training.callbacks.progress import callbacks_of
from moelora_ad.training.detection_module import DetectionModule
from moelora_ad.training.schedule import accumulated_batches, optimizer_steps

_SAMPLED = 50  # files whose headers give an estimate of the others' length


class StartBlock(Callback):
    """Prints the data, the model and the steps of a run before its first epoch, in the first process."""

    def __init__(self) -> None:
        self._checkpoint_bytes = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:  # before parameters are sharded
            assert isinstance(pl_module, DetectionModule)
            self._checkpoint_bytes = checkpoint_bytes(pl_module.detector, pl_module.optimizer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = optimizer_steps(trainer)
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, DetectionModule)
        data: AudioDeepfakeDataModule = trainer.datamodule  # type: ignore[attr-defined]
        assert data.train_trials is not None
        console = get_console()  # the console of the progress bar, which makes room for lines
        line(console, "train", _train(data, data.train_trials))
        line(console, "dev", f"{corpus_name(data.val)}: {_trials(data.eval_trials[DEV])}")
        if data.test:
            sets = ", ".join(f"{name} ({corpus_name(corpus)})" for name, corpus in data.test.items())
            line(console, "test", sets)
        line(console, "model", _model(pl_module))
        if data.held_out_attack is not None and (source := _started_from(pl_module)):
            line(
                console, "warning", f"{source} may have been trained on {data.held_out_attack}, which is held out here"
            )
        line(console, "trainable parameters", trainable(pl_module.parameter_counts))
        line(console, "checkpoint", f"{self._checkpoint_bytes / 1e6:,.2f} MB with optimiser")
        line(console, "batch", batch(trainer, data))
        line(console, "steps", _steps(trainer, steps))
        line(console, "on", devices(trainer))
        folder = "none: fast_dev_run saves nothing" if is_fast_dev_run(trainer) else shown(run_directory(trainer))
        line(console, "folder", f"{folder} (seed {data.seed})")
        console.print()


def with_start_block(arguments: dict[str, Any]) -> dict[str, Any]:
    """The trainer's arguments with the start block in place of Lightning's model summary; unchanged if they turn
    summaries off or name one."""
    callbacks = callbacks_of(arguments)
    if arguments.get("enable_model_summary") is False or any(isinstance(c, ModelSummary) for c in callbacks):
        return arguments
    return arguments | {"callbacks": [StartBlock(), *callbacks], "enable_model_summary": False}


def batch(trainer: Trainer, data: AudioDeepfakeDataModule) -> str:
    """Number and length of the trials in an optimiser step, in words."""
    size, segment = data.batch_size, data.train_segment
    factors = [f"{size}"]
    if trainer.world_size > 1:
        factors.append(f"{trainer.world_size} processes")
    accumulated = accumulated_batches(trainer, trainer.current_epoch)
    if accumulated > 1:
        factors.append(f"{accumulated} batches accumulated")
    length = "whole" if segment.samples is None else f"{segment.samples / SAMPLE_RATE:.3g} s each"
    clips = f"{segment.count} clips of " if segment.count > 1 else ""
    total = size * trainer.world_size * accumulated
    told = f"{counted(total, 'trial')}, {clips}{length}"
    return told if len(factors) == 1 else f"{told}: {' x '.join(factors)}"


def devices(trainer: Trainer) -> str:
    """Number of processes, device and precision, in words."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if trainer.world_size > 1:
        kind = type(trainer.strategy).__name__.removesuffix("Strategy")
        name = f"{trainer.world_size} x {name} ({kind})"
    return f"{name}, precision {trainer.precision}"


def corpus_name(corpus: Any) -> str:
    """The name of a corpus and, if only a part of it is used, which part; ``none`` without a corpus."""
    if corpus is None:
        return "none"
    return ", ".join(filter(None, (corpus.name, corpus.selection_note)))


def _train(data: AudioDeepfakeDataModule, trials: TrialList) -> str:
    names = ", ".join(corpus_name(corpus) for corpus in by_name(data.train).values())
    seconds = audio_seconds(trials)
    if seconds is None:
        return f"{names}: {_trials(trials)}"
    told = f"{seconds / 3_600:,.1f} h" if seconds >= 3_600 else f"{seconds / 60:.1f} min"
    return f"{names}: {_trials(trials)}, {'about ' if len(trials) > _SAMPLED else ''}{told}"


def _trials(trials: TrialList) -> str:
    return f"{counted(len(trials), 'trial')} ({trials.num_bona_fide:,} bona fide, {trials.num_spoof:,} spoof)"


def audio_seconds(trials: TrialList) -> float | None:
    """Length of the audio of a list in seconds, estimated from the headers of 50 files spread over it; None if these
    are not plain files, which may take long to open, or cannot be read."""
    places = [trials[int(i)].audio for i in np.linspace(0, len(trials) - 1, min(len(trials), _SAMPLED)).round()]
    lengths = []
    for place in places:
        if not os.path.isfile(place):
            return None
        try:
            lengths.append(audio_length(place))
        except AudioError:  # reported when training reads the file
            continue
    return len(trials) * float(np.mean(lengths)) / SAMPLE_RATE if lengths else None


def _model(module: DetectionModule) -> str:
    backbone, adaptation = module.detector.backbone, module.detector.adaptation
    source = backbone.init_args.get("source")
    told = [type(adaptation).__name__]
    for name, parameter in inspect.signature(type(adaptation)).parameters.items():
        value = adaptation.init_args.get(name)
        if type(value) is int or (isinstance(value, str | float) and value != parameter.default):
            told.append(f"{name} {value}")
    encoder = type(backbone).__name__ if source is None else f"{type(backbone).__name__} {source}"
    return f"{encoder}, {' '.join(told)}, {type(module.detector.classifier).__name__}"


def _started_from(module: DetectionModule) -> str:
    """The sources of trained weights that the module starts from, besides the backbone's; empty for none."""
    init_from = module.detector.adaptation.init_args.get("init_from")
    init_from = [init_from] if isinstance(init_from, str) else init_from or []
    return ", ".join(filter(None, (module.init_weights, *map(str, init_from))))


def _steps(trainer: Trainer, total: int | float) -> str:
    per_epoch = -(-trainer.num_training_batches // accumulated_batches(trainer, trainer.current_epoch))
    epochs = trainer.max_epochs
    course = (
        f"{int(per_epoch):,} an epoch" if epochs in (None, -1) else f"{counted(epochs, 'epoch')} of {int(per_epoch):,}"
    )
    at_most = "no limit" if total == float("inf") else f"at most {int(total):,}"
    begun = f"; resumes after step {trainer.global_step:,}" if trainer.global_step else ""
    return f"{at_most}, {course}{begun}"

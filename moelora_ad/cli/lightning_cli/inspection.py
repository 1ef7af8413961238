"""The account of a configuration's model (parameters, operations, memory), which is built on the meta device."""

import json
import logging
import os
import sys
import warnings
from argparse import Namespace as Arguments
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from moelora_ad.adapters import AdapterError
from moelora_ad.audio import SAMPLE_RATE, TRAINING_SAMPLES
from moelora_ad.cli.arguments import FAILED
from moelora_ad.cli.lightning_cli.detection_command import DetectionCommand
from moelora_ad.cli.terminal import print_line, print_table
from moelora_ad.configuration.parser import OneLineParser
from moelora_ad.data.data_module import AudioDeepfakeDataModule
from moelora_ad.errors import InputError, counted, printable
from moelora_ad.evaluation.reports.text_table import TextTable
from moelora_ad.models.accounting.account import Account, account
from moelora_ad.models.dry_build import MOST_OF_DETECTOR, dry_build
from moelora_ad.models.precision import AUTOCAST, ROUNDED, precision_name, round_frozen
from moelora_ad.models.precision_names import PRECISIONS
from moelora_ad.training.detection_module import DetectionModule

NAMES = sorted({*PRECISIONS} - {"16-true"})  # precisions in which training works, see `check_trains`


class _Parser(OneLineParser):
    """Reads the configuration of fit, and reports a mistake in it under this command's name."""

    more_options = ("seconds", "format", "allow")

    def exit(self, status: int = 0, message: str | None = None) -> Any:
        super().exit(status, message and message.replace(" fit: error:", " inspect: error:", 1))


class _Model(DetectionCommand):
    """Builds what fit builds, on the meta device, and runs nothing.

    Args:
        allow: packages besides ours whose classes may be built.
        arguments: those of ``LightningCLI``.
    """

    def __init__(self, allow: Collection[str], **arguments: Any) -> None:
        self.allow = allow
        super().__init__(**arguments)

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        trainer = self.given.trainer
        for name, value in vars(trainer).items():
            if isinstance(value, Namespace | list):
                trainer[name] = None  # loggers, callbacks and the like: none of them matters here

    def instantiate_trainer(self, **_: Any) -> Trainer:
        return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)

    def _read_trials(self, data: AudioDeepfakeDataModule) -> None:
        """Read nothing: no corpus is needed."""

    def fit(self, **_: Any) -> None:
        """Run nothing."""


def inspect_model(arguments: list[str], own: Arguments, program: str) -> int:
    """Print the account of a model; returns the exit code.

    Args:
        arguments: the arguments of fit.
        own: the options of inspect itself.
        program: name of the program and the command, for error messages.
    """
    try:
        command = _built(arguments, own.allow)
        result = _account(command, own)
    except (InputError, AdapterError, MisconfigurationException) as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    setting = {
        "seconds": _segment(command, own) / SAMPLE_RATE,
        "batch_size": command.datamodule.batch_size,
        "precision": _precision(command)[0],
    }
    if own.format == "json":
        print(json.dumps({"setting": setting} | asdict(result), indent=2))
    else:
        _print(result, setting, _left_out(command.model))
    return 0


def _built(arguments: list[str], allow: Collection[str]) -> DetectionCommand:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with dry_build(MOST_OF_DETECTOR), _quiet():
        return _Model(allow, parser_class=_Parser, args=["fit", *arguments])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence notes on seeds and devices, and an error of PyTorch's log that is reported in one line anyway."""
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _account(command: DetectionCommand, own: Arguments) -> Account:
    model, samples, (name, precision) = command.model, _segment(command, own), _precision(command)
    if name in ROUNDED:
        round_frozen(model.detector, name, "trainer.precision")
    try:
        with _quiet():
            return account(model.detector, model.optimizer, samples, command.datamodule.batch_size, precision)
    except (RuntimeError, ValueError) as error:  # a layer says that it has too few frames
        reason = str(error).partition("\n")[0]
        raise InputError(f"the model cannot process clips of {samples / SAMPLE_RATE:g} s: {reason}") from None


def _segment(command: DetectionCommand, own: Arguments) -> int:
    if own.seconds is not None:
        return round(own.seconds * SAMPLE_RATE)
    return command.datamodule.train_segment.samples or TRAINING_SAMPLES


def _precision(command: DetectionCommand) -> tuple[str, torch.dtype]:
    """The name of the precision, and the type that products are computed in."""
    name = precision_name(command.given.trainer.precision)
    if name not in NAMES:
        raise InputError(f"trainer.precision {name}: give one of {', '.join(NAMES)}, which train here")
    return name, AUTOCAST.get(name, torch.float32)


def _left_out(model: DetectionModule) -> list[str]:
    """What a training step of this configuration does beyond what is counted."""
    extra = {"meta-learning": model.meta_learning, "auxiliary losses": model.auxiliary}
    return [name for name, used in extra.items() if used is not None]


def _print(result: Account, setting: Mapping[str, Any], left_out: Sequence[str]) -> None:
    counts, sites = result.parameters, result.sites
    trained = counts["total"] - counts["backbone_frozen"]
    rows = [
        (name.replace("_", " "), f"{number:,}", f"{100 * number / counts['total']:.2f} %")
        for name, number in (counts | {"trained": trained}).items()
        if number or name == "trained"
    ]
    print_table(TextTable("", ("part", "parameters", "share"), rows))
    facts = []
    if sites.wrapped:
        told = [", ".join(f"{count} {name}" for name, count in sites.by_name.items())]
        if sites.shapes:
            told.append(", ".join(f"{inner} -> {outer}" for inner, outer in sites.shapes))
        facts.append(
            (
                "adapted",
                f"{sites.wrapped} of {counted(sites.expected, 'projection')}, in {counted(sites.layers, 'layer')}",
            )
        )
        facts.append(("", "; ".join(told)))
    if sites.gates:
        facts.append(("gates", f"{sites.gates}"))
    forward = result.forward
    parts = ", ".join(f"{name} {forward[name] / 1e9:.2f}" for name in ("backbone", "adapters", "classifier"))
    facts.append(("forward", f"{forward['total'] / 1e9:.2f} GFLOP per second of audio: {parts}"))
    facts.append(("training", f"{result.training_step / 1e9:.2f} GFLOP per second of audio, forward and backward"))
    clips = f"{setting['batch_size']} clips of {setting['seconds']:g} s, {setting['precision']}"
    facts.append(("activations", f"{result.saved_bytes / 2**20:,.0f} MiB saved for the backward pass: {clips}"))
    facts.append(("exported model", f"{result.kept_bytes / 1e6:,.1f} MB"))
    facts.append(("checkpoint", f"{result.checkpoint_bytes / 1e6:,.1f} MB with optimiser"))
    print_table(TextTable("", ("", ""), [(name, printable(text)) for name, text in facts], 2))
    print_line("FLOP: of products and convolutions; Fourier transforms and the like are left out")
    if left_out:
        print_line(f"a step of the plain loss, without {' and '.join(left_out)}")

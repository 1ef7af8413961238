"""The plan of a training run: a few of its steps are measured."""

import json
import os
import statistics
import sys
import tempfile
import warnings
from argparse import Namespace as Arguments
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelSummary, ProgressBar, Timer
from lightning.pytorch.loggers.logger import DummyLogger
from rich.console import Console

from moelora_ad.adapters import AdapterError
from moelora_ad.cli.arguments import FAILED
from moelora_ad.cli.lightning_cli.detection_command import SILENCED, DetectionCommand
from moelora_ad.cli.lightning_cli.planning import Plan, plan_of
from moelora_ad.configuration.parser import OneLineParser
from moelora_ad.errors import InputError, counted
from moelora_ad.models.accounting.memory import checkpoint_bytes
from moelora_ad.runs.record import DEV
from moelora_ad.training.callbacks.end_summary import line, trainable
from moelora_ad.training.callbacks.measuring import Measured, Seconds, StepTimer
from moelora_ad.training.callbacks.progress import callbacks_of, duration, silence_banners
from moelora_ad.training.callbacks.start_summary import batch, devices
from moelora_ad.training.interruptions.signals import explain_interruptions

WARM_UP = 3  # steps in which memory is allocated and kernels are chosen
EVALUATION_BATCHES = 4
NEVER = 2**31


class _Parser(OneLineParser):
    """Reads the configuration of fit, and reports a mistake in it under this command's name."""

    more_options = ("steps", "format", "allow")

    def exit(self, status: int = 0, message: str | None = None) -> Any:
        super().exit(status, message and message.replace(" fit: error:", " plan: error:", 1))


class _Planned(DetectionCommand):
    """Builds what fit builds, except what writes to disk, and runs nothing yet.

    Args:
        num_steps: number of steps to measure.
        arguments: the arguments of fit, without the command.
        allow: packages besides ours whose classes may be built.
    """

    def __init__(self, num_steps: int, arguments: list[str], allow: Collection[str]) -> None:
        self.num_steps = num_steps
        self.allow = allow
        super().__init__(parser_class=_Parser, args=["fit", *arguments])

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        self.given.trainer.logger = False  # some loggers need an account, some create a folder

    def instantiate_trainer(self, **changes: Any) -> Trainer:
        self.wanted = config = {**self.config_init[self.verb].trainer, **changes}
        # The batches that workers read ahead at first would hide that the workers are too slow.
        ahead = -(-2 * self.datamodule.num_workers // config.get("accumulate_grad_batches", 1))
        self.timer = StepTimer(max(WARM_UP, ahead))
        leave_out = (Checkpoint, EarlyStopping, ProgressBar, ModelSummary, Timer)
        self.scratch = tempfile.TemporaryDirectory(prefix="moelora_ad_plan_")  # for files of callbacks and profilers
        ours = {
            "callbacks": [*(c for c in callbacks_of(config) if not isinstance(c, leave_out)), self.timer],
            "default_root_dir": self.scratch.name,
            "logger": DummyLogger(),
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "fast_dev_run": False,
            "num_sanity_val_steps": EVALUATION_BATCHES + 1,
            "val_check_interval": None,
            "check_val_every_n_epoch": NEVER,
            "min_epochs": None,
            "max_epochs": -1,
            "min_steps": None,
            "max_steps": self.timer.warm_up + self.num_steps,
            "max_time": None,
        }
        self.verb_parser.callback_keys.clear()  # the callbacks that save checkpoints and stop early
        return super().instantiate_trainer(**ours)

    def fit(self, **_: Any) -> None:
        """Train nothing yet: see `_measure`."""


def plan_run(arguments: list[str], own: Arguments, program: str) -> int:
    """Print the plan of a run; returns the exit code.

    Args:
        arguments: the arguments of fit.
        own: the options of plan itself.
        program: name of the program and the command, for error messages.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    silence_banners()
    command = None
    try:
        with warnings.catch_warnings():
            for message in SILENCED:
                warnings.filterwarnings("ignore", message=message)
            command = _Planned(own.steps, arguments, own.allow)
            return _planned(command, own)
    except (InputError, AdapterError, MisconfigurationException) as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    finally:
        if command is not None:
            command.scratch.cleanup()


def _planned(command: _Planned, own: Arguments) -> int:
    trainer, model, data = command.trainer, command.model, command.datamodule
    tested = command.given.test_after_fit
    test_sizes = {name: len(data.trials_by_set[name]) for name in data.test} if tested else None
    size_on_disk = checkpoint_bytes(model.detector, model.optimizer)
    measured = _measure(command)
    if measured is None:
        return 0
    plan = plan_of(measured, trainer, data, command.wanted, test_sizes, size_on_disk)
    if own.format == "json":
        print(json.dumps(asdict(plan), indent=2))
    else:
        _print(command, plan, trainable(model.parameter_counts))
    return 0


def _measure(command: _Planned) -> Measured | None:
    """Train for a few steps and return what was measured; None in all processes but the first.

    Raises:
        InputError: a batch does not fit into memory, or nothing could be measured.
    """
    trainer, data, timer = command.trainer, command.datamodule, command.timer
    command.model.schedule = None  # a schedule takes no time, and may need figures that are missing
    console = Console(stderr=True, quiet=not trainer.is_global_zero)
    with console.status("reading the protocols") as status:
        timer.tell = status.update
        with explain_interruptions(trainer, data):
            trainer.fit(command.model, datamodule=data)
    if trainer.is_global_zero and timer.measured is None:
        raise InputError(f"trainer.strategy {command.wanted.get('strategy')} cannot be measured here: give ddp to plan")
    if timer.measured is not None and not timer.measured.evaluation:
        raise InputError("no batch of dev to measure: leave out trainer.limit_val_batches")
    return timer.measured


def _print(command: _Planned, plan: Plan, trainable_parameters: str) -> None:
    trainer, measured, seconds = command.trainer, plan.measured, plan.seconds
    console = Console(soft_wrap=True)
    line(console, "batch", batch(trainer, command.datamodule))
    line(console, "on", devices(trainer))
    line(console, "trainable parameters", trainable_parameters)
    step = statistics.median(measured.steps)
    spread = f"{duration(min(measured.steps))} to {duration(max(measured.steps))}"
    share = f"{100 * plan.data_wait_share:.0f} % of the time waiting for data"
    line(console, "step", f"{duration(step)}, median of {len(measured.steps)} ({spread}); {share}")
    line(console, "epoch", f"{_seconds(seconds['train_epoch'])}: {_count(plan.steps['per_epoch'], 'step')}")
    line(console, "validation", f"{_seconds(seconds['validation'])}: {_count(plan.batches[DEV], 'batch')}")
    for name, estimate in seconds["test"].items():
        line(
            console,
            f"test {name}",
            f"{_seconds(estimate)}: {_count(plan.batches['test'][name], 'batch')}, at dev's pace",
        )
    if seconds["run"] is None:
        line(console, "whole run", "no end: give trainer.max_epochs")
    else:
        counts = (plan.epochs, "epoch"), (plan.steps["total"], "step"), (plan.validations, "validation")
        what = ", ".join(_count(number, name) for number, name in counts)
        tests = ", test" if seconds["test"] else ""
        line(console, "whole run", f"{_seconds(seconds['run'])}: {what}{tests}; less if it stops early")
    line(console, "memory", _memory(measured.peak_memory_bytes, plan.setting))
    line(console, "checkpoint", f"{plan.checkpoint_bytes / 1e6:,.2f} MB with optimiser")
    for hint in plan.hints:
        line(console, "hint", hint)


def _seconds(estimate: dict[str, float]) -> str:
    seconds = Seconds(**estimate)
    return f"{duration(seconds.expected)} ({duration(seconds.low)} to {duration(seconds.high)})"


def _count(number: int | None, name: str) -> str:
    return counted(number or 0, name, "batches" if name == "batch" else "")


def _memory(peak: dict[str, int | None], setting: dict[str, Any]) -> str:
    parts = []
    if peak["cuda"] is not None:
        parts.append(f"{peak['cuda'] / 2**30:.2f} GiB of the GPU's")
    if peak["host"] is not None:
        without = f", without its {_count(setting['num_workers'], 'reader')}" if setting["num_workers"] else ""
        parts.append(f"{peak['host'] / 2**30:.2f} GiB of the machine's{without}")
    each = ", for each process" if setting["processes"] > 1 else ""
    return f"at most {' and '.join(parts) or 'unknown'}{each}"

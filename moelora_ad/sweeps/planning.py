"""The runs of a sweep, and the command line of each."""

import fnmatch
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moelora_ad.configuration.packaged import configuration_file
from moelora_ad.documents import read_yaml
from moelora_ad.errors import InputError
from moelora_ad.runs.held_out import name_without
from moelora_ad.sweeps.held_out import attacks_of_training
from moelora_ad.sweeps.sweep import Sweep

_HELD_OUT_OPTION = "data.held_out_attack"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        system: name of the system.
        seed: seed of all random numbers.
        folder: folder of the run.
        configs: configuration files of fit.
        options: options of fit, which override those of the files.
        environment: environment variables of the process.
        wandb: arguments of a ``WandbLogger``; None for no such logger.
    """

    system: str
    seed: int
    folder: Path
    configs: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    wandb: Mapping[str, Any] | None = None

    @property
    def label(self) -> str:
        return f"{self.system}/{self.folder.name}"

    def arguments(self, checkpoint: Path | None = None) -> list[str]:
        """Return the command line of fit.

        Args:
            checkpoint: checkpoint to resume from; None to start from scratch.
        """
        configs = [word for path in self.configs for word in ("--config", path)]
        options = [f"--{name}={option_text(value)}" for name, value in self.options.items()]
        return [
            "fit",
            *configs,
            "--seed_everything",
            str(self.seed),
            "--system",
            self.system,
            *options,
            f"--trainer.default_root_dir={self.folder}",
            f"--trainer.logger={json.dumps(self._loggers())}",
            *([f"--ckpt_path={checkpoint}"] if checkpoint is not None else []),
        ]

    def _loggers(self) -> list[dict[str, Any]]:
        above = str(self.folder.parent.parent)
        place = {"save_dir": above, "name": self.system, "version": self.folder.name}
        loggers = [{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": place}]
        if self.wandb is not None:
            group = {"save_dir": str(self.folder), "group": self.system, "name": self.label.replace("/", "-")}
            arguments = {**self.wandb, **group}
            loggers.append({"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": arguments})
        return loggers

    def identity(self) -> dict[str, Any]:
        """Return what the figures of the run depend on; a finished run with another identity is a different run.

        Raises:
            InputError: a configuration file cannot be read.
        """
        return {
            "system": self.system,
            "seed": self.seed,
            "configs": {path: _digest(path) for path in self.configs},
            "options": {name: option_text(value) for name, value in self.options.items()},
        }


def plan_runs(sweep: Sweep) -> list[PlannedRun]:
    """Return every run of the sweep, seed by seed, so that all systems have results early.

    Raises:
        InputError: two systems have the same name, a name is not valid for a folder, or the attacks to hold out are set
            twice or cannot be read.
    """
    systems: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {}
    names = _short_names(sweep.grid)
    grid = itertools.product(*sweep.grid.values())
    for (name, system), values, attack in itertools.product(sweep.systems.items(), grid, _held_out(sweep)):
        chosen = dict(zip(sweep.grid, values, strict=True))
        full = "-".join([name, *(f"{names[option]}={option_text(value)}" for option, value in chosen.items())])
        if attack is not None:
            full, chosen = name_without(full, attack), {**chosen, _HELD_OUT_OPTION: attack}
        if not re.fullmatch(r"[\w.+=,-]{1,200}", full, re.ASCII):
            raise InputError.at(sweep.path, f"grid: {full} is not a valid folder name: list such values as systems")
        if full.lower() in map(str.lower, systems):
            raise InputError.at(sweep.path, f"two systems would be named {full}")
        systems[full] = ((*sweep.configs, *system.configs), _merged(sweep.options, system.options, chosen))
    return [
        PlannedRun(name, seed, sweep.folder / name / f"seed_{seed}", configs, options, sweep.environment, sweep.wandb)
        for seed in sweep.seeds
        for name, (configs, options) in systems.items()
    ]


def _merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Options of which later ones replace earlier ones, each in the place of the last: before its class, an argument
    would go to another class, and be dropped with it."""
    found: dict[str, Any] = {}
    for name, value in itertools.chain.from_iterable(layer.items() for layer in layers):
        found.pop(name, None)
        found[name] = value
    return found


def _held_out(sweep: Sweep) -> tuple[str, ...] | tuple[None]:
    """The attacks that are held out in turn; a single None for a sweep that holds none out."""
    if sweep.leave_one_out is None:
        return (None,)
    for options in (sweep.grid, sweep.options, *(system.options for system in sweep.systems.values())):
        if _HELD_OUT_OPTION in options:
            raise InputError.at(sweep.path, f"{_HELD_OUT_OPTION} is set, and leave_one_out sets it itself")
    if sweep.leave_one_out:
        return sweep.leave_one_out
    return attacks_of_training(sweep, {name: option_text(value) for name, value in sweep.options.items()})


def choose(runs: Iterable[PlannedRun], patterns: Iterable[str]) -> list[PlannedRun]:
    """Return the runs whose ``SYSTEM/seed_S`` or ``SYSTEM`` matches one of the patterns (``*``, ``?``, ``[...]``).

    Raises:
        InputError: a pattern matches no run.
    """
    runs, found = list(runs), set()
    for pattern in patterns:
        matching = {
            run.label for run in runs if any(fnmatch.fnmatchcase(name, pattern) for name in (run.label, run.system))
        }
        if not matching:
            some = ", ".join(run.label for run in runs[:3])
            raise InputError(f"no run of the sweep matches {pattern!r}; its runs are {some}, ...")
        found |= matching
    return [run for run in runs if run.label in found]


def option_text(value: Any) -> str:
    """A value as written on a command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _short_names(options: Iterable[str]) -> dict[str, str]:
    """Return the last part of each dotted name; the whole name where several have the same last part."""
    last = {option: option.rpartition(".")[2] for option in options}
    return {option: name if list(last.values()).count(name) == 1 else option for option, name in last.items()}


def _digest(path: str) -> str:
    """Return a hash of the content of a file that does not depend on comments and layout."""
    try:
        content = read_yaml(configuration_file(path))
    except OSError as error:
        raise InputError.at(path, f"cannot be read: {error.strerror}") from None
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

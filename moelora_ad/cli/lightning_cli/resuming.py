"""The folder of a run: a run that is resumed continues in its own one."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer

from moelora_ad.configuration.files import part_of, read_configuration
from moelora_ad.data.trainer_state import is_fast_dev_run, run_directory
from moelora_ad.runs.checkpoints import run_to_continue
from moelora_ad.runs.folder import shown


def expand_home(given: Namespace) -> None:
    """Replace ``~`` in the folders that a command writes to: parts of Lightning take it for the home folder, and others
    for a folder of that name."""
    loggers = given.trainer.logger if isinstance(given.trainer.logger, list) else [given.trainer.logger]
    places = [one.init_args for one in loggers if isinstance(one, Namespace) and "init_args" in one]
    for place, name in (*((place, "save_dir") for place in places), (given, "score_folder")):
        if place.get(name):
            place[name] = os.path.expanduser(place[name])


def has_own_checkpoints(trainer: Namespace) -> bool:
    """Whether checkpoints may be of a form that only a plugin or a strategy of the user's own knows.

    Args:
        trainer: the trainer of a configuration.
    """
    plugins = trainer.plugins if isinstance(trainer.plugins, list) else [trainer.plugins]
    parts = [part for part in (*plugins, trainer.strategy) if isinstance(part, Namespace)]
    return any(not part.class_path.startswith("lightning.") or part.get("init_args.checkpoint_io") for part in parts)


@contextmanager
def in_its_folder(given: Namespace, trains: bool) -> Iterator[None]:
    """Let the loggers that are built within the block write into the folder of the run that is resumed: where their
    configuration names the folder above it and no version; and wherever it leads, if it is unchanged in the run's own
    ``config.yaml``: the run may have been moved, or the current folder may be another one. The configuration, which the
    run saves, stays as it is.

    Args:
        given: the configuration of a command.
        trains: whether the command is ``fit``; others only read the run.
    """
    folder, trainer = run_to_continue(given.ckpt_path if trains else None), given.trainer
    before = trainer.logger, trainer.default_root_dir
    if folder is not None:
        _lead_into(folder, trainer, _is_its_own(folder, given))
    try:
        yield
    finally:
        trainer.logger, trainer.default_root_dir = before


def _is_its_own(folder: Path, given: Namespace) -> bool:
    """Whether the loggers are those of the run's own configuration, which is among those of the command."""
    path = folder / "config.yaml"
    if path.resolve() not in [Path(one.absolute).resolve() for one in given.config or []]:
        return False
    return bool(part_of(read_configuration(path), "trainer", path).get("logger") == _plain(given.trainer.logger))


def _plain(logger: Any) -> Any:
    if isinstance(logger, list):
        return [_plain(one) for one in logger]
    return logger.as_dict() if isinstance(logger, Namespace) else logger


def _lead_into(folder: Path, trainer: Namespace, is_its_own: bool) -> None:
    logger = trainer.logger
    if isinstance(logger, list):
        trainer.logger = [_led(one, folder, is_its_own and at == 0) for at, one in enumerate(logger)]
    elif isinstance(logger, Namespace):
        trainer.logger = _led(logger, folder, is_its_own)
    elif is_its_own and logger is False:
        trainer.default_root_dir = str(folder)
    elif is_its_own:  # Lightning's default
        kind = "TensorBoardLogger" if any(folder.glob("events.out.tfevents.*")) else "CSVLogger"
        place = Namespace(save_dir=str(folder.parents[1]), name=folder.parent.name, version=folder.name)
        trainer.logger = Namespace(class_path=f"lightning.pytorch.loggers.{kind}", init_args=place)


def _led(logger: Any, folder: Path, is_its_own: bool) -> Any:
    place = logger.get("init_args") if isinstance(logger, Namespace) else None
    if place is None or not place.get("save_dir") or "version" not in place:
        return logger
    name, version = Path(str(place.get("name") or "")), place.version
    version_name = f"version_{version}" if isinstance(version, int) else version  # as Lightning names the folder
    above, led = Path(*folder.parts[: -1 - len(name.parts)]), logger.clone()
    if version is None and os.path.abspath(Path(place.save_dir, name)) == str(folder.parent):
        led.init_args.version = folder.name
    elif "project" in place:  # Weights & Biases names the folder after it
        return logger
    elif is_its_own and above / name == folder.parent and version_name in (None, folder.name):
        led.init_args.save_dir, led.init_args.version = str(above), folder.name
    return led


def note_other_folder(trainer: Trainer, checkpoint: str | None) -> None:
    """Say so if a fit does not continue a run in that run's folder."""
    folder, continued = run_directory(trainer), run_to_continue(checkpoint)
    if not trainer.is_global_zero or is_fast_dev_run(trainer):
        return
    if continued is not None and str(continued) != os.path.abspath(folder):
        print(
            f"note: this continues {shown(continued)} in another folder, {shown(folder)}: the best checkpoint is "
            "chosen among the epochs that come",
            file=sys.stderr,
        )

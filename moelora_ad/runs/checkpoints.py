"""Which checkpoint a command means: a file, or the best or the last one of the run of its configuration."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moelora_ad.errors import InputError
from moelora_ad.runs.folder import shown
from moelora_ad.runs.record import RECORD, read_record

BEST, LAST = "best", "last"
_FOLDER = "checkpoints"
_NAMED = 3  # checkpoints of a folder that a message names


class CheckpointError(InputError):
    """A checkpoint that is not given, missing, or cannot be read."""


def run_of(configs: Iterable[str | os.PathLike[str]], logger: Mapping[str, Any] | None = None) -> Path | None:
    """Return the folder of the run that a command line belongs to; None if there is no such run.

    Args:
        configs: configuration files of the command line; ``RUN/config.yaml`` belongs to ``RUN``, and the last one in
            the folder of a run decides.
        logger: the trainer's first logger as configured; if it writes files and has a given version, these name the
            folder of the run.
    """
    folders = [Path(config).absolute().parent for config in configs if Path(config).name == "config.yaml"]
    named = _folder_of(logger)
    for folder in [*reversed(folders), *([] if named is None else [named])]:
        if (folder / RECORD).is_file() or (folder / _FOLDER).is_dir():
            return folder
    return None


def _folder_of(logger: Mapping[str, Any] | None) -> Path | None:
    arguments = None if logger is None else logger.get("init_args")
    if not isinstance(arguments, Mapping) or arguments.get("version") is None or not arguments.get("save_dir"):
        return None
    version = arguments["version"]
    name = f"version_{version}" if isinstance(version, int) else str(version)
    return Path(arguments["save_dir"], str(arguments.get("name") or ""), name)


def checkpoint_of(run: Path | None, which: str, verb: str) -> str:
    """Return the path of the best or the last checkpoint of a run.

    Args:
        run: folder of the run; None if there is no run.
        which: "best" or "last".
        verb: name of the command, for the message.

    Raises:
        CheckpointError: there is no run, or it has no such checkpoint.
    """
    if run is None:
        raise CheckpointError(
            f"--ckpt_path {which}: the configuration is not that of a run; give --config RUN/config.yaml, or the path "
            f"of a checkpoint{'' if verb != 'fit' else ' (leave it out to start from scratch)'}"
        )
    found = {BEST: _best(run), LAST: _last(run)}
    path = found[which]
    if path is None:
        raise CheckpointError(
            f"--ckpt_path {which}: the run {shown(run)} has no {which} checkpoint in its folder {_FOLDER}"
            f"{_offer(found) if verb != 'fit' else '; leave --ckpt_path out to start from scratch'}"
        )
    return str(path)


def run_to_continue(checkpoint: str | None) -> Path | None:
    """Return the absolute folder of the run that continues from a checkpoint, one that the run has saved for this:
    ``last.ckpt``, ``last-interrupted.ckpt`` and the like. None for other checkpoints, from which another run branches.
    """
    if checkpoint is None or not Path(checkpoint).name.startswith(LAST):
        return None
    above = Path(os.path.abspath(checkpoint)).parent
    return above.parent if above.name == _FOLDER and (above.parent / RECORD).is_file() else None


def best_checkpoint(run: Path) -> Path:
    """Return the best checkpoint of a run by its record; if that names none, the only one in the run's folder.

    Raises:
        CheckpointError: the record names none, and the folder has none or several, not counting the last ones.
    """
    if (run / RECORD).is_file():
        found = read_record(run).checkpoint_path
        if found is not None:
            return found
    kept = sorted(path for path in (run / _FOLDER).glob("*.ckpt") if not path.name.startswith(LAST))
    if len(kept) != 1:
        raise CheckpointError(f"{run}: {len(kept) or 'no'} checkpoints to choose from in {run / _FOLDER}")
    return kept[0]


def no_checkpoint(folder: Path, option: str) -> CheckpointError:
    """Return the error for a folder that is given as a checkpoint and is none; it names those that are in it.

    Args:
        folder: the folder, for instance that of a run or its ``checkpoints``.
        option: the option that gave it.
    """
    try:
        best = _best(folder)
    except InputError:  # the record is damaged
        best = None
    places = (f"{place}*.ckpt" for place in ("", f"{_FOLDER}/", f"*/{_FOLDER}/"))  # also a folder of several runs
    inside = [path for place in places for path in sorted(folder.glob(place), reverse=True)]  # "last" comes first
    found = [str(path) for path in dict.fromkeys([best, *inside] if best else inside)]
    more = f" and {len(found) - _NAMED:,} more" if len(found) > _NAMED else ""
    told = f"its checkpoints: {', '.join(found[:_NAMED])}{more}" if found else "give a file, RUN/checkpoints/NAME.ckpt"
    return CheckpointError(f"{option}: {folder} is a folder, and neither a checkpoint's file nor a model; {told}")


def missing(run: Path | None, verb: str) -> CheckpointError:
    """Return the error of a command that evaluates a model and was given no checkpoint; it names those of the run."""
    found = {} if run is None else {BEST: _best(run), LAST: _last(run)}
    offer = _offer(found) or "; the configuration is not that of a run with checkpoints (RUN/checkpoints/NAME.ckpt)"
    return CheckpointError(
        f"{verb} needs --ckpt_path, the checkpoint to evaluate{offer}; --untrained true evaluates untrained weights"
    )


def _offer(found: Mapping[str, Path | None]) -> str:
    told = [f"{which} of this run: {shown(path)}" for which, path in found.items() if path is not None]
    return f"; {', '.join(told)}" if told else ""


def _best(run: Path) -> Path | None:
    if not (run / RECORD).is_file():
        return None
    path = read_record(run).checkpoint_path
    return path if path is not None and path.exists() else None


def _last(run: Path) -> Path | None:
    """The newest of Lightning's ``last.ckpt``, ``last-v1.ckpt`` and so on."""
    return max((run / _FOLDER).glob(f"{LAST}*.ckpt"), key=lambda path: path.stat().st_mtime, default=None)

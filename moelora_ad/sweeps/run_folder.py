"""What a sweep stores in the folder of a run, besides what fit writes there: ``sweep.json``, a lock, outputs."""

import fcntl
import json
import os
import time
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moelora_ad.documents import read_json
from moelora_ad.errors import InputError
from moelora_ad.files import written_whole

NOTES = "sweep.json"
_LOCK = "sweep.lock"
_FORMAT = 1
_PATIENCE = 1.0  # seconds to wait for a lock: a process that only checks it holds it for an instant


@dataclass(frozen=True)
class Notes:
    """What a sweep records of a run and its last attempt.

    Attributes:
        identity: identity of the run (see `PlannedRun.identity`).
        attempts: how often fit was started.
        exit_code: exit code of the last attempt; negative: killed by that signal; None: its end was not observed.
        reason: the last line that the attempt printed, if it failed.
        wandb_run: id of the run at Weights & Biases, which all attempts share.
    """

    identity: dict[str, Any]
    attempts: int = 0
    exit_code: int | None = None
    reason: str | None = None
    wandb_run: str | None = None


def read_notes(folder: Path) -> Notes | None:
    """Read the notes in a run's folder; None if no sweep has started the run.

    Raises:
        InputError: the notes are damaged.
    """
    path = folder / NOTES
    try:
        content = read_json(path)
        if content.pop("format") != _FORMAT:
            raise ValueError
        notes = Notes(**content)
        _check(notes)
        return notes
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError.at(path, f"is damaged; move or delete {folder} to run it from scratch") from None


def _check(notes: Notes) -> None:
    """Raise `TypeError` if a field has the wrong type."""
    identity, text = notes.identity, (str, type(None))
    right = isinstance(identity, dict) and all(isinstance(identity[name], dict) for name in ("configs", "options"))
    right &= isinstance(notes.attempts, int) and isinstance(notes.exit_code, (int, type(None)))
    if not (right and isinstance(notes.reason, text) and isinstance(notes.wandb_run, text)):
        raise TypeError


def write_notes(folder: Path, notes: Notes) -> None:
    with written_whole(folder / NOTES) as path:
        path.write_text(json.dumps({"format": _FORMAT} | asdict(notes), indent=2) + "\n", encoding="utf-8")


def take_lock(folder: Path) -> int | None:
    """Lock the run for as long as the returned file descriptor, or a process that inherited it, is open.

    A run whose sweep was killed thus counts as running until its own process ends.

    Returns:
        The file descriptor; None if the run is already locked.

    Raises:
        InputError: the file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    until = time.monotonic() + _PATIENCE
    while not _locked(descriptor, fcntl.LOCK_EX, folder):
        if time.monotonic() > until:
            os.close(descriptor)
            return None
        time.sleep(0.05)
    return descriptor


def is_running(folder: Path) -> bool:
    """Whether the run is running now, on this machine or on one that shares the file system and its locks."""
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _locked(descriptor, fcntl.LOCK_SH, folder)
    finally:
        os.close(descriptor)


def _locked(descriptor: int, kind: int, folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise InputError.at(folder, f"cannot be locked: {error.strerror}; use another file system") from None
    return True


def resumable(folder: Path) -> Path | None:
    """Return the newest complete checkpoint to resume from: the last one, or the one that Lightning saves before SLURM
    ends or requeues a job; None if there is none."""
    found = [*folder.glob("checkpoints/last*.ckpt"), *folder.glob("hpc_ckpt_*.ckpt")]
    return max(filter(_is_whole, found), key=lambda path: path.stat().st_mtime, default=None)


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is complete: a file has its zip directory at its end, and the index of a sharded checkpoint
    is written last."""
    try:
        return (checkpoint / ".metadata").is_file() if checkpoint.is_dir() else zipfile.is_zipfile(checkpoint)
    except zipfile.BadZipFile:
        return False


def output_path(folder: Path, attempt: int) -> Path:
    """Return the path of the file with an attempt's output."""
    return folder / f"output-{attempt}.log"

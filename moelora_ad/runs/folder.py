"""The folder of a run: whether it is free, and its path in messages."""

import os
from pathlib import Path

from moelora_ad.errors import InputError
from moelora_ad.runs.record import RECORD, read_record


def check_free(folder: Path, resumes: bool, config: bytes) -> None:
    """Check that a run may use a folder: that it overwrites no files of another run or of the user there.

    Args:
        folder: folder of the run.
        resumes: whether the run resumes from a checkpoint.
        config: the run's ``config.yaml`` as it is about to be saved; the folder may have the same file, left by a run
            that was killed before it saved more.

    Raises:
        InputError: the run may not use the folder.
    """
    is_run = (folder / RECORD).is_file()
    if is_run and not resumes and read_record(folder).state == "finished":
        problem = "has a finished run"
    elif not is_run and (folder / "config.yaml").exists() and (folder / "config.yaml").read_bytes() != config:
        problem = "has a config.yaml that is not of a run, and would be overwritten"
    else:
        return
    raise InputError(
        f"{shown(folder)} {problem}: give the run another folder by its logger, or without one by "
        "trainer.default_root_dir; --ckpt_path resumes a run"
    )


def keep_metrics(folder: Path, attempt: int) -> None:
    """Rename ``metrics.csv`` of an earlier attempt, which Lightning's ``CSVLogger`` would delete."""
    metrics = folder / "metrics.csv"
    if metrics.exists():
        metrics.rename(folder / f"metrics-{attempt}.csv")


def restore_metrics(folder: Path, attempt: int) -> None:
    """Undo `keep_metrics`."""
    kept = folder / f"metrics-{attempt}.csv"
    if kept.exists():
        kept.replace(folder / "metrics.csv")


def shown(path: str | Path) -> str:
    """Return a path relative to the current folder, or the absolute path if it is not below it."""
    relative = os.path.relpath(path)
    return str(Path(path).resolve()) if relative.startswith("..") else relative

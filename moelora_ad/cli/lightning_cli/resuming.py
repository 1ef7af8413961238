"""A run that is resumed continues in its own folder."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch import Trainer

from moelora_ad.data.trainer_state import is_fast_dev_run, run_directory
from moelora_ad.runs.checkpoints import run_to_continue
from moelora_ad.runs.folder import shown


@contextmanager
def in_its_folder(given: Namespace, trains: bool) -> Iterator[None]:
    """Let the loggers that are built within the block write into the folder of the run that is resumed, where their
    configuration names the folder above it and no version. The configuration, which the run saves, stays as it is.

    Args:
        given: the configuration of a command.
        trains: whether the command is ``fit``; others only read the run.
    """
    folder, loggers, named = run_to_continue(given.ckpt_path if trains else None), given.trainer.logger, []
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        place = logger.get("init_args") if isinstance(logger, Namespace) else None
        if folder is None or place is None or place.get("version", "") is not None or not place.get("save_dir"):
            continue
        if Path(place.save_dir, str(place.get("name") or "")).absolute() == folder.parent:
            place.version = folder.name
            named.append(place)
    try:
        yield
    finally:
        for place in named:
            place.version = None


def note_other_folder(trainer: Trainer, checkpoint: str | None) -> None:
    """Say so if a fit does not continue a run in that run's folder."""
    folder, continued = run_directory(trainer), run_to_continue(checkpoint)
    if not trainer.is_global_zero or is_fast_dev_run(trainer):
        return
    if continued is not None and continued != folder.absolute():
        print(
            f"note: this continues {shown(continued)} in another folder, {shown(folder)}: the best checkpoint is "
            "chosen among the epochs that come",
            file=sys.stderr,
        )

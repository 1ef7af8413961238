"""Where a run keeps what it makes."""

from pathlib import Path

from lightning.pytorch import Trainer


def is_fast_dev_run(trainer: Trainer) -> bool:
    """Whether the trainer only tries one batch of everything (it declares the attribute at run time)."""
    return bool(getattr(trainer, "fast_dev_run", False))


def run_directory(trainer: Trainer) -> Path:
    """The folder of this run, whatever the logger: checkpoints, scores and configuration lie below it.

    The same folder that Lightning's ``ModelCheckpoint`` chooses: the first logger's folder, name and version.
    """
    if not trainer.loggers:
        return Path(trainer.default_root_dir)
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version


def score_folder(trainer: Trainer) -> Path:
    """Where a run's score files go."""
    return run_directory(trainer) / "scores"

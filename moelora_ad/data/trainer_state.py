"""What a trainer knows of its run: where it stores its output, and how much of its data it uses."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from moelora_ad.runs.record import RECORD, RunRecord, read_record

UNTRAINED = "untrained"


def trainer_of(module: LightningModule) -> Trainer | None:
    """The trainer that a module is attached to, if any; Fabric's replacement of one is ignored."""
    try:
        return module.trainer if module.fabric is None else None
    except RuntimeError:
        return None


def is_fast_dev_run(trainer: Trainer) -> bool:
    """Whether the trainer only tries one batch of everything (it declares the attribute at run time)."""
    return bool(getattr(trainer, "fast_dev_run", False))


def is_limited(trainer: Trainer) -> bool:
    """Whether the trainer is set to evaluate only a part of the batches."""
    limits = {"test": trainer.limit_test_batches, "predict": trainer.limit_predict_batches}
    limit = limits.get(str(trainer.state.fn and trainer.state.fn.value), trainer.limit_val_batches)
    whole = limit == 1.0 and isinstance(limit, float)
    return not whole or trainer.sanity_checking or is_fast_dev_run(trainer)


def shards_the_model(trainer: Trainer) -> bool:
    """Whether parameters are sharded over several processes after fit; then this process cannot test another
    checkpoint."""
    return isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy)


def run_directory(trainer: Trainer) -> Path:
    """The folder of this run, whatever the logger: it has the checkpoints, scores and configuration.

    It is the folder that Lightning's ``ModelCheckpoint`` chooses: the first logger's folder, name and version.
    """
    if not trainer.loggers:
        return Path(trainer.default_root_dir)
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version


@contextmanager
def no_empty_folder(trainer: Trainer) -> Iterator[None]:
    """Remove the folder that a logger makes for this run, if nothing has been written into it by the block's end."""
    folder = run_directory(trainer)
    made = list(itertools.takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    try:
        yield
    finally:
        if trainer.is_global_zero:
            with suppress(OSError):  # it is not empty, or missing
                for path in made:
                    path.rmdir()


def training_folder(trainer: Trainer) -> Path:
    """The folder where training lists what it could not read, and of scores without a checkpoint."""
    return run_directory(trainer) / "scores"


def score_folder(trainer: Trainer) -> Path:
    """The folder of score files: the module's ``score_folder`` if it is set; for the checkpoint
    ``RUN/checkpoints/NAME.ckpt``, wherever it is tested, ``RUN/scores/NAME``, so that the same command reuses what
    it has computed; without a checkpoint, below the folder of this run, with a folder of its own for untrained weights.
    """
    chosen: Path | None = getattr(trainer.lightning_module, "score_folder", None)
    if chosen is not None:
        return chosen
    checkpoint = trainer.ckpt_path
    if checkpoint is None:
        untrained = getattr(trainer.lightning_module, "untrained", False)
        return training_folder(trainer) / UNTRAINED if untrained else training_folder(trainer)
    name = Path(checkpoint).name.removesuffix(".ckpt")
    if "://" in str(checkpoint):
        return run_directory(trainer) / "scores" / name
    above = Path(checkpoint).parent
    return (above.parent if above.name == "checkpoints" else above) / "scores" / name


def other_score_folder(trainer: Trainer) -> Path:
    """The folder of the scores of sets that the run is not configured with: ``RUN/other_scores/NAME``; the module's
    ``score_folder`` if it is set."""
    folder = score_folder(trainer)
    chosen = getattr(trainer.lightning_module, "score_folder", None) is not None
    return folder if chosen else folder.parent.parent / "other_scores" / folder.name


def set_folder(trainer: Trainer, name: str) -> Path:
    """The folder of an evaluated set's scores."""
    kept = trainer.datamodule.kept.get(name)  # type: ignore[attr-defined]
    return score_folder(trainer) if kept is None else kept.path.parent


def record_of_checkpoint(trainer: Trainer) -> RunRecord | None:
    """The record of the run that the evaluated checkpoint ``RUN/checkpoints/NAME.ckpt`` belongs to, if it has one."""
    checkpoint = trainer.ckpt_path
    if checkpoint is None or "://" in str(checkpoint):
        return None
    run = Path(checkpoint).absolute().parent.parent
    return read_record(run) if (run / RECORD).is_file() else None

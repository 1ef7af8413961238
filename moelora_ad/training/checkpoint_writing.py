"""Checkpoints that are complete or absent, even if a run is killed or a disk is full."""

import io
import os
from pathlib import Path
from typing import Any

import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, Strategy

from moelora_ad.errors import InputError
from moelora_ad.files import UNFINISHED, remove_abandoned, written_whole
from moelora_ad.lightning_internals import last_path, saves_shards
from moelora_ad.models.saving.checkpoints import check_readable, checkpoint_of_model
from moelora_ad.models.saving.files import CONFIG
from moelora_ad.runs.checkpoints import CheckpointError


class UnwrittenCheckpointError(InputError):
    """A checkpoint could not be written; earlier checkpoints are unchanged."""


class WholeCheckpointIO(TorchCheckpointIO):
    """A plugin of Lightning for checkpoints in one file. It writes a local file under a temporary name in the same
    folder, flushes it and renames it: a run that is killed while it saves leaves the old checkpoint or the new one.

    Lightning's own plugin writes to the system's folder for temporary files, and copies from there if that is on
    another file system: it needs room there, and ``kill -9`` in the middle leaves half a file. ``fit`` installs this
    plugin; in Python: ``Trainer(plugins=[WholeCheckpointIO()])``. Checkpoints in a remote storage, and those that a
    strategy writes as a folder of shards, are written as Lightning does it; so are those of its ``AsyncCheckpointIO``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint, and delete unfinished checkpoints that killed processes left in the same folder.

        Raises:
            UnwrittenCheckpointError: there is no room, or the folder cannot be written to.
        """
        system, local = url_to_fs(str(path))
        if storage_options is not None or not isinstance(system, LocalFileSystem):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(local)
        content = io.BytesIO()  # torch.save into a file does not raise OSError for a full disk
        torch.save(checkpoint, content)
        try:
            remove_abandoned(target.parent, f"{UNFINISHED}*.ckpt.tmp")
            with written_whole(target) as unfinished, open(unfinished, "wb") as file:
                file.write(content.getbuffer())
        except OSError as error:
            raise UnwrittenCheckpointError.at(os.path.relpath(target), f"cannot be written: {error.strerror}") from None

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint, also one that Lightning finds itself, of a job that SLURM has requeued. The folder of a
        saved model counts as a checkpoint that has only weights.

        Raises:
            CheckpointError: the checkpoint is damaged, not of a training run, or of a strategy that shards the model.
            InputError: the saved model is damaged.
        """
        if (Path(path) / CONFIG).is_file():
            return checkpoint_of_model(Path(path))
        check_readable(str(path))
        if os.path.isdir(path):
            raise CheckpointError(f"--ckpt_path: {path} has a part of the model in each file: give its run's strategy")
        return super().load_checkpoint(path, *args, **kwargs)


def write_whole_checkpoints(strategy: Strategy) -> None:
    """Let a strategy save by `WholeCheckpointIO`, unless it, or the configuration, has a checkpoint plugin already.

    Raises:
        InputError: each process would save its part of what is trained, and Lightning loads parts of whole models only.
    """
    if isinstance(strategy, FSDPStrategy) and saves_shards(strategy):
        raise InputError(
            "trainer.strategy: FSDPStrategy's checkpoints of state_dict_type 'sharded' cannot be loaded, as they lack "
            "the frozen weights: leave it out, or give 'full'"
        )
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = WholeCheckpointIO()


def last_saved(trainer: Trainer) -> str | None:
    """The relative path of the last checkpoint; None if there is none."""
    callback = trainer.checkpoint_callback
    if not isinstance(callback, ModelCheckpoint):
        return None
    found = (last_path(callback), callback.last_model_path, callback.best_model_path)
    return next((os.path.relpath(path) for path in found if path and Path(path).exists()), None)


def where_to_continue(trainer: Trainer) -> str:
    """The end of an error message that names the last checkpoint; empty if there is none."""
    saved = last_saved(trainer)
    return f"; {saved} is the last checkpoint (--ckpt_path)" if saved else ""

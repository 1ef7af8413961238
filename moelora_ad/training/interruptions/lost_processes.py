"""How a run reports that another of its processes has ended, or that a disk is full."""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import distributed

from moelora_ad.errors import InputError
from moelora_ad.runs.record import RECORD, read_record
from moelora_ad.training.checkpoint_writing import UnwrittenCheckpointError, last_saved, where_to_continue

# Messages of gloo and NCCL; PyTorch has exceptions of its own for only some of them.
_LOST_WORDS = ("connection closed by peer", "connection reset by peer", "remote process exited", "broken pipe")
_TELLING = 5.0  # seconds that the first process has to show that it is alive
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class LostProcessError(InputError):
    """Another process of the run has ended; the message is empty in all processes but the one that reports it."""


@contextmanager
def explain_lost_process(trainer: Trainer) -> Iterator[None]:
    """Turn errors within the block that come from the end of another process, or a full disk, into an `InputError` that
    says how to continue.

    Raises:
        InputError: instead of PyTorch's error, or the system's.
    """
    try:
        yield
    except UnwrittenCheckpointError as error:
        raise InputError(f"{error}{where_to_continue(trainer)}") from None
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        where = os.path.relpath(error.filename) if isinstance(error.filename, str) else "a file of the run"
        raise InputError(f"{where} cannot be written: {error.strerror}{where_to_continue(trainer)}") from None
    except RuntimeError as error:
        if trainer.world_size == 1 or not is_of_lost_process(error):
            raise
        raise LostProcessError(_lost(trainer) if _tells(trainer) else "") from None


def is_of_lost_process(error: BaseException) -> bool:
    """Whether an error in a collective call shows that one of the processes has ended."""
    words = str(error).lower()
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and any(part in words for part in _LOST_WORDS)
    )


def outlive_other_processes(trainer: Trainer) -> None:
    """Keep Lightning's launcher from killing this process seconds after another one has ended, before it has saved."""
    processes = getattr(trainer.strategy.launcher, "procs", None)
    if isinstance(processes, list):
        processes.clear()


def _lost(trainer: Trainer) -> str:
    # Lightning has reset its own stage by now.
    saved = last_saved(trainer) if trainer.lightning_module.training else None
    again = f"give --ckpt_path {saved} to continue" if saved else "run the same command again"
    return f"another process of this run was killed, has failed or is out of reach; {again}"


def _tells(trainer: Trainer) -> bool:
    """Whether this process reports the error: the first process does, or the second if the first one has ended, in
    which case the record of a training run still says that it is running."""
    if trainer.is_global_zero or trainer.global_rank > 1:
        return trainer.is_global_zero
    callback = trainer.checkpoint_callback
    if not isinstance(callback, ModelCheckpoint) or not callback.dirpath:
        return True
    run, until = Path(callback.dirpath).parent, time.monotonic() + _TELLING
    while (run / RECORD).is_file():
        if read_record(run).state != "running":
            return False
        if time.monotonic() > until:
            break
        time.sleep(0.1)
    return True

"""The processes that read audio for training."""

import signal
from types import FrameType


def outlive_signals(worker: int) -> None:
    """Leave signals to a whole group of processes, such as those of SLURM before a time limit, to the training process,
    which saves a checkpoint and ends its workers: it cannot do so when they are gone. ``worker_init_fn`` of a
    ``DataLoader``.

    SIGUSR1 and SIGUSR2 are ignored; a first SIGTERM, too. The second one ends the worker: at its exit Python tells
    workers that are left so, and waits for them.
    """
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_next_time)


def _end_next_time(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)

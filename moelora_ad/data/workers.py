"""The processes that read audio, and what they need of the system."""

import errno
import multiprocessing
import multiprocessing.queues
import os
import re
import resource
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from moelora_ad.errors import InputError

PREFETCHED = 2  # batches that a worker reads ahead
SILENT_SECONDS = 1_800  # after which a loader that has delivered nothing counts as failed
_SHARED_MEMORY = Path("/dev/shm")
_OPEN_FILES = Path("/proc/self/fd")
_PER_WORKER = 3  # files of this process: a queue's two ends, and one that signals the worker's end
_MOMENT = 1.0  # second
_IN_ALL = 8  # files for a queue that all workers share, and for the tensors of a batch
_OPTION = "data.num_workers"
_NO_SHARED = "unable to allocate shared memory"  # PyTorch's message, whatever the system's
_FULL, _TOO_MANY = os.strerror(errno.ENOSPC), os.strerror(errno.EMFILE)


def check_room(workers: int, bytes_ahead: int, option: str = _OPTION) -> None:
    """Check that a loader can hold what its workers read ahead, and open what it needs to talk to them.

    Args:
        workers: processes that read.
        bytes_ahead: of audio that they read before the first batch is taken.
        option: the user's option for the number of workers.

    Raises:
        InputError: it cannot; the message says what to change.
    """
    if not workers:
        return
    if _SHARED_MEMORY.is_dir() and bytes_ahead > _free_bytes():
        why = f"the processes that read audio put {_mib(bytes_ahead)} there at once"
        raise InputError(_too_little(workers, why, option))
    if _OPEN_FILES.is_dir():
        files = len(os.listdir(_OPEN_FILES)) + _PER_WORKER * workers + _IN_ALL
        if files > (limit := _most_files()) != resource.RLIM_INFINITY:
            needed = f"at least {files} are needed, of which ulimit -n allows {limit}"
            raise InputError(_too_few(workers, needed, option))


def starved(error: BaseException, workers: int, option: str = _OPTION) -> str | None:
    """What to do about an error of a loader that lacked memory, shared memory or open files, or delivered nothing; None
    for other errors. ``option``: the user's option for the number of workers."""
    for _ in range(workers):
        # For every other loader whose worker was killed, PyTorch raises an exception, wherever this process is.
        with suppress(RuntimeError):
            return _starved(error, workers, option)
    return _starved(error, workers, option)


def _starved(error: BaseException, workers: int, option: str) -> str | None:
    words = f"{error} {error.__cause__ or ''}"
    ended = re.search(r"exit code (\d+)", words) if "DataLoader worker" in words else None
    code = int(ended[1]) if ended else getattr(error, "errno", None)
    if "killed by signal: Bus error" in words or (ended and code == errno.ENOSPC):
        return _too_little(workers, "the processes that read audio need more", option)
    if _TOO_MANY in words or "ancillary data" in words or code == errno.EMFILE:
        return _too_few(workers, f"ulimit -n allows {_most_files()}", option)
    if "DataLoader timed out" in words:
        return (
            f"the processes that read audio have delivered nothing for {SILENT_SECONDS // 60} minutes: check whether "
            f"the storage responds, or lower {option} (now {workers}; 0 reads in this process)"
        )
    if "killed by signal: Killed" in words or "exited unexpectedly" in words:
        return f"a process that reads audio was killed, most likely for lack of memory: lower {option} (now {workers})"
    return None


@contextmanager
def end_of_workers_awaited(alone: bool = False) -> Iterator[None]:
    """Where a connection to a worker breaks within the block, wait for PyTorch to report that worker's end: it does so
    when the system's signal comes, which may be a moment later.

    Args:
        alone: whether nothing in the block has other connections, so that one that breaks is always a worker's.

    Raises:
        RuntimeError: instead of the connection's error.
    """
    try:
        yield
    except (ConnectionError, EOFError):
        time.sleep(_MOMENT)
        if alone:
            raise RuntimeError("a DataLoader worker exited unexpectedly") from None
        raise


def _too_little(workers: int, why: str, option: str) -> str:
    return (
        f"{_SHARED_MEMORY} is too small, with {_mib(_free_bytes())} free: {why}; give the container more "
        f"(docker run --shm-size=1g), or lower {option} (now {workers}; 0 needs none) or the batch size"
    )


def _too_few(workers: int, why: str, option: str) -> str:
    return (
        f"too many open files: {why}; raise that limit (ulimit -n 4096), or lower {option} (now {workers}; 0 "
        "reads in this process)"
    )


def _free_bytes() -> int:
    room = os.statvfs(_SHARED_MEMORY)
    return room.f_bavail * room.f_frsize


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _most_files() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def is_out_of_files(reason: str) -> bool:
    """Whether a file could not be read because this process has too many open ones."""
    return _TOO_MANY in reason


def begin_worker(worker: int) -> None:
    """``worker_init_fn`` of a ``DataLoader``: calls `outlive_signals`, and makes a batch that cannot be handed over end
    the worker, as the loader would otherwise wait for that batch forever."""
    outlive_signals(worker)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]


def end_with_parent() -> None:
    """End this worker at once when the process that it works for is gone, even if what it has read is so large that it
    would wait forever for somebody to take it."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _end_worker(error: Exception, batch: object) -> None:
    for number, words in ((errno.ENOSPC, _FULL), (errno.ENOSPC, _NO_SHARED), (errno.EMFILE, _TOO_MANY)):
        if words in str(error):
            os._exit(number)  # `starved` recognises it
    traceback.print_exception(error)
    os._exit(1)


def outlive_signals(worker: int) -> None:
    """Ignore, in a worker, signals to a whole group of processes, such as SLURM's before a time limit: the training
    process saves a checkpoint then and ends its workers, which it cannot do if they are gone.

    SIGUSR1, SIGUSR2 and Ctrl-C are ignored, and so is a first SIGTERM; a second one ends the worker.
    """
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_next_time)


def _end_next_time(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


def end_workers() -> None:
    """End the workers that are left when work has ended early: Python, at its exit, would send each of them one signal,
    which a worker outlives, and then wait for it forever."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler takes their end for a failure
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()

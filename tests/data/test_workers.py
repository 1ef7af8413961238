"""Reading workers survive signals that are meant for the training process, and report what they lack."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from moelora_ad.data import workers as reading
from moelora_ad.data.workers import (
    SILENT_SECONDS,
    check_room,
    end_of_workers_awaited,
    outlive_signals,
    starved,
)
from moelora_ad.errors import InputError


class Places(Dataset):
    """Items that tell which process reads them."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.tensor([index, os.getpid()])


def test_a_reader_ends_at_the_second_request():
    batches = iter(
        DataLoader(Places(), num_workers=1, batch_size=None, prefetch_factor=2, worker_init_fn=outlive_signals)
    )
    reader = int(next(batches)[1])
    assert reader != os.getpid()
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        os.kill(reader, number)
    time.sleep(0.5)
    assert [int(batch[0]) for batch in batches] == list(range(1, 12))

    batches = iter(DataLoader(Places(), num_workers=1, batch_size=None, worker_init_fn=outlive_signals))
    next(batches)
    (worker,) = batches._workers
    os.kill(worker.pid, signal.SIGTERM)
    time.sleep(0.5)
    assert worker.is_alive()
    for _ in range(40):  # on a busy machine the first may still be pending, and two pending signals count as one
        if worker.is_alive():
            with suppress(RuntimeError):  # raised by PyTorch when a worker is killed
                os.kill(worker.pid, signal.SIGTERM)
                worker.join(timeout=0.5)
    assert worker.exitcode == -signal.SIGTERM


# A script that reads batches of 1 MiB with two workers, and prints how that ends.
READ = """
import resource, sys, torch
from torch.utils.data import DataLoader, Dataset
from moelora_ad.data.workers import begin_worker, end_of_workers_awaited, starved

class Batches(Dataset):
    def __len__(self):
        return 40
    def __getitem__(self, index):
        return [torch.ones(2**18)] + [torch.ones(1) for _ in range(8)]

if sys.argv[1:]:
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
try:
    with end_of_workers_awaited():
        taken = [batch for batch in DataLoader(Batches(), batch_size=None, num_workers=2, worker_init_fn=begin_worker)]
except (RuntimeError, OSError) as error:
    print(starved(error, 2))
"""


def test_workers_without_shared_memory_end_and_say_so(tmp_path):
    """A real small file system takes the place of /dev/shm, where the system allows that."""
    mount = "mount -t tmpfs -o size=3m tmpfs /dev/shm"
    if (
        not shutil.which("unshare")
        or subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode
    ):
        pytest.skip("no file systems can be mounted here")
    script = tmp_path / "read.py"
    script.write_text(READ)
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{mount}; exec '{sys.executable}' '{script}'"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.startswith("/dev/shm is too small, with "), done.stderr
    assert "--shm-size=1g), or lower data.num_workers (now 2; " in done.stdout
    assert "Traceback" not in done.stderr


def test_workers_without_files_end_and_say_so(tmp_path):
    script = tmp_path / "read.py"
    script.write_text(READ)
    done = subprocess.run([sys.executable, script, "24"], capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("too many open files: ulimit -n allows 24; raise that limit"), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("broken", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_connection_that_breaks_is_a_workers_only_where_there_are_no_others(monkeypatch, broken):
    monkeypatch.setattr(reading, "_MOMENT", 0.0)
    with pytest.raises(RuntimeError) as lost, end_of_workers_awaited(alone=True):
        raise broken
    assert starved(lost.value, 2).startswith("a process that reads audio was killed, most likely for lack of memory")
    with pytest.raises(type(broken)), end_of_workers_awaited():
        raise broken


def test_what_workers_need_is_seen_before_they_start(data, trainer, tmp_path, monkeypatch):
    """12 utterances of half a second to train on take 384,000 bytes; dev has 8 utterances."""
    monkeypatch.setattr(reading, "_free_bytes", lambda: 12 * 8_000 * 4 - 1)
    module = data(num_workers=2)
    module.trainer = trainer(tmp_path)
    module.setup("fit")
    with pytest.raises(
        InputError, match=r"^/dev/shm is too small, with 0.4 MiB free: the processes that read audio put"
    ):
        module.train_dataloader()
    (loader,) = module.val_dataloader()  # 8 * 8,000 * 4 bytes do fit
    assert (loader.num_workers, loader.timeout) == (2, SILENT_SECONDS)
    module.num_workers = 0
    assert module.train_dataloader().timeout == 0
    monkeypatch.undo()
    module.num_workers = 2
    assert module.train_dataloader().num_workers == 2


def test_open_files_are_counted(monkeypatch):
    check_room(0, 2**60)
    open_now = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("not Linux")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (open_now + 30, 4096))
    check_room(4, 0)
    with pytest.raises(
        InputError, match=rf"too many open files: .* ulimit -n allows {open_now + 30}; raise that limit"
    ):
        check_room(40, 0)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    check_room(40, 0)


class Silent(Dataset):
    """A dataset whose storage does not answer."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        time.sleep(60)


def test_a_loader_that_delivers_nothing_is_told():
    with pytest.raises(RuntimeError) as caught:
        next(iter(DataLoader(Silent(), num_workers=1, batch_size=None, timeout=1)))
    assert starved(caught.value, 1).startswith("the processes that read audio have delivered nothing for 30 minutes")
    assert starved(RuntimeError("shapes do not match"), 1) is None


def test_a_second_killed_worker_does_not_get_between(monkeypatch):
    """PyTorch raises for every loader whose worker has ended, even while the first error is being reported."""
    ends = [RuntimeError("DataLoader worker (pid 2) is killed by signal: Killed. ")]
    told = reading._starved

    def interrupted(*arguments):
        if ends:
            raise ends.pop()
        return told(*arguments)

    monkeypatch.setattr(reading, "_starved", interrupted)
    error = RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. ")
    assert starved(error, 2, "--num-workers").endswith("lower --num-workers (now 2)")

"""Checkpoints are whole or absent: after kill -9 at any moment, on a full disk, or when another process is lost."""

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import FSDPStrategy

from moelora_ad import files
from moelora_ad.errors import InputError
from moelora_ad.runs.record import read_record
from moelora_ad.training import WholeCheckpointIO
from moelora_ad.training.checkpoint_writing import write_whole_checkpoints

OLD, NEW = ({"step": step, "state_dict": {"w": torch.full((60_000,), float(step))}} for step in (1, 2))
WRITING = {"open", "os.rename", "os.remove", "os.truncate", "fcntl.flock"}
KILLER = """
import os, signal
from lightning.pytorch import Callback

class KillRank(Callback):
    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_while_saving(path: Path, prepare: Callable[[], None]) -> bool:
    """Save NEW in a forked process that first calls ``prepare``; return whether the process was killed."""
    child = os.fork()
    if not child:
        try:
            prepare()
            WholeCheckpointIO().save_checkpoint(NEW, path)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def die_at(number: int) -> Callable[[], None]:
    """Kill the process before call ``number``, counted from 0, of those that write, flush, rename or delete."""

    def prepare() -> None:
        left = number

        def count() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        for name in ("write", "fsync", "sendfile"):
            real = getattr(os, name)
            setattr(os, name, lambda *a, real=real: (count(), real(*a))[1])
        sys.addaudithook(lambda event, _: count() if event in WRITING else None)

    return prepare


def die_after(size: int) -> Callable[[], None]:
    """Let the system kill the process in the middle of a write, when a file grows beyond ``size`` bytes."""

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return prepare


def check_whole(path: Path, *allowed: int) -> int:
    """The step of a checkpoint, which must be whole and the only file that looks like a checkpoint."""
    assert [found.name for found in path.parent.glob("*ckpt")] == [path.name]
    assert not [found for found in path.parent.iterdir() if "last" in found.name and found != path]
    saved = torch.load(path, weights_only=True)
    assert saved["step"] in allowed
    assert torch.equal(saved["state_dict"]["w"], torch.full((60_000,), float(saved["step"])))
    return saved["step"]


@pytest.mark.forks
def test_killed_at_every_call_that_writes(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    steps = []
    for number in range(1000):
        WholeCheckpointIO().save_checkpoint(OLD, path)
        assert sorted(path.parent.iterdir()) == [path]  # leftovers of an earlier kill are gone
        if not killed_while_saving(path, die_at(number)):
            break
        steps.append(check_whole(path, 1, 2))
    assert check_whole(path, 2) == 2
    assert len(steps) >= 5  # open, lock, flush and rename, then open and flush the folder
    assert set(steps) == {1, 2}
    assert steps == sorted(steps)


@pytest.mark.forks
def test_killed_in_the_middle_of_a_write(tmp_path):
    path = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint(OLD, path)
    whole = path.stat().st_size
    for size in (1, whole // 3, whole - 1):
        assert killed_while_saving(path, die_after(size))
        assert check_whole(path, 1) == 1
        (left,) = path.parent.glob(".*")
        assert left.stat().st_size <= size
    assert not killed_while_saving(path, die_after(whole))
    assert sorted(tmp_path.iterdir()) == [path]
    assert check_whole(path, 2) == 2


def test_what_another_process_writes_now_is_left(tmp_path):
    with files.written_whole(tmp_path / "other.ckpt") as unfinished:
        WholeCheckpointIO().save_checkpoint(OLD, tmp_path / "last.ckpt")
        assert unfinished.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "other.ckpt"]


def test_a_leftover_is_no_checkpoint_for_lightning(trainer, tmp_path):
    """Lightning looks in the run's folder for SLURM's checkpoint, by a part of the name."""
    path = tmp_path / "hpc_ckpt_3.ckpt"
    made = trainer(tmp_path)
    with files.written_whole(path) as unfinished:
        unfinished.write_bytes(b"torn")
        assert made._checkpoint_connector._hpc_resume_path is None
        assert made._checkpoint_connector.hpc_save_path(tmp_path) == str(tmp_path / "hpc_ckpt_1.ckpt")


def test_no_room_is_needed_elsewhere_and_loading_is_lightnings(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    WholeCheckpointIO().save_checkpoint(OLD, f"file://{tmp_path}/a/last.ckpt")
    saved = TorchCheckpointIO().load_checkpoint(tmp_path / "a" / "last.ckpt", weights_only=True)
    assert saved["step"] == 1
    WholeCheckpointIO().save_checkpoint(OLD, "memory://a/last.ckpt")
    assert TorchCheckpointIO().load_checkpoint("memory://a/last.ckpt", weights_only=True)["step"] == 1


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system in memory of a given number of kilobytes."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(kilobytes: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


def check_failed_for_room(code: int, err: str, run: Path) -> str:
    """The error line of a run that failed for lack of space; the record must say so, and checkpoints must be whole."""
    assert code == 1
    (line,) = [line for line in err.splitlines() if "error:" in line]
    assert "Traceback" not in err
    assert "No space left on device" in line
    assert read_record(run).state == "failed"
    assert not [path.name for path in run.rglob("*.tmp")]
    for path in run.glob("checkpoints/*"):
        torch.load(path, weights_only=True)
    return line


@pytest.mark.parametrize("kilobytes", [250, 72])
def test_a_full_disk(lightning, experiment, write_config, small_disk, kilobytes):
    """One disk has room for the first of two checkpoints, and one is full before there is any checkpoint."""
    disk = small_disk(kilobytes)
    experiment["trainer"]["logger"]["init_args"]["save_dir"] = str(disk)
    code, _, err = lightning("fit", "--config", write_config(experiment))
    run = disk / "tiny" / "version_0"
    line = check_failed_for_room(code, err, run)
    if kilobytes == 250:
        (kept,) = run.glob("checkpoints/*")
        assert f"checkpoints/{kept.name} is the last checkpoint" in line
        assert read_record(run).checkpoint_path == kept


def test_a_disk_that_tells_late_that_it_is_full(lightning, experiment, write_config, tmp_path, monkeypatch):
    """A disk over the network may say only at a flush that it is full; here in the second epoch."""
    run = tmp_path / "runs" / "tiny" / "version_0"
    last, flush = run / "checkpoints" / "last.ckpt", files._flush

    def flush_some(path: Path) -> None:
        if last.exists() and path.name.endswith(".ckpt.tmp"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(path)

    monkeypatch.setattr(files, "_flush", flush_some)
    code, _, err = lightning("fit", "--config", write_config(experiment))
    line = check_failed_for_room(code, err, run)
    assert re.search(r"checkpoints/last\.ckpt is the last checkpoint", line)
    assert torch.load(last, weights_only=True)["global_step"] == 3
    assert read_record(run).checkpoint_path.exists()


def test_other_plugins_stay(trainer, tmp_path):
    for given, kind in (([], WholeCheckpointIO), ([AsyncCheckpointIO()], AsyncCheckpointIO)):
        made = trainer(tmp_path, plugins=given)
        write_whole_checkpoints(made.strategy)
        assert type(made.strategy.checkpoint_io) is kind


def test_parts_of_what_is_trained_are_refused():
    with pytest.raises(InputError, match=r"state_dict_type 'sharded' cannot be loaded"):
        write_whole_checkpoints(FSDPStrategy(state_dict_type="sharded"))
    for whole in (FSDPStrategy(), FSDPStrategy(state_dict_type="full")):
        write_whole_checkpoints(whole)


@pytest.mark.forks
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_without_the_other_tells_how_to_continue(experiment, forked, tmp_path, monkeypatch, rank):
    """One of two processes is killed in the first epoch, and the other one reports it in one line."""
    (tmp_path / "killer.py").write_text(KILLER)
    experiment["data"]["batch_size"] = 2
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(experiment))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "killer", raising=False)
    callback = ("--trainer.callbacks", "killer.KillRank", "--trainer.callbacks.rank", rank)
    options = ("--trainer.devices", 2, "--trainer.strategy", "ddp", *callback)
    code, _, err = forked("fit", "--config", config, *options, processes=2)
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if "rror" in line]
    assert "another process of this run was killed" in line
    run = tmp_path / "runs" / "tiny" / "version_0"
    names = [path.name for path in run.glob("checkpoints/*")]
    if rank == 0:  # only rank 0 saves
        assert code == -signal.SIGKILL
        assert "run the same command again" in line
        assert names == []
    else:
        assert code == 1
        assert names == ["last-interrupted.ckpt"]
        assert "give --ckpt_path " in line
        assert line.endswith("last-interrupted.ckpt to continue")
        assert torch.load(run / "checkpoints" / names[0], weights_only=True)["global_step"] == 2
        assert read_record(run).state == "failed"

"""The state of a run, from the content of its folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from moelora_ad.errors import InputError
from moelora_ad.runs.folder import keep_metrics, restore_metrics
from moelora_ad.runs.record import RunRecord
from moelora_ad.sweeps.planning import PlannedRun
from moelora_ad.sweeps.run_folder import Notes, is_running, resumable, take_lock, write_notes
from moelora_ad.sweeps.states import status_of

RECORD = RunRecord(
    folder=Path(),
    state="running",
    reason=None,
    system="lora",
    seed=1,
    started="2026-01-01T00:00:00+00:00",
    updated="2026-01-01T00:00:01+00:00",
    seconds=1.5,
    attempts=1,
    epoch=2,
    max_epochs=4,
    step=10,
    max_steps=20,
    dev_eer=0.25,
    best_dev_eer=0.2,
    parameters={"experts": 3, "total": 9},
    training_corpora=("A",),
    sets={},
    checkpoint=None,
    scores=None,
    peak_memory_bytes={"host": 1, "cuda": None},
    versions={},
    git_commit=None,
    command=(),
)


@pytest.fixture
def run(tmp_path) -> PlannedRun:
    config = tmp_path / "config.yaml"
    config.write_text("a: 1\n")
    return PlannedRun("lora", 1, tmp_path / "lora" / "seed_1", (str(config),), {"x": 1})


def checkpoint(path: Path, whole: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data", "x" * 100)
    if not whole:
        path.write_bytes(path.read_bytes()[:-10])
    return path


def write_record(run: PlannedRun, **fields: object) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "run.json").write_text(json.dumps(replace(RECORD, **fields).as_dict()))


@pytest.mark.parametrize(
    ("exit_code", "recorded", "state"),
    [
        (None, None, "cut off"),  # killed together with its sweep before there was a record
        (None, "running", "cut off"),
        (None, "interrupted", "interrupted"),
        (None, "failed", "failed"),
        (None, "finished", "finished"),
        (0, "finished", "finished"),
        (1, None, "failed"),  # the command had a wrong option
        (1, "running", "failed"),
        (1, "interrupted", "failed"),  # the record is of an earlier attempt; the next failed at its start
        (1, "finished", "failed"),  # some trials could not be scored
        (2, None, "failed"),
        (130, "interrupted", "interrupted"),
        (143, "interrupted", "interrupted"),
        (143, None, "interrupted"),
        (-9, "running", "cut off"),
        (-9, None, "cut off"),
        (-9, "interrupted", "cut off"),
    ],
)
def test_states(run, exit_code, recorded, state):
    run.folder.mkdir(parents=True)
    write_notes(run.folder, Notes(run.identity(), 1, exit_code, "the last line"))
    if recorded is not None:
        write_record(run, state=recorded)
    status = status_of(run)
    assert status.state == state
    if state == "failed" and exit_code is not None:
        assert status.reason == "the last line"
    assert (status.record is None) == (recorded is None)


def test_a_run_that_has_not_begun_and_one_of_fit_alone(run):
    assert status_of(run).state == "waiting"
    run.folder.mkdir(parents=True)
    assert status_of(run).state == "waiting"
    write_record(run, state="finished")
    assert status_of(run).state == "finished"


@pytest.mark.parametrize("figures", ["finished", "checkpoint", "none"])
def test_another_configuration(run, figures):
    run.folder.mkdir(parents=True)
    write_notes(run.folder, Notes(run.identity(), 1, 0 if figures == "finished" else -9))
    if figures == "finished":
        write_record(run, state="finished")
    if figures == "checkpoint":
        checkpoint(run.folder / "checkpoints" / "last.ckpt")
    changed = replace(run, options={"x": 2, "y": None})
    status = status_of(changed)
    if figures == "none":  # there are no results of the old options to mix with new ones
        assert status.state == "cut off"
    else:
        assert (status.state, status.reason) == ("differs", "x was 1, is 2")
    assert status_of(replace(run, wandb={"project": "p"}, environment={"A": "1"})).state != "differs"
    moved = shutil.copy(run.configs[0], run.folder)
    assert status_of(replace(run, configs=(moved,))).state != "differs"
    Path(run.configs[0]).write_text("a: 2\n")
    if figures != "none":
        assert status_of(run).reason == f"{run.configs[0]} changed"


def test_damage_is_one_line(run):
    run.folder.mkdir(parents=True)
    odd = [f'{{"format": 1, "identity": {{}}, {one}}}' for one in ('"x": 1', '"attempts": "2"', '"reason": [1]')]
    for content in ("", "[]", "{}", '{"format": 2}', '{"format": 1, "identity": 3}', "[" * 100_000, *odd):
        (run.folder / "sweep.json").write_text(content)
        with pytest.raises(InputError, match=r"sweep\.json: is damaged"):
            status_of(run)


def test_a_lock_lasts_until_the_last_process_that_has_it_ends(run):
    assert not is_running(run.folder)
    lock = take_lock(run.folder)
    assert lock is not None
    assert is_running(run.folder)
    assert take_lock(run.folder) is None
    assert status_of(run).state == "running"
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    os.close(lock)
    assert is_running(run.folder)
    child.communicate(b"\n")
    assert not is_running(run.folder)


def test_the_newest_whole_checkpoint(tmp_path):
    assert resumable(tmp_path) is None
    last = checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    best = checkpoint(tmp_path / "checkpoints" / "epoch01-dev_eer0.1.ckpt")
    cluster = checkpoint(tmp_path / "hpc_ckpt_2.ckpt")
    torn = checkpoint(tmp_path / "hpc_ckpt_3.ckpt", whole=False)
    for age, path in enumerate((torn, best, cluster, last)):
        os.utime(path, (1000 - age, 1000 - age))
    assert resumable(tmp_path) == cluster
    os.utime(last, (2000, 2000))
    assert resumable(tmp_path) == last
    last.unlink()
    last.mkdir()  # a checkpoint of a sharded model, incomplete without its index
    assert resumable(tmp_path) == cluster
    (last / ".metadata").touch()
    os.utime(last, (2000, 2000))
    assert resumable(tmp_path) == last


def test_figures_of_earlier_attempts_are_kept(tmp_path):
    keep_metrics(tmp_path, 1)
    (tmp_path / "metrics.csv").write_text("a")
    keep_metrics(tmp_path, 1)
    (tmp_path / "metrics.csv").write_text("b")
    keep_metrics(tmp_path, 2)
    assert [(tmp_path / f"metrics-{number}.csv").read_text() for number in (1, 2)] == ["a", "b"]
    restore_metrics(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics-1.csv", "metrics.csv"]

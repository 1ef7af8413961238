"""GPUs for the runs of a sweep on this machine, set by CUDA_VISIBLE_DEVICES only."""

import io
import sys
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from moelora_ad.sweeps import attempt
from moelora_ad.sweeps.gpus import VARIABLE, Gpus, visible_gpus
from moelora_ad.sweeps.live import LiveView
from moelora_ad.sweeps.local import run_here
from moelora_ad.sweeps.planning import PlannedRun
from moelora_ad.sweeps.states import Status

MIG = "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/2"

# Takes the place of fit: writes down its GPUs, and ends when all runs that start with it have done so.
TELLS = """
import os, sys, time
from pathlib import Path
folder, together = Path(sys.argv[1]), int(sys.argv[2])
(folder / sys.argv[3]).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
until = time.monotonic() + 60
while len(list(folder.iterdir())) < together and time.monotonic() < until:
    time.sleep(0.02)
"""


def planned(tmp_path: Path, count: int, devices: object = None, **arguments) -> list[PlannedRun]:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"trainer": {} if devices is None else {"devices": devices}}))
    return [PlannedRun("a", n, tmp_path / "runs" / f"seed_{n}", (str(config),), **arguments) for n in range(count)]


@pytest.fixture
def told(monkeypatch, tmp_path):
    """A function that runs a sweep of real processes; it returns the GPUs of each run in order, and the messages."""

    def run(runs: list[PlannedRun], jobs: int) -> tuple[list[str], str]:
        folder = tmp_path / "told"
        folder.mkdir()
        command = [sys.executable, "-c", TELLS, str(folder), str(min(jobs, len(runs)))]
        monkeypatch.setattr(attempt, "fit_command", lambda run: [*command, str(run.seed)])
        output = io.StringIO()
        view = LiveView(runs, {run.label: Status("waiting") for run in runs}, Console(file=output, width=200))
        run_here(runs, jobs, False, view)
        return [(folder / str(run.seed)).read_text() for run in runs], output.getvalue()

    return run


def test_each_run_has_a_gpu_of_its_own_and_a_free_one_is_used_again(told, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"3, GPU-8932f937,{MIG}")
    seen, output = told(planned(tmp_path, 5), 3)
    assert sorted(seen[:3]) == sorted(["3", "GPU-8932f937", MIG])
    assert set(seen[3:]) < {"3", "GPU-8932f937", MIG}
    assert "share" not in output


def test_more_jobs_than_gpus_is_told_in_a_line(told, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "1,0")
    seen, output = told(planned(tmp_path, 4), 4)
    assert sorted(seen) == ["0", "0", "1", "1"]
    lines = [line for line in output.splitlines() if "share" in line]
    assert lines == ["4 runs at once share 2 GPUs: --jobs 2 gives each run its own"]


def test_a_run_alone_sees_what_the_sweep_sees(told, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "2,1")
    assert told(planned(tmp_path, 2), 1)[0] == ["2,1", "2,1"]


def test_a_machine_without_gpus_stays_without(told, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    seen, output = told(planned(tmp_path, 2), 2)
    assert seen == ["", ""]
    assert "share" not in output


@pytest.mark.parametrize(("devices", "options"), [(2, {}), (1, {"trainer.devices": 2})])
def test_a_run_on_several_devices_has_as_many(told, tmp_path, monkeypatch, devices, options):
    monkeypatch.setenv(VARIABLE, "4,5,6,7")
    seen, output = told(planned(tmp_path, 2, devices, options=options), 2)
    assert sorted(seen) == ["4,5", "6,7"]
    assert "share" not in output


def test_the_sweeps_own_variable_counts(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0,1")
    runs = planned(tmp_path, 2, environment={VARIABLE: "6,7", "OTHER": "x"})
    gpus = Gpus(runs, 2)
    given = [gpus.given_to(run) for run in runs]
    assert [run.environment for run in given] == [{VARIABLE: "6", "OTHER": "x"}, {VARIABLE: "7", "OTHER": "x"}]
    gpus.take_back(given[1])
    assert gpus.given_to(runs[0]).environment[VARIABLE] == "7"


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("0", ["0"]),
        (" 2 ,0", ["2", "0"]),
        ("", []),
        ("-1", []),
        ("0,-1,1", ["0"]),
        ("NoDevFiles", []),
        (f"{MIG},GPU-1,x,2", [MIG, "GPU-1"]),
        ("1,1", ["1"]),
    ],
)
def test_the_variable_is_read_as_cuda_reads_it(given, seen):
    assert visible_gpus({VARIABLE: given}) == seen


def test_without_the_variable_all_are_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert visible_gpus({}) == ["0", "1", "2"]

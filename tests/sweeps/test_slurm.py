"""Sweeps on a real SLURM cluster, if one answers."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch


def _no_cluster() -> str | None:
    """The reason why these tests cannot run, if there is one."""
    if shutil.which("sbatch") is None:
        return "there is no sbatch"
    answer = subprocess.run(["scontrol", "ping"], capture_output=True, text=True)
    if answer.returncode or " UP" not in answer.stdout:
        return f"no SLURM controller answers: {answer.stdout.strip() or answer.stderr.strip()}"
    return None


_REASON = _no_cluster()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(_REASON is not None, reason=f"needs a SLURM cluster: {_REASON}"),
]


def wait_until(true, seconds: float = 400) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.2)


def accepted(*command: str) -> bool:
    """Whether the controller carries out the command; for a moment it may ask to try again later."""
    return subprocess.run(command, capture_output=True).returncode == 0


def was_told_to_end(run: Path, job_id: str) -> bool:
    """Signals the job and reads its log: the controller may report a failure although the job got the signal."""
    accepted("scancel", "--signal=USR1", job_id)
    time.sleep(3)
    return "Received SIGTERM" in (run / "output-1.log").read_text()


@pytest.fixture
def submit(tmp_path: Path, start_sweep):
    """Starts the verb with --slurm; all its jobs that are left at the end are cancelled."""
    started = []

    def start(path: Path) -> subprocess.Popen:
        started.append(start_sweep(path, "--slurm"))
        return started[-1]

    yield start
    for process in started:
        process.kill()
    notes = tmp_path / "runs" / "sweep.json"
    if notes.exists():
        for job_id in json.loads(notes.read_text())["jobs"].values():
            subprocess.run(["scancel", job_id], capture_output=True)


def test_an_array_of_four_runs_one_killed_and_one_out_of_time_all_finish(tmp_path, write_sweep, callback, submit):
    reached, go = tmp_path / "reached", tmp_path / "go"
    hold = callback("Hold", step=4, reached=reached, go=go)
    lora = {"model.adaptation": "moelora_ad.adapters.LoRA", "model.adaptation.init_args.rank": 2}
    path = write_sweep(
        systems={
            "killed": {"options": callback("KillOnce", step=5, marker=tmp_path / "killed")},
            "timed": {"options": hold | {"data.num_workers": 1}},
            "plain": {},
            "lora": {"options": lora},
        },
        options={"trainer.max_epochs": 3, "checkpoint.save_top_k": -1},
        slurm={"time": "00:20:00", "cpus_per_task": 1, "setup": ["export OF_SETUP=1"]},
    )
    watching = submit(path)
    runs = tmp_path / "runs"
    wait_until((runs / "sweep.json").exists)
    jobs = json.loads((runs / "sweep.json").read_text())["jobs"]
    killed, timed, plain = (runs / name / "seed_1" for name in ("killed", "timed", "plain"))
    assert sorted(jobs) == ["killed/seed_1", "lora/seed_1", "plain/seed_1", "timed/seed_1"]
    assert len({job_id.partition("_")[0] for job_id in jobs.values()}) == 1  # one job array

    # Ctrl-C only ends the watching, and the same command submits no job that is already in the queue.
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=200)
    assert watching.returncode == 130, err
    assert "Traceback" not in err
    watching = submit(path)

    # The signal before the time limit: the run saves in the middle of its second epoch and requeues itself.
    wait_until(reached.exists)
    wait_until(lambda: was_told_to_end(timed, jobs["timed/seed_1"]))
    go.touch()
    # kill -9 in the middle of the second epoch: this run is requeued from outside.
    wait_until(lambda: notes(killed)["exit_code"] == -signal.SIGKILL)
    wait_until(lambda: accepted("scontrol", "requeue", jobs["killed/seed_1"]))

    out, err = watching.communicate(timeout=800)
    print(out, err, sep="\n")  # shown by pytest -rP
    assert watching.returncode == 0, err
    assert json.loads((runs / "sweep.json").read_text())["jobs"] == jobs
    records = {name: json.loads((runs / name / "run.json").read_text()) for name in jobs}
    assert {record["state"] for record in records.values()} == {"finished"}
    again = {"killed/seed_1", "timed/seed_1"}
    assert {name for name, record in records.items() if record["attempts"] == 2} == again
    assert (timed / "metrics-1.csv").read_text().count("\n,,1,") == 2  # losses of two steps out of three
    assert all(name in out for name in jobs)
    # The weights are those of a run without interruptions.
    expected = torch.load(plain / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for run in (killed, timed):
        found = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def notes(run: Path) -> dict:
    path = run / "sweep.json"
    return json.loads(path.read_text()) if path.exists() else {"exit_code": None}

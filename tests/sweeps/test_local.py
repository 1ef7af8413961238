"""Sweeps on this machine, with real processes of fit."""

import csv
import json
import os
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from moelora_ad.cli import sweep as sweep_command
from moelora_ad.sweeps.attempt import start
from moelora_ad.sweeps.planning import plan_runs
from moelora_ad.sweeps.states import status_of
from moelora_ad.sweeps.sweep import read_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # several processes load torch one after another


@pytest.fixture
def sweep(monkeypatch, capfd):
    """Runs the verb in this process; returns exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = sweep_command.run(["sweep", *map(str, arguments)])
        return code, *capfd.readouterr()

    return call


def record(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_killed_runs_go_on_finished_ones_are_skipped_and_failed_ones_told(tmp_path, write_sweep, callback, sweep):
    kill = callback("KillOnce", step=5, marker=tmp_path / "killed")  # in the second epoch, each of three steps
    systems = {"plain": {}, "bad": {"options": {"model.nonsense": 1}}, "killed": {"options": kill}}
    every_epoch = {"trainer.max_epochs": 3, "checkpoint.save_top_k": -1}
    path = write_sweep(systems=systems, options=every_epoch)
    plain, bad, killed = (tmp_path / "runs" / name / "seed_1" for name in systems)
    code, out, err = sweep(path, "--jobs", 3)
    assert code == 1
    assert "plain/seed_1: finished" in err
    assert "bad/seed_1: failed" in err
    assert "model.nonsense" in err
    assert "killed/seed_1: cut off" in err
    assert "in_domain" in out
    assert f"{100 * record(plain)['sets']['in_domain']['eer']:.2f}" in out
    finished = (plain / "run.json").read_bytes()

    code, out, err = sweep(path)
    assert code == 1  # because of the failed run
    assert not (bad / "output-2.log").exists()
    assert (plain / "run.json").read_bytes() == finished
    assert "last.ckpt" in (killed / "output-2.log").read_text().splitlines()[0]
    found = record(killed)
    assert (found["state"], found["attempts"], found["epoch"], found["system"]) == ("finished", 2, 3, "killed")
    with open(killed / "metrics-1.csv", newline="") as metrics:  # of the first attempt
        assert "4" in {row["step"] for row in csv.DictReader(metrics)}
    # The results are those of a run that was never killed.
    ours, theirs = weights(killed), weights(plain)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name in ("dev", "in_domain", "out_of_domain"):
        first, second = ((run / record(run)["scores"] / f"{name}.csv").read_bytes() for run in (killed, plain))
        assert first == second

    code, out, _ = sweep(path, "--retry", "--dry-run")
    assert [shlex.split(line)[0] for line in out.splitlines() if not line.startswith("#")] == ["env"]
    assert "--model.nonsense=1" in out

    # A finished run does not count for the same system with another option.
    path.write_text(path.read_text().replace("trainer.max_epochs: 3", "trainer.max_epochs: 4"))
    code, _, err = sweep(path, "--only", "plain")
    assert code == 1
    assert "trainer.max_epochs was 3, is 4" in err
    assert (plain / "run.json").read_bytes() == finished


def test_ctrl_c_saves_and_another_sweep_leaves_a_running_run_alone(tmp_path, write_sweep, callback, sweep, start_sweep):
    reached, go = tmp_path / "reached", tmp_path / "go"
    path = write_sweep(options=callback("Hold", step=4, reached=reached, go=go))
    run = tmp_path / "runs" / "plain" / "seed_1"
    first = start_sweep(path)
    try:
        until = time.monotonic() + 200
        while not reached.exists():
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < until
            time.sleep(0.02)
        before = sorted(os.listdir(run))
        code, _, err = sweep(path)
        assert code == 0
        assert "plain/seed_1: running" in err
        assert sorted(os.listdir(run)) == before
        first.send_signal(signal.SIGINT)
        line = ""
        while "stopping" not in line:
            line = first.stderr.readline()
        go.touch()
        _, err = first.communicate(timeout=200)
    finally:
        first.kill()
        go.touch()
    assert first.returncode == 130
    assert "Traceback" not in err
    assert "1 interrupted" in err
    assert record(run)["state"] == "interrupted"
    code, out, _ = sweep(path, "--dry-run")
    told, line, _ = out.splitlines()
    assert "interrupted" in told
    assert shlex.split(line)[-1] == f"--ckpt_path={run / 'checkpoints' / 'last-interrupted.ckpt'}"
    saved = torch.load(run / "checkpoints" / "last-interrupted.ckpt", weights_only=True)
    assert saved["global_step"] == 5  # the step in progress was completed


def test_a_run_whose_folder_is_gone_ends_like_any_other(tmp_path, write_sweep):
    """Other runs of the sweep must go on; the same on a full disk."""
    (run,) = plan_runs(read_sweep(write_sweep(options={"model.nonsense": 1})))
    attempt = start(run)
    shutil.rmtree(run.folder)
    assert attempt.process.wait(200) == 2
    assert attempt.ended()
    assert status_of(run).state == "waiting"

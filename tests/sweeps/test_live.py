"""What a sweep shows while it runs."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from moelora_ad.runs.record import RunRecord
from moelora_ad.sweeps.live import LiveView
from moelora_ad.sweeps.planning import PlannedRun
from moelora_ad.sweeps.states import Status

RUNS = [PlannedRun("lora", seed, Path(f"runs/lora/seed_{seed}"), ()) for seed in range(1, 31)]


@pytest.fixture
def record() -> RunRecord:
    counts = {"step": 10, "max_steps": 20, "attempts": 1, "epoch": 2, "max_epochs": 4}
    words = {"started": "", "updated": "", "reason": None, "git_commit": None, "checkpoint": None, "scores": None}
    maps = {"parameters": {}, "sets": {}, "peak_memory_bytes": {}, "versions": {}}
    return RunRecord(
        folder=Path(),
        state="running",
        system="lora",
        seed=1,
        seconds=3725.4,
        dev_eer=0.25,
        best_dev_eer=0.125,
        training_corpora=(),
        command=(),
        **counts,
        **words,
        **maps,
    )


def view(terminal: bool) -> tuple[LiveView, io.StringIO]:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=80, height=16, legacy_windows=False)
    return LiveView(RUNS, {run.label: Status("waiting") for run in RUNS}, console), output


def test_elsewhere_a_line_for_each_change_and_none_for_the_clock(record):
    shown, output = view(terminal=False)
    with shown:
        shown.show(RUNS[0], Status("running"))
        shown.show(RUNS[0], Status("running", None, record))
        shown.show(RUNS[0], Status("running", None, replace(record, seconds=3800.0)))
        shown.show(RUNS[0], Status("failed", "no memory", replace(record, epoch=3, dev_eer=None)))
    assert output.getvalue().splitlines() == [
        "lora/seed_1: running",
        "lora/seed_1: running, epoch 2/4, dev EER 25.00 % (best 12.50 %), 1:02:05",
        "lora/seed_1: failed, epoch 3/4, 1:02:05: no memory",
    ]


def test_on_a_terminal_the_table_fits_and_shows_what_goes_on_first(record):
    shown, output = view(terminal=True)
    with shown:
        shown.show(RUNS[20], Status("running", None, record))
        shown.show(RUNS[3], Status("failed", "no memory", record))
    lines = [line for line in output.getvalue().replace("\r", "\n").splitlines() if "seed_" in line]
    last = lines[-10:]
    assert "seed_21" in last[0]
    assert "running" in last[0]
    assert "2/4" in last[0]
    assert "12.50" in last[0]
    assert "seed_4 " in last[1]
    assert "failed" in last[1]
    assert "1 running, 1 failed, 28 waiting" in output.getvalue()

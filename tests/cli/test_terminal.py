"""The progress bar on a terminal, and its silence elsewhere."""

import io
import re
import time

import pytest
from rich.console import Console

from moelora_ad.cli.terminal import progress, step_progress


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100)


def test_one_task_after_another(capsys):
    console = terminal()
    with progress(console) as show:
        for done in range(5):
            show("reading [dev]", done, 4)
        show("permutations", 1, 10)
        console.print("a line between")
    drawn = console.file.getvalue()
    assert "permutations" in drawn
    assert "1/10" in drawn
    assert "a line between" in drawn
    assert capsys.readouterr() == ("", "")


def test_nothing_is_drawn_of_short_work_where_there_is_no_terminal(capsys):
    with progress() as show:
        show("reading", 1, 2)
    with step_progress(2) as begin:
        begin("one")
        begin("two")
    assert capsys.readouterr() == ("", "")


def test_where_there_is_no_terminal_the_pace_is_told_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr("moelora_ad.cli.terminal._SECONDS_BETWEEN", 0.05)
    began = time.monotonic()
    with progress(unit="files") as show:
        show("scoring", 3_000, 10_000)
        while not (told := capsys.readouterr().err.splitlines()):
            time.sleep(0.01)
        assert told[0] == "scoring: 3,000 of 10,000 files, 0.0 files/s"
        show("scoring", 3_500, 10_000)
        while not (told := [line for line in capsys.readouterr().err.splitlines() if "3,500" in line]):
            time.sleep(0.01)
    most = 500 / (time.monotonic() - began)
    pace, left = re.fullmatch(r"scoring: 3,500 of 10,000 files, ([0-9.]+) files/s, ([0-9:]+) left", told[0]).groups()
    hours, minutes, seconds = map(int, left.split(":"))
    assert float(pace) >= most - 0.1
    assert 3_600 * hours + 60 * minutes + seconds == pytest.approx(6_500 / float(pace), abs=1)


def test_where_there_is_no_terminal_each_task_has_lines_of_its_own(capsys, monkeypatch):
    monkeypatch.setattr("moelora_ad.cli.terminal._SECONDS_BETWEEN", 0.05)

    def printed(start):
        while not (lines := [line for line in capsys.readouterr().err.splitlines() if line.startswith(start)]):
            time.sleep(0.01)
        return lines[-1]

    with progress() as show:
        show("without expert 0", 4, 8)
        assert printed("without expert 0") == "without expert 0: 4 of 8"
        show("without expert 1", 2, 8)
        assert printed("without expert 1") == "without expert 1: 2 of 8"
        show("without expert 1", 5, 8)
        assert re.fullmatch(r"without expert 1: 5 of 8, 0:00:0\d left", printed("without expert 1: 5"))


def test_the_bar_has_the_pace():
    console = terminal()
    with progress(console, "files") as show:
        for done in range(0, 40, 10):
            show("scoring", done, 40)
            time.sleep(0.01)
    assert " files/s" in console.file.getvalue()


@pytest.mark.parametrize("count", [0, 3])
def test_steps_count_what_is_done_before_each(monkeypatch, count):
    shown = []

    class Fake:
        def __enter__(self):
            return lambda *told: shown.append(told)

        def __exit__(self, *error):
            pass

    monkeypatch.setattr("moelora_ad.cli.terminal.progress", Fake)
    with step_progress(3) as begin:
        for number in range(count):
            begin(f"step {number}")
    assert shown == [(f"step {number}", number, 3) for number in range(count)]

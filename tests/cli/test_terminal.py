"""The progress bar on a terminal, and its silence elsewhere."""

import io

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


def test_nothing_is_drawn_where_there_is_no_terminal(capsys):
    with progress() as show:
        show("reading", 1, 2)
    with step_progress(2) as begin:
        begin("one")
        begin("two")
    assert capsys.readouterr() == ("", "")


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

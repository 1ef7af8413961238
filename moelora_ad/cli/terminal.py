"""Tables, lines and progress on a terminal or in a log."""

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from moelora_ad.errors import printable
from moelora_ad.evaluation.reports.text_table import TextTable, as_rich

_SECONDS_BETWEEN = 20.0

Show = Callable[[str, float, int], None]
"""Called with the work's description, the number of items done, and the number of all items."""


def print_table(table: TextTable) -> None:
    """Print a table and its notes. It is as wide as the terminal at most, or as 80 characters where there is none."""
    Console().print(as_rich(table))
    for note in table.notes:
        print_line(note)
    if table.notes:
        print_line("")


def print_line(text: str) -> None:
    """Print text as it is, without markup, colours or breaks."""
    Console().print(printable(text), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(console: Console | None = None, unit: str = "") -> Iterator[Show]:
    """Show the progress of one task after another: a bar on standard error, or a line every 20 s if that is not a
    terminal.

    Args:
        console: the console that other output is printed to meanwhile; None for a new one on standard error.
        unit: what is counted, in the plural, to show its pace; empty for no pace.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:  # rich would print an empty line after a bar that it does not show
        with _lines(unit) as show:
            yield show
        return
    columns = [TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    if unit:
        columns.insert(3, _Pace(unit))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(what: str, done: float, total: int) -> None:
            if done < bar.tasks[0].completed:  # the next task: the time is estimated afresh
                bar.reset(task)
            bar.update(task, description=printable(what), completed=done, total=total)

        yield show


class _Pace(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} {self._unit}/s" if task.speed else "")


@contextmanager
def _lines(unit: str) -> Iterator[Show]:
    """Progress as lines on standard error, however long a step takes."""
    first, last = ("", 0.0, time.monotonic()), ("", 0.0, 0)  # reports of the present task

    def show(what: str, done: float, total: int) -> None:
        nonlocal first, last
        if what != last[0] or done < last[1]:  # the next task
            first = what, done, first[2] if not last[0] else time.monotonic()
        last = what, done, total

    def tell() -> None:
        while not over.wait(_SECONDS_BETWEEN):
            (_, before, begun), (what, done, total) = first, last
            if what:
                pace = (done - before) / max(time.monotonic() - begun, 1e-9)
                speed = f" {unit}, {pace:.1f} {unit}/s" if unit else ""
                left = f", {timedelta(seconds=round((total - done) / pace))} left" if pace > 0 else ""
                print(printable(f"{what}: {done:,.0f} of {total:,}{speed}{left}"), file=sys.stderr, flush=True)

    over = threading.Event()
    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield show
    finally:
        over.set()
        teller.join()


@contextmanager
def step_progress(total: int) -> Iterator[Callable[[str], None]]:
    """Show the progress of a task of ``total`` steps: yields a function to call with each step's name before it
    begins."""
    done = itertools.count()
    with progress() as show:
        yield lambda what: show(what, next(done), total)

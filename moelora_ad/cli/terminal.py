"""Tables, lines and progress on a terminal or in a log."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moelora_ad.errors import printable
from moelora_ad.evaluation.reports.text_table import TextTable, as_rich

Show = Callable[[str, float, int], None]
"""Is told what is being done, how many are done, and of how many."""


def print_table(table: TextTable) -> None:
    """Print a table and its notes. It is never cut: on a narrow terminal its lines wrap."""
    console = Console()
    made = as_rich(table)
    needed = Measurement.get(console, console.options.update(max_width=10_000), made)
    console.width = max(console.width, needed.minimum if console.is_terminal else needed.maximum)
    console.print(made)
    for note in table.notes:
        print_line(note)
    if table.notes:
        print_line("")


def print_line(text: str) -> None:
    """Print text as it is, without markup, colours or breaks."""
    Console().print(printable(text), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(console: Console | None = None) -> Iterator[Show]:
    """A bar on standard error, if that is a terminal, for one task after another.

    Args:
        console: that is printed to meanwhile; None for one on standard error.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:  # rich would end what it does not show with an empty line
        yield lambda what, done, total: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(what: str, done: float, total: int) -> None:
            if done < bar.tasks[0].completed:  # the next task: time is estimated anew
                bar.reset(task)
            bar.update(task, description=printable(what), completed=done, total=total)

        yield show


@contextmanager
def step_progress(total: int) -> Iterator[Callable[[str], None]]:
    """The same for so many steps of one task: what it gives is told of each before it begins."""
    done = itertools.count()
    with progress() as show:
        yield lambda what: show(what, next(done), total)

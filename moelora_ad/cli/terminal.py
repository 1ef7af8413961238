"""Tables, lines and progress on a terminal or in a log."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from moelora_ad.errors import printable
from moelora_ad.evaluation.reports.text_table import TextTable, as_rich


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
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on standard error, if that is a terminal; gives what is told of each step before it begins."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task = bar.add_task("", total=total)
        done = itertools.count()

        def tick(what: str) -> None:
            bar.update(task, description=printable(what), completed=next(done))

        yield tick

"""What a sweep shows while it runs: a table on a terminal, lines of changes elsewhere."""

from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from moelora_ad.errors import printable
from moelora_ad.evaluation.reports.text_table import TextTable, as_rich, blocks
from moelora_ad.sweeps.planning import PlannedRun
from moelora_ad.sweeps.states import State, Status

# The order of the runs in the table by state: a low screen shows only the first ones.
_FIRST: tuple[State, ...] = ("running", "failed", "differs", "cut off", "interrupted", "queued", "waiting", "finished")
_AROUND = 5
"""Lines of a block of the table that do not show runs."""
_STYLES: dict[State, str] = {"running": "cyan", "finished": "green", "failed": "red", "differs": "red"}


class LiveView:
    """Statuses of the runs of a sweep, on standard error.

    Args:
        runs: the runs to show, in their order.
        statuses: initial statuses by the runs' labels; they are in the table, but not reported as changes.
        console: where to write; None for standard error.
    """

    def __init__(
        self, runs: Sequence[PlannedRun], statuses: Mapping[str, Status], console: Console | None = None
    ) -> None:
        self._runs = runs
        self.statuses = dict(statuses)
        self._told: dict[str, tuple[str, ...]] = {}
        self._console = Console(stderr=True) if console is None else console
        self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=2, transient=True)

    def __enter__(self) -> "LiveView":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, run: PlannedRun, status: Status) -> None:
        """Update the status of a run in the table, or print a line if it has changed and there is no terminal."""
        self.statuses[run.label] = status
        # A change of the time alone is not reported.
        told = cells(run, status)[:-1]
        if not self._console.is_terminal and self._told.get(run.label) != told:
            self._told[run.label] = told
            self.say(status_line(run, status))

    def say(self, line: str) -> None:
        """Print a line, above the table if there is one."""
        self._console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def _table(self) -> RenderableType:
        found = [(run, self.statuses[run.label]) for run in self._runs]
        found.sort(key=lambda one: _FIRST.index(one[1].state))
        rows = [cells(run, status) for run, status in found]
        styles = {(row, 1): _STYLES.get(status.state, "") for row, (_, status) in enumerate(found)}
        columns = ("run", "state", "epoch", "dev EER %", "best", "time")
        number = blocks(TextTable("", columns, rows, 2), self._console.width)
        room = max(1, (self._console.height - 1) // number - _AROUND)
        table = TextTable("", columns, rows[:room], 2, styles=styles)
        return Group(Text(counts([status for _, status in found])), as_rich(table))


def counts(statuses: Sequence[Status]) -> str:
    """Return how many runs are in each state, in words."""
    states = [status.state for status in statuses]
    return ", ".join(f"{states.count(state)} {state}" for state in _FIRST if state in states)


def cells(run: PlannedRun, status: Status) -> tuple[str, ...]:
    """Return the cells of a run's row: run, state, epochs done, EER of the last and of the best validation in percent,
    time of all attempts."""
    record = status.record
    if record is None:
        return (run.label, status.state, "", "", "", "")
    epochs = f"{record.epoch}/{record.max_epochs}" if record.max_epochs is not None else str(record.epoch)
    eers = ["" if eer is None else f"{100 * eer:.2f}" for eer in (record.dev_eer, record.best_dev_eer)]
    return (run.label, status.state, epochs, *eers, clock_time(record.seconds))


def status_line(run: PlannedRun, status: Status) -> str:
    """Return one line on the status of a run."""
    label, state, epochs, eer, best, time = cells(run, status)
    parts = [state]
    if status.record is not None:
        parts += [f"epoch {epochs}", *([f"dev EER {eer} % (best {best} %)"] if eer else []), time]
    return f"{label}: {', '.join(parts)}{f': {status.reason}' if status.reason else ''}"


def clock_time(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds (``1:02:03``)."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"

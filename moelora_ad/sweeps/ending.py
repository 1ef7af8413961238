"""The results of a sweep, in one table."""

from collections.abc import Sequence

from moelora_ad.evaluation.reports.text_table import TextTable
from moelora_ad.sweeps.live import cells
from moelora_ad.sweeps.planning import PlannedRun
from moelora_ad.sweeps.states import Status


def runs_table(runs: Sequence[PlannedRun], statuses: Sequence[Status]) -> TextTable:
    """Return a table with a row for each run, and the EER of each evaluated set in percent."""
    records = [status.record for status in statuses]
    sets = list(dict.fromkeys(name for record in records if record is not None for name in record.sets))
    rows = []
    for run, status in zip(runs, statuses, strict=True):
        label, state, epochs, _, best, time = cells(run, status)
        found = {} if status.record is None else status.record.sets
        eers = [found[name].eer if name in found else None for name in sets]
        rows.append((label, state, epochs, best, *("" if e is None else f"{100 * e:.2f}" for e in eers), time))
    columns = ("run", "state", "epochs", "best dev EER %", *(f"{name} EER %" for name in sets), "time")
    return TextTable("Runs", columns, rows, words=2)

"""The report of an analysis, and its files."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from moelora_ad.errors import printable
from moelora_ad.evaluation.reports.plots import drawn, style
from moelora_ad.evaluation.reports.rows import as_csv
from moelora_ad.evaluation.reports.text_table import TextTable, as_markdown
from moelora_ad.files import written_whole

LEVEL = 0.05
"""Largest p value of a finding that counts as shown."""


@dataclass(frozen=True)
class Report:
    """The report of an analysis.

    Attributes:
        name: name of the analysis, which its files are named after.
        finding: what the analysis shows, with numbers, in one line.
        tables: tables for people.
        rows: rows for programs, one measured value or item each, at full precision.
        data: what rows cannot represent, for programs: plain JSON values at full precision; null for what is not
            finite.
        figures: functions that make a figure when it is needed, by name.
        notes: notes on how to read the report, a line each.
    """

    name: str
    finding: str
    tables: Sequence[TextTable] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Callable[[], Figure]] = field(default_factory=dict)
    notes: Sequence[str] = ()


def decimals(value: float, number: int) -> str:
    """Return a value rounded to a number of decimals; one that is rounded to zero has no sign."""
    return f"{round(value, number) + 0.0:.{number}f}"


def write_report(report: Report, folder: str | Path) -> list[Path]:
    """Write a report; each file appears whole or not at all.

    NAME.json has finding, notes, data and rows, NAME.csv the rows, NAME.md finding, notes and tables; each figure is
    NAME-FIGURE.png and .svg.

    Args:
        report: report of an analysis.
        folder: folder of the files, created if it is missing.

    Returns:
        The files.

    Raises:
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    texts = {".json": _as_json(report), ".md": _as_markdown(report)}
    if report.rows:
        columns = list(dict.fromkeys(column for row in report.rows for column in row))
        texts[".csv"] = as_csv(report.rows, columns)
    written = []
    for ending, text in texts.items():
        path = folder / f"{report.name}{ending}"
        with written_whole(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8", newline="")
        written.append(path)
    for name, make in report.figures.items():
        with style():
            plot = drawn(make())
        written += plot.write(folder / f"{report.name}-{name}")
    return written


def _as_json(report: Report) -> str:
    content = {
        "analysis": report.name,
        "finding": report.finding,
        "notes": list(report.notes),
        **report.data,
        "rows": list(report.rows),
    }
    return json.dumps(_plain(content), indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Convert values of NumPy and PyTorch to Python; NaN and infinity, which JSON lacks, become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_markdown(report: Report) -> str:
    notes = "\n".join(f"- {printable(note)}" for note in report.notes)
    parts = (f"# {report.name}", printable(report.finding), notes, *map(as_markdown, report.tables))
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"

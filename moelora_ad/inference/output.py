"""Scores as rows of a table for people, or of JSON Lines and CSV for programs."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from moelora_ad.errors import printable
from moelora_ad.evaluation.reports.text_table import TextTable, as_rich
from moelora_ad.inference.file_scores import FileFailure, FileScore, default_threshold, probability

FILE_COLUMNS = (
    "path",
    "score",
    "scale",
    "prior",
    "probability",
    "threshold",
    "verdict",
    "reason",
    "seconds",
    "windows",
    "notes",
    "notice",
    "error",
)
WINDOW_COLUMNS = ("path", "start", "end", "score", "probability", "notice")
SPOKEN = {"bonafide": "bona fide", "spoof": "spoof", "inconclusive": "inconclusive"}
"""Verdicts in words for people, by the keys that data have."""

LLR, LOG_ODDS = "llr", "log_odds"
"""Scales of a score: calibrated log-likelihood ratio, and raw log-odds."""

Row = dict[str, Any]


class DecisionRule(NamedTuple):
    """Rule for verdicts: the prior of bona fide, and the threshold, the lowest score that counts as bona fide."""

    is_calibrated: bool
    prior: float
    threshold: float

    @classmethod
    def of(cls, is_calibrated: bool, prior: float, threshold: float | None) -> "DecisionRule":
        """The rule with a threshold, or with the default one if it is None."""
        default = default_threshold(is_calibrated, prior)
        return cls(is_calibrated, prior, default if threshold is None else threshold)

    @property
    def scale(self) -> str:
        return LLR if self.is_calibrated else LOG_ODDS

    def explained(self) -> str:
        """The meaning of scores and verdicts, in a line or two for people."""
        if self.is_calibrated:
            return (
                "score: log-likelihood ratio of bona fide against spoof (natural logarithm, calibrated); "
                f"P(bona fide) at a prior of {self.prior:g}; verdict: bona fide from a score of {self.threshold:.3g} on"
            )
        return (
            "score: raw log-odds of a model that is not calibrated: higher is more bona fide, but no probability can "
            f"be given; verdict: bona fide from {self.threshold:.3g} on, a default threshold"
        )


def file_row(result: FileScore | FileFailure, decision: DecisionRule) -> Row:
    """The row of one file, with ``FILE_COLUMNS`` as keys."""
    if isinstance(result, FileFailure):
        return dict.fromkeys(FILE_COLUMNS) | {"path": result.name, "error": result.reason}
    return {
        "path": result.name,
        "score": result.score,
        "scale": decision.scale,
        "prior": decision.prior if decision.is_calibrated else None,
        "probability": result.probability(decision.prior),
        "threshold": decision.threshold,
        "verdict": result.verdict(threshold=decision.threshold),
        "reason": result.reason,
        "seconds": result.seconds,
        "windows": len(result.windows),
        "notes": "; ".join(map(str, result.notes)) or None,
        "notice": result.notice,
        "error": None,
    }


def window_rows(result: FileScore, decision: DecisionRule) -> list[Row]:
    """The rows of a file's windows, with ``WINDOW_COLUMNS`` as keys; times in seconds."""
    return [
        {
            "path": result.name,
            "start": window.start,
            "end": window.end,
            "score": window.score,
            "probability": probability(window.score, decision.prior) if decision.is_calibrated else None,
            "notice": result.notice,
        }
        for window in result.windows
    ]


def as_json_line(row: Row) -> bytes:
    """A row as a line of JSON, in ASCII."""
    return json.dumps(row).encode("ascii") + b"\n"


def as_csv_line(values: Iterable[object]) -> bytes:
    """Values as a line of CSV: numbers in full precision, file names in the bytes that they have on the disk."""
    line = io.StringIO()
    # With this terminator, values that contain either of its characters are put in quotes.
    csv.writer(line, lineterminator="\r\n").writerow("" if value is None else value for value in values)
    return _encoded(line.getvalue().removesuffix("\r\n") + "\n")


def csv_text(name: str) -> str:
    """A file's name as it is read back from CSV."""
    return _encoded(name).decode("utf-8", "surrogateescape")


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a name that no file can have
        return text.encode("utf-8", "backslashreplace")


class RowWriter:
    """Writes rows as they come.

    Args:
        form: "jsonl" or "csv".
        columns: Names of the columns.
        write: Called with each whole line.
        header: Whether CSV begins with the names of the columns.
    """

    def __init__(
        self, form: str, columns: tuple[str, ...], write: Callable[[bytes], object], header: bool = True
    ) -> None:
        self._write = write
        self._is_csv = form == "csv"
        if self._is_csv and header:
            write(as_csv_line(columns))

    def __call__(self, row: Row) -> None:
        self._write(as_csv_line(row.values()) if self._is_csv else as_json_line(row))


def score_table(rows: Sequence[Row]) -> TextTable:
    """Table of the files that have a score, for people. If any file has notes, they replace the number of windows; the
    reason for an inconclusive verdict comes first."""
    folder = _shared_folder([row["path"] for row in rows])
    has_notes = any(row["notes"] or row["reason"] for row in rows)
    columns = ("file", "score", "P(bona fide)", "verdict", "length", "notes" if has_notes else "windows")
    cells, styles = [], {}
    for number, row in enumerate(rows):
        if row["verdict"] == "spoof":
            styles[number, 3] = "bold red"
        notes = "; ".join(filter(None, (row["reason"], row["notes"])))
        last = "\n".join(map(printable, notes.split("; "))) if has_notes else f"{row['windows']:,}"
        figures = (f"{row['score']:.3f}", chance(row["probability"]), SPOKEN[row["verdict"]], clock(row["seconds"]))
        cells.append((printable(row["path"][len(folder) :]), *figures, last))
    words = (0, 3, 5) if has_notes else (0, 3)
    return TextTable(f"in {printable(folder)}" if folder else "", columns, cells, words, styles=styles)


def _shared_folder(paths: Sequence[str]) -> str:
    """The folder that contains all of several files, with a slash at its end; empty if there is none."""
    try:
        folder = os.path.join(os.path.commonpath([os.path.dirname(path) for path in paths]), "")
    except ValueError:  # there are relative and absolute paths
        return ""
    return folder if len(paths) > 1 and all(path.startswith(folder) for path in paths) else ""


def print_scores(rows: list[Row], decision: DecisionRule, console: Console) -> None:
    """Print the table of scores, and what they mean."""
    print_table(rows, console)
    console.print(Text(decision.explained(), style="dim"), soft_wrap=True)


def print_table(rows: list[Row], console: Console) -> None:
    """Print the table of scores, and the model's notice."""
    if rows:
        console.print(as_rich(score_table(rows)))
    for notice in dict.fromkeys(row["notice"] for row in rows if row.get("notice")):
        console.print(Text(printable(notice), style="bold"), soft_wrap=True)


def chance(probability: float | None) -> str:
    """A probability as text, such as 0.123, <0.001 and >0.999; empty for None."""
    if probability is None:
        return ""
    return f"{probability:.3f}" if 0.0005 <= probability < 0.9995 else "<0.001" if probability < 0.5 else ">0.999"


def clock(seconds: float) -> str:
    """Seconds as text, such as 0:04.0, 12:31.5 and 1:00:02.3."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest / 10:04.1f}" if hours else f"{minutes}:{rest / 10:04.1f}"

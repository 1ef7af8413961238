"""Text files of records, read so that every fault is told with its file and line."""

import csv
import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from moelora_ad.corpora.trial import Trial, TrialList
from moelora_ad.errors import InputError


class ProtocolError(InputError):
    """A protocol or manifest that is missing or faulty."""


def read_text(path: str | Path, error: type[InputError] = ProtocolError) -> str:
    """The UTF-8 text of a file, with or without byte order mark; ``error`` is what is raised otherwise."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise error.at(path, "no such file; check the path in the configuration") from None
    except OSError as reason:
        raise error.at(path, f"cannot be read: {reason.strerror}") from None
    try:
        text = data.decode()
    except UnicodeDecodeError as reason:
        raise error.at(path, f"not UTF-8 text at byte {reason.start}", line=_line(data, reason.start)) from None
    nul = data.find(b"\0")
    if nul >= 0:
        raise error.at(path, f"not a text file: NUL at byte {nul}", line=_line(data, nul))
    return text.removeprefix("\ufeff")


def _line(data: bytes, position: int) -> int:
    return data.count(b"\n", 0, position) + 1


def read_lines(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """The line number and the space-separated fields of every line that is not blank."""
    for line, text in enumerate(read_text(path).split("\n"), start=1):
        fields = text.split()
        if fields:
            yield line, fields


def read_csv(
    path: str | Path, error: type[InputError] = ProtocolError
) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """The header of a CSV file, and its records with the numbers of the lines where they start."""
    rows = _csv_rows(path, error)
    line, first = next(rows, (1, []))
    header = [name.strip() for name in first]
    if not header:
        raise error.at(path, "is empty; the first line must name the columns")
    for name in header:
        if name and header.count(name) > 1:
            raise error.at(path, f"column {name!r} occurs {header.count(name)} times", line=line)
    return header, _records(path, header, rows, error)


def _csv_rows(path: str | Path, error: type[InputError]) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(read_text(path, error), newline=""), strict=True)
    while True:
        line = reader.line_num + 1  # a quoted field may run over several lines: keep the first
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as reason:
            raise error.at(path, f"not valid CSV: {reason}", line=line) from None
        if row:
            yield line, row


def _records(
    path: str | Path, header: list[str], rows: Iterable[tuple[int, list[str]]], error: type[InputError]
) -> Iterator[tuple[int, dict[str, str]]]:
    for line, row in rows:
        if len(row) != len(header):
            raise error.at(path, f"{len(row)} fields where the header has {len(header)}", line=line)
        yield line, dict(zip(header, row, strict=True))


def known(text: str) -> str | None:
    """A field's text; ``None`` if it is empty or ``-``. Equal texts become one object, to spare memory."""
    return sys.intern(text) if text not in ("", "-") else None


def collect(path: str | Path, trials: Iterable[tuple[int, Trial]]) -> TrialList:
    """A `TrialList` of trials with their line numbers; repeated utterances are told with both lines."""
    lines: dict[str, int] = {}
    kept = []
    for line, trial in trials:
        before = lines.setdefault(trial.utterance, line)
        if before != line:
            raise ProtocolError.at(path, f"utterance {trial.utterance!r} was already in line {before}", line=line)
        kept.append(trial)
    if not kept:
        raise ProtocolError.at(path, "has no trials")
    return TrialList(kept)

"""Text files of records, read so that every fault is told with its file and line."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import compress, islice
from pathlib import Path
from typing import Any, NamedTuple

from moelora_ad.corpora.storage import open_file
from moelora_ad.errors import InputError

DELIMITERS = (",", "\t", ";")
"""Of tables; spreadsheets write semicolons where the comma is the decimal sign."""
_BLOCK = 2_000  # records
_CHUNK = 2**16  # characters
_MOST_BYTES = 2**30


class ProtocolError(InputError):
    """A protocol or manifest that is missing or faulty."""


def read_bytes(path: str | Path, error: type[InputError]) -> bytes:
    """The content of a file, which may be in an archive or remote (see `storage`)."""
    try:
        file = open_file(str(path))
        with open(file, "rb") if isinstance(file, str) else file as opened:
            data = opened.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise error.at(path, "no such file; check the path in the configuration") from None
    except OSError as reason:
        raise error.at(path, f"cannot be read: {reason.strerror}") from None
    if len(data) > _MOST_BYTES:
        raise error.at(path, f"is larger than {_MOST_BYTES:,} bytes; is it a protocol?")
    return data


def read_text(path: str | Path, error: type[InputError] = ProtocolError) -> str:
    """The UTF-8 text of a file, with or without byte order mark; ``error`` is what is raised otherwise."""
    data = read_bytes(path, error)
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


class Block(NamedTuple):
    """Some records of a file, column by column: many at once are read far faster than one by one.

    Args:
        lines: (n,) the line where each record starts.
        columns: (n,) texts under each name.
    """

    lines: Sequence[int]
    columns: dict[str, Sequence[str]]

    def where(self, keep: Sequence[bool]) -> "Block":
        """Some of the records."""
        columns: dict[str, Sequence[str]] = {
            name: tuple(compress(column, keep)) for name, column in self.columns.items()
        }
        return Block(tuple(compress(self.lines, keep)), columns)


def read_lines(path: str | Path, *layouts: Sequence[str], error: type[InputError] = ProtocolError) -> Iterator[Block]:
    """The space-separated fields of all lines that are not blank.

    Args:
        path: The file; it has no header.
        layouts: The names of the columns; of several layouts, the one that has as many as the first line.
        error: What is raised if the file is faulty.
    """
    text = read_text(path, error)
    layout = _layout(text, layouts)
    for numbers, chunk in _chunks(text):
        fields = f"{chunk}\n".replace("\n", " \0 ").split()  # `read_text` refuses NUL: every NUL here ends a line
        if fields[len(layout) :: len(layout) + 1] != ["\0"] * len(numbers):
            numbers, fields = _careful_fields(path, layout, numbers, chunk, error)
        if numbers:
            yield Block(numbers, {name: fields[i :: len(layout) + 1] for i, name in enumerate(layout)})


def first_line(text: str) -> str:
    """The first line of a text that is not blank, from its first word on; empty if there is none."""
    first = re.search(r"\S.*", text)
    return first[0] if first else ""


def _layout(text: str, layouts: Sequence[Sequence[str]]) -> Sequence[str]:
    size = len(first_line(text).split())
    return next((layout for layout in layouts if len(layout) == size), layouts[-1])


def _chunks(text: str) -> Iterator[tuple[Sequence[int], str]]:
    """A few lines at a time, and their numbers."""
    start, line = 0, 1
    while start < len(text):
        end = text.find("\n", start + _CHUNK) + 1 or len(text)
        chunk = text[start:end].removesuffix("\n")
        numbers = range(line, line + chunk.count("\n") + 1)
        yield numbers, chunk
        start, line = end, numbers.stop


def _careful_fields(
    path: str | Path, layout: Sequence[str], numbers: Sequence[int], chunk: str, error: type[InputError]
) -> tuple[Sequence[int], list[str]]:
    """The numbers of the lines that are not blank, and the fields of all of them, with a NUL after each line."""
    rows = [(number, row) for number, row in zip(numbers, map(str.split, chunk.split("\n")), strict=True) if row]
    for number, row in rows:
        if len(row) != len(layout):
            wanted = f"{len(layout)} are needed: {' '.join(layout)}"
            raise error.at(path, f"{len(row)} columns where {wanted}", line=number)
    return [number for number, _ in rows], [field for _, row in rows for field in (*row, "\0")]


def read_table(path: str | Path, delimiter: str = ",") -> tuple[list[str], Iterator[Block]]:
    """The header of a CSV file, and its records without the spaces around fields. Columns without a name are ``""``."""
    rows = _csv_rows(path, ProtocolError, delimiter)
    header = _header(path, rows, ProtocolError)
    return header, _table_blocks(header, _checked(path, header, rows, ProtocolError))


def _table_blocks(header: list[str], rows: Iterator[tuple[int, list[str]]]) -> Iterator[Block]:
    while block := list(islice(rows, _BLOCK)):
        columns = zip(*(row for _, row in block), strict=True)
        yield Block(
            [line for line, _ in block],
            {name: tuple(map(str.strip, column)) for name, column in zip(header, columns, strict=True)},
        )


def read_json_lines(path: str | Path, error: type[InputError] = ProtocolError) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file that has one a line, and their lines; blank lines are left out."""
    for line, text in enumerate(read_text(path, error).split("\n"), 1):
        if text.strip():
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as reason:
                raise error.at(path, f"not valid JSON: {reason}", line=line) from None
            if not isinstance(record, dict):
                raise error.at(path, "not a JSON object", line=line)
            yield line, record


def delimiter_of(header: str, names: Container[str]) -> str | None:
    """What stands between the fields of a header that has one of ``names``: a comma, tab or semicolon, or None."""
    return next((one for one in DELIMITERS if any(name in names for name in split_header(header, one))), None)


def split_header(header: str, delimiter: str) -> list[str]:
    """The names in a header."""
    return [name.strip().strip('"') for name in header.split(delimiter)]


def read_columns(
    path: str | Path, error: type[InputError] = ProtocolError, delimiter: str = ","
) -> tuple[list[str], list[int], dict[str, list[str]]]:
    """The header of a CSV file, the line where each record starts, and the columns as they are."""
    rows = _csv_rows(path, error, delimiter)
    header = _header(path, rows, error)
    lines: list[int] = []
    columns: list[list[str]] = [[] for _ in header]
    checked = _checked(path, header, rows, error)
    while block := list(islice(checked, _BLOCK)):
        lines += [line for line, _ in block]
        for column, values in zip(columns, zip(*(row for _, row in block), strict=True), strict=True):
            column += values
    return header, lines, dict(zip(header, columns, strict=True))


def _header(path: str | Path, rows: Iterator[tuple[int, list[str]]], error: type[InputError]) -> list[str]:
    line, first = next(rows, (1, []))
    header = [name.strip() for name in first]
    if not header:
        raise error.at(path, "is empty; the first line must name the columns")
    for name, count in Counter(header).items():
        if name and count > 1:
            raise error.at(path, f"column {name!r} occurs {count} times", line=line)
    return header


def _csv_rows(path: str | Path, error: type[InputError], delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(read_text(path, error), newline=""), delimiter=delimiter, strict=True)
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


def _checked(
    path: str | Path, header: list[str], rows: Iterable[tuple[int, list[str]]], error: type[InputError]
) -> Iterator[tuple[int, list[str]]]:
    for line, row in rows:
        if len(row) != len(header):
            raise error.at(path, f"{len(row)} fields where the header has {len(header)}", line=line)
        yield line, row

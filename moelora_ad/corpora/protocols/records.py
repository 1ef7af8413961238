"""Text files of records, read so that every fault is reported with its file and line."""

import csv
import io
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import accumulate, chain, compress, islice
from pathlib import Path
from typing import Any, NamedTuple

from moelora_ad.corpora.storage.files import open_file, seen_from
from moelora_ad.documents import DocumentError, parse_json
from moelora_ad.errors import InputError

DELIMITERS = (",", "\t", ";")
"""Delimiters of tables; spreadsheets write semicolons where the comma is the decimal sign."""
_BLOCK = 300  # records; with 700 lists at once, Python's garbage collector would scan all that was read again and again
_FEW = 10_000  # different values of a column
_LINE_END = re.compile("\r\n|\r|\n")
_CHUNK = 2**16  # characters
_MOST_BYTES = 2**30


class ProtocolError(InputError):
    """A protocol or manifest that is missing or faulty."""


def read_bytes(path: str | Path, error: type[InputError]) -> bytes:
    """The content of a file, which may be in an archive or remote (see `storage`)."""
    place = str(path)
    if place.endswith("!"):
        raise error.at(place[:-1], f"an archive or a folder of archives, not a file; a file in it is {place}/NAME")
    try:
        file = open_file(place)
        with open(file, "rb") if isinstance(file, str) else file as opened:
            data = opened.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise error.at(path, f"no such file{seen_from(path)}; check the path") from None
    except OSError as reason:
        raise error.at(path, f"cannot be read: {reason.strerror}") from None
    if len(data) > _MOST_BYTES:
        raise error.at(path, f"is larger than {_MOST_BYTES:,} bytes; is it a protocol?")
    return data


def read_text(path: str | Path, error: type[InputError] = ProtocolError) -> str:
    """The UTF-8 text of a file, with or without byte order mark; ``error`` is raised if the file is something else."""
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
        """The records for which ``keep`` is true."""
        columns: dict[str, Sequence[str]] = {
            name: tuple(compress(column, keep)) for name, column in self.columns.items()
        }
        return Block(tuple(compress(self.lines, keep)), columns)


def read_lines(path: str | Path, *layouts: Sequence[str], error: type[InputError] = ProtocolError) -> Iterator[Block]:
    """The space-separated fields of all lines that are not blank.

    Args:
        path: The file; it has no header.
        layouts: The names of the columns; of several layouts, the one that has as many as the first line.
        error: The exception that is raised if the file is faulty.
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
    header, blocks = _records(path, ProtocolError, delimiter)
    return header, (_block(header, *block) for block in blocks)


def _block(header: list[str], lines: Sequence[int], rows: list[list[str]]) -> Block:
    columns = zip(*rows, strict=True)
    return Block(lines, {name: tuple(map(str.strip, column)) for name, column in zip(header, columns, strict=True)})


def read_json_lines(path: str | Path, error: type[InputError] = ProtocolError) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each line of a file, and the JSON object in that line; blank lines are left out."""
    for line, text in enumerate(read_text(path, error).split("\n"), 1):
        if text.strip():
            try:
                record = parse_json(text)
            except (ValueError, RecursionError, DocumentError) as reason:
                raise error.at(path, f"not valid JSON: {reason}", line=line) from None
            if not isinstance(record, dict):
                raise error.at(path, "not a JSON object", line=line)
            yield line, record


def delimiter_of(header: str, names: Container[str]) -> str | None:
    """What separates the fields of a header that has one of ``names``: a comma, tab or semicolon, or None."""
    return next((one for one in DELIMITERS if any(name in names for name in split_header(header, one))), None)


def split_header(header: str, delimiter: str) -> list[str]:
    """The names in a header."""
    return [name.strip().strip('"') for name in header.split(delimiter)]


def read_columns(
    path: str | Path, error: type[InputError] = ProtocolError, delimiter: str = ","
) -> tuple[list[str], list[int], dict[str, list[str]]]:
    """The header of a CSV file, the line where each record starts, and the columns, whose values keep their spaces."""
    header, blocks = _records(path, error, delimiter)
    lines: list[int] = []
    columns: list[list[str]] = [[] for _ in header]
    pools: list[dict[str, str]] = [{} for _ in header]
    for numbers, rows in blocks:
        lines += numbers
        for column, pool, values in zip(columns, pools, zip(*rows, strict=True), strict=True):
            # Equal values of a column that has few different ones are one object: a label takes 56 bytes.
            column += map(pool.setdefault, values, values) if len(pool) < _FEW else values
    return header, lines, dict(zip(header, columns, strict=True))


_Rows = tuple[Sequence[int], list[list[str]]]
"""A block of one or more rows that are not blank: the line where each starts, and its fields."""


def _records(path: str | Path, error: type[InputError], delimiter: str) -> tuple[list[str], Iterator[_Rows]]:
    """The header of a CSV file, and its records, which must have as many fields as the header."""
    blocks = _csv_rows(path, error, delimiter)
    nothing: _Rows = [1], [[]]
    lines, rows = next(blocks, nothing)
    header = [name.strip() for name in rows[0]]
    if not header:
        raise error.at(path, "is empty; the first line must name the columns")
    for name, count in Counter(header).items():
        if name and count > 1:
            raise error.at(path, f"column {name!r} occurs {count} times", line=lines[0])
    return header, _checked(path, len(header), chain([(lines[1:], rows[1:])], blocks), error)


def _csv_rows(path: str | Path, error: type[InputError], delimiter: str) -> Iterator[_Rows]:
    # Lines are made one at a time from UTF-8: a StringIO takes four bytes for every character.
    text = io.TextIOWrapper(io.BytesIO(read_text(path, error).encode()), "utf-8", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    line, fault = 1, ""
    while not fault:
        rows: list[list[str]] = []
        try:
            rows.extend(islice(reader, _BLOCK))
        except csv.Error as reason:  # the rows before the fault have been read
            fault = str(reason)
        if not (rows or fault):
            return
        lines: Sequence[int] = range(line, line + len(rows))
        if reader.line_num >= line + len(rows):  # quoted fields run over several lines: a row counts by its first
            sizes = (1 + sum(len(_LINE_END.findall(field)) for field in row) for row in rows)
            *lines, line = accumulate(sizes, initial=line)
        else:
            line += len(rows)
        if not all(rows):  # blank lines
            lines, rows = list(compress(lines, rows)), list(filter(None, rows))
        if rows:
            yield lines, rows
    raise error.at(path, f"not valid CSV: {fault}", line=line)


def _checked(path: str | Path, width: int, blocks: Iterable[_Rows], error: type[InputError]) -> Iterator[_Rows]:
    for lines, rows in blocks:
        if rows and set(map(len, rows)) != {width}:
            line, row = next(both for both in zip(lines, rows, strict=True) if len(both[1]) != width)
            raise error.at(path, f"{len(row)} fields where the header has {width}", line=line)
        if rows:
            yield lines, rows

"""Readers for the formats of a manifest; all give blocks of the same columns."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from io import BytesIO
from itertools import islice
from pathlib import PurePosixPath

from moelora_ad.corpora.protocols.records import (
    Block,
    ProtocolError,
    delimiter_of,
    first_line,
    read_bytes,
    read_json_lines,
    read_table,
    read_text,
)

COLUMNS = ("path", "label", "utterance", "speaker", "attack", "codec", "split", "language")
_BLOCK = 10_000  # records


def read_manifest(path: str) -> Iterator[Block]:
    """The records of a manifest in blocks with all of ``COLUMNS`` and no others; values that are missing are empty."""
    suffix = PurePosixPath(path).suffix.lower()
    if suffix == ".jsonl":
        yield from _read_json_lines(path)
        return
    header, blocks = _read_parquet(path) if suffix == ".parquet" else _read_csv(path, suffix)
    _check_names(path, header)
    for lines, columns in blocks:
        nothing = [""] * len(lines)
        yield Block(lines, {name: columns.get(name, nothing) for name in COLUMNS})


def _read_csv(path: str, suffix: str) -> tuple[Sequence[str], Iterable[Block]]:
    header = first_line(read_text(path))
    return read_table(path, delimiter_of(header, ("path",)) or ("\t" if suffix == ".tsv" else ","))


def _read_json_lines(path: str) -> Iterator[Block]:
    numbered = read_json_lines(path)
    checked: set[tuple[str, ...]] = set()
    while block := list(islice(numbered, _BLOCK)):
        for line, record in block:
            names = tuple(record)
            if names not in checked:
                _check_names(path, names, line)
                checked.add(names)
        columns: dict[str, Sequence[str]] = {name: [_text(record.get(name)) for _, record in block] for name in COLUMNS}
        yield Block([line for line, _ in block], columns)


def _read_parquet(path: str) -> tuple[Sequence[str], Iterable[Block]]:
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise ProtocolError.at(path, "Parquet needs pyarrow: pip install 'moelora_ad[parquet]'") from None
    data = read_bytes(path, ProtocolError)
    try:
        table = parquet.read_table(BytesIO(data))
        given = {name: table[name].to_pylist() for name in COLUMNS if name in table.column_names}
    except (arrow.ArrowException, OSError, OverflowError, ValueError) as reason:
        raise ProtocolError.at(path, f"not valid Parquet: {' '.join(str(reason).split())}") from None
    columns: dict[str, Sequence[str]] = {name: [_text(value) for value in values] for name, values in given.items()}
    return table.column_names, [Block(range(1, len(table) + 1), columns)] if len(table) else []


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _check_names(path: str, names: Sequence[str], line: int = 1) -> None:
    missing = [column for column in COLUMNS if column not in names]
    for name in names:
        meant = difflib.get_close_matches(name.lower(), missing, n=1, cutoff=0.75)
        if name not in COLUMNS and meant:
            raise ProtocolError.at(path, f"column {name!r} is unknown; did you mean {meant[0]!r}?", line=line)
    if "path" in missing:
        raise ProtocolError.at(path, f"no column 'path'; the header has {', '.join(map(repr, names))}", line=line)

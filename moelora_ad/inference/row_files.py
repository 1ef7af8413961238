"""Files of rows that are written one by one, and from which a run that was killed can resume."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from moelora_ad.documents import read_json
from moelora_ad.errors import InputError
from moelora_ad.files import file_hash, written_whole
from moelora_ad.inference.output import FILE_COLUMNS, Row, RowWriter, csv_text

_FORMS = ("csv", "jsonl")


class RowFile:
    """A file with a row for each scored sound, which is written at once. ``NAME.json`` beside it records what the rows
    depend on and, once they are complete, their number and the SHA-256 of the file.

    Args:
        path: path of the file; missing folders are created.
        form: "jsonl" or "csv".
        origin: all that the rows depend on, by name.
        resumes: whether to add to existing rows; an incomplete last row is removed. A file that does not exist is
            created.

    Attributes:
        failed: number of rows with an error.

    Raises:
        InputError: existing rows are of another or an unknown origin, or damaged; an unfinished run would be
            overwritten, or what describes another file.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, form: str, origin: Mapping[str, Any], resumes: bool) -> None:
        self.failed = 0
        self._path = path
        self._form = form
        self._beside = path.with_suffix(".json")
        self._origin = dict(origin)
        self._files = 0
        self._done: set[str] = set()
        if self._beside == path:
            raise InputError(f"{path}: where the rows come from is written to that name; call them .jsonl or .csv")
        end = self._end_of_rows(resumes)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not end:
            path.unlink(missing_ok=True)  # first, so that the new JSON never stands beside old rows
        self._write_beside({"complete": False})
        self._file = path.open("ab")
        self._file.truncate(end)
        self._writer = RowWriter(form, FILE_COLUMNS, self._write, header=not end)

    def has(self, name: str) -> bool:
        """Whether the file had a row of a sound when it was opened."""
        return (csv_text(name) if self._form == "csv" else name) in self._done

    def __call__(self, row: Row) -> None:
        """Write a row, and flush it; raises `InputError` if that fails, as on a full disk."""
        self._writer(row)
        self._count(row)

    def finish(self) -> None:
        """Close the file, and record that its rows are complete."""
        self._file.close()
        counts = {"complete": True, "files": self._files, "failed": self.failed}
        self._write_beside(counts | {"score_file_sha256": file_hash(self._path)})

    def close(self) -> None:
        """Close the file; the rows written so far remain."""
        with suppress(OSError):  # of a row that could not be written, which `_write` has reported
            self._file.close()

    def _write(self, line: bytes) -> None:
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise InputError(f"{self._path}: {error.strerror}") from None

    def _count(self, row: Mapping[str, Any]) -> None:
        self._files += 1
        self.failed += bool(row["error"])

    def _write_beside(self, more: Mapping[str, Any]) -> None:
        with written_whole(self._beside) as unfinished:
            content = {"origin": self._origin, "format": self._form, **more}
            unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _end_of_rows(self, resumes: bool) -> int:
        """Position in bytes after the existing rows that are kept."""
        content = read_json(self._beside) if self._beside.exists() else {}
        if not isinstance(content, dict) or (content and not isinstance(content.get("origin"), dict)):
            raise InputError(f"{self._beside} is another file, and its name is needed: choose another --output")
        recorded = content.get("format")
        form = recorded if recorded in _FORMS else self._form
        other = self._path.with_suffix(f".{form}")
        if form != self._form and other != self._path and other.exists():
            raise InputError(f"{self._beside} describes {other.name}, and its name is needed: choose another --output")
        if not self._path.exists():
            return 0
        if not resumes:
            if content and content.get("complete") is not True:
                raise InputError(f"{self._path} is of an interrupted run: continue it with --resume, or delete it")
            return 0
        if not content:
            raise InputError(f"{self._path}: {self._beside.name}, which describes it, is missing: cannot resume")
        theirs = content["origin"]
        if form != self._form:
            raise InputError(f"{self._path} has rows of {form}: cannot resume with those of {self._form}")
        if changed := [name for name in self._origin | theirs if self._origin.get(name) != theirs.get(name)]:
            told = f"{self._path} was made with another {', '.join(changed)}"
            raise InputError(f"{told}: cannot resume; use what it was made with, or another --output")
        data = self._path.read_bytes()
        end = _end_of_last(data, self._form)
        try:
            for row in _rows(data[:end], self._form):
                self._done.add(row["path"])
                self._count(row)
        except (ValueError, csv.Error):
            raise InputError(f"{self._path}: row {len(self._done) + 1} is damaged: cannot resume") from None
        return end


def _rows(data: bytes, form: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a file's content.

    Raises:
        ValueError, csv.Error: a row cannot be parsed, or has other columns.
    """
    text = data.decode("utf-8", "surrogateescape")
    if form == "csv":
        rows: Iterator[Any] = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    else:
        rows = map(json.loads, text.split("\n")[:-1])
    for row in rows:
        if tuple(row) != FILE_COLUMNS or (form == "csv" and None in row.values()):
            raise ValueError("other columns")
        yield row


def _end_of_last(data: bytes, form: str) -> int:
    """Position in bytes after the last whole row; in CSV, a line end within quotes does not end a row."""
    end = position = quotes = 0
    for line in io.BytesIO(data):
        position += len(line)
        quotes += line.count(b'"') if form == "csv" else 0
        if line.endswith(b"\n") and quotes % 2 == 0:
            end = position
    return end

"""The formats in which scores are exchanged."""

import csv
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from moelora_ad.corpora.protocols.collecting import Collector
from moelora_ad.corpora.protocols.records import ProtocolError, delimiter_of, first_line, read_lines, read_text
from moelora_ad.evaluation.metrics.equal_error_rate import ScoreError
from moelora_ad.evaluation.provenance import refuse_changed, refuse_other_number
from moelora_ad.evaluation.score_table import (
    COLUMNS,
    ID_NAMES,
    LABEL_NAMES,
    LABEL_WORDS,
    SCORE_NAMES,
    ScoreTable,
    one_of,
    parse_scores,
    read_score_columns,
    refuse_repeated,
)
from moelora_ad.files import written_whole

ScoreFormat = Literal["table", "asvspoof2019", "asvspoof2021", "asvspoof5", "arena"]
FORMATS: dict[ScoreFormat, str] = {
    "table": "CSV (commas, tabs or semicolons), JSON lines or Parquet with the columns utterance (or path) and score, "
    "and label and others if known; the command score writes one",
    "asvspoof2019": "lines 'utterance attack key score' (ASVspoof 2019's CM scores), '-' for no attack",
    "asvspoof2021": "lines 'utterance score' (ASVspoof 2021's submissions)",
    "asvspoof5": "tab-separated 'filename' and 'cm-score' with this header (ASVspoof 5, track 1)",
    "arena": "lines 'path score', CSV with spaces (Speech DF Arena)",
}
"""The formats that `read_scores` reads and `write_scores` writes. Only files of the first have all fields of a
trial."""

_ASVSPOOF_5 = ("filename", "cm-score")


class Scores(NamedTuple):
    """Scores whose trials are known by their ids alone: join them with a key (`join_scores`).

    Attributes:
        utterances: n unique ids.
        scores: (n,) finite.
        num_failed: The number of further trials that the file lists with an error in place of a score.
    """

    utterances: Sequence[str]
    scores: NDArray[np.float64]
    num_failed: int = 0


def read_scores(path: str | Path, file_format: str | None = None) -> ScoreTable | Scores:
    """Read a score file of any of ``FORMATS``.

    Args:
        path: The file.
        file_format: A name in ``FORMATS``; None detects it from the file's ending and first line.

    Returns:
        A `ScoreTable` if the file has the trials' labels, else `Scores`.

    Raises:
        ScoreError: The file is missing or faulty, its format is unknown, or it is not the file that the provenance
            beside it records.
    """
    refuse_changed(path)
    found = _read(path, file_format)
    refuse_other_number(path, len(found.scores) + (found.num_failed if isinstance(found, Scores) else 0))
    return found


def _read(path: str | Path, file_format: str | None) -> ScoreTable | Scores:
    chosen = cast(ScoreFormat, file_format) if file_format else _recognised(path)
    if chosen in ("table", "asvspoof5"):
        return _table(path)
    if chosen == "asvspoof2019":
        return _asvspoof2019(path)
    return _arena(path) if chosen == "arena" else _asvspoof2021(path)


def write_scores(table: ScoreTable, path: str | Path, file_format: ScoreFormat) -> None:
    """Write scores in a format of ``FORMATS``, whole or not at all, with full precision.

    "arena" identifies a trial by the path of its audio if that is known.

    Raises:
        ScoreError: An id has characters that the format cannot hold, or asvspoof2019 lacks a label.
    """
    if file_format == "table":
        table.write(path)
        return
    names = list(table.trials.columns.utterance)
    scores = list(map(repr, table.scores.tolist()))
    rows: list[tuple[str, ...]] = list(zip(names, scores, strict=True))
    delimiter = "\t" if file_format == "asvspoof5" else " "
    if file_format == "asvspoof5":
        rows.insert(0, _ASVSPOOF_5)
    elif file_format == "asvspoof2019":
        if (table.labels < 0).any():
            raise ScoreError(f"{path}: the format asvspoof2019 needs a label of every trial")
        keys = [LABEL_WORDS[label] for label in table.labels.tolist()]
        attacks = [attack or "-" for attack in table.trials.column("attack")]
        rows = list(zip(names, attacks, keys, scores, strict=True))
    elif file_format == "arena":
        audio = table.trials.columns.audio
        rows = [(place or name, score) for place, name, score in zip(audio, names, scores, strict=True)]
    parts = str.splitlines if file_format == "arena" else str.split
    refused = '"' if file_format in ("asvspoof2019", "asvspoof2021") else "\n"  # not all who read these know quoting
    for row in rows:
        if any(parts(field) != [field] or refused in field for field in row):
            what = "has spaces, quotation marks or line breaks, or is empty"
            raise ScoreError(f"{path}: {row[0]!r} {what}, which {file_format} cannot represent")
    with written_whole(path) as unfinished, open(unfinished, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)


def _recognised(path: str | Path) -> ScoreFormat:
    if Path(path).suffix.lower() in (".parquet", ".jsonl"):
        return "table"
    first = first_line(read_text(path, ScoreError))
    if not first:
        raise ScoreError.at(path, "is empty")
    if delimiter_of(first, SCORE_NAMES):
        return "table"
    words = first.split()
    try:
        fields = next(csv.reader([first], delimiter=" ", skipinitialspace=True))
    except csv.Error:  # a carriage return within the line, or a field that is far too long
        fields = []
    if len(words) == 4:
        return "asvspoof2019"
    if len(words) == 2 and "\t" in first:
        return "asvspoof2021"
    if len([field for field in fields if field]) == 2:
        return "arena" if first.startswith('"') or "/" in fields[0] else "asvspoof2021"
    known = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
    hint = "name one of these by --format-in; the first line of a table names its columns"
    raise ScoreError.at(path, f"is in no known format of scores ({known}); {hint}", line=1)


def _table(path: str | Path) -> ScoreTable | Scores:
    header, lines, columns = read_score_columns(path)
    utterance, score, label = (one_of(header, names) for names in (ID_NAMES, SCORE_NAMES, LABEL_NAMES))
    if utterance is None or score is None:
        missing = [name for name, found in (("utterance", utterance), ("score", score)) if found is None]
        problem = f"no column {', '.join(map(repr, missing))}; the header has {', '.join(map(repr, header))}"
        raise ScoreError.at(path, problem, line=1)
    named = {**columns, "utterance": columns[utterance], "score": columns[score]}
    if label is not None:
        nothing = [""] * len(lines)
        whole = dict.fromkeys(COLUMNS, nothing) | named | {"label": columns[label]}
        return ScoreTable.from_columns(path, list(whole), lines, whole)
    # For audio that it could not read, the command score writes a row with an error and without a score.
    errors = columns.get("error", [""] * len(lines))
    scored = [bool(text) or not error for text, error in zip(named["score"], errors, strict=True)]
    utterances, texts = (list(compress(named[name], scored)) for name in ("utterance", "score"))
    return _scores(path, list(compress(lines, scored)), utterances, texts)._replace(num_failed=scored.count(False))


def _asvspoof2019(path: str | Path) -> ScoreTable:
    lines, columns = _lines(path, ("utterance", "attack", "key", "score"))
    found = _scores(path, lines, columns["utterance"], columns["score"])
    collector = Collector(path)
    try:
        collector.add(lines, columns["utterance"], columns["key"], attack=columns["attack"])
    except ProtocolError as error:
        raise ScoreError(str(error)) from None
    return ScoreTable(collector.trials(before=""), found.scores)


def _arena(path: str | Path) -> Scores:
    reader = csv.reader(read_text(path, ScoreError).rstrip("\n").split("\n"), delimiter=" ", strict=True)
    lines: list[int] = []
    names: list[str] = []
    scores: list[str] = []
    try:
        for row in reader:
            if row:
                if len(row) != 2:
                    problem = f"{len(row)} columns where 2 are needed: path score"
                    raise ScoreError.at(path, problem, line=reader.line_num)
                lines.append(reader.line_num)
                names.append(row[0])
                scores.append(row[1])
    except csv.Error as reason:
        raise ScoreError.at(path, f"not valid CSV: {reason}", line=reader.line_num) from None
    return _scores(path, lines, names, scores)


def _asvspoof2021(path: str | Path) -> Scores:
    lines, columns = _lines(path, ("utterance", "score"))
    return _scores(path, lines, columns["utterance"], columns["score"])


def _lines(path: str | Path, layout: Sequence[str]) -> tuple[list[int], dict[str, list[str]]]:
    lines: list[int] = []
    columns: dict[str, list[str]] = {name: [] for name in layout}
    for block in read_lines(path, layout, error=ScoreError):
        lines += block.lines
        for name, column in columns.items():
            column += block.columns[name]
    return lines, columns


def _scores(path: str | Path, lines: Sequence[int], utterances: Sequence[str], texts: Sequence[str]) -> Scores:
    if not utterances:
        raise ScoreError.at(path, "has no scores")
    refuse_repeated(path, lines, utterances)
    return Scores(utterances, parse_scores(path, lines, texts))

"""Scores with what is known of their trials: the output of models and the input of figures."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moelora_ad.corpora.protocols.columns import Categories, CategoryPool, Texts
from moelora_ad.corpora.protocols.records import (
    delimiter_of,
    first_line,
    read_bytes,
    read_columns,
    read_json_lines,
    read_text,
)
from moelora_ad.corpora.trial import BONA_FIDE, SPOOF, TEXT_FIELDS, Trial, TrialColumns, TrialList, parse_label
from moelora_ad.errors import counted
from moelora_ad.evaluation.metrics.equal_error_rate import (
    EqualErrorRateResult,
    ScoreError,
    as_array,
    equal_error_rate,
    equal_error_rate_of_sorted,
)
from moelora_ad.evaluation.provenance import refuse_changed, refuse_other_number
from moelora_ad.files import written_whole

COLUMNS = ("utterance", "label", "speaker", "attack", "codec", "corpus", "split", "score")
FURTHER = ("transmission", "source", "gender", "race", "language")
"""Columns that a file has only if some trial has the field."""
ID_NAMES = ("utterance", "path", "file_name", "filename", "file")
SCORE_NAMES = ("score", "cm-score")
LABEL_NAMES = ("label", "cm-label")
"""Names under which tables have the columns of ids, scores and labels."""
DELIMITERS = {".csv": ",", ".tsv": "\t"}
LABEL_WORDS = {BONA_FIDE: "bonafide", SPOOF: "spoof", -1: ""}


class AttackErrorRate(NamedTuple):
    """The EER of all bona fide trials against one attack's spoofs, a share of 1, and the number of these spoofs."""

    eer: float
    num_spoof: int


@dataclass(frozen=True, eq=False, init=False)
class ScoreTable:
    """Trials and their scores, in one order; read-only.

    Args:
        trials: n trials, no utterance twice.
        scores: (n,) finite log-odds; higher is more bona fide. Stored as float64.

    Raises:
        ScoreError: The lengths differ or a score is not finite.
        InputError: There is no trial, or an utterance occurs more than once.
    """

    trials: TrialList
    scores: NDArray[np.float64]

    def __init__(self, trials: Iterable[Trial], scores: ArrayLike) -> None:
        trials = trials if isinstance(trials, TrialList) else TrialList(trials)
        values = np.array(as_array(scores), np.float64)
        if values.shape != (len(trials),):
            raise ScoreError(f"{len(trials)} trials need as many scores, not an array of shape {values.shape}")
        finite = np.isfinite(values)
        if not finite.all():
            first = trials[int(np.argmin(finite))].utterance
            raise ScoreError(
                f"{counted(int((~finite).sum()), 'score')} not finite; the first is of utterance {first!r}"
            )
        values.flags.writeable = False
        object.__setattr__(self, "trials", trials)
        object.__setattr__(self, "scores", values)

    def __len__(self) -> int:
        return len(self.trials)

    @property
    def labels(self) -> NDArray[np.int8]:
        """(n,) 1 for bona fide, 0 for spoof, -1 for unknown."""
        return self.trials.labels

    def equal_error_rate(self) -> EqualErrorRateResult:
        """Return the EER over all trials, see `equal_error_rate`; every trial needs a label."""
        return equal_error_rate(self.scores, self.labels)

    def attack_error_rates(self) -> dict[str, AttackErrorRate]:
        """Return the EER of all bona fide trials against the spoofs of each attack, by name, sorted.

        At least one bona fide trial is needed. Spoofs that name no attack are left out.
        """
        attack = self.trials.column("attack")
        bona_fide = np.sort(self.scores[self.labels == BONA_FIDE])
        spoofs = np.flatnonzero(self.labels == SPOOF)
        scores, codes = self.scores[spoofs], attack.codes[spoofs]
        order = np.lexsort((scores, codes))  # one sort for all attacks
        present, starts = np.unique(codes[order], return_index=True)
        found = {}
        for code, of_attack in zip(present.tolist(), np.split(scores[order], starts[1:]), strict=True):
            if (name := attack.values[code]) is not None:
                eer = equal_error_rate_of_sorted(bona_fide, of_attack).eer
                found[name] = AttackErrorRate(eer, len(of_attack))
        return dict(sorted(found.items()))

    def with_scores(self, scores: ArrayLike) -> "ScoreTable":
        """Return a table of the same trials with other scores (n,)."""
        return ScoreTable(self.trials, scores)

    def select(self, indices: NDArray[np.integer]) -> "ScoreTable":
        """Return a table of the trials at ``indices`` (m,), which do not repeat, in that order."""
        return ScoreTable(self.trials.select(indices), self.scores[indices])

    def write(self, path: str | Path) -> None:
        """Write a file with the columns ``COLUMNS``, and those of ``FURTHER`` that have any value; whole or not at all.

        The path's ending determines the format: ``.csv`` or ``.tsv`` (UTF-8, a header, scores in the shortest form that
        gives the same float64 again), or ``.parquet`` (needs pyarrow).

        Raises:
            ScoreError: The path has another ending, or pyarrow is not installed.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix == ".parquet":
            arrow, parquet = _pyarrow(path)
            with written_whole(path) as unfinished:
                parquet.write_table(arrow.table(dict(self._columns())), unfinished)
            return
        if suffix not in DELIMITERS:
            raise ScoreError.at(path, f"a score table is a {', '.join(DELIMITERS)} or .parquet file")
        columns = dict(self._columns())
        columns["score"] = list(map(repr, self.scores.tolist()))
        # Before Python 3.13 a lone carriage return is not quoted unless all fields are.
        returns = any("\r" in text for name, column in columns.items() if name != "score" for text in column if text)
        with written_whole(path) as unfinished, open(unfinished, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(
                file,
                delimiter=DELIMITERS[suffix],
                lineterminator="\n",
                quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL,
            )
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

    def _columns(self) -> Iterable[tuple[str, Sequence[Any]]]:
        """Yield every column of the file in its order, as Python values."""
        trials = self.trials.columns
        for name in COLUMNS[:-1]:
            if name == "utterance":
                yield name, list(trials.utterance)
            elif name == "label":
                yield name, [LABEL_WORDS[label] for label in trials.label.tolist()]
            else:
                yield name, list(self.trials.column(name))
        for name in FURTHER:
            column = self.trials.column(name)
            if any(column.values[code] for code in np.unique(column.codes)):
                yield name, list(column)
        yield "score", self.scores.tolist()

    @classmethod
    def read(cls, path: str | Path) -> "ScoreTable":
        """Read what `write` wrote; other columns are ignored. The trials' ``audio`` is empty.

        Raises:
            ScoreError: The file is missing or faulty; the message has the file, the line and the column. Or it is not
                the file that the provenance beside it records.
        """
        refuse_changed(path)
        table = cls.from_columns(path, *read_score_columns(path))
        refuse_other_number(path, len(table))
        return table

    @classmethod
    def from_columns(
        cls, path: str | Path, header: Sequence[str], lines: Sequence[int], columns: Mapping[str, Sequence[str]]
    ) -> "ScoreTable":
        """Build a table from what `read_score_columns` read from ``path``.

        Raises:
            ScoreError: A column is missing, there are no scores, or a value is faulty.
        """
        missing = [column for column in COLUMNS if column not in header]
        if missing:
            raise ScoreError.at(path, f"no column {', '.join(map(repr, missing))}", line=1)
        utterances = columns["utterance"]
        if not utterances:
            raise ScoreError.at(path, "has no scores")
        refuse_repeated(path, lines, utterances)
        trials = TrialColumns(
            utterance=Texts.of(utterances),
            audio=Texts.of([""] * len(utterances)),
            label=_labels(path, lines, columns["label"]),
            texts=tuple(_texts(name, columns.get(name), len(utterances)) for name in TEXT_FIELDS),
        )
        return cls(TrialList.from_columns(trials), parse_scores(path, lines, columns["score"]))


Columns = tuple[Sequence[str], Sequence[int], Mapping[str, Sequence[str]]]


def read_score_columns(path: str | Path) -> Columns:
    """Read the header of a table, the line of each record, and all columns as text.

    Parquet and JSON lines are recognised by the ending of the path, the delimiter of other files by their header.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".jsonl":
        return _json_columns(path)
    if suffix != ".parquet":
        known = delimiter_of(first_line(read_text(path, ScoreError)), {*SCORE_NAMES, *LABEL_NAMES})
        return read_columns(path, ScoreError, known or DELIMITERS.get(suffix, ","))
    arrow, parquet = _pyarrow(path)
    data = read_bytes(path, ScoreError)
    try:
        table = parquet.read_table(BytesIO(data))
        header = table.column_names
        columns = {name: list(map(_text, table[name].to_pylist())) for name in set(header)}
    except (arrow.ArrowException, KeyError, OSError, OverflowError, ValueError) as reason:
        raise ScoreError.at(path, f"not valid Parquet: {' '.join(str(reason).split())}") from None
    return header, range(1, len(table) + 1), columns


def _json_columns(path: str | Path) -> Columns:
    numbered = list(read_json_lines(path, ScoreError))
    header = list(dict.fromkeys(name for _, record in numbered for name in record))
    columns = {name: [_text(record.get(name)) for _, record in numbered] for name in header}
    return header, [line for line, _ in numbered], columns


def _text(value: object) -> str:
    return "" if value is None else str(value)


def one_of(header: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the first of ``names`` that a header has; None if it has none of them."""
    return next((name for name in names if name in header), None)


def refuse_repeated(path: str | Path, lines: Sequence[int], utterances: Sequence[str]) -> None:
    """Check that no utterance has two scores.

    Raises:
        ScoreError: An utterance has two; the message has both lines.
    """
    if len(set(utterances)) == len(utterances):
        return
    seen: dict[str, int] = {}
    for line, utterance in zip(lines, utterances, strict=True):
        if seen.setdefault(utterance, line) != line:
            raise ScoreError.at(path, f"utterance {utterance!r} was already in line {seen[utterance]}", line=line)


def parse_scores(path: str | Path, lines: Sequence[int], texts: Sequence[str]) -> NDArray[np.float64]:
    """Return the numbers (n,) that texts stand for.

    Raises:
        ScoreError: A text is not a finite number.
    """
    try:
        together = "".join(texts)
        if "_" in together or not together.isascii():  # float also accepts 1_0, and digits of other scripts
            raise ValueError
        scores = np.fromiter(map(float, texts), np.float64, len(texts))
    except ValueError:
        line, text = next((line, t) for line, t in zip(lines, texts, strict=True) if not _is_number(t))
        raise ScoreError.at(path, f"{text!r} is not a number", line=line, column="score") from None
    finite = np.isfinite(scores)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ScoreError.at(path, f"{texts[first]} is not finite", line=lines[first], column="score")
    return scores


def _is_number(text: str) -> bool:
    if "_" in text or not text.isascii():
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def _labels(path: str | Path, lines: Sequence[int], words: Sequence[str]) -> NDArray[np.int8]:
    numbers = {"": -1}
    for word in dict.fromkeys(words):
        if word:
            try:
                numbers[word] = parse_label(word)
            except ValueError as error:
                raise ScoreError.at(path, str(error), line=lines[words.index(word)], column="label") from None
    return np.fromiter(map(numbers.__getitem__, words), np.int8, len(words))


def _texts(name: str, column: Sequence[str] | None, number: int) -> Categories:
    pool = CategoryPool(absent=() if name == "corpus" else ("",))
    if column is None:
        pool.repeat(None, number)
    else:
        pool.extend(column)
    return pool.packed()


def _pyarrow(path: str | Path) -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise ScoreError.at(path, "Parquet needs pyarrow: pip install 'moelora_ad[parquet]'") from None

"""Scores with what is known of their trials: what models hand over and figures are made of."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moelora_ad.corpora.records import read_csv
from moelora_ad.corpora.trial import BONA_FIDE, SPOOF, Trial, TrialList, parse_label
from moelora_ad.evaluation.equal_error_rate import EqualErrorRateResult, ScoreError, equal_error_rate
from moelora_ad.files import written_whole

COLUMNS = ("utterance", "label", "speaker", "attack", "codec", "corpus", "split", "score")
_LABELS = {BONA_FIDE: "bonafide", SPOOF: "spoof", None: ""}


@dataclass(frozen=True, eq=False, init=False)
class ScoreTable:
    """Trials and their scores, in one order; read-only.

    Args:
        trials: n trials, no utterance twice.
        scores: (n,) finite log-odds; higher is more bona fide. Kept as float64.

    Raises:
        ScoreError: The lengths differ or a score is not finite.
        InputError: There is no trial, or an utterance occurs more than once.
    """

    trials: TrialList
    scores: NDArray[np.float64]

    def __init__(self, trials: Iterable[Trial], scores: ArrayLike) -> None:
        trials = trials if isinstance(trials, TrialList) else TrialList(trials)
        values = np.array(scores, np.float64)
        if values.shape != (len(trials),):
            raise ScoreError(f"{len(trials)} trials need as many scores, not an array of shape {values.shape}")
        finite = np.isfinite(values)
        if not finite.all():
            first = trials[int(np.argmin(finite))].utterance
            raise ScoreError(f"{int((~finite).sum())} scores are not finite; the first is of utterance {first!r}")
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
        """See `equal_error_rate`; every trial needs a label."""
        return equal_error_rate(self.scores, self.labels)

    def write(self, path: str | Path) -> None:
        """Write a CSV file (UTF-8) with the header ``COLUMNS``; scores keep their full precision.

        The file appears whole or not at all.
        """
        rows = [
            (t.utterance, _LABELS[t.label], t.speaker, t.attack, t.codec, t.corpus, t.split, repr(score))
            for t, score in zip(self.trials, self.scores.tolist(), strict=True)
        ]
        with written_whole(path) as unfinished, open(unfinished, "w", encoding="utf-8", newline="") as file:
            # Before Python 3.13 a carriage return alone is not quoted unless all fields are.
            returns = any("\r" in field for row in rows for field in row if field)
            writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL)
            writer.writerow(COLUMNS)
            writer.writerows(rows)

    @classmethod
    def read(cls, path: str | Path) -> "ScoreTable":
        """Read what `write` wrote; other columns are ignored. The trials' ``audio`` is empty.

        Raises:
            ScoreError: The file is missing or faulty; the message has the file, the line and the column.
        """
        header, records = read_csv(path, ScoreError)
        missing = [column for column in COLUMNS if column not in header]
        if missing:
            raise ScoreError.at(path, f"no column {', '.join(map(repr, missing))}", line=1)
        trials, scores, lines = [], [], dict[str, int]()
        for line, record in records:
            utterance = record["utterance"]
            if lines.setdefault(utterance, line) != line:
                raise ScoreError.at(path, f"utterance {utterance!r} was already in line {lines[utterance]}", line=line)
            trials.append(_trial(path, line, record))
            scores.append(_score(path, line, record["score"]))
        if not trials:
            raise ScoreError.at(path, "has no scores")
        return cls(trials, scores)


def _trial(path: str | Path, line: int, record: dict[str, str]) -> Trial:
    try:
        label = parse_label(record["label"]) if record["label"] else None
    except ValueError as error:
        raise ScoreError.at(path, str(error), line=line, column="label") from None
    return Trial(
        utterance=record["utterance"],
        audio="",
        label=label,
        speaker=record["speaker"] or None,
        attack=record["attack"] or None,
        codec=record["codec"] or None,
        corpus=record["corpus"],
        split=record["split"] or None,
    )


def _score(path: str | Path, line: int, text: str) -> float:
    try:
        score = float(text)
    except ValueError:
        raise ScoreError.at(path, f"{text!r} is not a number", line=line, column="score") from None
    if not np.isfinite(score):
        raise ScoreError.at(path, f"{text} is not finite", line=line, column="score")
    return score

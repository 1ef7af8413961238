"""The scores of a set on disk: the score file with its provenance, and the scores of interrupted runs."""

import contextlib
import errno
import json
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moelora_ad.corpora import TrialList
from moelora_ad.documents import DocumentError, parse_json, read_json
from moelora_ad.errors import InputError, counted
from moelora_ad.evaluation.score_table import ScoreTable
from moelora_ad.files import file_hash, written_whole

Origin = Mapping[str, Any]
"""All that the scores of a set depend on, by name: hashes, versions, settings; plain JSON."""


class KnownScores(NamedTuple):
    """Scores that need not be computed again: indices (n,) int64, ascending, and their scores (n,) float64."""

    indices: NDArray[np.int64]
    scores: NDArray[np.float64]

    @classmethod
    def of(cls, scores: Mapping[int, float]) -> "KnownScores":
        indices = np.array(sorted(scores), np.int64)
        return cls(indices, np.array([scores[index] for index in indices.tolist()], np.float64))

    def without(self, indices: NDArray[np.int64]) -> "KnownScores":
        rest = ~np.isin(self.indices, indices)
        return KnownScores(self.indices[rest], self.scores[rest])


class KeptScores:
    """The files with the scores of one set: ``NAME.csv``, its provenance ``NAME.json``, and while scores are being
    computed a hidden folder with a file for each process, to which it appends every batch. All of them name the origin
    of their scores; scores of another origin are never used.

    Args:
        folder: folder of the score files.
        name: name of the set.
        trials: all trials of the set.
        origin: origin of the scores that are to be computed.
        resumes: whether to reuse existing scores. A run that does not (over a part of the trials, or with predictions
            in memory) leaves nothing to resume from, and replaces a score file of the same origin only if it has more
            scores.

    Attributes:
        known: scores that need not be computed again; empty before `find`.
    """

    def __init__(self, folder: Path, name: str, trials: TrialList, origin: Origin, resumes: bool = True) -> None:
        self.path = folder / f"{name}.csv"
        self.name = name
        self.trials = trials
        self.origin = dict(origin)
        self.resumes = resumes
        self.known = KnownScores.of({})
        self._provenance = folder / f"{name}.json"
        self._parts = folder / f".{name}.parts"
        self._part: int | None = None
        self._in_file = self.known
        self._corpus_in_file: Any = None

    # Existing scores

    def find(self) -> list[str]:
        """Look for scores of the same origin; return messages, one line each.

        Raises:
            InputError: a file cannot be read, or the folder cannot be written to.
        """
        told: list[str] = []
        damaged: list[str] = []
        folder = self.path.parent
        with self._reporting("written"):  # fail now rather than after all scores are computed
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        with self._reporting("read"):
            scores = self._of_file(told)
            self._in_file = KnownScores.of(scores)
            if not self.resumes:
                return [f"{self.name}: {self.path} remains unless this run has more scores"] if scores else told
            scores = self._of_parts(told, damaged) | scores
        self.known = KnownScores.of(scores)
        if len(self._in_file.indices) == len(self.trials):
            return [f"{self.name}: all scores are already in {self.path}"]
        if scores:
            there = f"{self.name}: {len(scores):,} of {counted(len(self.trials), 'score')} are already computed"
            return [there, *damaged]
        return [*told[:1], *damaged]

    def _of_file(self, told: list[str]) -> dict[int, float]:
        """The scores of the finished file, by index."""
        provenance = self._read_provenance()
        if provenance is None or not self.path.exists():
            return {}
        if changed := self._changes(provenance["origin"]):
            told.append(f"{self.name}: {self.path} was made with {changed}; it is computed again")
            return {}
        if provenance["score_file_sha256"] != file_hash(self.path):
            told.append(f"{self.name}: {self.path} was changed since it was written; it is computed again")
            return {}
        self._corpus_in_file = provenance.get("corpus")
        table = ScoreTable.read(self.path)
        index_of = {utterance: index for index, utterance in enumerate(self.trials.columns.utterance)}
        of_utterance = zip(table.trials.columns.utterance, table.scores.tolist(), strict=True)
        return {index_of[utterance]: score for utterance, score in of_utterance if utterance in index_of}

    def _read_provenance(self) -> dict[str, Any] | None:
        try:
            content = read_json(self._provenance)
        except (FileNotFoundError, InputError):
            return None
        whole = isinstance(content, dict) and isinstance(content.get("origin"), dict)
        return content if whole and "score_file_sha256" in content else None

    def _of_parts(self, told: list[str], damaged: list[str]) -> dict[int, float]:
        """The scores left by interrupted runs, by index; files of another origin are removed."""
        scores: dict[int, float] = {}
        for path in sorted(self._parts.glob("*.csv")):
            origin, lines, faults = _read_part(path)
            if changed := self._changes(origin):
                told.append(f"{self.name}: an unfinished run was made with {changed}; its scores are not used")
                path.unlink(missing_ok=True)
            else:
                scores |= lines
                if faults:
                    more = f" ({len(faults):,} lines are damaged)" if len(faults) > 1 else ""
                    damaged.append(f"{self.name}: {path}, {faults[0]}; its score is computed again{more}")
        return {index: score for index, score in scores.items() if 0 <= index < len(self.trials)}

    def _changes(self, origin: Mapping[str, Any]) -> str:
        """Describe what differs from the origin of the scores to compute; empty if nothing does."""
        names = [name for name in self.origin | dict(origin) if self.origin.get(name) != origin.get(name)]
        return f"different {', '.join(name.replace('_', ' ') for name in names)}" if names else ""

    # New scores

    def append(self, indices: Sequence[int], scores: Sequence[float]) -> None:
        """Store a batch of this process; a kill loses at most the batch that is being written. Scores that are not
        finite, such as those of trials that could not be read, are left out and computed again by the next run.

        Raises:
            InputError: the scores cannot be written, for example because the disk is full.
        """
        if not self.resumes:
            return
        text = "".join(_line(index, score) for index, score in zip(indices, scores, strict=True) if np.isfinite(score))
        with self._reporting("written"):
            if self._part is None:
                self._parts.mkdir(parents=True, exist_ok=True)
                path = self._parts / f"{uuid.uuid4().hex}.csv"
                self._part = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
                text = f"{json.dumps(self.origin)}\n{text}"
            data = text.encode()
            while data:
                data = data[os.write(self._part, data) :]

    def close(self) -> None:
        """Close the file of this process, which appends no more scores."""
        if self._part is not None:
            os.close(self._part)
            self._part = None

    def finish(self, table: ScoreTable | None, indices: NDArray[np.int64], about: Mapping[str, Any]) -> None:
        """Write the score file and its provenance; call it in one process, after all processes have closed theirs.

        A file that already has these scores and describes the same corpus is left as it is.

        Args:
            table: the scores; None if no trial could be read, which removes the score file.
            indices: (n,) indices of the table's trials.
            about: further fields of the provenance; ``corpus`` describes the corpus and its trials.

        Raises:
            InputError: a file cannot be written.
        """
        with self._reporting("written"):
            if table is None:
                self.path.unlink(missing_ok=True)
                self._provenance.unlink(missing_ok=True)
            elif self._is_to_be_written(indices, about["corpus"]):
                table.write(self.path)
                provenance = {
                    "set": self.name,
                    "trials": len(self.trials),
                    "scored": len(table),
                    "complete": len(table) == len(self.trials),
                    **about,
                    "origin": self.origin,
                    "score_file_sha256": file_hash(self.path),
                }
                with written_whole(self._provenance) as unfinished:
                    unfinished.write_text(json.dumps(provenance, indent=2, default=str) + "\n", encoding="utf-8")
            if self.resumes:
                shutil.rmtree(self._parts, ignore_errors=True)

    def _is_to_be_written(self, indices: NDArray[np.int64], corpus: Any) -> bool:
        if self.resumes:
            return not np.array_equal(self._in_file.indices, indices) or corpus != self._corpus_in_file
        return len(indices) > len(self._in_file.indices)

    @contextlib.contextmanager
    def _reporting(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            place = error.filename or self._parts
            raise InputError.at(
                place, f"scores cannot be {what}: {error.strerror}; set another folder with --score_folder"
            ) from None


_INDEX = re.compile(r"[0-9]{1,18}")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?")
"""A finite number as Python writes it."""


def _line(index: int, score: float) -> str:
    """A line of a part file: index, score, and the checksum of both."""
    text = f"{index},{score!r}"
    return f"{text},{zlib.crc32(text.encode()):08x}\n"


def _read_part(path: Path) -> tuple[dict[str, Any], dict[int, float], list[str]]:
    """Return the origin and the scores in a part file, and what is wrong with unusable lines, one text for each. A line
    at the end that a kill left half written is ignored."""
    header, *lines = path.read_bytes().split(b"\n")[:-1] or [b""]
    try:
        origin = parse_json(header)
    except (ValueError, RecursionError, DocumentError):
        origin = None
    if not isinstance(origin, dict):
        return {}, {}, []
    scores: dict[int, float] = {}
    faults = []
    for number, line in enumerate(lines, 2):
        index, score, checksum, *_ = [*line.decode("ascii", "replace").split(","), "", ""]
        if not _INDEX.fullmatch(index):
            faults.append(f"line {number}: {index[:40]!r} is not the index of a trial")
        elif not _NUMBER.fullmatch(score) or not np.isfinite(float(score)):
            faults.append(f"line {number}: {score[:40]!r} is not a finite number")
        elif line + b"\n" != _line(int(index), float(score)).encode():
            faults.append(f"line {number}: it does not match its checksum {checksum[:8]!r}")
        else:
            scores[int(index)] = float(score)
    return origin, scores, faults

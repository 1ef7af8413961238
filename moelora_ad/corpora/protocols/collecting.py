"""Collecting the columns of a protocol into a list of trials."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moelora_ad.corpora.protocols.columns import CategoryPool, TextPool
from moelora_ad.corpora.protocols.records import ProtocolError
from moelora_ad.corpora.trial import TEXT_FIELDS, TrialColumns, TrialList, parse_label

_ABSENT = dict.fromkeys(("", "-"))
_NO_ATTACK = dict.fromkeys(("", "-", "bonafide"))


class _Labels(dict[str, int]):
    """The label, as a number, of each spelling that has occurred."""

    def __missing__(self, word: str) -> int:
        self[word] = parse_label(word)
        return self[word]


class Collector:
    """Gathers the trials of a protocol, block by block, and checks them.

    Args:
        path: The protocol, for messages.
        unlabelled: Whether a label may be empty or ``-``.
        if_repeated: What to do about an utterance that occurs twice, for the message.
    """

    def __init__(self, path: str | Path, unlabelled: bool = False, if_repeated: str = "") -> None:
        self._path = path
        self._if_repeated = f"; {if_repeated}" if if_repeated else ""
        self._lines: list[NDArray[np.int64]] = []
        self._hashes: list[NDArray[np.int64]] = []
        self._utterances = TextPool()
        self._audio = TextPool()
        self._labels: list[NDArray[np.int8]] = []
        self._texts = {field: CategoryPool(_NO_ATTACK if field == "attack" else _ABSENT) for field in TEXT_FIELDS}
        self._label_of = _Labels(dict.fromkeys(_ABSENT, -1) if unlabelled else {})

    def add(
        self,
        lines: Sequence[int],
        utterance: Sequence[str],
        label: Sequence[str],
        audio: Sequence[str] | None = None,
        **texts: Sequence[str] | str | None,
    ) -> None:
        """Add a block of trials.

        Args:
            lines: (n,) the line of each trial in the file.
            utterance: (n,) ids.
            label: (n,) words for `parse_label`.
            audio: (n,) places; None if `trials` gets the texts around the utterance ids that make them up.
            texts: Other fields of `Trial`, (n,) or one for all. Empty, ``-`` and the attack ``bonafide`` are unknown.

        Raises:
            ProtocolError: A label is not valid.
        """
        utterance = _writable(utterance)
        try:
            self._labels.append(np.fromiter(map(self._label_of.__getitem__, label), np.int8, len(label)))
        except ValueError:
            self._tell_label(lines, label)
        self._lines.append(np.fromiter(lines, np.int64, len(lines)))
        self._hashes.append(np.fromiter(map(hash, utterance), np.int64, len(utterance)))
        self._utterances.extend(utterance)
        if audio is not None:
            self._audio.extend(audio)
        for field, pool in self._texts.items():
            values = texts.get(field)
            if values is None or isinstance(values, str):
                pool.repeat(values, len(lines))
            else:
                pool.extend(_writable(values))

    def trials(self, before: str | None = None, after: str = "") -> TrialList:
        """All trials that were added; if ``before`` is given, their audio is ``before``, utterance id and ``after``.

        Raises:
            ProtocolError: Nothing was added, or an utterance more than once.
        """
        if not any(map(len, self._lines)):
            raise ProtocolError.at(self._path, "has no trials")
        utterances = self._utterances.packed()
        if not np.diff(np.sort(np.concatenate(self._hashes))).all():
            self._tell_repeated(utterances)
        return TrialList.from_columns(
            TrialColumns(
                utterance=utterances,
                audio=self._audio.packed() if before is None else utterances.around(before, after),
                label=np.concatenate(self._labels),
                texts=tuple(pool.packed() for pool in self._texts.values()),
            )
        )

    def _tell_repeated(self, utterances: Iterable[str]) -> None:
        seen: dict[str, int] = {}
        for line, utterance in zip(np.concatenate(self._lines).tolist(), utterances, strict=True):
            if utterance in seen:
                before = seen[utterance]
                problem = f"utterance {utterance!r} was already in line {before}{self._if_repeated}"
                raise ProtocolError.at(self._path, problem, line=line)
            seen[utterance] = line

    def _tell_label(self, lines: Sequence[int], words: Sequence[str]) -> None:
        for line, word in zip(lines, words, strict=True):
            try:
                self._label_of[word]
            except ValueError as error:
                raise ProtocolError.at(self._path, str(error), line=line, column="label") from None


def _writable(texts: Sequence[str]) -> Sequence[str]:
    """Texts that a score file can have, which is UTF-8: other bytes of files' names are written as in ``\\udce9``."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return [text.encode(errors="backslashreplace").decode() for text in texts]
    return texts

"""The trial: one utterance to be judged, and what is known of it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from moelora_ad.errors import InputError

BONA_FIDE = 1
SPOOF = 0

_SPELLINGS = {
    **dict.fromkeys(("bonafide", "bona-fide", "bona_fide", "genuine", "real"), BONA_FIDE),
    **dict.fromkeys(("spoof", "fake"), SPOOF),
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One utterance of a corpus; ``None`` stands for what is unknown or does not apply.

    Args:
        utterance: The id, unique within a `TrialList`.
        audio: Path of the audio file. Text rather than a ``Path``: a corpus may have a million of them.
        label: ``BONA_FIDE`` (1), ``SPOOF`` (0) or ``None``.
        speaker: The speaker's id.
        attack: What made the spoof, for example ``A07``.
        codec: The codec or transmission condition.
        corpus: The name of the corpus, as reports print it.
        split: ``train``, ``dev``, ``eval`` or the corpus's own word.
    """

    utterance: str
    audio: str
    label: int | None = None
    speaker: str | None = None
    attack: str | None = None
    codec: str | None = None
    corpus: str = ""
    split: str | None = None

    def __post_init__(self) -> None:
        if self.label not in (BONA_FIDE, SPOOF, None):
            raise ValueError(f"a trial's label is 1 (bona fide), 0 (spoof) or None, not {self.label!r}")


class TrialList(Sequence[Trial]):
    """The trials of a corpus in a fixed order; immutable, never empty, each utterance id once.

    Raises:
        InputError: No trials, or utterance ids that occur more than once.
    """

    def __init__(self, trials: Iterable[Trial]) -> None:
        self._trials = tuple(trials)
        if not self._trials:
            raise InputError("a list of trials is empty")
        if len({trial.utterance for trial in self._trials}) < len(self._trials):
            counts = Counter(trial.utterance for trial in self._trials)
            repeated = [utterance for utterance, count in counts.items() if count > 1]
            some = ", ".join(map(repr, repeated[:3])) + (", ..." if len(repeated) > 3 else "")
            raise InputError(f"{len(repeated)} utterance ids occur more than once in a list of trials: {some}")

    @overload
    def __getitem__(self, index: int) -> Trial: ...
    @overload
    def __getitem__(self, index: slice) -> "TrialList": ...
    def __getitem__(self, index: int | slice) -> "Trial | TrialList":
        return TrialList(self._trials[index]) if isinstance(index, slice) else self._trials[index]

    def __len__(self) -> int:
        return len(self._trials)

    def __iter__(self) -> Iterator[Trial]:
        return iter(self._trials)

    def __repr__(self) -> str:
        return f"TrialList({len(self)} trials: {self.num_bona_fide} bona fide, {self.num_spoof} spoof)"

    @property
    def labels(self) -> NDArray[np.int8]:
        """(n,) 1 for bona fide, 0 for spoof, -1 for unknown."""
        return np.fromiter((-1 if trial.label is None else trial.label for trial in self), np.int8, len(self))

    @property
    def num_bona_fide(self) -> int:
        return int((self.labels == BONA_FIDE).sum())

    @property
    def num_spoof(self) -> int:
        return int((self.labels == SPOOF).sum())


def parse_label(text: str) -> int:
    """``BONA_FIDE`` or ``SPOOF`` for any spelling that the public corpora use, in either case.

    Raises:
        ValueError: Another word; the message lists the accepted ones.
    """
    try:
        return _SPELLINGS[text.strip().lower()]
    except KeyError:
        raise ValueError(f"{text!r} is not a label; accepted are {', '.join(_SPELLINGS)}") from None

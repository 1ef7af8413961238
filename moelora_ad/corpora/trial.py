"""The trial: one utterance to be scored, and what is known of it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import overload

import numpy as np
from numpy.typing import NDArray

from moelora_ad.corpora.protocols.columns import Categories, CategoryPool, Texts
from moelora_ad.errors import InputError

BONA_FIDE = 1
SPOOF = 0

_LABELS = (SPOOF, BONA_FIDE, None)  # by the number in a column of labels, where -1 is unknown
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
        transmission: The channel that the audio was sent over.
        source: Where the audio comes from: a database, or the clip that was manipulated.
        gender: As the corpus writes it.
        race: As the corpus writes it.
        language: The language spoken, as the corpus writes it.
    """

    utterance: str
    audio: str
    label: int | None = None
    speaker: str | None = None
    attack: str | None = None
    codec: str | None = None
    corpus: str = ""
    split: str | None = None
    transmission: str | None = None
    source: str | None = None
    gender: str | None = None
    race: str | None = None
    language: str | None = None

    def __post_init__(self) -> None:
        if self.label not in (BONA_FIDE, SPOOF, None):
            raise ValueError(f"a trial's label is 1 (bona fide), 0 (spoof) or None, not {self.label!r}")


TEXT_FIELDS = (
    "speaker",
    "attack",
    "codec",
    "corpus",
    "split",
    "transmission",
    "source",
    "gender",
    "race",
    "language",
)


@dataclass(frozen=True, eq=False)
class TrialColumns:
    """The columns of a `TrialList`, each with one entry per trial.

    Args:
        utterance: The ids; unique.
        audio: Where the audio is.
        label: (n,) 1 for bona fide, 0 for spoof, -1 for unknown.
        texts: The columns ``TEXT_FIELDS``, in that order.
    """

    utterance: Texts
    audio: Texts
    label: NDArray[np.int8]
    texts: tuple[Categories, ...]


class TrialList(Sequence[Trial]):
    """The trials of a corpus in a fixed order; immutable, never empty, each utterance id once.

    They are stored in columns; a `Trial` is made on access.

    Raises:
        InputError: There are no trials, utterance ids occur more than once, or a field that is text has something else.
    """

    def __init__(self, trials: Iterable[Trial]) -> None:
        trials = list(trials)
        for trial in trials:
            if not (isinstance(trial.utterance, str) and isinstance(trial.audio, str)):
                field = "utterance" if isinstance(trial.audio, str) else "audio"
                raise _not_text(trial, field)
        utterances = [trial.utterance for trial in trials]
        if len(set(utterances)) < len(utterances):
            repeated = [utterance for utterance, count in Counter(utterances).items() if count > 1]
            some = ", ".join(map(repr, repeated[:3])) + (", ..." if len(repeated) > 3 else "")
            raise InputError(f"{len(repeated)} utterance ids occur more than once in a list of trials: {some}")
        texts = []
        for field in TEXT_FIELDS:
            pool = CategoryPool()
            pool.extend(map(attrgetter(field), trials))
            texts.append(pool.packed())
            if not all(value is None or isinstance(value, str) for value in texts[-1].values):
                raise _not_text(next(t for t in trials if not isinstance(getattr(t, field), str | None)), field)
        self._columns = _not_empty(
            TrialColumns(
                utterance=Texts.of(utterances),
                audio=Texts.of([trial.audio for trial in trials]),
                label=np.fromiter((-1 if trial.label is None else trial.label for trial in trials), np.int8),
                texts=tuple(texts),
            )
        )

    @classmethod
    def from_columns(cls, columns: TrialColumns) -> "TrialList":
        """Make a list from columns; the caller has made sure that no utterance id repeats."""
        made = cls.__new__(cls)
        made._columns = _not_empty(columns)
        return made

    @overload
    def __getitem__(self, index: int) -> Trial: ...
    @overload
    def __getitem__(self, index: slice) -> "TrialList": ...
    def __getitem__(self, index: int | slice) -> "Trial | TrialList":
        columns = self._columns
        if isinstance(index, slice):
            return self._part(index)
        texts = [column.values[column.codes[index]] for column in columns.texts]
        return Trial(columns.utterance[index], columns.audio[index], _LABELS[columns.label[index]], *texts)

    def __len__(self) -> int:
        return len(self._columns.utterance)

    def __iter__(self) -> Iterator[Trial]:
        columns = self._columns
        labels = map(_LABELS.__getitem__, columns.label.tolist())
        return map(Trial, columns.utterance, columns.audio, labels, *columns.texts)

    def select(self, indices: NDArray[np.integer]) -> "TrialList":
        """The trials at ``indices`` (n,), which do not repeat, in that order."""
        return self._part(indices)

    def _part(self, which: slice | NDArray[np.integer]) -> "TrialList":
        columns = self._columns
        texts = tuple(column[which] for column in columns.texts)
        return TrialList.from_columns(
            TrialColumns(columns.utterance[which], columns.audio[which], columns.label[which], texts)
        )

    @property
    def columns(self) -> TrialColumns:
        """The same trials column by column; read-only."""
        return self._columns

    def column(self, field: str) -> Categories:
        """One of ``TEXT_FIELDS``: its values, and which of them each trial has."""
        return self._columns.texts[TEXT_FIELDS.index(field)]

    def __repr__(self) -> str:
        return f"TrialList({len(self)} trials: {self.num_bona_fide} bona fide, {self.num_spoof} spoof)"

    @property
    def labels(self) -> NDArray[np.int8]:
        """(n,) 1 for bona fide, 0 for spoof, -1 for unknown."""
        return self._columns.label.copy()

    @property
    def attacks(self) -> set[str]:
        """The names of the attacks that made its spoofs, as far as they are known."""
        column = self.column("attack")
        return {name for code in np.unique(column.codes[self._columns.label == SPOOF]) if (name := column.values[code])}

    @property
    def num_bona_fide(self) -> int:
        return int((self._columns.label == BONA_FIDE).sum())

    @property
    def num_spoof(self) -> int:
        return int((self._columns.label == SPOOF).sum())


def _not_text(trial: Trial, field: str) -> InputError:
    return InputError(f"trial {trial.utterance!r}: its {field} is {getattr(trial, field)!r}: give text")


def _not_empty(columns: TrialColumns) -> TrialColumns:
    if not len(columns.utterance):
        raise InputError("a list of trials is empty")
    return columns


def parse_label(text: str) -> int:
    """``BONA_FIDE`` or ``SPOOF`` for any spelling that the public corpora use, in upper or lower case.

    Raises:
        ValueError: The text is another word; the message lists the accepted ones.
    """
    try:
        return _SPELLINGS[text.strip().lower()]
    except KeyError:
        raise ValueError(f"{text!r} is not a label; accepted are {', '.join(_SPELLINGS)}") from None

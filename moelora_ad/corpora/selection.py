"""The selection of a corpus's trials by attack, codec, speaker or language: arguments that every corpus takes."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from moelora_ad.corpora.protocols.columns import Categories
from moelora_ad.corpora.trial import BONA_FIDE, TrialColumns, TrialList
from moelora_ad.errors import InputError, counted

_EXCLUDE = "exclude_"
_FIELDS = {"attacks": "attack", "codecs": "codec", "speakers": "speaker", "languages": "language"}
_SHOWN = 30  # names in a message

Selection = Mapping[str, Sequence[str]]
"""The selected names by argument; the arguments are those of `SelectionArguments`."""


class SelectionArguments(TypedDict, total=False):
    """The arguments that every corpus takes besides its own.

    Args:
        attacks: only spoofs of these attacks; bona fide trials stay.
        exclude_attacks: no spoofs of these attacks; bona fide trials stay.
        codecs: only trials of these codecs, in both classes, as in the other arguments.
        exclude_codecs: no trials of these codecs.
        speakers: only trials of these speakers.
        exclude_speakers: no trials of these speakers.
        languages: only trials of these languages.
        exclude_languages: no trials of these languages.
    """

    attacks: list[str] | None
    exclude_attacks: list[str] | None
    codecs: list[str] | None
    exclude_codecs: list[str] | None
    speakers: list[str] | None
    exclude_speakers: list[str] | None
    languages: list[str] | None
    exclude_languages: list[str] | None


def checked(arguments: Mapping[str, object]) -> Selection:
    """Check the arguments; returns those that are not None.

    Raises:
        InputError: an argument is unknown or not a list of names.
    """
    selection = {}
    for name, names in arguments.items():
        if name not in SelectionArguments.__annotations__:
            raise InputError(f"a corpus has no argument {name!r}")
        if names is None:
            continue
        if not isinstance(names, Sequence) or isinstance(names, str) or not all(isinstance(one, str) for one in names):
            raise InputError(f"{name} must be a list of names, like [A01, A02], not {names!r}")
        selection[name] = tuple(names)
    return selection


def in_words(selection: Selection) -> str:
    """A selection in words, such as ``exclude_attacks A04, A06; codecs mp3``."""
    return "; ".join(f"{name} {_listed(names) or 'none'}" for name, names in selection.items())


def kept(trials: TrialList, selection: Selection, name: str) -> NDArray[np.bool_]:
    """Which trials remain, (n,). A trial whose value is unknown is in no list.

    Args:
        trials: all trials of the corpus.
        selection: which of them are taken.
        name: name of the corpus, for messages.

    Raises:
        InputError: the selection has a name that no trial has, or no trial remains.
    """
    stay = np.ones(len(trials), bool)
    for argument, names in selection.items():
        field = _FIELDS[argument.removeprefix(_EXCLUDE)]
        named = _of(trials.column(field), names, f"{name}: {argument}", field)
        wanted = ~named if argument.startswith(_EXCLUDE) else named
        if field == "attack":
            wanted |= trials.columns.label == BONA_FIDE
        stay &= wanted
    if not stay.any():
        raise InputError(f"{name}: {in_words(selection)}: none of its {counted(len(trials), 'trial')} remains")
    return stay


def part_of(trials: TrialList, stay: NDArray[np.bool_]) -> TrialList:
    """The trials that remain, in their order; the columns keep no values of the others, such as their attacks."""
    columns = trials.select(np.flatnonzero(stay)).columns
    texts = []
    for column in columns.texts:
        codes, numbers = np.unique(column.codes, return_inverse=True)
        values = tuple(column.values[code] for code in codes)
        texts.append(Categories(values, numbers.astype(column.codes.dtype)))
    return TrialList.from_columns(TrialColumns(columns.utterance, columns.audio, columns.label, tuple(texts)))


def _of(column: Categories, names: Sequence[str], where: str, field: str) -> NDArray[np.bool_]:
    """(n,) whether a trial has one of the names."""
    present = [column.values[code] for code in np.unique(column.codes)]
    for name in names:
        if name not in present:
            known = sorted(value for value in present if value is not None)
            told = f"it has {_listed(known)}" if known else f"its trials have no {field}"
            raise InputError(f"{where}: there is no {field} {name!r}; {told}")
    return np.isin(column.codes, [code for code, value in enumerate(column.values) if value in names])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

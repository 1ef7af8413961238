"""Several lists of trials as one."""

from collections.abc import Mapping, Sequence

import numpy as np

from moelora_ad.corpora.corpus import Corpus
from moelora_ad.corpora.protocols.columns import Categories, TextPool, Texts
from moelora_ad.corpora.trial import TrialColumns, TrialList
from moelora_ad.errors import InputError

_AT_ONCE = 65_536  # texts that are unpacked at the same time


class Joined(Corpus):
    """Several corpora as one, such as a development set of old and new attacks.

    Args:
        corpora: The corpora by name; the names become prefixes of their utterances' ids, as in ``NAME/ID``.
    """

    def __init__(self, corpora: dict[str, Corpus]) -> None:
        self.name = "+".join(dict.fromkeys(corpus.name for corpus in corpora.values()))
        self.corpora = corpora

    def trials(self) -> TrialList:
        """See `Corpus.trials`."""
        return joined_trials({name: corpus.trials() for name, corpus in self.corpora.items()})


def joined_trials(lists: Mapping[str, TrialList]) -> TrialList:
    """The trials of all lists, one list after another; each id is prefixed with its list's name and a slash.

    Raises:
        InputError: A name is empty or has a slash, or there is no list.
    """
    for name in lists:
        if not name or "/" in name:
            raise InputError(f"{name!r} cannot name a list of trials that is joined to others: give a word without '/'")
    if not lists:
        raise InputError("no lists of trials to join")
    columns = [trials.columns for trials in lists.values()]
    return TrialList.from_columns(
        TrialColumns(
            utterance=_texts([(f"{name}/", part.utterance) for name, part in zip(lists, columns, strict=True)]),
            audio=_texts([("", part.audio) for part in columns]),
            label=np.concatenate([part.label for part in columns]),
            texts=tuple(map(_categories, zip(*(part.texts for part in columns), strict=True))),
        )
    )


def _texts(parts: Sequence[tuple[str, Texts]]) -> Texts:
    """The texts of all parts, one part after another; each part has a prefix for its texts."""
    pool = TextPool()
    for before, texts in parts:
        for start in range(0, len(texts), _AT_ONCE):
            pool.extend([before + text for text in texts[start : start + _AT_ONCE]])
    return pool.packed()


def _categories(parts: Sequence[Categories]) -> Categories:
    values = tuple(dict.fromkeys(value for part in parts for value in part.values))
    number = {value: code for code, value in enumerate(values)}
    codes = [
        np.array([number[value] for value in part.values], np.min_scalar_type(len(values)))[part.codes]
        for part in parts
    ]
    return Categories(values, np.concatenate(codes))

"""The utterances of a set by attack, label and codec."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moelora_ad.corpora import BONA_FIDE, SPOOF, TrialList


class Classes(NamedTuple):
    """The utterances of a set by one of their properties.

    Attributes:
        names: of the classes.
        codes: (n,) index of each utterance's class, -1 for those that belong to none.
    """

    names: tuple[str, ...]
    codes: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.names))


def classes_of(trials: TrialList) -> dict[str, Classes]:
    """The utterances by attack (spoofs that name one; bona fide belong to none), by label, and by codec."""
    labels = trials.labels.astype(np.int64)
    attacks, codecs = (_named(trials.column(field).values, trials.column(field).codes) for field in ("attack", "codec"))
    attacks = attacks._replace(codes=np.where(labels == SPOOF, attacks.codes, -1))
    by_label = np.select([labels == BONA_FIDE, labels == SPOOF], [0, 1], -1)
    return {"attack": attacks, "label": Classes(("bona fide", "spoof"), by_label), "codec": codecs}


def _named(values: Sequence[str | None], codes: NDArray[np.unsignedinteger]) -> Classes:
    names = tuple(sorted(value for value in values if value))
    numbers = np.array([names.index(value) if value else -1 for value in values])
    return Classes(names, numbers[codes])

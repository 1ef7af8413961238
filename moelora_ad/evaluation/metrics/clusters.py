"""Clusters of trials that a bootstrap must draw together, as they are far from independent."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moelora_ad.corpora.trial import TrialList
from moelora_ad.errors import counted

_FEW = 10
_SPEAKER_AND_ATTACK = ("speaker", "attack")
_CLIP = ("source",)
_SPARSE = 8  # numbers whose range is this many times their count are sorted
_OF_CLIPS = "FakeAVCeleb"  # its videos are made from 500 clips, and it names no speakers


class Clusters(NamedTuple):
    """The clusters of n trials.

    Args:
        codes: (n,) the number of each trial's cluster, from 0 on without gaps.
        notes: What a reader of the intervals must know, one sentence each.
    """

    codes: NDArray[np.int64]
    notes: list[str]


def default_clusters(trials: TrialList) -> NDArray[np.int64]:
    """Return the number (n,) of each trial's cluster: by speaker and attack, or by source clip in FakeAVCeleb.

    See `clusters_of`.
    """
    return clusters_of(trials).codes


def clusters_of(trials: TrialList, fields: tuple[str, ...] | None = None) -> Clusters:
    """Group trials into clusters: trials of one corpus whose fields agree.

    A trial of which a field is unknown is a cluster of its own. Only the attack, which bona fide trials do not have,
    may be missing beside a field that is known; so if no attack is known, all trials of a speaker are a cluster.

    Args:
        trials: n trials, of one or several corpora.
        fields: Fields of a trial; None for the speaker and the attack, but the source clip in FakeAVCeleb.
    """
    if fields is not None:
        return _clusters(trials, [(np.ones(len(trials), bool), fields)])
    corpus = trials.column("corpus")
    of_clips = np.array([(value or "").startswith(_OF_CLIPS) for value in corpus.values])[corpus.codes]
    return _clusters(trials, [(of_clips, _CLIP), (~of_clips, _SPEAKER_AND_ATTACK)])


def paired_clusters(trials: TrialList, labels: NDArray[np.int8], fields: tuple[str, ...] | None = None) -> Clusters:
    """Return `clusters_of` trials, or single trials if the trials of each class are in one cluster, and a note says so.

    Resamples of one cluster do not differ. A difference of two systems would have an interval of width 0, as if it were
    sure; single trials give an interval for other utterances of the same speakers and attacks.
    """
    found = clusters_of(trials, fields)
    if any(len(np.unique(found.codes[labels == label])) > 1 for label in (0, 1)):
        return found._replace(notes=[*found.notes, *few_clusters_notes(found.codes, labels)])
    note = "the trials of each class are in one cluster, so trials are resampled one by one: no interval for others"
    return Clusters(np.arange(len(trials)), [*found.notes, note])


def few_clusters_notes(codes: NDArray[np.int64], labels: NDArray[np.int8]) -> list[str]:
    """Return a note for each class whose trials are in so few clusters that intervals are rough.

    Args:
        codes: (n,) the number of each trial's cluster.
        labels: (n,) 1 for bona fide, 0 for spoof.
    """
    numbers = (
        (kind, len(np.unique(codes[labels == label]))) for label, kind in ((1, "bona fide trials"), (0, "spoofs"))
    )
    return [
        f"all {kind} are in {counted(number, 'cluster')}: intervals are rough, and rather too narrow"
        for kind, number in numbers
        if number < _FEW
    ]


def _clusters(trials: TrialList, parts: list[tuple[NDArray[np.bool_], tuple[str, ...]]]) -> Clusters:
    """Group each part of the trials into clusters by its own fields."""
    codes = np.empty(len(trials), np.int64)
    start, notes = 0, []
    for part, fields in parts:
        if not part.any():
            continue
        combined, alone = _combinations(trials, fields, part)
        combined[alone] = len(combined) + np.arange(alone.sum())
        codes[part] = start + combined
        start += 2 * len(combined)
        if alone.any():
            notes.append(_note(int(alone.sum()), len(alone), fields))
    return Clusters(without_gaps(codes), notes)


def without_gaps(codes: NDArray[Any]) -> NDArray[np.int64]:
    """Replace numbers (n,) by 0, 1, ... without gaps; equal numbers stay equal, and the order is kept."""
    if np.can_cast(codes.dtype, np.int64):
        codes = codes.astype(np.int64, copy=False)
        low, high = int(codes.min()), int(codes.max())
        if high - low < _SPARSE * len(codes):  # no sort is needed
            occurs = np.zeros(high - low + 1, np.int64)
            occurs[codes - low] = 1
            return (occurs.cumsum() - 1)[codes - low]
    return np.unique(codes, return_inverse=True)[1].astype(np.int64)


def _combinations(
    trials: TrialList, fields: tuple[str, ...], part: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return a number below m for each of the m trials of a part, the same where corpus and fields agree, and which
    trials are clusters of their own."""
    combined = trials.column("corpus").codes[part].astype(np.int64)
    lacking, nothing = np.zeros(len(combined), bool), np.ones(len(combined), bool)
    for field in fields:
        column = trials.column(field)
        codes = column.codes[part]
        unknown = np.array([value is None for value in column.values])[codes]
        lacking |= unknown & (field != "attack")
        nothing &= unknown
        combined = without_gaps(combined * len(column.values) + codes)
    return combined, lacking | nothing


def _note(num: int, of: int, fields: tuple[str, ...]) -> str:
    needed = " and ".join(field for field in fields if field != "attack" or len(fields) == 1)
    which = (
        f"no trial has a known {needed}" if num == of else f"{num:,} of {counted(of, 'trial')} without a known {needed}"
    )
    return f"{which}: each is resampled on its own, so intervals are too narrow where trials are alike"

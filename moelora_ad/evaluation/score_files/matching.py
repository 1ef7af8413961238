"""The matching of scores to the trials of a key where the two name a file differently."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moelora_ad.corpora.manifest import without_audio_ending
from moelora_ad.errors import counted


class Matched(NamedTuple):
    """The matches of trials and scores.

    Args:
        places: (n,) for each trial the index of its score, -1 if it has none. No score has two trials.
        note: How matched ids differ; None if all are equal.
    """

    places: NDArray[np.int64]
    note: str | None


def match_ids(trials: Sequence[str], audio: Sequence[str], scores: Sequence[str]) -> Matched:
    """Match the ids of trials to those of scores: equal ids, and others if the match is unambiguous.

    Ids without an equal one are matched by their files (the id of a score may be the path of the audio), then without
    the endings of audio files and, if no two ids were equal, without the folders that only one of the two has. In each
    of these ways, a trial and a score match only if no other trial and no other score has the same.

    Args:
        trials: n unique ids of a key.
        audio: n paths of their audio, which may be empty.
        scores: m unique ids of scores.
    """
    place = {score: number for number, score in enumerate(scores)}
    pairing = _Pairing([place.get(trial, -1) for trial in trials], len(scores))
    has_equal = pairing.num_left[1] < len(scores)
    notes = []

    def take(way: str, pairs: Iterable[tuple[int, int]]) -> None:
        new = pairing.add(pairs)
        if new:
            example = f"{scores[pairing.found[new[0]]]} to {trials[new[0]]}"
            notes.append(f"{counted(len(new), 'score')} matched to the key {way}, one to one: {example}")

    if all(pairing.num_left):
        files = [os.path.abspath(path) if path else "" for path in audio]
        take("by the paths of their files", _shared(files, list(map(os.path.abspath, scores))))
    if all(pairing.num_left):
        ours, theirs = ([_parts(id_) for id_ in ids] for ids in (trials, scores))
        take("without the endings of their ids", _shared(ours, theirs))
        deepest = 0 if has_equal else max(map(len, [*ours, *theirs]))
        for depth in range(deepest - 1, 0, -1):
            pairs = _shared([parts[-depth:] for parts in ours], [parts[-depth:] for parts in theirs])
            fitting = ((i, j) for i, j in pairs if min(len(ours[i]), len(theirs[j])) <= depth)
            take("without the folders of their ids", fitting)
    return Matched(np.array(pairing.found, np.int64), "; ".join(notes) or None)


class _Pairing:
    """Matches of trials and scores.

    Args:
        found: For each trial the index of its score, or -1.
        num_scores: The number of scores.
    """

    def __init__(self, found: list[int], num_scores: int) -> None:
        self.found = found
        self._is_taken = bytearray(num_scores)
        for score in found:
            if score >= 0:
                self._is_taken[score] = 1

    @property
    def num_left(self) -> tuple[int, int]:
        """The numbers of trials and of scores without a match."""
        return self.found.count(-1), self._is_taken.count(0)

    def add(self, pairs: Iterable[tuple[int, int]]) -> list[int]:
        """Match the pairs in which neither has a match yet; return their trials."""
        new = []
        for trial, score in pairs:
            if self.found[trial] < 0 and not self._is_taken[score]:
                self.found[trial], self._is_taken[score] = score, 1
                new.append(trial)
        return new


def _parts(utterance: str) -> tuple[str, ...]:
    return tuple(part for part in without_audio_ending(utterance).split("/") if part not in ("", "."))


def _shared(ours: Sequence[object], theirs: Sequence[object]) -> Iterator[tuple[int, int]]:
    """Yield the places in both lists of each value that occurs exactly once in either; empty values are skipped."""
    counts = Counter(ours), Counter(theirs)
    place = {one: number for number, one in enumerate(theirs)}
    for number, one in enumerate(ours):
        if one and counts[0][one] == counts[1][one] == 1:
            yield number, place[one]

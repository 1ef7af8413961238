"""Pieces to full batches, and their scores back to the files, without waiting for a GPU while there is work for it."""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from moelora_ad.inference.batches.pieces import Piece
from moelora_ad.inference.sounds import DecodedSound
from moelora_ad.models.devices import HostCopy

_IN_FLIGHT = 2  # batches that are queued on a GPU


class Batch(NamedTuple):
    """Rows (B, window), the valid samples (B,) and the number of the file of each."""

    waveforms: Tensor
    lengths: Tensor
    owners: list[int]


class Batcher:
    """Batches of one size from pieces of any.

    Args:
        size: rows of a batch.
        pinned: whether batches are in pinned memory, which a GPU reads directly.
    """

    def __init__(self, size: int, pinned: bool = False) -> None:
        self._size = size
        self._pinned = pinned
        self._parts: deque[tuple[Tensor, Tensor]] = deque()  # waveforms and lengths
        self._owners: list[int] = []

    def add(self, piece: Piece) -> Iterator[Batch]:
        """The batches that are full with one more piece."""
        self._parts.append((piece.waveforms, piece.lengths))
        self._owners += piece.owners
        while len(self._owners) >= self._size:
            yield self._taken(self._size)

    def rest(self) -> Iterator[Batch]:
        """The last batch, if rows are left."""
        if self._owners:
            yield self._taken(len(self._owners))

    def _taken(self, count: int) -> Batch:
        rows: list[Tensor] = []
        samples: list[Tensor] = []
        missing = count
        while missing:
            waveforms, lengths = self._parts.popleft()
            if len(waveforms) > missing:
                self._parts.appendleft((waveforms[missing:], lengths[missing:]))
                waveforms, lengths = waveforms[:missing], lengths[:missing]
            if len(waveforms):
                rows.append(waveforms)
                samples.append(lengths)
            missing -= len(waveforms)
        owners, self._owners = self._owners[:count], self._owners[count:]
        if len(rows) == 1:
            return Batch(rows[0], samples[0], owners)
        waveforms = torch.empty(count, rows[0].shape[1], pin_memory=self._pinned)
        lengths = torch.empty(count, dtype=torch.int64, pin_memory=self._pinned)
        return Batch(torch.cat(rows, out=waveforms), torch.cat(samples, out=lengths), owners)


class Returning:
    """Scores of batches on their way from the device, in the order of the batches."""

    def __init__(self) -> None:
        self._batches: deque[tuple[list[int], HostCopy]] = deque()

    def add(self, scores: Tensor, owners: list[int]) -> None:
        """Begin to fetch the scores (B,) of a batch."""
        self._batches.append((owners, HostCopy(scores)))

    def arrived(self, all_of_them: bool = False) -> Iterator[tuple[int, float]]:
        """Files' numbers and scores of windows, as many as are ready; it waits only if too many batches, or
        ``all_of_them``, are on their way."""
        while self._batches:
            owners, scores = self._batches[0]
            if len(self._batches) <= _IN_FLIGHT and not all_of_them and not scores.is_there:
                return
            self._batches.popleft()
            yield from zip(owners, scores.tensor().tolist(), strict=True)


class Pending:
    """Sounds whose windows are on their way, by the number of the file.

    Attributes:
        read: how many files are cut, with the parts of those in work.
    """

    def __init__(self) -> None:
        self._decoded: dict[int, DecodedSound] = {}
        self._scores: defaultdict[int, list[float]] = defaultdict(list)
        self._parts: dict[int, float] = {}
        self._given = 0
        self._ended = 0

    @property
    def read(self) -> float:
        return self._ended + sum(self._parts.values())

    def add(self, piece: Piece) -> None:
        """What is known of the files of a piece."""
        self._decoded |= piece.ended
        self._ended += len(piece.ended)
        for number in piece.ended:
            self._parts.pop(number, None)
        if piece.part:
            self._parts[piece.owners[-1]] = piece.part

    def score(self, scores: Iterable[tuple[int, float]]) -> None:
        """Scores of further windows, those of a file in their order."""
        for number, score in scores:
            if number >= self._given:  # else the file has failed behind this window
                self._scores[number].append(score)

    def complete(self) -> Iterator[tuple[DecodedSound, list[float]]]:
        """The next sounds in the order of the files, as long as they have all their scores, or get none."""
        while (sound := self._decoded.get(self._given)) is not None:
            scores = self._scores[self._given]
            if sound.error is None and len(scores) < len(sound.starts):
                return
            del self._decoded[self._given], self._scores[self._given]
            self._given += 1
            yield sound, scores

"""Assembles pieces into full batches, and sorts their scores back to the files, without waiting for a busy GPU."""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from moelora_ad.inference.batches.pieces import Piece
from moelora_ad.inference.sounds import DecodedSound
from moelora_ad.models.devices import HostCopy

_IN_FLIGHT = 2  # batches that may be queued on a GPU before their scores are awaited


class Batch(NamedTuple):
    """Windows (B, window), with the number of valid samples (B,) and the file number of each."""

    waveforms: Tensor
    lengths: Tensor
    owners: list[int]


class Batcher:
    """Assembles batches of one size from pieces of any size.

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
        """Add a piece, and yield the batches that it fills."""
        self._parts.append((piece.waveforms, piece.lengths))
        self._owners += piece.owners
        while len(self._owners) >= self._size:
            yield self._taken(self._size)

    def rest(self) -> Iterator[Batch]:
        """Yield the rows that are left, if any, as a last batch."""
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
    """Scores that are being copied from the device, in the order of their batches."""

    def __init__(self) -> None:
        self._batches: deque[tuple[list[int], HostCopy]] = deque()

    def add(self, scores: Tensor, owners: list[int]) -> None:
        """Begin to copy the scores (B,) of a batch from the device."""
        self._batches.append((owners, HostCopy(scores)))

    def arrived(self, all_of_them: bool = False) -> Iterator[tuple[int, float]]:
        """Yield the scores of windows that have arrived, each behind the number of its file. This waits only while too
        many batches are being copied, or until none is if ``all_of_them``."""
        while self._batches:
            owners, scores = self._batches[0]
            if len(self._batches) <= _IN_FLIGHT and not all_of_them and not scores.is_there:
                return
            self._batches.popleft()
            yield from zip(owners, scores.tensor().tolist(), strict=True)


class Pending:
    """Sounds that still lack scores of windows, by the number of the file.

    Attributes:
        read: number of files that have been cut into windows, with fractions for files in progress.
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
        """Register the files of a piece."""
        self._decoded |= piece.ended
        self._ended += len(piece.ended)
        for number in piece.ended:
            self._parts.pop(number, None)
        if piece.part:
            self._parts[piece.owners[-1]] = piece.part

    def score(self, scores: Iterable[tuple[int, float]]) -> None:
        """Add scores of further windows; those of a file come in the order of its windows."""
        for number, score in scores:
            if number >= self._given:  # else the file failed after this window and has been yielded already
                self._scores[number].append(score)

    def complete(self) -> Iterator[tuple[DecodedSound, list[float]]]:
        """Yield the next sounds with their scores, in the order of the files, up to the first that lacks scores; a
        sound with an error needs none."""
        while (sound := self._decoded.get(self._given)) is not None:
            scores = self._scores[self._given]
            if sound.error is None and len(scores) < len(sound.starts):
                return
            del self._decoded[self._given], self._scores[self._given]
            self._given += 1
            yield sound, scores

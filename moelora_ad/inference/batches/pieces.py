"""Windows of many files, in pieces of a batch's size, cut in this process or in others that decode ahead."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from moelora_ad.data.workers import (
    PREFETCHED,
    SILENT_SECONDS,
    begin_worker,
    check_room,
    end_of_workers_awaited,
    end_with_parent,
    starved,
)
from moelora_ad.errors import InputError
from moelora_ad.inference.sounds import DecodedSound, Opened, named_sound

OPTION = "--num-workers"
_FEW = 64  # files, which are scored in less time than it takes to start a process
_MOST_ON_CPU, _MOST_ON_GPU = 2, 16  # a CPU has the scores to compute, too
_IN_GROUP = 4  # pieces of short files: what is left of the last one is a small part of them
_GROUPS_AHEAD = 64  # so many later ones may be cut before an earlier one is: what is known of them waits in memory


class Cutting(NamedTuple):
    """How files are cut.

    Attributes:
        window: samples of a window.
        hop: samples from one to the next.
        fill: samples that a shorter sound is repeated to fill; what it lacks then of a window is zeros.
        rows: windows of a piece, at most.
        track: which audio track of each file; None for its default one.
        longest: seconds of a file; None for any.
        pinned: whether pieces are in pinned memory, which a GPU reads directly.
    """

    window: int
    hop: int
    fill: int
    rows: int
    track: int | None = None
    longest: float | None = None
    pinned: bool = False

    def sounds(self, places: Iterable[str | BinaryIO]) -> Iterator[tuple[str, Opened]]:
        """The names of files, and what opens them."""
        return (named_sound(place, self.track, self.longest) for place in places)


class Piece(NamedTuple):
    """Windows of files that follow each other.

    Attributes:
        waveforms: (rows, window) float32, at most a batch.
        lengths: (rows,) valid samples of each.
        owners: the number of the file of each row.
        ended: files that have no windows after these, by their number.
        part: how much of the last row's file is cut, if it is not among these; else 0.
    """

    waveforms: Tensor
    lengths: Tensor
    owners: list[int]
    ended: dict[int, DecodedSound]
    part: float = 0.0


def pieces_of(sounds: Iterable[tuple[str, Opened]], cutting: Cutting, first: int = 0) -> Iterator[Piece]:
    """The pieces of some sounds, whose numbers begin at ``first``. Sounds share a piece as long as it has room."""
    waveforms = torch.empty(0, cutting.window)
    lengths = torch.empty(0, dtype=torch.int64)
    owners: list[int] = []
    ended: dict[int, DecodedSound] = {}
    for number, (name, opened) in enumerate(sounds, first):
        sound = DecodedSound(name)
        for clip in sound.clips(opened, cutting.window, cutting.hop, cutting.fill):
            if len(owners) == cutting.rows:
                yield Piece(waveforms, lengths, owners, ended, sound.part if owners[-1] == number else 0.0)
                owners, ended = [], {}
            if not owners:
                waveforms = torch.empty(cutting.rows, cutting.window, pin_memory=cutting.pinned)
                lengths = torch.empty(cutting.rows, dtype=torch.int64, pin_memory=cutting.pinned)
            row, samples = len(owners), len(clip)
            waveforms[row, :samples] = torch.from_numpy(clip)
            waveforms[row, samples:] = 0
            lengths[row] = samples
            owners.append(number)
        ended[number] = sound
    if ended:
        yield Piece(waveforms[: len(owners)], lengths[: len(owners)], owners, ended)


def read_pieces(places: Iterable[str | BinaryIO], cutting: Cutting, workers: int) -> Iterator[Piece]:
    """The pieces of all files; those of each file come in their order, and files nearly so.

    Args:
        places: of the files, see `named_sound`. File objects are read in this process.
        cutting: how they are cut.
        workers: processes that decode; 0 for none but this one.

    Raises:
        InputError: the processes lack something, or were killed; says what to change.
    """
    if workers:
        places = list(places)
        names = [place for place in places if isinstance(place, str)]
        if len(names) == len(places) > 0:
            yield from _read_by_workers(names, cutting, min(workers, len(places)))
            return
    left, first = iter(places), 0
    while group := list(islice(left, cutting.rows)):
        yield from pieces_of(cutting.sounds(group), cutting, first)
        first += len(group)


def sensible_workers(files: int, device: torch.device, cutting: Cutting) -> int:
    """How many processes should decode so many files: none where this one is as fast, and no more than fit."""
    if files < _FEW:
        return 0
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(processors, _MOST_ON_GPU) if device.type == "cuda" else min(max(1, processors // 2), _MOST_ON_CPU)
    try:
        check_room(workers, _bytes_ahead(workers, cutting), OPTION)
    except InputError:
        return 0
    return workers


class _Share(IterableDataset[Piece]):
    """What one process decodes: groups of files, each with the number of its first."""

    def __init__(self, groups: Sequence[tuple[int, list[str]]], cutting: Cutting) -> None:
        self.groups = groups
        self.cutting = cutting._replace(pinned=False)  # these processes use no GPU

    def __iter__(self) -> Iterator[Piece]:
        for first, places in self.groups:
            for piece in pieces_of(self.cutting.sounds(places), self.cutting, first):
                for sound in piece.ended.values():
                    sound.make_portable()
                if len(piece.owners) < self.cutting.rows:  # else all of its memory goes to the other process
                    piece = piece._replace(waveforms=piece.waveforms.clone(), lengths=piece.lengths.clone())
                yield piece


def _read_by_workers(places: list[str], cutting: Cutting, workers: int) -> Iterator[Piece]:
    """Worker i of n has every n-th group of files from i on, and its own loader, so that a long file of one keeps no
    other from its share; only what is too far behind that file waits."""
    check_room(workers, _bytes_ahead(workers, cutting), OPTION)
    size = max(1, min(_IN_GROUP * cutting.rows, len(places) // (4 * workers)))
    groups = [(first, places[first : first + size]) for first in range(0, len(places), size)]
    shares = [groups[worker::workers] for worker in range(workers)]
    try:
        with end_of_workers_awaited(alone=True):
            loaders = [iter(_loader(share, cutting)) for share in shares]
            position = dict.fromkeys(range(workers), 0)  # of the group in work in its share
            while position:
                behind = min(position.values())
                for worker in [one for one, place in position.items() if place - behind <= _GROUPS_AHEAD]:
                    piece = next(loaders[worker])
                    yield piece
                    first, names = shares[worker][position[worker]]
                    if first + len(names) - 1 in piece.ended:
                        position[worker] += 1
                        if position[worker] == len(shares[worker]):
                            del position[worker]
    except (OSError, RuntimeError) as error:
        if told := starved(error, workers, OPTION):
            raise InputError(told) from None
        raise


def _loader(share: Sequence[tuple[int, list[str]]], cutting: Cutting) -> DataLoader[Piece]:
    return DataLoader(
        _Share(share, cutting),
        batch_size=None,
        num_workers=1,
        collate_fn=_unchanged,
        prefetch_factor=PREFETCHED,
        timeout=SILENT_SECONDS,
        worker_init_fn=_begin_worker,
        pin_memory=cutting.pinned,
        generator=torch.Generator(),  # nothing is drawn: the caller's random state is unchanged
    )


def _begin_worker(worker: int) -> None:
    begin_worker(worker)
    end_with_parent()


def _unchanged(piece: Any) -> Any:
    return piece


def _bytes_ahead(workers: int, cutting: Cutting) -> int:
    return workers * PREFETCHED * cutting.rows * cutting.window * torch.float32.itemsize

"""Windows of many files in pieces of at most one batch, cut in this process or by workers that decode ahead."""

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
from moelora_ad.torch_internals import WatchedLoader

OPTION = "--num-workers"
_FEW = 64  # fewer files are scored in less time than it takes to start a process
_MOST_ON_CPU, _MOST_ON_GPU = 2, 16  # workers; fewer on a CPU, which also computes the scores
_IN_GROUP = 4  # pieces of short files in a group: enough for its incomplete last piece to be a small part
_STARTED_AHEAD = 3  # workers that decode their first piece while the scores of earlier ones are computed
_GROUPS_AHEAD = 64  # groups that one worker may be ahead of another; the data of their files wait in memory


class Cutting(NamedTuple):
    """How files are cut into windows.

    Attributes:
        window: samples of a window.
        hop: samples from one window to the next.
        fill: samples to which a shorter sound is repeated; the rest of its window is zero-padded.
        rows: maximum number of windows in a piece.
        track: number of the audio track of each file; None for its default track.
        longest: maximum length of a file in seconds; None for no limit.
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
        """Yield the name of each file, and the function that opens it."""
        return (named_sound(place, self.track, self.longest) for place in places)


class Piece(NamedTuple):
    """Windows of consecutive files.

    Attributes:
        waveforms: (rows, window) float32, at most a batch.
        lengths: (rows,) valid samples of each row.
        owners: the number of the file of each row.
        ended: files without further windows, by their number.
        part: fraction of the last row's file that has been cut, if the file has further windows; else 0.
    """

    waveforms: Tensor
    lengths: Tensor
    owners: list[int]
    ended: dict[int, DecodedSound]
    part: float = 0.0


def pieces_of(sounds: Iterable[tuple[str, Opened]], cutting: Cutting, first: int = 0) -> Iterator[Piece]:
    """Cut sounds, which are numbered from ``first`` on, into pieces. Sounds share a piece while it has room."""
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
    """Cut all files into pieces. The pieces of each file come in order, and files nearly in order.

    Args:
        places: paths, places in archives and file objects, see `named_sound`. If there is a file object among them,
            this process reads all of them.
        cutting: how they are cut.
        workers: number of worker processes that decode; with 0 this process does.

    Raises:
        InputError: the workers lack memory or open files, do not respond, or were killed; it says what to change.
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
    """Number of workers to decode ``files`` files with; 0 if this process is as fast, or if the system lacks shared
    memory or open files for them."""
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
    """The files that one worker decodes: groups, each with the number of its first file."""

    def __init__(self, groups: Sequence[tuple[int, list[str]]], cutting: Cutting) -> None:
        self.groups = groups
        self.cutting = cutting._replace(pinned=False)  # workers use no GPU

    def __iter__(self) -> Iterator[Piece]:
        for first, places in self.groups:
            for piece in pieces_of(self.cutting.sounds(places), self.cutting, first):
                for sound in piece.ended.values():
                    sound.make_portable()
                if len(piece.owners) < self.cutting.rows:  # a view would send the memory of all rows
                    piece = piece._replace(waveforms=piece.waveforms.clone(), lengths=piece.lengths.clone())
                yield piece


def _read_by_workers(places: list[str], cutting: Cutting, workers: int) -> Iterator[Piece]:
    """Read pieces with workers. Worker i of n gets every n-th group of files from i on, and a loader of its own, so
    that a long file of one worker does not hold up the others, until they are too far ahead."""
    check_room(workers, _bytes_ahead(workers, cutting), OPTION)
    size = max(1, min(_IN_GROUP * cutting.rows, len(places) // (4 * workers)))
    groups = [(first, places[first : first + size]) for first in range(0, len(places), size)]
    shares = [groups[worker::workers] for worker in range(workers)]
    try:
        with end_of_workers_awaited(alone=True):
            loaders: list[Iterator[Piece]] = []
            position = dict.fromkeys(range(workers), 0)  # index of the current group in each worker's share
            while position:
                behind = min(position.values())
                for worker in [one for one, place in position.items() if place - behind <= _GROUPS_AHEAD]:
                    # One after the other, as a process takes as long to start as many files to score.
                    to_start = shares[len(loaders) : worker + 1 + _STARTED_AHEAD]
                    loaders += [iter(_loader(share, cutting)) for share in to_start]
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
    return WatchedLoader(
        _Share(share, cutting),
        batch_size=None,
        num_workers=1,
        collate_fn=_unchanged,
        prefetch_factor=PREFETCHED,
        timeout=SILENT_SECONDS,
        worker_init_fn=_begin_worker,
        pin_memory=cutting.pinned,
        generator=torch.Generator(),  # so that the loader draws nothing from the caller's random state
    )


def _begin_worker(worker: int) -> None:
    begin_worker(worker)
    end_with_parent()


def _unchanged(piece: Any) -> Any:
    return piece


def _bytes_ahead(workers: int, cutting: Cutting) -> int:
    return workers * PREFETCHED * cutting.rows * cutting.window * torch.float32.itemsize

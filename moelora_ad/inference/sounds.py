"""Sounds on their way to a score: named, opened, cut into windows."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO

from moelora_ad.audio import SAMPLE_RATE, AudioError, AudioReader
from moelora_ad.audio.notes import Note
from moelora_ad.audio.quality import ChannelMeter, level_notes
from moelora_ad.audio.segments import Clip
from moelora_ad.corpora.storage.files import open_file
from moelora_ad.inference.pipes import is_pipe, spooled
from moelora_ad.inference.windows import Envelope, Sound, windows_of

Opened = Callable[[], AbstractContextManager[Sound]]


def named_sound(place: str | BinaryIO, track: int | None, longest: float | None = None) -> tuple[str, Opened]:
    """The name of a path, a place in an archive or a file object, and what opens it; ``longest``: see `AudioReader`."""
    if isinstance(place, str):
        return place, lambda: _at(place, track, longest)
    name = str(getattr(place, "name", "the file"))
    can_seek = not hasattr(place, "seekable") or place.seekable()
    return name, lambda: AudioReader(place if can_seek else spooled(place, name), name, track, ChannelMeter(), longest)


def _at(place: str, track: int | None, longest: float | None) -> AudioReader:
    if os.path.isfile(place):
        return AudioReader(place, None, track, ChannelMeter(), longest)
    if os.path.exists(place):
        kind = "folder" if os.path.isdir(place) else "pipe; name it itself" if is_pipe(place) else "device"
        raise AudioError(f"cannot decode {place}: this is a {kind}")
    source = open_file(place)
    if source == place:  # libsndfile would end a name at NUL
        raise AudioError(f"no such audio file: {place}")
    return AudioReader(source, place, track, ChannelMeter(), longest)


class PendingSound:
    """A sound on its way through the batches."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.length = 0
        self.starts: list[int] = []
        self.log_odds: list[float] = []
        self.envelope: Envelope | None = None
        self.notes: tuple[Note, ...] = ()
        self.error: Exception | None = None
        self.is_read = False

    def clips(self, opened: Opened, window: int, hop: int) -> Iterator[Clip]:
        """Its windows; what goes wrong ends them and is kept."""
        try:
            with opened() as sound:
                self.length = sound.length
                self.envelope = Envelope(sound.length)
                for start, clip in windows_of(sound, window, hop, self.envelope):
                    self.starts.append(start)
                    yield clip
                self.length = sound.length  # decoding may have found less than the header told
                extremes = self.envelope.extremes()
                levels = level_notes(sound.length, SAMPLE_RATE, float(extremes.min()), float(extremes.max()))
                self.notes = levels + (sound.meter.notes() if sound.meter else ()) + sound.notes
        except Exception as error:  # a file must not stop those after it
            self.error = error
        self.is_read = True

    def part_read(self, window: int) -> float:
        return min(1.0, (self.starts[-1] + window) / self.length)

    @property
    def is_complete(self) -> bool:
        return self.error is not None or (self.is_read and len(self.log_odds) == len(self.starts))

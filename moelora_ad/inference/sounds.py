"""Preparation of sounds for scoring: their names, opening them, cutting them into windows, and checks for a verdict."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from moelora_ad.audio import SAMPLE_RATE, AudioError, AudioReader
from moelora_ad.audio.notes import Note
from moelora_ad.audio.quality import ChannelMeter, is_silent, level_notes
from moelora_ad.audio.segments import Clip
from moelora_ad.audio.speech import SpeechMeter
from moelora_ad.corpora.storage.files import open_file
from moelora_ad.errors import InputError
from moelora_ad.inference.file_scores import no_verdict
from moelora_ad.inference.pipes import is_pipe, spooled
from moelora_ad.inference.windows import Envelope, Sound, windows_of

Opened = Callable[[], AbstractContextManager[Sound]]


def named_sound(place: str | BinaryIO, track: int | None, longest: float | None = None) -> tuple[str, Opened]:
    """The name of a path, a place in an archive or a file object, and the function that opens it; for ``track`` and
    ``longest`` see `AudioReader`."""
    if isinstance(place, str):
        return place, lambda: _at(place, track, longest)
    name = name_of(place)
    can_seek = not hasattr(place, "seekable") or place.seekable()
    return name, lambda: AudioReader(place if can_seek else spooled(place, name), name, track, ChannelMeter(), longest)


def name_of(place: str | BinaryIO) -> str:
    """The name in messages and rows of a path, a place in an archive, or a file object."""
    return place if isinstance(place, str) else str(getattr(place, "name", "the file"))


def _at(place: str, track: int | None, longest: float | None) -> AudioReader:
    if os.path.isfile(place):
        return AudioReader(place, None, track, ChannelMeter(), longest)
    if os.path.exists(place):
        kind = "folder" if os.path.isdir(place) else "pipe; name it directly" if is_pipe(place) else "device"
        raise AudioError(f"cannot decode {place}: this is a {kind}")
    source = open_file(place)
    if source == place:  # libsndfile would cut off a name at a NUL
        raise AudioError(f"no such audio file: {place}")
    return AudioReader(source, place, track, ChannelMeter(), longest)


@dataclass
class DecodedSound:
    """Properties of a sound, complete when all its windows are cut.

    Attributes:
        name: name of the file.
        length: samples at 16 kHz.
        starts: first sample of each window.
        envelope: (n, 2) lowest and highest sample of n stretches.
        envelope_step: length of a stretch in seconds.
        notes: anomalies of the sound.
        reason: why there is no verdict on it; None if there is one.
        error: why it has no score; None if it has one.
        part: fraction of it that has been cut, 0 to 1.
    """

    name: str
    length: int = 0
    starts: list[int] = field(default_factory=list)
    envelope: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 2), np.float32))
    envelope_step: float = 0.0
    notes: tuple[Note, ...] = ()
    reason: str | None = None
    error: Exception | None = None
    part: float = 0.0

    def clips(self, opened: Opened, window: int, hop: int, fill: int) -> Iterator[Clip]:
        """Yield the sound's windows, see `windows_of`. An error ends them and is stored in ``error``."""
        try:
            with opened() as sound:
                self.length = sound.length
                envelope, speech = Envelope(sound.length), SpeechMeter()
                for start, clip in windows_of(sound, window, hop, fill, envelope, speech):
                    self.starts.append(start)
                    self.part = min(1.0, (start + window) / self.length)
                    yield clip
                self.length = sound.length  # decoding may have given less than the header declared
                self.envelope, self.envelope_step = envelope.extremes(), envelope.seconds
                low, high = float(self.envelope.min()), float(self.envelope.max())
                levels = level_notes(sound.length, SAMPLE_RATE, low, high)
                self.notes = levels + (sound.meter.notes() if sound.meter else ()) + sound.notes
                seconds, has_speech = sound.length / SAMPLE_RATE, speech.has_speech()
                self.reason = no_verdict(seconds, fill / SAMPLE_RATE, is_silent(low, high), has_speech)
        except Exception as error:  # a faulty file must not stop those after it
            self.error = error
        self.part = 1.0

    def make_portable(self) -> None:
        """Replace an error that another process may not be able to unpickle."""
        if self.error is not None and not isinstance(self.error, InputError):
            self.error = AudioError(f"cannot use {self.name}: {type(self.error).__name__}: {self.error}")

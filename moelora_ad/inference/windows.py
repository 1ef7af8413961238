"""Sound of any length as overlapping windows of one length, in bounded memory."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from moelora_ad.audio import SAMPLE_RATE, AudioError
from moelora_ad.audio.notes import Note
from moelora_ad.audio.quality import ChannelMeter
from moelora_ad.audio.segments import Clip, repeated
from moelora_ad.audio.streaming import check_rate, resampled
from moelora_ad.evaluation.metrics.equal_error_rate import as_array

ENVELOPE_POINTS = 1_000
_FULL_SCALE = {"uint8": 2**7, "int16": 2**15, "int32": 2**31}


class Sound(Protocol):
    """The source of windows: an open file, or an array."""

    @property
    def length(self) -> int:
        """Number of samples at 16 kHz."""

    @property
    def notes(self) -> tuple[Note, ...]:
        """Anomalies of the file."""

    @property
    def meter(self) -> ChannelMeter | None:
        """Measures all channels, and is complete after the last block; None without one."""

    def blocks(self) -> Iterator[Clip]:
        """Yield the sound from its beginning to its end, in blocks (n,) float32 at 16 kHz."""


class ArraySound(NamedTuple):
    """An array as a `Sound`."""

    waveform: Clip
    meter: ChannelMeter
    notes: tuple[Note, ...] = ()

    @property
    def length(self) -> int:
        return len(self.waveform)

    def blocks(self) -> Iterator[Clip]:
        yield self.waveform


def sound_of_array(values: object, rate: int, name: str) -> ArraySound:
    """Return an array or tensor as a `Sound`, channels averaged, at 16 kHz.

    Args:
        values: (samples,) or (channels, samples): floats with full scale 1, or int16, int32 or uint8 as in WAV files.
        rate: Sample rate in hertz.
        name: Name in messages.

    Raises:
        AudioError: The array is empty, has other dimensions, another type, NaN or infinite samples, or a rate that
            cannot be brought to 16 kHz.
    """
    array = as_array(values)
    if array.size == 0:
        raise AudioError(f"cannot use {name}: it has zero samples")
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[0] > array.shape[1]):
        raise AudioError(f"cannot use {name}: its shape must be (samples,) or (channels, samples), not {array.shape}")
    if array.dtype.kind != "f" and array.dtype.name not in _FULL_SCALE:
        known = ", ".join(_FULL_SCALE)
        raise AudioError(f"cannot use {name}: samples must be floats with full scale 1, or {known}, not {array.dtype}")
    if rate != int(rate):
        raise AudioError(f"cannot use {name}: its sample rate must be a whole number of hertz, not {rate}")
    check_rate(name, int(rate))
    # Integers are scaled as libsndfile does.
    scale = _FULL_SCALE.get(array.dtype.name, 1)
    middle = 128 if array.dtype.name == "uint8" else 0
    with np.errstate(over="ignore"):
        waveform = ((array.astype(np.float64) - middle) / scale).astype(np.float32)
    mono: Clip = waveform if array.ndim == 1 else waveform.mean(axis=0)
    if not np.isfinite(mono).all():
        raise AudioError(f"cannot use {name}: it has NaN or infinite samples")
    meter = ChannelMeter()
    meter.add(np.atleast_2d(waveform).T)
    return ArraySound(resampled(mono, int(rate)), meter)


def window_starts(length: int, window: int, hop: int) -> Iterator[int]:
    """The first sample of each window of a sound of ``length`` samples: every ``hop``, and the last one at the end."""
    yield from range(0, length - window, hop)
    yield max(0, length - window)


class Meter(Protocol):
    """Measures a property of a sound on all its samples."""

    def add(self, block: Clip, /) -> None:
        """Add the next samples (n,)."""


def windows_of(sound: Sound, window: int, hop: int, fill: int, *meters: Meter) -> Iterator[tuple[int, Clip]]:
    """Yield the first sample of each window, and its waveform (window,), which is shorter only for a short sound.

    Args:
        sound: Read once; no more of it than a block and a window is held in memory.
        window: Length of a window in 16 kHz samples.
        hop: Samples from one window to the next, 1 to ``window``.
        fill: Length to which a shorter sound is repeated, in samples, at most ``window``.
        meters: Measure all of the sound.
    """
    starts = window_starts(sound.length, window, hop)
    start: int | None = next(starts)
    kept, begin = np.empty(0, np.float32), 0  # samples that are still needed, and the position of the first
    for block in sound.blocks():
        for meter in meters:
            meter.add(block)
        kept = np.concatenate([kept, block])
        while start is not None and begin + len(kept) >= min(start + window, sound.length):
            clip = kept[start - begin : start - begin + window]
            yield start, repeated(clip, fill) if len(clip) < fill else clip
            start = next(starts, None)
        unneeded = (begin + len(kept) if start is None else start) - begin
        kept, begin = kept[unneeded:], begin + unneeded


class Envelope:
    """The lowest and highest sample of equal stretches of a sound, for drawing it.

    Args:
        length: Number of samples that will be added.

    Attributes:
        seconds: Length of a stretch.
    """

    def __init__(self, length: int) -> None:
        self._stretch = max(1, -(-length // ENVELOPE_POINTS))
        self.seconds = self._stretch / SAMPLE_RATE
        self._parts: list[NDArray[np.float32]] = []
        self._rest = np.empty(0, np.float32)

    def add(self, block: Clip) -> None:
        """Add the next samples (n,)."""
        sound = np.concatenate([self._rest, block])
        whole = len(sound) - len(sound) % self._stretch
        self._parts.append(_extremes(sound[:whole].reshape(-1, self._stretch)))
        self._rest = sound[whole:]

    def extremes(self) -> NDArray[np.float32]:
        """Lowest and highest sample of each stretch: (stretches, 2)."""
        return np.concatenate([*self._parts, _extremes(self._rest[None, :])] if len(self._rest) else self._parts)


def _extremes(stretches: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lowest and highest sample of each stretch: (n, samples) -> (n, 2)."""
    if stretches.size == 0:
        return np.empty((0, 2), np.float32)
    return np.stack([stretches.min(axis=1), stretches.max(axis=1)], axis=1)

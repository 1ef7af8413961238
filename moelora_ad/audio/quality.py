"""What of a sound makes its score worth little: too little to hear, or not what was recorded."""

import math

import numpy as np
from numpy.typing import NDArray

from moelora_ad.audio.notes import Note

SILENT = 1e-3
"""Half the distance from the lowest to the highest sample: -60 dBFS. Of 16 bits, six are left below that, too few for
speech; the quietest recordings of speech peak near -40 dBFS. A constant offset is no sound."""

SHORT = 0.1
"""Seconds. Less is not even a syllable, and a detector hears it repeated, forty times and more in a window of 4 s."""

CLIPPED = 1e-3
"""Share of samples. What is normalised touches full scale now and then; from here on waves are cut off all the time."""

IN_A_ROW = 3
"""Samples at their channel's highest or lowest value that are a wave cut off, and no peak: where audio editors look for
clipping. Full scale is not asked for, as what was clipped may have been turned down."""

LOUD = 0.1
"""Least value, of full scale 1, of a clipped sample: in what is quieter, peaks are as flat as the steps of 8 bits."""

CANCELLED = 0.25
"""Power of the mean of n channels against an n-th of theirs, which is what is left of channels that have nothing to do
with each other, or of sound in one alone. 6 dB below that, they work against each other."""


def level_notes(samples: int, rate: int, low: float, high: float) -> tuple[Note, ...]:
    """Whether a sound is silent or short.

    Args:
        samples: Its length, at least 1.
        rate: Of the samples, in hertz.
        low: Its lowest sample.
        high: Its highest sample.
    """
    notes = []
    if (level := (high - low) / 2) < SILENT:
        notes.append(Note("silent", f"{_decibels(level**2)} dBFS"))
    if (seconds := samples / rate) < SHORT:
        notes.append(Note("short", f"{seconds:.3g} s" if seconds >= 0.01 else f"{1_000 * seconds:.3g} ms"))
    return tuple(notes)


class ChannelMeter:
    """Measures the channels of a sound that comes block by block, before they become one."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._high = self._low = _Extreme(0)
        self._samples = self._clipped = 0
        self._power = self._mono_power = self._expected = 0.0

    def add(self, frames: NDArray[np.float32]) -> None:
        """The next samples (n, channels), n >= 1; full scale is 1. Files that were joined may differ in channels."""
        channels = frames.shape[1]
        if channels != self._high.channels:
            self._clipped = self._clipped_samples()
            self._high, self._low = _Extreme(channels), _Extreme(channels)
        limited = np.clip(frames, -1, 1)  # a player limits what decoding leaves above
        self._high.add(limited)
        self._low.add(-limited)
        self._samples += frames.size
        power = float(np.square(limited, dtype=np.float64).sum()) / channels
        self._power += power
        self._expected += power / channels
        self._mono_power += float(np.square(limited.mean(axis=1, dtype=np.float64)).sum())

    def notes(self) -> tuple[Note, ...]:
        """What is odd about all that was added."""
        notes = []
        if (clipped := self._clipped_samples()) > CLIPPED * self._samples:
            notes.append(Note("clipped", f"{100 * clipped / self._samples:.1f} % of samples"))
        if self._mono_power < CANCELLED * self._expected:
            below = _decibels(self._power / self._mono_power if self._mono_power else math.inf)
            notes.append(Note("channels cancel", f"mono is {below} dB below the channels"))
        return tuple(notes)

    def _clipped_samples(self) -> int:
        return self._clipped + self._high.clipped() + self._low.clipped()


class _Extreme:
    """Counts the samples of each channel that are in a row at the highest value so far."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self._value = np.full(channels, -np.inf, np.float32)
        self._least = np.full(channels, np.inf, np.float32)
        self._count = np.zeros(channels, np.int64)
        self._last = np.zeros((IN_A_ROW, channels), np.bool_)  # whether the last samples were at it

    def add(self, samples: NDArray[np.float32]) -> None:
        highest = samples.max(axis=0)
        self._least = np.minimum(self._least, samples.min(axis=0))
        higher = highest > self._value
        self._value[higher] = highest[higher]
        self._count[higher] = 0
        self._last[:, higher] = False
        at_it = np.concatenate([self._last, samples == self._value])
        ends = len(samples) + 1  # of rows; the first is of one that ended before this block
        rows = np.logical_and.reduce([at_it[place : place + ends] for place in range(IN_A_ROW)])
        begins = rows[1:] & ~rows[:-1]
        self._count += rows[1:].sum(axis=0) + (IN_A_ROW - 1) * begins.sum(axis=0)
        self._last = at_it[-IN_A_ROW:]

    def clipped(self) -> int:
        return int(self._count[(self._value >= LOUD) & (self._value > self._least)].sum())


def _decibels(power: float) -> str:
    return f"{10 * math.log10(power):.0f}" if 0 < power < math.inf else "-inf" if power == 0 else "inf"

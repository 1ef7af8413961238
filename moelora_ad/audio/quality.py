"""Anomalies that make the score of a sound unreliable: silent, short, clipped, or channels that cancel out."""

import math

import numpy as np
from numpy.typing import NDArray

from moelora_ad.audio.notes import Note

SILENT = 1e-3
"""Half the distance from the lowest to the highest sample: -60 dBFS. Of 16 bits, six are left below that, too few for
speech; the quietest recordings of speech peak near -40 dBFS. A constant offset is not sound."""

SHORT = 0.1
"""Seconds below which a sound is short: it is not even a syllable, and fills a window of 4 s only when repeated forty
times and more."""

CLIPPED = 1e-3
"""Share of samples from which a sound counts as clipped. Normalised sounds touch full scale now and then; above this
share, waves are cut off all the time."""

IN_A_ROW = 3
"""Number of successive samples at their channel's highest or lowest value that count as clipping, as in audio editors.
They need not be at full scale, because a clipped sound may have been turned down later; a lossy codec blurs most
clipping."""

LOUD = 0.1
"""Least magnitude of a clipped sample, where full scale is 1: in quieter sounds, peaks may be as flat as the steps of 8
bits."""

CANCELLED = 0.25
"""Limit of the power of the mean of n channels, as a share of an n-th of their power, which is what remains of
unrelated channels or of sound in one channel alone. At 6 dB below that, channels cancel each other."""


def is_silent(low: float, high: float) -> bool:
    """Whether a sound is silent, from its lowest and its highest sample."""
    return (high - low) / 2 < SILENT


def level_notes(samples: int, rate: int, low: float, high: float) -> tuple[Note, ...]:
    """Notes on a sound that is silent or short; none if it is neither.

    Args:
        samples: Its length, at least 1.
        rate: Its sample rate in hertz.
        low: Its lowest sample.
        high: Its highest sample.
    """
    notes = []
    if is_silent(low, high):
        notes.append(Note("silent", f"{_decibels(((high - low) / 2) ** 2)} dBFS"))
    if (seconds := samples / rate) < SHORT:
        notes.append(Note("short", f"{seconds:.3g} s" if seconds >= 0.01 else f"{1_000 * seconds:.3g} ms"))
    return tuple(notes)


class ChannelMeter:
    """Measures the channels of a sound that comes block by block, before they are averaged."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all samples."""
        self._channels: list[tuple[_Extreme, _Extreme]] = []
        self._samples = self._clipped = 0
        self._power = self._mono_power = self._expected = 0.0

    def add(self, frames: NDArray[np.float32]) -> None:
        """Measure the next samples (n, channels), n >= 1; full scale is 1. Joined files may differ in channels."""
        count = frames.shape[1]
        if count != len(self._channels):
            self._clipped = self._clipped_samples()
            self._channels = [(_Extreme(), _Extreme()) for _ in range(count)]
        channels = np.ascontiguousarray(frames.T)
        for samples, (high, low) in zip(channels, self._channels, strict=True):
            highest, lowest = float(samples.max()), float(samples.min())
            if highest > 1 or lowest < -1:  # players limit samples to full scale
                samples, highest, lowest = np.clip(samples, -1, 1), min(highest, 1.0), max(lowest, -1.0)
            high.add(samples, highest)
            low.add(-samples, -lowest)
        self._samples += frames.size
        power = float(np.vdot(channels, channels)) / count
        mono = channels[0] if count == 1 else channels.mean(axis=0)
        self._power += power
        self._expected += power / count
        self._mono_power += float(np.vdot(mono, mono))

    def notes(self) -> tuple[Note, ...]:
        """The anomalies of all samples that were added."""
        notes = []
        if (clipped := self._clipped_samples()) > CLIPPED * self._samples:
            notes.append(Note("clipped", f"{100 * clipped / self._samples:.1f} % of samples"))
        if self._mono_power < CANCELLED * self._expected:
            below = _decibels(self._power / self._mono_power if self._mono_power else math.inf)
            notes.append(Note("channels cancel", f"mono is {below} dB below the channels"))
        return tuple(notes)

    def _clipped_samples(self) -> int:
        moving = ((high, low) for high, low in self._channels if high.value > -low.value)
        return self._clipped + sum(high.clipped + low.clipped for high, low in moving)


def mixed(frames: NDArray[np.float32], meter: ChannelMeter | None) -> NDArray[np.float32]:
    """The mean over channels of ``frames`` (n, channels), which ``meter`` measures if given: (n,)."""
    if meter is not None:
        meter.add(frames)
    mono: NDArray[np.float32] = frames[:, 0] if frames.shape[1] == 1 else frames.mean(axis=1)
    return mono


class _Extreme:
    """Counts the samples of a channel that are at its highest value so far, ``IN_A_ROW`` or more in a row."""

    def __init__(self) -> None:
        self.value = -math.inf
        self._count = 0
        self._last = np.zeros(IN_A_ROW, np.bool_)  # whether the last samples were at ``value``

    def add(self, samples: NDArray[np.float32], highest: float) -> None:
        """Count the next samples (n,); ``highest`` is their highest value."""
        if highest > self.value:
            self.value, self._count = highest, 0
            self._last = np.zeros(IN_A_ROW, np.bool_)
        if highest < self.value:
            self._last = np.zeros(IN_A_ROW, np.bool_)
            return
        at_it = np.concatenate([self._last, samples == self.value])
        ends = len(samples) + 1  # places where a row may end; the first is the end of the block before
        rows = np.logical_and.reduce([at_it[place : place + ends] for place in range(IN_A_ROW)])
        begins = rows[1:] & ~rows[:-1]
        self._count += int(np.count_nonzero(rows[1:]) + (IN_A_ROW - 1) * np.count_nonzero(begins))
        self._last = at_it[-IN_A_ROW:]

    @property
    def clipped(self) -> int:
        return self._count if self.value >= LOUD else 0


def _decibels(power: float) -> str:
    return f"{10 * math.log10(power):.0f}" if 0 < power < math.inf else "-inf" if power == 0 else "inf"

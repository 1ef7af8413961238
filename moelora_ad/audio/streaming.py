"""Resampling to 16 kHz, of the whole sound, of a part of it, or block by block: bit for bit the same samples.

The rounding of a convolution depends on the size and the place of its input. So all sound is resampled in steps of
about a second that begin at fixed places of it, each with the margin that the filter needs on both sides, and a part is
cut from the steps that it overlaps.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torchaudio.transforms
from numpy.typing import NDArray

from moelora_ad.audio.source import AudioError

SAMPLE_RATE = 16_000
"""Hertz. Every waveform in this package has this rate."""

LOWEST_RATE = 1_000
MOST_TAPS = 20_000_000
"""Size of the resampling filter. Any usual rate needs under 300,000; 44,101 Hz would need 700 million (13 GB)."""


def check_rate(name: str, rate: int) -> None:
    """Make sure that the sound, ``name`` in messages, can be brought to 16 kHz from ``rate`` in hertz.

    Raises:
        AudioError: The rate is too low, or has too little in common with 16,000.
    """
    common = math.gcd(rate, SAMPLE_RATE)
    if rate < LOWEST_RATE or (rate // common) * (SAMPLE_RATE // common) > MOST_TAPS:
        problem = f"its sample rate of {rate} Hz cannot be brought to {SAMPLE_RATE} Hz; convert the file"
        raise AudioError(f"cannot use {name}: {problem}")


def length_at_16_khz(frames: int, rate: int) -> int:
    return math.ceil(frames * SAMPLE_RATE / rate)


def resampled(waveform: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Resample ``waveform`` (n,), n >= 1, from ``rate`` in hertz to 16 kHz."""
    whole = length_at_16_khz(len(waveform), rate)
    return resampled_part(lambda start, stop: waveform[start:stop], len(waveform), rate, 0, whole)


def resampled_part(
    read: Callable[[int, int], NDArray[np.float32]], frames: int, rate: int, start: int, stop: int
) -> NDArray[np.float32]:
    """A part of a sound at 16 kHz, ``resampled(...)[start:stop]``; no more of it is read than is needed.

    Args:
        read: Returns the frames from a first position up to, but without, a second one, both within the sound: (n,).
        frames: The sound's length at its own rate.
        rate: Its rate in hertz.
        start: First sample of the part, at 16 kHz.
        stop: The sample behind the part; at most the sound's length at 16 kHz.

    Returns:
        (stop - start,); empty if ``start`` is not before ``stop``.
    """
    if rate == SAMPLE_RATE or start >= stop:
        return read(start, max(start, stop))
    step = _step(rate)
    first, steps = start // step.samples, -(-stop // step.samples) - start // step.samples
    begin = first * step.frames - step.margin
    end = begin + steps * step.frames + 2 * step.margin
    needed = np.pad(read(max(begin, 0), min(end, frames)), (max(-begin, 0), max(end - frames, 0)))
    offset = first * step.samples
    return step.resampled(needed, steps)[start - offset : stop - offset]


class StreamingResampler:
    """Resamples a sound that comes block by block to 16 kHz.

    Args:
        rate: The sound's own rate in hertz.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._step = None if rate == SAMPLE_RATE else _step(rate)
        self._held = 0 if self._step is None else self._step.margin  # frames
        self._kept = [np.zeros(self._held, np.float32)]  # from the margin of the next step on
        self._taken = self._given = 0

    def __call__(self, block: NDArray[np.float32], last: bool) -> NDArray[np.float32]:
        """The samples that are known after the next ``block`` (n,), or after the ``last``: (m,), m >= 0."""
        step = self._step
        if step is None:
            return block
        self._kept.append(block)
        self._held += len(block)
        self._taken += len(block)
        left = length_at_16_khz(self._taken, self._rate) - self._given
        steps = -(-left // step.samples) if last else (self._held - 2 * step.margin) // step.frames
        if steps <= 0:
            return np.empty(0, np.float32)
        sound = np.concatenate(self._kept)
        missing = steps * step.frames + 2 * step.margin - len(sound)
        told = step.resampled(np.pad(sound, (0, max(missing, 0))), steps)[:left]
        self._kept = [sound[steps * step.frames :]]
        self._held = len(self._kept[0])
        self._given += len(told)
        return told


class _Step:
    """The resampling of a stretch of fixed length.

    Attributes:
        frames: Its length at the sound's own rate.
        samples: Its length at 16 kHz.
        margin: Frames on either side that the filter sees.
    """

    def __init__(self, rate: int) -> None:
        common = math.gcd(rate, SAMPLE_RATE)
        unit, samples = rate // common, SAMPLE_RATE // common  # ``unit`` frames become ``samples`` samples
        self._resample = torchaudio.transforms.Resample(rate, SAMPLE_RATE, dtype=torch.float32)
        reach = -(-self._resample.width // unit) + 1  # in units
        self.frames, self.samples, self.margin = common * unit, common * samples, reach * unit
        self._first = reach * samples

    def resampled(self, sound: NDArray[np.float32], steps: int) -> NDArray[np.float32]:
        """Resample consecutive steps, given with the margins before and behind them: (steps * samples,)."""
        length = self.frames + 2 * self.margin
        parts = []
        for start in range(0, steps * self.frames, self.frames):
            part = torch.from_numpy(np.ascontiguousarray(sound[start : start + length]))
            parts.append(self._resample(part)[self._first : self._first + self.samples].numpy())
        joined: NDArray[np.float32] = np.concatenate(parts)
        return joined


@lru_cache(maxsize=8)
def _step(rate: int) -> _Step:
    """Cached, as designing the filter takes longer than resampling a second of sound."""
    return _Step(rate)

"""Resampling, of the whole sound or block by block."""

import math

import numpy as np
import torch
import torchaudio.functional
import torchaudio.transforms
from numpy.typing import NDArray

from moelora_ad.audio.source import AudioError

SAMPLE_RATE = 16_000
"""Hertz. Every waveform in this package has this rate."""

LOWEST_RATE = 1_000
MOST_TAPS = 20_000_000
"""Size of the resampling filter. Any usual rate needs under 300,000; 44,101 Hz would need 700 million (13 GB)."""


def check_rate(name: str, rate: int) -> None:
    """Make sure that the sound that messages call ``name`` can be brought to 16 kHz from ``rate`` in hertz.

    Raises:
        AudioError: The rate is too low, or has too little in common with 16,000.
    """
    common = math.gcd(rate, SAMPLE_RATE)
    if rate < LOWEST_RATE or (rate // common) * (SAMPLE_RATE // common) > MOST_TAPS:
        problem = f"its sample rate of {rate} Hz cannot be brought to {SAMPLE_RATE} Hz; convert the file"
        raise AudioError(f"cannot use {name}: {problem}")


def resampled(waveform: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """``waveform`` (n,), n >= 1, from ``rate`` in hertz to 16 kHz."""
    if rate == SAMPLE_RATE:
        return waveform
    # Trailing zeros change no sample; they make up for torchaudio's rounding of the length in float32.
    padded = torch.nn.functional.pad(torch.from_numpy(np.ascontiguousarray(waveform)), (0, rate // 100))
    at_16_khz: torch.Tensor = torchaudio.functional.resample(padded, rate, SAMPLE_RATE)
    return at_16_khz[: length_at_16_khz(len(waveform), rate)].numpy()


def length_at_16_khz(frames: int, rate: int) -> int:
    return math.ceil(frames * SAMPLE_RATE / rate)


class StreamingResampler:
    """What `torchaudio.functional.resample` gives for the whole sound, up to rounding, a block at a time.

    Args:
        rate: Of the sound, in hertz.
        wanted: Another rate, in hertz.
    """

    def __init__(self, rate: int, wanted: int) -> None:
        common = math.gcd(rate, wanted)
        self._unit, self._new_unit = rate // common, wanted // common  # so many samples become so many others
        self._resample = torchaudio.transforms.Resample(rate, wanted, dtype=torch.float32)
        self._reach = -(-self._resample.width // self._unit) + 1  # units on either side that the filter sees
        self._kept = np.empty(0, np.float32)  # begins at a unit
        self._known = 0  # units of what is kept whose output was given; they are there for the filter alone
        self._taken = self._given = 0

    def __call__(self, block: NDArray[np.float32], last: bool) -> NDArray[np.float32]:
        """The samples that can be told after the next ``block`` (n,), or after the ``last``: (m,), m >= 0."""
        self._taken += len(block)
        self._kept = np.concatenate([self._kept, block])
        ready = len(self._kept) // self._unit - self._reach
        if last:
            # Zeros behind the end change no sample; they make up for torchaudio's rounding of the length in float32.
            padded = np.pad(self._kept, (0, 2 * self._unit))
            total = math.ceil(self._taken * self._new_unit / self._unit)
            return self._resampled(padded)[self._known * self._new_unit :][: total - self._given]
        if ready <= self._known:
            return np.empty(0, np.float32)
        resampled = self._resampled(self._kept)[self._known * self._new_unit : ready * self._new_unit]
        unneeded = max(0, ready - self._reach)
        self._kept = self._kept[unneeded * self._unit :]
        self._known = ready - unneeded
        self._given += len(resampled)
        return resampled

    def _resampled(self, sound: NDArray[np.float32]) -> NDArray[np.float32]:
        resampled: NDArray[np.float32] = self._resample(torch.from_numpy(np.ascontiguousarray(sound))).numpy()
        return resampled

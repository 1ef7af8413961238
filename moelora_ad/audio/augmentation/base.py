"""The interface of augmentations: a waveform in, another of the same length out."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from moelora_ad.errors import InputError


class Augmentation(ABC):
    """A random change of a training waveform; a new one is one new subclass and no edit elsewhere."""

    @abstractmethod
    def __call__(self, waveform: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """Change ``waveform`` at random.

        Args:
            waveform: (samples,) float32 at 16 kHz, samples >= 1, finite; full scale is 1. It is left as it is.
            generator: The only source of randomness: the same waveform and generator state give the same result.

        Returns:
            (samples,) float32, finite, a new array.
        """


def check_limits(name: str, limits: tuple[float, float], least: float, most: float, unit: str = "") -> None:
    """Make sure that a pair of parameters, a lowest and a highest value, is in order and in range.

    Raises:
        InputError: It is not; the message begins with ``name``.
    """
    low, high = limits
    if not least <= low <= high <= most:
        within = f"{least:g} to {most:g} {unit}".rstrip()
        raise InputError(f"{name} must be [lowest, highest] within {within}, not [{low}, {high}]")


def peak(sound: NDArray[np.float32]) -> float:
    """The largest magnitude in ``sound`` (samples,)."""
    return max(float(sound.max()), -float(sound.min()))


def within_full_scale(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """``sound`` (samples,), divided in place by its peak if that is above 1."""
    loudest = peak(sound)
    if loudest > 1:
        sound /= np.float32(loudest)
    return sound

"""What an augmentation is: a waveform in, another of the same length out."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray


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

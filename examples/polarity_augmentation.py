"""An augmentation of your own: it flips the waveform's sign half of the time, and draws a gain in decibels.

From the project's folder (or copy this file beside your configuration and leave out ``examples.``):

    moelora-ad fit --config experiments/quickstart.yaml \\
        --data.train_augmentation examples.polarity_augmentation.PolarityAndGain \\
        --data.train_augmentation.init_args.decibels 6
"""

import numpy as np
from numpy.typing import NDArray

from moelora_ad.audio import Augmentation


class PolarityAndGain(Augmentation):
    """A random sign and a random gain: they do not alter a voice, but a network may become sensitive to them.

    Args:
        decibels: the gain is drawn uniformly from minus to plus this value.
    """

    def __init__(self, decibels: float = 6.0) -> None:
        self.decibels = decibels

    def __call__(self, waveform: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """Change a waveform: (samples,) float32 -> (samples,) float32. All randomness comes from ``generator``, so that
        a seed fixes it for any number of workers and processes."""
        sign = generator.choice([-1.0, 1.0])
        gain = 10 ** (generator.uniform(-self.decibels, self.decibels) / 20)
        return (sign * gain * waveform).astype(np.float32)

"""An augmentation of your own: the waveform's sign flipped half of the time, a gain drawn in decibels.

From the project's folder (or copy this file beside your configuration and leave out ``examples.``):

    moelora-ad fit --config experiments/quickstart.yaml \\
        --data.train_augmentation examples.polarity_augmentation.PolarityAndGain \\
        --data.train_augmentation.init_args.decibels 6
"""

import numpy as np
from numpy.typing import NDArray

from moelora_ad.audio import Augmentation


class PolarityAndGain(Augmentation):
    """Changes that do not alter a voice, but that a network may become sensitive to.

    Args:
        decibels: the gain is drawn evenly from minus to plus so many.
    """

    def __init__(self, decibels: float = 6.0) -> None:
        self.decibels = decibels

    def __call__(self, waveform: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """(samples,) float32 -> (samples,) float32; all that is random comes from ``generator``, so that a seed fixes
        it for any number of workers and processes."""
        sign = generator.choice([-1.0, 1.0])
        gain = 10 ** (generator.uniform(-self.decibels, self.decibels) / 20)
        return (sign * gain * waveform).astype(np.float32)

"""A bank of band-pass filters instead of a pretrained encoder."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from moelora_ad.audio import SAMPLE_RATE
from moelora_ad.models.backbones.base import Backbone
from moelora_ad.torch_internals import Constant


class SincFilters(nn.Module):
    """Fixed filters, side by side on the mel scale from 0 Hz to half the sample rate.

    Shapes: waveforms (B, samples) -> (B, samples - kernel + 1, filters).
    """

    def __init__(self, filters: int, kernel: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.kernel = kernel
        self.bank = Constant(torch.tensor(_band_passes(filters, kernel)).unsqueeze(1))

    def forward(self, waveforms: Tensor) -> Tensor:
        with torch.autocast(waveforms.device.type, enabled=False):  # float32, as in all front ends
            return functional.conv1d(waveforms.float().unsqueeze(1), self.bank(waveforms.device)).transpose(1, 2)


class SincBackbone(Backbone):
    """The front end of the raw AASIST (Jung et al., arXiv 2110.01200), after SincNet (Ravanelli and Bengio, arXiv
    1808.00158): 16,000 frames a second, one for every sample, of as many features as there are filters.

    It has no weights and nothing to adapt: its adaptation is ``FrozenBackbone``. The public training hides up to 19
    neighbouring filters at random; that is not done here.

    Args:
        filters: number of filters.
        kernel: samples of a filter, an odd number.
    """

    encoder: SincFilters

    def __init__(self, filters: int = 70, kernel: int = 129) -> None:
        if filters < 3 or kernel < 3 or kernel % 2 == 0:
            raise ValueError(f"there are {filters} filters of {kernel} samples: give at least 3, of an odd number")
        super().__init__(SincFilters(filters, kernel), filters)

    def layers(self) -> nn.ModuleList:
        return self.encoder.layers

    def frames(self, lengths: Tensor) -> Tensor:
        return lengths - self.encoder.kernel + 1

    def encode(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        return self.encoder(waveforms)


def _band_passes(filters: int, kernel: int) -> "np.ndarray":
    """(filters, kernel) float32: the difference of two ideal low-passes in a Hamming window, for each band."""
    mel = np.linspace(0.0, 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700), filters + 1)
    edges = 700 * (10 ** (mel / 2595) - 1) / SAMPLE_RATE  # cycles per sample
    steps = np.arange(kernel) - kernel // 2
    low_passes = 2 * edges[:, None] * np.sinc(2 * edges[:, None] * steps)
    return (np.diff(low_passes, axis=0) * np.hamming(kernel)).astype(np.float32)

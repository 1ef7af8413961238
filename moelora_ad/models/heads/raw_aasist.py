"""The raw AASIST: a classifier of waveforms that passed a bank of band-pass filters (`SincBackbone`).

Jung et al., "AASIST", arXiv 2110.01200.
"""

from torch import Tensor, nn
from torch.nn import functional

from moelora_ad.models.heads.spectro_temporal import SpectroTemporalGraphs, check_features

FRAMES = 3**7
"""Frames of which the encoder's seven poolings over time leave one column."""


class RawAASIST(SpectroTemporalGraphs):
    """AASIST on filtered waveforms: 297,866 parameters with the defaults, behind the 70 filters of `SincBackbone`.
    AASIST-L, 85,306 parameters, has ``channels`` and ``node`` 24 and the ratios 0.4, 0.5 and 0.7.

    Args:
        width: number of filters.
        channels: channels of the encoded image.
        node: features of a node of the spectral and of the temporal graph.
        branch: features of a node of their union.
        spectral_ratio: part of the spectral nodes that pooling keeps.
        temporal_ratio: part of the temporal nodes that pooling keeps.
        branch_ratio: part of both kinds of nodes that pooling keeps in each branch.

    Shapes: features (B, frames >= 2187, width), a frame for every sample -> logits (B, 2), index 1 bona fide.
    """

    def __init__(
        self,
        width: int,
        channels: int = 64,
        node: int = 64,
        branch: int = 32,
        spectral_ratio: float = 0.5,
        temporal_ratio: float = 0.7,
        branch_ratio: float = 0.5,
    ) -> None:
        super().__init__()
        self.front_norm = nn.BatchNorm2d(1)
        self.make_blocks((32, 32, channels, channels, channels, channels))
        self.make_graphs(width // 3, channels, node, branch, (spectral_ratio, temporal_ratio, branch_ratio))

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits (B, 2).

        Args:
            features: (B, frames, width).
            lengths: (B,) valid frames; only equal lengths are accepted, since the graph has a node for every column.

        Raises:
            ValueError: fewer than 2,187 frames.
            InputError: clips of different lengths in one batch.
        """
        check_features("RawAASIST", features, lengths, least=FRAMES)
        image = functional.max_pool2d(features.transpose(1, 2).abs().unsqueeze(1), 3)
        image = functional.selu(self.front_norm(image))
        for block in self.blocks:
            image = functional.max_pool2d(block(image), (1, 3))
        image = image.abs()  # (B, channels, width // 3, frames // 2187)
        return self.of_nodes(image.amax(dim=3).transpose(1, 2), image.amax(dim=2).transpose(1, 2))

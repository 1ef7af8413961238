"""What both forms of AASIST have in common, the raw and the one on a speech encoder: an image of frequency and time is
encoded by residual blocks, and becomes two graphs that two branches of heterogeneous attention join.

Jung et al., "AASIST", arXiv 2110.01200.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from moelora_ad.errors import InputError
from moelora_ad.models.heads.graph_attention import GraphAttention, GraphPooling, HeterogeneousGraphAttention
from moelora_ad.models.heads.pooling import Classifier


class ResidualBlock(nn.Module):
    """Two convolutions over (frequency, time) with a shortcut.

    ``unused_norm`` belongs to the published head, which computes it and then ignores it: it counts among the published
    numbers of parameters and has no effect.
    """

    def __init__(self, in_channels: int, out_channels: int, first: bool) -> None:
        super().__init__()
        self.unused_norm = None if first else nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, (2, 3), padding=(1, 1))
        self.norm = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, (2, 3), padding=(0, 1))
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, (1, 3), padding=(0, 1)) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(functional.selu(self.norm(self.conv1(x))))
        return y + (x if self.shortcut is None else self.shortcut(x))


class Branch(nn.Module):
    """One of the two competing heterogeneous stacks with its own master node.

    Args:
        node: features of an input node.
        width: features of an output node.
        ratio: part of the nodes that is kept after the first layer.
    """

    def __init__(self, node: int, width: int, ratio: float) -> None:
        super().__init__()
        self.master = nn.Parameter(torch.randn(1, 1, node))
        self.first = HeterogeneousGraphAttention(node, width, temperature=100.0)
        self.pool_spectral = GraphPooling(width, ratio)
        self.pool_temporal = GraphPooling(width, ratio)
        self.second = HeterogeneousGraphAttention(width, width, temperature=100.0)
        self.dropout = nn.Dropout(0.2)

    def forward(self, temporal: Tensor, spectral: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        master = self.master.expand(temporal.shape[0], -1, -1)
        temporal, spectral, master = self.first(temporal, spectral, master)
        spectral, temporal = self.pool_spectral(spectral), self.pool_temporal(temporal)
        more = self.second(temporal, spectral, master)
        temporal, spectral, master = (a + b for a, b in zip((temporal, spectral, master), more, strict=True))
        return self.dropout(temporal), self.dropout(spectral), self.dropout(master)


class SpectroTemporalGraphs(Classifier):
    """The part of AASIST behind its residual blocks; a subclass makes the modules in its own order."""

    blocks: nn.Sequential
    spectral_positions: nn.Parameter

    def make_blocks(self, channels: Sequence[int]) -> None:
        """Make the residual blocks for an image of one channel."""
        inputs = (1, *channels[:-1])
        self.blocks = nn.Sequential(
            *(ResidualBlock(i, o, first=n == 0) for n, (i, o) in enumerate(zip(inputs, channels, strict=True)))
        )

    def make_graphs(
        self,
        rows: int,
        channels: int,
        node: int,
        branch: int,
        ratios: tuple[float, float, float] = (0.5, 0.5, 0.5),
    ) -> None:
        """Make the graph layers for an encoded image.

        Args:
            rows: rows of the encoded image, the number of spectral nodes.
            channels: channels of the encoded image.
            node: features of a node of the two graphs.
            branch: features of a node of their union.
            ratios: parts of the nodes that pooling keeps: in the spectral graph, the temporal one, and each branch.
        """
        self.spectral_positions = nn.Parameter(torch.randn(1, rows, channels))
        self.spectral_graph = GraphAttention(channels, node, temperature=2.0)
        self.temporal_graph = GraphAttention(channels, node, temperature=2.0)
        self.pool_spectral = GraphPooling(node, ratios[0])
        self.pool_temporal = GraphPooling(node, ratios[1])
        self.branches = nn.ModuleList([Branch(node, branch, ratios[2]), Branch(node, branch, ratios[2])])
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(5 * branch, 2)

    def of_nodes(self, spectral: Tensor, temporal: Tensor) -> Tensor:
        """Logits (B, 2) from spectral nodes (B, rows, channels), without their positions, and temporal nodes
        (B, columns, channels)."""
        spectral = self.pool_spectral(self.spectral_graph(spectral + self.spectral_positions))
        temporal = self.pool_temporal(self.temporal_graph(temporal))
        one, two = (branch(temporal, spectral) for branch in self.branches)
        temporal, spectral, master = (torch.maximum(a, b) for a, b in zip(one, two, strict=True))
        readout = [part for nodes in (temporal, spectral) for part in (nodes.abs().amax(1), nodes.mean(1))]
        readout.append(master.squeeze(1))
        return self.output(self.dropout(torch.cat(readout, dim=1))) + self._unused()

    def _unused(self) -> Tensor:
        """Exactly zero, from every parameter that has no effect: distributed training needs a gradient for each."""
        unused: list[Tensor] = [p for name, p in self.blocks.named_parameters() if ".unused_norm." in name]
        return 0.0 * torch.cat(unused).sum()


def check_features(name: str, features: Tensor, lengths: Tensor | None, least: int) -> None:
    """Check that a head gets clips of one length, and that they are long enough.

    Args:
        name: name of the head.
        features: (B, frames, width).
        lengths: (B,) valid frames, None for all.
        least: number of frames that the head needs.

    Raises:
        ValueError: too few frames.
        InputError: clips of different lengths in one batch: the graph has a node for every frame.
    """
    if features.shape[1] < least:
        raise ValueError(f"{name} needs at least {least:,} frames, got {features.shape[1]:,}: give longer clips")
    if lengths is not None:
        raise InputError(
            f"{name} takes clips of one length: set data.eval_batch_size to 1, or use a Segment or Crops "
            "(with short: repeat)"
        )

"""The AASIST back end on the hidden states of a speech encoder.

Jung et al., "AASIST", arXiv 2110.01200; in the form that Tak et al. put on wav2vec 2.0 (arXiv 2202.12233).
"""

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional

from moelora_ad.errors import InputError
from moelora_ad.models.heads.graph_attention import GraphAttention, GraphPooling, HeterogeneousGraphAttention
from moelora_ad.models.heads.pooling import Classifier

FRONT = 128  # features behind the first linear layer, the height of the "image"
CHANNELS = (32, 32, 64, 64, 64, 64)
NODE = 64
BRANCH = 32
SPECTRAL_NODES = FRONT // 3


class _ResidualBlock(nn.Module):
    """Two convolutions over (frequency, time) with a shortcut.

    ``unused_norm`` belongs to the published head, which computes it and then ignores it: it counts among the 447,242
    parameters and has no effect.
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


class _Branch(nn.Module):
    """One of the two competing heterogeneous stacks with its own master node."""

    def __init__(self) -> None:
        super().__init__()
        self.master = nn.Parameter(torch.randn(1, 1, NODE))
        self.first = HeterogeneousGraphAttention(NODE, BRANCH, temperature=100.0)
        self.pool_spectral = GraphPooling(BRANCH)
        self.pool_temporal = GraphPooling(BRANCH)
        self.second = HeterogeneousGraphAttention(BRANCH, BRANCH, temperature=100.0)
        self.dropout = nn.Dropout(0.2)

    def forward(self, temporal: Tensor, spectral: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        master = self.master.expand(temporal.shape[0], -1, -1)
        temporal, spectral, master = self.first(temporal, spectral, master)
        spectral, temporal = self.pool_spectral(spectral), self.pool_temporal(temporal)
        more = self.second(temporal, spectral, master)
        temporal, spectral, master = (a + b for a, b in zip((temporal, spectral, master), more, strict=True))
        return self.dropout(temporal), self.dropout(spectral), self.dropout(master)


class AASIST(Classifier):
    """Spectro-temporal graph attention classifier, 447,242 parameters at width 1024.

    Args:
        width: features of a frame of the encoder.

    Shapes: features (B, frames >= 3, width) -> logits (B, 2), index 1 bona fide.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.front = nn.Linear(width, FRONT)
        self.front_norm = nn.BatchNorm2d(1)
        inputs = (1, *CHANNELS[:-1])
        self.blocks = nn.Sequential(
            *(_ResidualBlock(i, o, first=n == 0) for n, (i, o) in enumerate(zip(inputs, CHANNELS, strict=True)))
        )
        self.blocks_norm = nn.BatchNorm2d(NODE)
        self.attention = nn.Sequential(nn.Conv2d(NODE, 128, 1), nn.SELU(), nn.BatchNorm2d(128), nn.Conv2d(128, NODE, 1))
        self.spectral_positions = nn.Parameter(torch.randn(1, SPECTRAL_NODES, NODE))
        self.spectral_graph = GraphAttention(NODE, NODE, temperature=2.0)
        self.temporal_graph = GraphAttention(NODE, NODE, temperature=2.0)
        self.pool_spectral = GraphPooling(NODE)
        self.pool_temporal = GraphPooling(NODE)
        self.branches = nn.ModuleList([_Branch(), _Branch()])
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(5 * BRANCH, 2)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits.

        Args:
            features: (B, frames, width).
            lengths: (B,) valid frames; only equal lengths are accepted, since the graph has a node for every frame.

        Raises:
            ValueError: fewer than 3 frames.
            InputError: clips of different lengths in one batch.
        """
        if features.shape[1] < 3:
            raise ValueError(f"AASIST needs at least 3 frames, got {features.shape[1]}: give longer clips")
        if lengths is not None:
            raise InputError(
                "AASIST takes clips of one length: set data.eval_batch_size to 1, or take a Segment or Crops "
                "(with short: repeat)"
            )
        image = functional.max_pool2d(self.front(features).transpose(1, 2).unsqueeze(1), 3)
        image = self.blocks(functional.selu(self.front_norm(image)))
        image = functional.selu(self.blocks_norm(image))  # (B, 64, 42, frames // 3)
        attention = self.attention(image)
        spectral = (image * attention.softmax(dim=3)).sum(dim=3).transpose(1, 2) + self.spectral_positions
        temporal = (image * attention.softmax(dim=2)).sum(dim=2).transpose(1, 2)
        spectral = self.pool_spectral(self.spectral_graph(spectral))
        temporal = self.pool_temporal(self.temporal_graph(temporal))
        one, two = (branch(temporal, spectral) for branch in self.branches)
        temporal, spectral, master = (torch.maximum(a, b) for a, b in zip(one, two, strict=True))
        readout = [part for nodes in (temporal, spectral) for part in (nodes.abs().amax(1), nodes.mean(1))]
        readout.append(master.squeeze(1))
        return self.output(self.dropout(torch.cat(readout, dim=1))) + self._unused()

    def _unused(self) -> Tensor:
        """Exactly zero, from every parameter that has no effect: distributed training wants a gradient for each."""
        unused: list[Tensor] = [p for name, p in self.blocks.named_parameters() if ".unused_norm." in name]
        return 0.0 * torch.cat(unused).sum()

    def load_public_aasist(self, state: dict[str, Tensor]) -> None:
        """Load a head trained with the public code, in place.

        Args:
            state: the public model's state dict. The ``module.`` that ``nn.DataParallel`` put before each name is taken
                off. The encoder that it may hold (``ssl_model.*``) is not loaded, of which a ``UserWarning`` tells: it
                was trained with the head, which gives other scores on any other.

        Raises:
            ValueError: a name or a shape does not fit; the message lists them.
        """
        own = {_public_name(name): name for name in self.state_dict()}
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        given = {name: tensor for name, tensor in state.items() if not name.startswith("ssl_model.")}
        if missing := sorted(own.keys() - given.keys()):
            raise ValueError(f"not a public AASIST head: {len(missing)} names are missing, first {missing[:3]}")
        if extra := sorted(given.keys() - own.keys()):
            raise ValueError(f"not a public AASIST head: {len(extra)} names are unknown, first {extra[:3]}")
        shapes = {name: tensor.shape for name, tensor in self.state_dict().items()}
        if wrong := [name for name in sorted(own) if given[name].shape != shapes[own[name]]]:
            name = wrong[0]
            raise ValueError(f"{name} is {tuple(given[name].shape)}, this head has {tuple(shapes[own[name]])}")
        self.load_state_dict({own[name]: given[name] for name in own})
        if left_out := len(state) - len(given):
            warnings.warn(
                f"only the head was loaded: the {left_out} tensors of its encoder (ssl_model.*) were left out. The two "
                "were trained together: on another encoder, the scores are not those of the public model",
                stacklevel=2,
            )


def load_public_aasist(state: dict[str, Tensor]) -> AASIST:
    """An AASIST head with the weights of the public code's state dict; its width is read from ``LL.weight``. An encoder
    in it is left out with a warning: see `AASIST.load_public_aasist`.

    Raises:
        ValueError: the state dict is not a public AASIST head.
    """
    front = next((tensor for name, tensor in state.items() if name in ("LL.weight", "module.LL.weight")), None)
    if front is None:
        raise ValueError("not a public AASIST head: LL.weight is missing")
    head = AASIST(width=front.shape[1])
    head.load_public_aasist(state)
    return head


_PUBLIC_MODULES = {
    "front": "LL",
    "front_norm": "first_bn",
    "blocks_norm": "first_bn1",
    "attention": "attention",
    "spectral_graph": "GAT_layer_S",
    "temporal_graph": "GAT_layer_T",
    "pool_spectral": "pool_S",
    "pool_temporal": "pool_T",
    "output": "out_layer",
}
_PUBLIC_PARTS = {
    "unused_norm": "bn1",
    "norm": "bn2",
    "shortcut": "conv_downsample",
    "pair": "att_proj",
    "pair_weight": "att_weight",
    "attended": "proj_with_att",
    "direct": "proj_without_att",
    "project_temporal": "proj_type1",
    "project_spectral": "proj_type2",
    "weight_temporal": "att_weight11",
    "weight_spectral": "att_weight22",
    "weight_across": "att_weight12",
    "master_pair": "att_projM",
    "master_weight": "att_weightM",
    "master_attended": "proj_with_attM",
    "master_direct": "proj_without_attM",
    "score": "proj",
}


def _public_name(name: str) -> str:
    """The public code's name of one of ours: the branch n holds ``HtrgGAT_layer_STn1``, ``pool_hSn``, ``mastern``."""
    head, *rest = name.split(".")
    if head == "spectral_positions":
        return "pos_S"
    if head == "blocks":
        return ".".join(["encoder", rest[0], "0", _PUBLIC_PARTS.get(rest[1], rest[1]), *rest[2:]])
    if head == "branches":
        number, part, *rest = str(int(rest[0]) + 1), *rest[1:]
        if part == "master":
            return f"master{number}"
        layers = {"first": f"HtrgGAT_layer_ST{number}1", "second": f"HtrgGAT_layer_ST{number}2"}
        head = layers.get(part) or f"pool_h{part.removeprefix('pool_')[0].upper()}{number}"
    else:
        head = _PUBLIC_MODULES[head]
    if rest and rest[0] == "norm":  # the graph layers call theirs ``bn``, the convolution blocks ``bn2``
        return ".".join([head, "bn", *rest[1:]])
    return ".".join([head, *(_PUBLIC_PARTS.get(part, part) for part in rest)])

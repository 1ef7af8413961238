"""The AASIST back end on the hidden states of a speech encoder.

Jung et al., "AASIST", arXiv 2110.01200; in the form that Tak et al. put on wav2vec 2.0 (arXiv 2202.12233).
"""

import warnings

from torch import Tensor, nn
from torch.nn import functional

from moelora_ad.errors import counted
from moelora_ad.models.heads.public_names import public_name
from moelora_ad.models.heads.spectro_temporal import SpectroTemporalGraphs, check_features

FRONT = 128  # features behind the first linear layer, the height of the "image"
CHANNELS = (32, 32, 64, 64, 64, 64)
NODE = 64
BRANCH = 32


class AASIST(SpectroTemporalGraphs):
    """Spectro-temporal graph attention classifier, 447,242 parameters at width 1024.

    Args:
        width: features of a frame of the encoder.

    Shapes: features (B, frames >= 3, width) -> logits (B, 2), index 1 bona fide.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.front = nn.Linear(width, FRONT)
        self.front_norm = nn.BatchNorm2d(1)
        self.make_blocks(CHANNELS)
        self.blocks_norm = nn.BatchNorm2d(NODE)
        self.attention = nn.Sequential(nn.Conv2d(NODE, 128, 1), nn.SELU(), nn.BatchNorm2d(128), nn.Conv2d(128, NODE, 1))
        self.make_graphs(FRONT // 3, NODE, NODE, BRANCH)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits (B, 2).

        Args:
            features: (B, frames, width).
            lengths: (B,) valid frames; only equal lengths are accepted, since the graph has a node for every frame.

        Raises:
            ValueError: fewer than 3 frames.
            InputError: clips of different lengths in one batch.
        """
        check_features("AASIST", features, lengths, least=3)
        image = functional.max_pool2d(self.front(features).transpose(1, 2).unsqueeze(1), 3)
        image = self.blocks(functional.selu(self.front_norm(image)))
        image = functional.selu(self.blocks_norm(image))  # (B, 64, 42, frames // 3)
        attention = self.attention(image)
        spectral = (image * attention.softmax(dim=3)).sum(dim=3).transpose(1, 2)
        temporal = (image * attention.softmax(dim=2)).sum(dim=2).transpose(1, 2)
        return self.of_nodes(spectral, temporal)

    def load_public_aasist(self, state: dict[str, Tensor]) -> None:
        """Load a head trained with the public code, in place.

        Args:
            state: the public model's state dict. The ``module.`` that ``nn.DataParallel`` put before each name is taken
                off. An encoder in it (``ssl_model.*``) is not loaded, with a ``UserWarning``: the head was trained
                with that encoder, and gives other scores on any other.

        Raises:
            ValueError: a name or a shape does not fit; the message lists them.
        """
        own = {public_name(name): name for name in self.state_dict()}
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        given = {name: tensor for name, tensor in state.items() if not name.startswith("ssl_model.")}
        if missing := sorted(own.keys() - given.keys()):
            raise ValueError(f"not a public AASIST head: missing: {counted(len(missing), 'name')}, first {missing[:3]}")
        if extra := sorted(given.keys() - own.keys()):
            raise ValueError(f"not a public AASIST head: unknown: {counted(len(extra), 'name')}, first {extra[:3]}")
        shapes = {name: tensor.shape for name, tensor in self.state_dict().items()}
        if wrong := [name for name in sorted(own) if given[name].shape != shapes[own[name]]]:
            name = wrong[0]
            raise ValueError(f"{name} is {tuple(given[name].shape)}, this head has {tuple(shapes[own[name]])}")
        self.load_state_dict({own[name]: given[name] for name in own})
        if left_out := len(state) - len(given):
            warnings.warn(
                f"only the head was loaded: its encoder (ssl_model.*, {counted(left_out, 'tensor')}) was left out. The "
                "two were trained together: on another encoder, the scores are not those of the public model",
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

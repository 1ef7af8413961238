r"""An adaptation method with modules of its own: bottleneck adapters (Houlsby et al., arXiv 1902.00751).

Two small layers follow each chosen projection, y + W_up gelu(W_down y); everything else of the encoder is frozen.

From the project's folder (or copy this file beside your configuration and leave out ``examples.``):

    moelora-ad fit --config experiments/quickstart.yaml \
      --model.adaptation examples.bottleneck_adapter.BottleneckAdapter --model.adapter_lr 0.001
    moelora-ad export --checkpoint runs/quickstart/version_0/checkpoints/last.ckpt --to model --allow examples
    moelora-ad score FILES --model model --allow examples
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from moelora_ad.adapters import AdaptationMethod, inject


class Bottleneck(nn.Module):
    """A projection and its adapter, (..., in_features) -> (..., out_features); it starts as the projection alone."""

    def __init__(self, base: nn.Linear, width: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.out_features, width)
        self.up = nn.Linear(width, base.out_features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return y + self.up(functional.gelu(self.down(y)))


class BottleneckAdapter(AdaptationMethod):
    """Bottlenecks behind the last projections of attention and feed-forward layers.

    Args:
        width: units of the bottleneck.
        targets: the projections, see ``moelora_ad.adapters.inject``. (In wav2vec 2.0: out_proj and output_dense.)
    """

    def __init__(self, width: int = 16, targets: Sequence[str] = ("out_proj", "fc2")) -> None:
        self.width = width
        self.targets = targets

    def adapt(self, encoder: nn.Module) -> tuple[str, ...]:
        encoder.requires_grad_(False)
        return inject(encoder, self.targets, lambda base, _site: Bottleneck(base, self.width))

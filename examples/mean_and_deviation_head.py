"""A head of your own: mean and standard deviation over frames, a hidden layer, two logits.

From the project's folder (or copy this file beside your configuration and leave out ``examples.``):

    moelora-ad fit --config experiments/quickstart.yaml --model.classifier examples.mean_and_deviation_head.MeanAndDeviation
    moelora-ad export --checkpoint runs/quickstart/version_0/checkpoints/last.ckpt --to model --allow examples
    moelora-ad score FILES --model model --allow examples
"""  # noqa: E501

import torch
from torch import Tensor, nn

from moelora_ad.models import Classifier


class MeanAndDeviation(Classifier):
    """Mean and standard deviation over the valid frames, then two layers.

    Args:
        width: features of a frame; the detector passes the backbone's width.
        hidden: units of the hidden layer.
    """

    def __init__(self, width: int, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * width, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits (B, 2), spoof and bona fide, of (B, frames, width); ``lengths`` (B,): valid frames, None for all."""
        if lengths is None:
            lengths = torch.full(features.shape[:1], features.shape[1], device=features.device)
        valid = (torch.arange(features.shape[1], device=features.device) < lengths.unsqueeze(1)).unsqueeze(2)
        count = lengths.view(-1, 1)
        mean = (features * valid).sum(dim=1) / count
        variance = ((features - mean.unsqueeze(1)).square() * valid).sum(dim=1) / count
        return self.layers(torch.cat([mean, (variance + 1e-6).sqrt()], dim=1))

"""A loss of your own: focal loss (Lin et al., arXiv 1708.02002), which gives wrongly classified trials more weight.

From the project's folder (or copy this file beside your configuration and leave out ``examples.``):

    moelora-ad fit --config experiments/quickstart.yaml --model.loss examples.focal_loss.FocalLoss \\
        --model.loss.init_args.gamma 2
"""

from torch import Tensor, nn
from torch.nn import functional


class FocalLoss(nn.Module):
    """(1 - p)^gamma times the cross entropy, with p the probability of the right class; alpha is ``class_weights``.

    Args:
        gamma: focusing exponent; 0 gives the cross entropy.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Losses (n,) of logits (n, 2) and labels (n,), 0 for spoof and 1 for bona fide: one for each trial."""
        cross_entropy = functional.cross_entropy(logits, labels, reduction="none")
        return (1 - (-cross_entropy).exp()) ** self.gamma * cross_entropy

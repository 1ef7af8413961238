"""What meta-learning and the checks at a start need of a module in training."""

from lightning.pytorch import LightningModule
from torch import Tensor

from moelora_ad.adapters import AuxiliaryTerms
from moelora_ad.data.dataset import Batch


class LossModule(LightningModule):
    """A module that tells the loss of a part of a batch.

    Attributes:
        class_weights: (2,) of spoof and bona fide in the cross entropy.
        auxiliary: losses of the adaptation besides it, or None.
        meta_learning: what makes a step of several such losses, or None.
    """

    class_weights: Tensor
    auxiliary: AuxiliaryTerms | None
    meta_learning: object | None

    def training_loss(self, batch: Batch, share: float | Tensor = 1.0, prefix: str = "train/") -> Tensor:
        """The loss of a batch, a scalar, which is logged.

        Args:
            batch: the trials.
            share: factor of the cross entropy of this process.
            prefix: of the names in the log.
        """
        raise NotImplementedError

"""What meta-learning and the checks at a start need of a module in training."""

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from moelora_ad.adapters import AuxiliaryTerms
from moelora_ad.data.dataset import Batch


class LossModule(LightningModule):
    """A module that tells the loss of a part of a batch.

    Attributes:
        class_weights: (2,) of spoof and bona fide in the loss.
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
            share: factor of the loss of this process.
            prefix: of the names in the log.
        """
        raise NotImplementedError

    def share(self, batch: Batch) -> float | Tensor:
        """The factor that makes the mean of the processes' losses the loss of all their trials in one batch: class
        weights, and trials that could not be read, leave each process another sum of weights."""
        if self.trainer.world_size == 1:
            return 1.0
        own = self.class_weights[batch.labels.where(batch.read(), 0)].where(batch.read(), 0.0).sum()
        mean = self.trainer.strategy.reduce(own.clone(), reduce_op="mean")
        assert isinstance(mean, Tensor)
        return own / mean.clamp(min=torch.finfo(mean.dtype).tiny)

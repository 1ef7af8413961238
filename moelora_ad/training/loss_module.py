"""What meta-learning and the checks at a start need of a module in training."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, distributed

from moelora_ad.adapters import AuxiliaryTerms
from moelora_ad.data.dataset import Batch


class SharedLoss(NamedTuple):
    """A loss of the batches of all processes.

    Attributes:
        own: of this process, a scalar: the mean over the processes, and of its gradients, is that of ``of_all``.
        of_all: a scalar without gradient, the same in every process.
        parts: what ``of_all`` is the sum of: ``loss``, that of the task, and each of the auxiliary terms.
    """

    own: Tensor
    of_all: Tensor
    parts: Mapping[str, Tensor]


def weighted_mean(total: Tensor, weight: Tensor) -> Tensor:
    """The mean of losses of this process.

    Args:
        total: sum of the weighted losses, a scalar.
        weight: sum of the weights; 0 if none of the trials could be read, and then the mean is 0.
    """
    return total / weight.clamp(min=torch.finfo(weight.dtype).tiny)


def shared_loss(total: Tensor, weight: Tensor, terms: Mapping[str, Tensor]) -> SharedLoss:
    """The weighted mean over the losses of all processes, as if their trials were one batch (class weights, and trials
    that could not be read, leave each process another sum of weights), and the mean of each term over the processes.
    One collective call, which nothing waits for.

    Args:
        total: sum of the weighted losses of this process, a scalar.
        weight: sum of its weights.
        terms: auxiliary losses by name, scalars, added to it.
    """
    processes = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    of_all = torch.stack([total.detach(), weight, *(term.detach().to(total.dtype) for term in terms.values())])
    if processes > 1:
        distributed.all_reduce(of_all)
    own = processes * weighted_mean(total, of_all[1])
    for term in terms.values():
        own = own + term
    values = [weighted_mean(of_all[0], of_all[1]), *(of_all[2:] / processes)]
    return SharedLoss(own, torch.stack(values).sum(), dict(zip(("loss", *terms), values, strict=True)))


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

    def training_loss(self, batch: Batch, prefix: str = "train/") -> SharedLoss:
        """The loss of a batch, which is logged. All processes call it together.

        Args:
            batch: the trials of this process.
            prefix: of the names in the log.
        """
        raise NotImplementedError

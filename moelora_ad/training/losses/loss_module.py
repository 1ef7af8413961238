"""The loss of a batch, or of each of the parts that meta-learning splits it into."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, distributed, nn

from moelora_ad.adapters import AuxiliaryTerms
from moelora_ad.data.dataset import Batch
from moelora_ad.errors import InputError
from moelora_ad.models import Detector
from moelora_ad.models.scores import check_logits
from moelora_ad.training.losses.tether import Tether


class SharedLoss(NamedTuple):
    """A loss over the batches of all processes.

    Attributes:
        own: the loss of this process, a scalar. Its mean over the processes is ``of_all``, and the mean of its
            gradients is that of ``of_all``.
        of_all: the loss of all processes, a scalar without gradient, the same in every process.
        parts: the summands of ``of_all``: ``loss``, that of the task, and each of the auxiliary terms.
    """

    own: Tensor
    of_all: Tensor
    parts: Mapping[str, Tensor]


def weights_of_classes(given: Sequence[float]) -> Tensor:
    """The weights of spoof and bona fide in the loss, (2,).

    Raises:
        InputError: they are not two numbers of at least 0, or both are 0.
    """
    try:
        weights = [float(weight) for weight in given]
    except (TypeError, ValueError):  # not numbers
        weights = []
    if len(weights) != 2 or not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise InputError(
            f"model.class_weights is {given!r}: give two finite numbers, those of spoof and bona fide, "
            "neither below 0 and not both 0"
        )
    return torch.tensor(weights)


def _scalars(terms: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for name, term in terms.items():
        if not isinstance(term, Tensor) or term.dim():
            what = f"of shape {tuple(term.shape)}" if isinstance(term, Tensor) else f"a {type(term).__name__}"
            raise InputError(f"the auxiliary loss {name} is {what}: terms() must give scalar tensors")
    return terms


def weighted_mean(total: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean of losses.

    Args:
        total: sum of the weighted losses, a scalar.
        weight: sum of the weights; 0 if none of the trials could be read, and then the mean is 0.
    """
    return total / weight.clamp(min=torch.finfo(weight.dtype).tiny)


def shared_loss(total: Tensor, weight: Tensor, terms: Mapping[str, Tensor]) -> SharedLoss:
    """Return the weighted mean over the losses of all processes, as if their trials were one batch (the sum of weights
    differs between processes through class weights and trials that could not be read), plus the mean of each term over
    the processes. This is one collective call, which nothing waits for.

    Args:
        total: sum of the weighted losses of this process, a scalar.
        weight: sum of the weights of this process.
        terms: auxiliary losses to add, by name, scalars.
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
    """A module that computes the loss of a batch, or of a part of it.

    Attributes:
        detector: the detector in training.
        class_weights: (2,) weights of spoof and bona fide in the loss.
        loss: computes losses (n,) of logits (n, 2) and labels (n,).
        auxiliary: auxiliary losses of the adaptation, or None.
        tether: keeps the detector's scores near those at its start, or None.
        meta_learning: makes a step of several such losses, or None.
    """

    detector: Detector
    class_weights: Tensor
    loss: nn.Module
    auxiliary: AuxiliaryTerms | None
    tether: Tether | None
    meta_learning: object | None

    def training_loss(self, batch: Batch, prefix: str = "train/") -> SharedLoss:
        """Return the loss of a batch with the auxiliary losses of the adaptation and the tether's term, and log each of
        them over all processes. This is a collective call: every process must make it.

        Args:
            batch: the trials of this process.
            prefix: prefix of the names in the log.
        """
        with nullcontext() if self.auxiliary is None else self.auxiliary.watch(self.detector.backbone.encoder):
            logits = self(batch.waveforms, batch.lengths)
        terms = {} if self.auxiliary is None else _scalars(self.auxiliary.terms())
        named = {f"auxiliary/{name}": term for name, term in terms.items()}
        if self.tether is not None:
            named["tether"] = self.tether.term(self.detector, batch, logits)
        loss = shared_loss(*self._weighted(logits, batch), named)
        logged = {**loss.parts, "total_loss": loss.of_all} if named else loss.parts
        for name, value in logged.items():
            # Values are already reduced over processes. A bar that shows them would wait for a GPU; our bar shows the
            # last loss that the check has read.
            shown = name == "loss" and self.device.type == "cpu"
            self.log(f"{prefix}{name}", value, prog_bar=shown, on_step=True, on_epoch=True, batch_size=1)
        return loss

    def _weighted(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sums of the weighted losses and of the weights, over the clips of trials that could be read."""
        check_logits(logits, len(batch.waveforms))
        clips = len(logits) // len(batch.trials)
        labels = batch.labels.where(batch.read, 0).repeat_interleave(clips)
        weights = self.class_weights[labels].where(batch.read.repeat_interleave(clips), 0.0)
        losses = self.loss(logits.to(self.class_weights.dtype), labels)
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else f"a {type(losses).__name__}"
        if shape != labels.shape:
            raise InputError(
                f"model.loss: {type(self.loss).__name__} gives {shape} for {len(labels)} trials, not one "
                "value for each: set reduction to none, the mean is taken here"
            )
        return (weights * losses.where(weights > 0, 0.0)).sum(), weights.sum()

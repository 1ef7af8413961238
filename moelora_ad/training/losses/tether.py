"""Learning without forgetting: a loss term that keeps a model's scores near those at the start of training."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from moelora_ad.adapters import running_eagerly
from moelora_ad.corpora import BONA_FIDE
from moelora_ad.data.dataset import Batch
from moelora_ad.errors import InputError
from moelora_ad.models import Detector


class Tether:
    """Adds to the loss how far the detector's outputs have moved from those at the start of its training, on the trials
    that it is trained on (learning without forgetting, Li and Hoiem, arXiv 1606.09282). It needs no old data, and works
    with any adaptation and head.

    With s the log-odds of a clip now and s_0 those of the weights at the start, in evaluation mode and without
    gradient, the term is

        weight T^2 mean KL(Bernoulli(sigmoid(s_0 / T)) || Bernoulli(sigmoid(s / T))),

    in float32; T^2 keeps the gradient's size (Hinton et al., arXiv 1503.02531). The mean is over all clips of a batch;
    those of trials that ``trials`` leaves out count as 0.

    Args:
        weight: weight of the term, which is added to the loss.
        temperature: T, by which log-odds are divided.
        trials: trials whose scores are kept: "right" for those that the detector classified correctly at the start
            (log-odds on the side of their label); "bona_fide" for the bona fide ones; "all" for all, as in the paper,
            even those whose scores a new attack has to change.

    Attributes:
        start: the tensors that training changes, by name, as they were at its start; None before that.

    Raises:
        InputError: an argument is out of its range.
    """

    def __init__(
        self, weight: float = 1.0, temperature: float = 2.0, trials: Literal["right", "bona_fide", "all"] = "right"
    ) -> None:
        for name, value in (("weight", weight), ("temperature", temperature)):
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"Tether: {name} is {value}: give a number above 0")
        if trials not in ("right", "bona_fide", "all"):
            raise InputError(f"Tether: trials is {trials!r}: choose 'right', 'bona_fide' or 'all'")
        self.weight = weight
        self.temperature = temperature
        self.trials = trials
        self.start: dict[str, Tensor] | None = None

    @torch.no_grad()
    def remember(self, detector: Detector) -> None:
        """Store the detector's present weights as those at the start."""
        self.start = {name: tensor.detach().clone() for name, tensor in _changing(detector).items()}

    def restore(self, start: Mapping[str, Tensor], detector: Detector) -> None:
        """Restore the weights at the start from a checkpoint.

        Raises:
            InputError: they are not those of this detector.
        """
        shapes = {name: tensor.shape for name, tensor in _changing(detector).items()}
        if {name: tensor.shape for name, tensor in start.items()} != shapes:
            raise InputError("model.tether: the checkpoint was not trained with a tether to these weights")
        self.start = {name: tensor.clone() for name, tensor in start.items()}

    @torch.no_grad()
    def logits(self, detector: Detector, batch: Batch) -> Tensor:
        """Logits (n, 2) of the weights at the start, for the clips of a batch."""
        assert self.start is not None
        device = batch.waveforms.device
        self.start = {name: tensor.to(device) for name, tensor in self.start.items()}
        was_training = detector.training
        detector.eval()
        try:
            with running_eagerly():
                logits: Tensor = functional_call(detector, self.start, (batch.waveforms, batch.lengths))
        finally:
            detector.train(was_training)
        return logits

    def term(self, detector: Detector, batch: Batch, logits: Tensor) -> Tensor:
        """The weighted term, a scalar.

        Args:
            detector: the detector in training.
            batch: the batch of this process.
            logits: (n, 2) logits of its clips, through which gradients flow.
        """
        old, new = (
            (one[:, 1].float() - one[:, 0].float()) / self.temperature for one in (self.logits(detector, batch), logits)
        )
        clips = len(logits) // len(batch.trials)
        held, bona_fide = (of.repeat_interleave(clips) for of in (batch.read, batch.labels == BONA_FIDE))
        if self.trials != "all":
            held = held & (bona_fide if self.trials == "bona_fide" else (old > 0) == bona_fide)
        rise = functional.logsigmoid(old) - functional.logsigmoid(new)
        fall = functional.logsigmoid(-old) - functional.logsigmoid(-new)
        divergence = torch.sigmoid(old) * rise + torch.sigmoid(-old) * fall
        return self.weight * self.temperature**2 * divergence.where(held, 0.0).mean()


def _changing(detector: Detector) -> dict[str, Tensor]:
    """The tensors that training changes, by name: trained parameters, and the buffers that a checkpoint has."""
    kept = detector.kept_names()
    changing: dict[str, Tensor] = {name: p for name, p in detector.named_parameters() if p.requires_grad}
    return changing | {name: buffer for name, buffer in detector.named_buffers() if name in kept}

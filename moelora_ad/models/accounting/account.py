"""What a detector costs, counted without weights and without computing: parameters, operations, activations, files."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from moelora_ad.audio import SAMPLE_RATE
from moelora_ad.models.accounting.memory import checkpoint_bytes, kept_bytes, saved_bytes
from moelora_ad.models.accounting.operations import forward_operations, training_operations
from moelora_ad.models.accounting.parameters import Sites, parameters_of, sites_of
from moelora_ad.models.detector import Detector
from moelora_ad.torch_internals import FakeTensorMode


@dataclass(frozen=True)
class Account:
    """The account of a detector in a training run.

    Attributes:
        parameters: number of parameters of the adaptation's parts (of a mixture ``experts``, ``gates``, W_g, and
            ``gate_noise``, W_noise), ``classifier``, ``layer_weights``, ``backbone_trained``, ``backbone_frozen`` and
            ``total``; all but the last two count only what is trained.
        sites: the adapted projections.
        forward: floating-point operations for one second of audio, a multiplication and an addition being two:
            ``backbone``, ``adapters``, ``classifier`` and ``total``.
        training_step: floating-point operations of a forward and a backward pass, for one second of audio.
        saved_bytes: what autograd saves for the backward pass of one batch, without parameters and buffers; with the
            copies of weights that mixed precision makes.
        kept_bytes: size of the tensors of an exported detector, ``model.safetensors``.
        checkpoint_bytes: size of the tensors of a checkpoint to resume from, the optimiser's included.
    """

    parameters: dict[str, int]
    sites: Sites
    forward: dict[str, float]
    training_step: float
    saved_bytes: int
    kept_bytes: int
    checkpoint_bytes: int


def account(
    detector: Detector,
    optimizer: Callable[[Iterable[Any]], Optimizer],
    samples: int,
    batch_size: int,
    precision: torch.dtype = torch.float32,
) -> Account:
    """The account of a detector that was built on the meta device. (The detector cannot be used afterwards.)

    Everything is measured on the code that trains, run on tensors without content. Matrix products and convolutions are
    counted as operations; element-wise ones and Fourier transforms are not. The loss is the cross entropy; auxiliary
    losses and meta-learning come on top.

    Args:
        detector: built on the meta device.
        optimizer: makes the optimiser from parameters.
        samples: samples of a clip, 16 kHz.
        batch_size: clips of a training step.
        precision: torch.float32, or the half precision of mixed training.

    Raises:
        RuntimeError, ValueError: the clip is too short for a layer of the model.
    """
    parameters, sites = parameters_of(detector), sites_of(detector)
    seconds = samples / SAMPLE_RATE
    with FakeTensorMode(allow_non_fake_inputs=True):
        detector.to_empty(device="cpu")
        clip = torch.zeros(1, samples)
        forward = {part: count / seconds for part, count in forward_operations(detector, clip).items()}
        training_step = training_operations(detector, clip) / seconds
        saved = saved_bytes(detector, torch.zeros(batch_size, samples), precision)
    kept, whole = kept_bytes(detector), checkpoint_bytes(detector, optimizer)
    return Account(parameters, sites, forward, training_step, saved, kept, whole)

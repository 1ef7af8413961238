"""What a detector costs, counted without weights and without computing: parameters, operations, activations, files."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from moelora_ad.audio import SAMPLE_RATE
from moelora_ad.models.detector import ENCODER, Detector
from moelora_ad.torch_internals import FakeTensorMode


@dataclass(frozen=True)
class Sites:
    """The adapted projections.

    Attributes:
        wrapped: how many stand in the model.
        expected: how many the adaptation method reported.
        by_name: how many by the last part of their dotted path.
        layers: how many numbered layers they stand in.
        shapes: (in_features, out_features) of those that occur; modules of other kinds have none.
        gates: how many gates there are; fewer than projections if they are shared.
    """

    wrapped: int
    expected: int
    by_name: dict[str, int]
    layers: int
    shapes: list[tuple[int, int]]
    gates: int


@dataclass(frozen=True)
class Account:
    """The account of a detector in a training run.

    Attributes:
        parameters: the parts of the adaptation (of a mixture ``experts``, ``gates``, W_g, and ``gate_noise``, W_noise),
            ``classifier``, ``layer_weights``, ``backbone_trained``, ``backbone_frozen`` and ``total``; of all but the
            last two what is trained.
        sites: the adapted projections.
        forward: floating-point operations for one second of audio, a multiplication and an addition being two:
            ``backbone``, ``adapters``, ``classifier`` and ``total``.
        training_step: the same, forward and backward, for one second of audio.
        saved_bytes: what autograd keeps for the backward pass of one batch, without parameters and buffers; with the
            copies of weights that mixed precision makes.
        kept_bytes: tensors of a kept detector, ``model.safetensors``.
        checkpoint_bytes: tensors of a checkpoint to resume from, the optimiser's included.
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
    """The account of a detector that was built on the meta device. (It is of no use afterwards.)

    Everything is measured on the code that trains, run on tensors without content. Matrix products and convolutions are
    counted as operations; element-wise ones and Fourier transforms are not. The loss is the cross entropy; auxiliary
    losses and meta-learning come on top.

    Args:
        detector: built on the meta device.
        optimizer: makes the optimiser from parameters.
        samples: of a clip, 16 kHz.
        batch_size: clips of a training step.
        precision: torch.float32, or the half precision of mixed training.

    Raises:
        RuntimeError, ValueError: the clip is too short for a layer of the model.
    """
    parameters, sites = _parameters(detector), _sites(detector)
    seconds = samples / SAMPLE_RATE
    with FakeTensorMode(allow_non_fake_inputs=True):
        detector.to_empty(device="cpu")
        clip = torch.zeros(1, samples)
        forward = {part: count / seconds for part, count in _forward(detector, clip).items()}
        training_step = _training(detector, clip) / seconds
        saved = _saved(detector, torch.zeros(batch_size, samples), precision)
        trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
        kept = detector.state_dict()
        kept_bytes = _bytes(kept[name] for name in detector.kept_names())
        checkpoint_bytes = kept_bytes + _bytes(_optimizer_state(optimizer(trained), trained))
    return Account(parameters, sites, forward, training_step, saved, kept_bytes, checkpoint_bytes)


def _parameters(detector: Detector) -> dict[str, int]:
    parts, layer_weights = detector.parameters_by_part(), detector.backbone.layer_weights
    backbone, classifier = parts.pop("backbone"), parts.pop("classifier")
    for name, members in detector.adaptation.apart(detector.backbone.encoder).items():
        chosen = {id(parameter) for parameter in members if parameter.requires_grad}
        listed = [parameter for part in parts.values() for parameter in part if id(parameter) in chosen]
        parts = {part: [p for p in those if id(p) not in chosen] for part, those in parts.items()} | {name: listed}
    parts |= {
        "classifier": [parameter for parameter in classifier if parameter is not layer_weights],
        "layer_weights": [parameter for parameter in classifier if parameter is layer_weights],
        "backbone_trained": backbone,
    }
    trained = {name: sum(parameter.numel() for parameter in members) for name, members in parts.items()}
    total = sum(parameter.numel() for parameter in detector.parameters())
    return trained | {"backbone_frozen": total - sum(trained.values()), "total": total}


def _sites(detector: Detector) -> Sites:
    encoder, own = detector.backbone.encoder, dict(detector.ownership.own_modules())
    found = {site: own[site] for site in detector.sites if site in own}
    numbers = {next((part for part in site.split(".") if part.isdigit()), "") for site in found}
    widths = [(getattr(m, "in_features", None), getattr(m, "out_features", None)) for m in found.values()]
    gates = [part for part in detector.adaptation.parts(encoder).get("gates", ()) if isinstance(part, nn.Module)]
    return Sites(
        wrapped=len(found),
        expected=len(detector.sites),
        by_name=dict(Counter(site.rpartition(".")[2] for site in found)),
        layers=len(numbers - {""}),
        shapes=sorted({(inner, outer) for inner, outer in widths if isinstance(inner, int) and isinstance(outer, int)}),
        gates=len(gates),
    )


def _forward(detector: Detector, clip: Tensor) -> dict[str, int]:
    detector.eval()
    with _counted() as counter:
        detector(clip)
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    root = type(detector).__name__

    def of(path: str) -> int:
        return by_module.get(f"{root}.{path}", 0)

    total, adapters, classifier = counter.get_total_flops(), _of_adapters(detector, of), of("classifier")
    return {
        "backbone": total - adapters - classifier,
        "adapters": adapters,
        "classifier": classifier,
        "total": total,
    }


def _of_adapters(detector: Detector, of: Callable[[str], int]) -> int:
    """The operations of the adaptation's modules, without those of the encoder's modules that they call.

    Args:
        detector: that was run.
        of: the operations of a module by its path, with those of the modules within it.
    """
    own, counted, total = {name for name, _ in detector.ownership.own_modules()}, set(), 0
    for name, _ in detector.backbone.encoder.named_modules():  # outer ones first
        if name and (count := of(f"{ENCODER}{name}")):
            around = name.rpartition(".")[0]
            while around and around not in counted:
                around = around.rpartition(".")[0]
            total += count * ((name in own) - (around in own))
            counted.add(name)
    return total


def _training(detector: Detector, clip: Tensor) -> int:
    detector.train()
    with _counted() as counter:
        _loss(detector, clip.expand(2, -1)).backward()  # batch statistics need two
    detector.zero_grad()
    return counter.get_total_flops() // 2


def _saved(detector: Detector, batch: Tensor, precision: torch.dtype) -> int:
    detector.train()
    own = {_storage(tensor) for tensor in (*detector.parameters(), *detector.buffers())}
    kept: dict[StorageWeakRef, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (storage := _storage(tensor)) not in own:
            kept[storage] = tensor.untyped_storage().nbytes()
        return tensor

    mixed = torch.autocast("cpu", precision, enabled=precision != torch.float32)
    with saved_tensors_hooks(keep, lambda tensor: tensor), mixed:
        loss = _loss(detector, batch)
    assert loss.requires_grad
    return sum(kept.values())


def _loss(detector: Detector, batch: Tensor) -> Tensor:
    return functional.cross_entropy(detector(batch).float(), torch.zeros(len(batch), dtype=torch.long))


@contextmanager
def _counted() -> Iterator[FlopCounterMode]:
    """Attention by plain products, because its fused kernels are not counted on every device."""
    formulas = {torch.ops.aten.convolution_backward: _convolution_backward}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        yield counter


def _convolution_backward(grad: Any, inputs: Any, weight: Any, *rest: Any, **_: Any) -> int:
    """Each gradient costs what the forward pass cost, from shapes. (PyTorch's own formula counts the weight gradient of
    a grouped convolution once for each group.)"""
    transposed, wanted = rest[4], rest[7]
    positions = prod((inputs if transposed else grad)[2:])
    return 2 * grad[0] * positions * prod(weight) * sum(wanted[:2])


def _optimizer_state(optimizer: Optimizer, trained: Iterable[Tensor]) -> Iterator[Tensor]:
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _storage(tensor: Tensor) -> StorageWeakRef:
    """A storage's identity, which no later one takes while this is held."""
    return StorageWeakRef(tensor.untyped_storage())

"""Floating-point operations, counted on tensors without content."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moelora_ad.models.detector import ENCODER, Detector


def forward_operations(detector: Detector, clip: Tensor) -> dict[str, int]:
    """Operations of one forward pass of a clip (1, samples), by part and in total."""
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
        detector: the detector that was run.
        of: returns the operations of a module by its path, with those of the modules within it.
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


def training_operations(detector: Detector, clip: Tensor) -> int:
    """Operations of a forward and a backward pass of a clip (1, samples)."""
    detector.train()
    with _counted() as counter:
        plain_loss(detector, clip.expand(2, -1)).backward()  # batch statistics need two
    detector.zero_grad()
    return counter.get_total_flops() // 2


def plain_loss(detector: Detector, batch: Tensor) -> Tensor:
    """The cross entropy of a batch (B, samples) of clips that are all labelled spoof."""
    return functional.cross_entropy(detector(batch).float(), torch.zeros(len(batch), dtype=torch.long))


@contextmanager
def _counted() -> Iterator[FlopCounterMode]:
    """Count operations within the block, with attention by plain products: not every device counts fused kernels."""
    formulas = {torch.ops.aten.convolution_backward: _convolution_backward, torch.ops.aten.addmm_: _product_in_place}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        yield counter


def _product_in_place(output: Any, first: Any, second: Any, **_: Any) -> int:
    """Operations of a product that is added to a tensor in place, which PyTorch has no formula for."""
    return 2 * prod(first) * second[1]


def _convolution_backward(grad: Any, inputs: Any, weight: Any, *rest: Any, **_: Any) -> int:
    """Operations of a convolution's backward pass, from shapes: each gradient costs what the forward pass cost.
    (PyTorch's own formula counts the weight gradient of a grouped convolution once for each group.)"""
    transposed, wanted = rest[4], rest[7]
    positions = prod((inputs if transposed else grad)[2:])
    return 2 * grad[0] * positions * prod(weight) * sum(wanted[:2])

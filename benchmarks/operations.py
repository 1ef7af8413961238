"""What a training step asks of a GPU, counted without one: operations, and bytes that they read and write.

    pip install -e '.[benchmark]' && python benchmarks/operations.py [--clips 14 64]

Forward pass, loss and backward pass of a detector of XLSR-53's size with AASIST, clips of 64,600 samples, bf16
autocast, eager. Nothing is computed: tensors have shapes and types only. An operation is one that starts work on the
device; views and allocations are none. Bytes are those of its inputs and outputs, as if no cache held them.
Normalisations are in float32, as autocast has them on a GPU. The optimiser is left out: it is one fused operation for
many tensors.

Small batches are limited by the number of operations, as the program queues them one by one; large ones by bytes and
products. The counts are exact and the same on every machine, and say nothing about seconds: gpu.py measures those.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from gpu_sides import METHODS, OURS, PEFT, XLSR_53, module
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moelora_ad.audio import TRAINING_SAMPLES
from moelora_ad.torch_internals import FakeTensorMode

NO_WORK = ("detach", "_unsafe_view", "_reshape_alias", "empty", "empty_like", "empty_strided", "new_empty_strided")


class Operations(TorchDispatchMode):
    """Counts operations, and the bytes that they read and write.

    Attributes:
        count: number of operations of each name.
        moved: bytes of each name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        if isinstance(result, Tensor | tuple | list) and not func.is_view and name not in NO_WORK:
            self.count[name] += 1
            self.moved[name] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


@contextmanager
def norms_in_float32() -> Iterator[None]:
    plain = functional.layer_norm

    def layer_norm(input: Tensor, *arguments: Any, **named: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return plain(input.float(), *arguments, **named)

    functional.layer_norm = layer_norm
    try:
        yield
    finally:
        functional.layer_norm = plain


def step(name: str, clips: int, source: str = XLSR_53, samples: int = TRAINING_SAMPLES) -> Operations:
    """The operations of a training step of one side."""
    with FakeTensorMode(), norms_in_float32():
        detector = module(name, source, torch.device("cpu")).detector
        waveforms, labels = torch.empty(clips, samples), torch.zeros(clips, dtype=torch.long)
        with Operations() as counted:
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                logits = detector(waveforms)
            functional.cross_entropy(logits, labels).backward()
    return counted


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, nargs="+", default=[14, 64])
    given = parser.parse_args(arguments)
    for clips in given.clips:
        counted = {name: step(name, clips) for name in METHODS}
        peer = counted[PEFT]
        print(f"\ntraining step, {clips} x {TRAINING_SAMPLES:,} samples")
        print(f"{'':24}{'operations':>11}{'/ peft':>8}{'GB':>9}{'/ peft':>8}")
        for name, this in counted.items():
            total, moved = this.count.total(), this.moved.total()
            ratios = total / peer.count.total(), moved / peer.moved.total()
            print(f"{name:24}{total:11,}{ratios[0]:8.2f}{moved / 1e9:9.1f}{ratios[1]:8.2f}")
        print(f"most bytes, {OURS}:")
        for name, moved in counted[OURS].moved.most_common(8):
            print(f"  {name:50}{counted[OURS].count[name]:6,} operations{moved / 1e9:8.1f} GB")


if __name__ == "__main__":
    main()

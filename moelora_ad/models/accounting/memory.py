"""Bytes: what autograd saves for a backward pass, what a model and a checkpoint contain."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Optimizer

from moelora_ad.models.accounting.operations import plain_loss
from moelora_ad.models.detector import Detector
from moelora_ad.torch_internals import FakeTensorMode


def saved_bytes(detector: Detector, batch: Tensor, precision: torch.dtype) -> int:
    """Bytes that autograd saves for the backward pass of a batch (B, samples), see `Account.saved_bytes`."""
    detector.train()
    own = {_storage(tensor) for tensor in (*detector.parameters(), *detector.buffers())}
    kept: dict[StorageWeakRef, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (storage := _storage(tensor)) not in own:
            kept[storage] = tensor.untyped_storage().nbytes()
        return tensor

    mixed = torch.autocast("cpu", precision, enabled=precision != torch.float32)
    with saved_tensors_hooks(keep, lambda tensor: tensor), mixed:
        loss = plain_loss(detector, batch)
    assert loss.requires_grad
    return sum(kept.values())


def kept_bytes(detector: Detector) -> int:
    """Bytes of the tensors of a detector that a checkpoint and an exported model contain."""
    state = detector.state_dict()
    return sum(_bytes(state[name]) for name in detector.kept_names())


def checkpoint_bytes(detector: Detector, optimizer: Callable[[Iterable[Any]], Optimizer]) -> int:
    """Bytes of the tensors in a checkpoint of a run: what is saved of the detector, and the optimiser's state.

    Args:
        detector: its parameters are not changed.
        optimizer: makes the optimiser from parameters; one that needs their values counts as 0.
    """
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    return kept_bytes(detector) + _state_bytes(optimizer, trained)


def _state_bytes(make: Callable[[Iterable[Any]], Optimizer], parameters: list[nn.Parameter]) -> int:
    """Bytes of an optimiser's state after a step; 0 if it does not work on tensors without content, of which it gets
    one for each shape, as a thousand would take seconds."""
    counts = Counter((parameter.shape, parameter.dtype) for parameter in parameters)
    with FakeTensorMode(allow_non_fake_inputs=True):
        copies = {nn.Parameter(torch.empty(shape, dtype=dtype)): count for (shape, dtype), count in counts.items()}
        for copy in copies:
            copy.grad = torch.empty_like(copy)
        try:
            optimizer = make([*copies])
            optimizer.step()
        except Exception:  # a third-party optimiser: an estimate must not stop the run
            return 0
        states = ((count, optimizer.state.get(copy, {}).values()) for copy, count in copies.items())
        return sum(count * _bytes(value) for count, state in states for value in state if isinstance(value, Tensor))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _storage(tensor: Tensor) -> StorageWeakRef:
    """The identity of a tensor's storage; no later storage gets the same while this object exists."""
    return StorageWeakRef(tensor.untyped_storage())

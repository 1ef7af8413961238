"""Batch normalisation with statistics over the batches of all processes, as if one process had them all."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.plugins import LayerSync
from torch import Tensor, distributed, nn

from moelora_ad.torch_internals import BatchNorm, check_dimensions


class SyncedBatchNorm(LayerSync):
    """Synchronises batch normalisation, for ``trainer.sync_batchnorm``: while several processes train, each batch
    normalisation layer of the model in training mode takes its statistics from all of them.

    In Python, give it to `Trainer` as one of its ``plugins``. Unlike PyTorch's ``SyncBatchNorm`` it works on any
    device, keeps the layers (subclasses with a ``forward`` of their own too) and the names of their tensors, and can be
    differentiated twice, as second-order `MLDG` needs.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        if distributed.get_world_size() == 1:  # such as ddp on one device: the layers stay unchanged
            return model
        for layer in model.modules():
            if isinstance(layer, BatchNorm) and not isinstance(layer, _Synced | nn.SyncBatchNorm):
                own = type(layer)
                # A subclass's own forward still comes first; PyTorch's forward, which it calls, is replaced.
                layer.__class__ = type(own.__name__, (own, _Synced), {"__module__": own.__module__, "own_class": own})
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        for layer in model.modules():
            if isinstance(layer, _Synced):
                layer.__class__ = layer.own_class  # type: ignore[assignment]
        return model


@contextmanager
def uncounted(model: nn.Module) -> Iterator[None]:
    """Leave this process's batch out of synchronised statistics within the block: it only takes part in collective
    calls there."""
    layers = [layer for layer in model.modules() if isinstance(layer, _Synced)]
    for layer in layers:
        layer.counts = False
    try:
        yield
    finally:
        for layer in layers:
            layer.counts = True


class _Synced(BatchNorm):
    """Normalises by the mean and variance of the values of all processes, however many each has."""

    own_class: type[BatchNorm]
    counts = True

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        check_dimensions(self, input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        own_variance, own_mean = torch.var_mean(x, axes, correction=0)
        own_count = x.new_full((1,), x.numel() // x.shape[1] if self.counts else 0)
        total = _Sum.apply(torch.cat([own_count * own_mean, own_count]))
        mean, count = total[:-1] / total[-1], total[-1]
        variance = _Sum.apply(own_count * (own_variance + (own_mean - mean).square())) / count
        self._remember(mean.detach(), variance.detach() * (count / (count - 1)))
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        shape = [1, -1] + [1] * (x.dim() - 2)
        normalised = (x - mean.view(shape)) * scale.view(shape)
        return (normalised + self.bias.view(shape) if self.affine else normalised).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics, which evaluation uses."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            running.mul_(1 - share).add_(share * new)


class _Sum(torch.autograd.Function):
    """The sum over all processes. Its gradient is that of the losses of all processes, as DDP expects, which averages
    the gradients of parameters over processes."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)

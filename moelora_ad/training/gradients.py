"""Distributed training needs a gradient for everything that is trained."""

from lightning.pytorch import Trainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from moelora_ad.errors import InputError


def check_gradients(trainer: Trainer, detector: nn.Module) -> None:
    """Stop a run under DDP after a backward pass that left a trained parameter without a gradient: the processes would
    wait for it, and PyTorch would stop at the next step without its name.

    Raises:
        InputError: names the first of them and what to do.
    """
    wrapped = trainer.strategy.model
    if not isinstance(wrapped, DistributedDataParallel) or wrapped.find_unused_parameters or wrapped.static_graph:
        return
    without = [
        name for name, parameter in detector.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    if without:
        raise InputError(
            f"{len(without)} trained parameters got no gradient in this step, first {without[0]}: freeze what is never "
            "called (a backbone names it in never_called); with layer_drop, which skips layers, set trainer.strategy "
            "to ddp_find_unused_parameters_true"
        )

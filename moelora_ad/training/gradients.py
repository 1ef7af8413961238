"""Checks that training reaches all parts: every adapted projection is called, and under DDP every trained parameter
gets a gradient."""

from contextlib import AbstractContextManager, nullcontext

from lightning.pytorch import Trainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from moelora_ad.adapters import CallWatch
from moelora_ad.errors import InputError, counted
from moelora_ad.models import Detector


class FirstSteps:
    """Checks the first step of a training run, and further steps with layer drop, which may skip any layer in any step.

    Args:
        detector: the detector in training.
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._skips = detector.backbone.stochastic
        self._calls: CallWatch | None = CallWatch(detector.backbone.encoder, detector.sites)
        self._stepped = False  # a resumed run may be at the end of an epoch

    def watching(self) -> AbstractContextManager[object]:
        """The context for forward passes, those of validation too, which records calls until the check is done."""
        return nullcontext() if self._calls is None else self._calls

    def after_backward(self, trainer: Trainer) -> None:
        """Check a step; to be called after every backward pass.

        Raises:
            InjectionError: see `CallWatch.check`.
            InputError: see `check_gradients`.
        """
        self._stepped = True
        if self._calls is None and not self._skips:
            return
        if not self._skips or (self._calls is not None and self._calls.is_complete):
            self.after_epoch()
        check_gradients(trainer, self._detector)

    def after_epoch(self) -> None:
        """Check that every adapted projection has been called; to be called at the end of an epoch. Raises as
        `after_backward` does."""
        if self._stepped and self._calls is not None:
            calls, self._calls = self._calls, None
            calls.check()


def check_gradients(trainer: Trainer, detector: nn.Module) -> None:
    """Stop a run under DDP after a backward pass that left a trained parameter without a gradient: the processes would
    wait for it, and PyTorch would stop at the next step without naming it.

    Raises:
        InputError: names the first such parameter and what to do.
    """
    wrapped = trainer.strategy.model
    if not isinstance(wrapped, DistributedDataParallel) or wrapped.find_unused_parameters or wrapped.static_graph:
        return
    without = [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    if without:
        raise InputError(
            f"{counted(len(without), 'trained parameter')} got no gradient in this step, first {without[0]}: freeze "
            "what is never called (a backbone names it in never_called); with layer_drop, which skips layers, set "
            "trainer.strategy to ddp_find_unused_parameters_true"
        )

"""Ctrl-C and SIGTERM: training finishes its present step, so that what is saved is consistent."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from moelora_ad.data.data_module import AudioDeepfakeDataModule
from moelora_ad.data.workers import end_workers
from moelora_ad.errors import Terminated
from moelora_ad.training.interruptions.lost_processes import explain_lost_process
from moelora_ad.training.interruptions.out_of_memory import explain_out_of_memory


class StoppedAtOnce(KeyboardInterrupt):
    """A second Ctrl-C, in the middle of a step, which may be half taken and is not saved."""


class StopBetweenBatches(Callback):
    """Raises ``KeyboardInterrupt`` at the end of the training step or the batch of validation in which Ctrl-C came, as
    Lightning does for SIGTERM. Raised elsewhere, it could leave an optimiser's step half taken, or be lost in code that
    cannot raise. A second Ctrl-C ends the run at once, and nothing more is saved.
    """

    def __init__(self) -> None:
        self._trains = self._asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle Ctrl-C within the block, unless the caller ignores it or has a handler."""
        in_main = threading.current_thread() is threading.main_thread()
        ours = in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if ours:
            signal.signal(signal.SIGINT, self._ask)
        try:
            yield
        finally:
            if ours:
                signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trains = True

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        self._stop()

    def on_validation_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        self._stop()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trains = False
        self._stop()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if not self._trains:
            raise KeyboardInterrupt
        if self._asked:
            raise StoppedAtOnce
        self._asked = True

    def _stop(self) -> None:
        if self._asked:
            raise KeyboardInterrupt


@contextmanager
def explain_interruptions(trainer: Trainer, data: AudioDeepfakeDataModule) -> Iterator[None]:
    """Turn what ends a trainer's work within the block into the errors that the command line reports.

    Raises:
        InputError: see `explain_out_of_memory` and `explain_lost_process`.
        KeyboardInterrupt: after Ctrl-C and, as `Terminated`, after SIGTERM, where Lightning would exit.
    """
    try:
        with explain_out_of_memory(trainer, data), explain_lost_process(trainer):
            yield
    except SIGTERMException:
        raise Terminated from None
    except SystemExit as end:
        raise (end.__context__ if isinstance(end.__context__, KeyboardInterrupt) else KeyboardInterrupt()) from None
    finally:
        if sys.exc_info()[0] is not None:
            end_workers()

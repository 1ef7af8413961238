"""Ctrl-C in training: what is under way comes to its end, so that what is saved is whole."""

import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from moelora_ad.training.stopping import StoppedAtOnce


class StopBetweenBatches(Callback):
    """Raises ``KeyboardInterrupt`` once the training step, or the batch of validation, is done in which Ctrl-C came, as
    Lightning does for SIGTERM: raised anywhere, it could leave an optimiser's step half taken, or be lost in code that
    cannot raise. A second one ends the run at once, and nothing more is saved.
    """

    def __init__(self) -> None:
        self._asked = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._ask)

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        self._stop()

    def on_validation_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        self._stop()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise StoppedAtOnce
        self._asked = True

    def _stop(self) -> None:
        if self._asked:
            raise KeyboardInterrupt

    def _restore(self) -> None:
        if signal.getsignal(signal.SIGINT) == self._ask:
            signal.signal(signal.SIGINT, signal.default_int_handler)

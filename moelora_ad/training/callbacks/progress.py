"""Progress of a run: a bar on a terminal, lines in a log, and a line for every epoch in both."""

import logging
import math
import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import (
    BatchesProcessedColumn,
    CustomBarColumn,
    CustomTimeColumn,
    RichProgressBarTheme,
)
from lightning_utilities.core import rank_zero
from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from moelora_ad.data.data_module import TRAIN, known_data
from moelora_ad.runs.record import DEV

_SECONDS_BETWEEN = 30.0  # lines of a log

# Parts of Lightning's messages that the start block, the lines and the tables replace, or that are of no use.
_BANNERS = (
    "Seed set to ",
    "GPU available: ",
    "TPU available: ",
    "💡 Tip: ",
    "Loading `train_dataloader` to estimate",
    "`Trainer.fit` stopped: ",
    "Restoring states from the checkpoint path",
    "Loaded model weights from the checkpoint",
    " was raised with message: ",
)


class EpochLines(Callback):
    """Prints a line at the end of every epoch: the loss, the dev EER, the best so far, and the time it took.

    On a terminal the lines are above the progress bar. Only the first process prints.
    """

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._eer: float | None = None  # of this epoch
        self._best: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        checkpoint = trainer.checkpoint_callback  # in a resumed run it has the best so far
        if isinstance(checkpoint, ModelCheckpoint) and checkpoint.monitor == f"{DEV}/eer":
            self._best = None if checkpoint.best_model_score is None else float(checkpoint.best_model_score)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun, self._eer = time.monotonic(), None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or f"{DEV}/eer" not in trainer.callback_metrics:
            return
        self._eer = float(trainer.callback_metrics[f"{DEV}/eer"])
        self._best = self._eer if self._best is None else min(self._best, self._eer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = trainer.callback_metrics  # read in every process: all compute them together
        if not trainer.is_global_zero:
            return
        parts = []
        if f"{TRAIN}/loss_epoch" in metrics:
            parts.append(f"loss {float(metrics[f'{TRAIN}/loss_epoch']):.3f}")
        if self._eer is not None:
            parts.append(f"dev EER {100 * self._eer:.2f} % (best {100 * (self._best or 0.0):.2f} %)")
        parts.append(duration(time.monotonic() - self._begun))
        print(f"{epoch_of(trainer)}: {', '.join(parts)}", flush=True)


class BatchLines(Callback):
    """Prints a line on standard error every half minute: the present epoch or set, how many of its batches are done,
    and the time left. It is for logs, which show no bar. Only the first process prints.
    """

    def __init__(self) -> None:
        self._printed = time.monotonic()
        self._what = ""
        self._first = (0, 0.0)  # how many batches of it were done when it was first seen, and when that was

    def _done(self, trainer: Trainer, what: str, done: int, total: float, loss: float | None = None) -> None:
        now = time.monotonic()
        if what != self._what:
            self._what, self._first = what, (done, now)
        if now - self._printed < _SECONDS_BETWEEN or not trainer.is_global_zero:
            return
        self._printed = now
        line = f"{what}: {done:,}" + (f" of {int(total):,}" if math.isfinite(total) else "") + " batches"
        if loss is not None:
            line += f", loss {loss:.3f}"
        before, begun = self._first
        if math.isfinite(total) and before < done < total:
            line += f", {duration((now - begun) / (done - before) * (total - done))} left"
        print(line, file=sys.stderr, flush=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        check = getattr(pl_module, "loss_check", None)
        loss = None if check is None else check.value  # of an earlier step, so as not to wait for a GPU
        self._done(trainer, epoch_of(trainer), batch_idx + 1, trainer.num_training_batches, loss)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.testing:
            totals = trainer.num_test_batches
        else:
            totals = trainer.num_predict_batches if trainer.predicting else trainer.num_val_batches
        self._done(trainer, _name_of_set(trainer, dataloader_idx), batch_idx + 1, totals[dataloader_idx])

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end


class DetectionProgressBar(RichProgressBar):
    """Lightning's progress bar with the epoch, the time left in it, the loss and the dev EER."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=5, theme=RichProgressBarTheme(metrics_text_delimiter=", "))
        self._set = 0  # number of the set that is evaluated

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._vanish()
        super().on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._vanish()
        super().teardown(trainer, pl_module, stage)

    def _vanish(self) -> None:
        """Let the bar disappear when it stops; the lines and the tables stay."""
        if self.progress is not None:
            self.progress.live.transient = True

    def has_dataloader_changed(self, dataloader_idx: int) -> bool:
        self._set = dataloader_idx
        return super().has_dataloader_changed(dataloader_idx)

    @property
    def sanity_check_description(self) -> str:
        return "trying dev"

    @property
    def validation_description(self) -> str:
        return self._evaluated_set()

    @property
    def test_description(self) -> str:
        return self._evaluated_set()

    @property
    def predict_description(self) -> str:
        return self._evaluated_set()

    def _evaluated_set(self) -> str:
        return _name_of_set(self.trainer, self._set)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        found, shown = super().get_metrics(trainer, pl_module), {}
        check = getattr(pl_module, "loss_check", None)
        if trainer.training and check is not None and check.value is not None:
            shown["loss"] = f"{check.value:.3f}"
        if isinstance(eer := found.get(f"{DEV}/eer"), float):
            shown["dev EER"] = f"{100 * eer:.2f} %"
        return shown

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # All processes compute the metrics of an epoch together, so each must ask for them.
        _ = trainer.progress_bar_metrics
        super().on_train_epoch_end(trainer, pl_module)

    def configure_columns(self, trainer: Trainer) -> list:
        return [
            _What(self),
            CustomBarColumn(bar_width=12, complete_style="cyan", finished_style="cyan", pulse_style="cyan"),
            BatchesProcessedColumn(style=self.theme.batch_progress),
            CustomTimeColumn(style=self.theme.time),
        ]


class _What(ProgressColumn):
    """The column with the epoch, or with the set that is evaluated."""

    def __init__(self, bar: DetectionProgressBar) -> None:
        super().__init__(Column(no_wrap=True))
        self.bar = bar

    def render(self, task: Task) -> Text:
        is_training = task.id == self.bar.train_progress_bar_id
        return Text(epoch_of(self.bar.trainer) if is_training else task.description)


def with_progress(arguments: dict[str, Any], lines: bool) -> dict[str, Any]:
    """The trainer's arguments with a progress bar, or with lines if the output is not a terminal; unchanged if they
    turn bars off or name one.

    Args:
        arguments: arguments of ``Trainer``.
        lines: whether to print a line for every epoch, too, for training.
    """
    callbacks = callbacks_of(arguments)
    if arguments.get("enable_progress_bar") is False or any(isinstance(c, ProgressBar) for c in callbacks):
        return arguments
    console = Console()
    on_terminal = console.is_interactive or console.is_jupyter
    ours: list[Callback] = [EpochLines()] if lines else []
    ours.append(DetectionProgressBar() if on_terminal else BatchLines())
    return arguments | {"callbacks": [*callbacks, *ours], "enable_progress_bar": on_terminal}


def callbacks_of(arguments: dict[str, Any]) -> list[Callback]:
    """List of the callbacks in the trainer's arguments, which may hold a list, a single callback or none."""
    given = arguments.get("callbacks") or []
    return list(given) if isinstance(given, list) else [given]


def silence_banners() -> None:
    """Suppress the messages of Lightning that are in `_BANNERS`."""
    for log in (rank_zero.log, logging.getLogger("lightning.fabric.utilities.seed")):
        log.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not any(banner in record.getMessage() for banner in _BANNERS)


def _name_of_set(trainer: Trainer, number: int) -> str:
    """The name of the evaluated set with this number of its loader."""
    data = known_data(trainer)
    return f"set {number + 1}" if data is None else list(data.eval_trials)[number]


def epoch_of(trainer: Trainer) -> str:
    """The present epoch as text, such as ``epoch 2/4``, counted from 1."""
    last = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
    return f"epoch {trainer.current_epoch + 1}{last}"


def duration(seconds: float) -> str:
    """Seconds as text in at most two units, such as ``0.42 s``, ``41 s``, ``3 min 20 s`` and ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{count} {unit}" for count, unit in ((days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")) if count]
    return " ".join(parts[:2])

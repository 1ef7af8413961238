"""The detector in training, validation and test."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from moelora_ad.adapters import AdaptationMethod
from moelora_ad.corpora import TrialList
from moelora_ad.data.data_module import TRAIN, known_data
from moelora_ad.data.dataset import Batch, FailedTrial
from moelora_ad.data.own_loaders import as_batch
from moelora_ad.data.resuming import training_data
from moelora_ad.data.score_origin import about
from moelora_ad.data.trainer_state import (
    is_fast_dev_run,
    is_limited,
    set_folder,
    shards_the_model,
    trainer_of,
    training_folder,
)
from moelora_ad.errors import InputError
from moelora_ad.evaluation import TrialFailures
from moelora_ad.models import Backbone, Classifier, Detector
from moelora_ad.models.compilation import CompiledDetector
from moelora_ad.models.precision import tf32_allowed
from moelora_ad.runs.failures import write_failures
from moelora_ad.runs.record import DEV
from moelora_ad.training.callbacks.divergence import LossCheck
from moelora_ad.training.checkpointed_module import CheckpointedModule
from moelora_ad.training.compilation import compiled
from moelora_ad.training.gradients import FirstSteps
from moelora_ad.training.losses.loss_module import LossModule, shared_loss, weights_of_classes
from moelora_ad.training.losses.tether import Tether
from moelora_ad.training.mldg import MLDG
from moelora_ad.training.monitors import check_dev_limit, check_monitors
from moelora_ad.training.optimizers import fused
from moelora_ad.training.randomness import seed_batch
from moelora_ad.training.schedule import WarmupCosine, accumulate_as_scheduled, optimizer_steps
from moelora_ad.training.scoring import Evaluated, SetFigures, SetResult, SetScores, UnlistedResult, evaluation_sets

OptimizerFactory = Callable[[Iterable], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


class DetectionModule(CheckpointedModule, LossModule):
    """A detector with its loss, its optimiser and its figures.

    Args:
        backbone: the pretrained speech encoder.
        adaptation: adaptation method, which determines what of the encoder is trained.
        classifier: classifier class; it gets the backbone's width.
        optimizer: any torch optimiser; its learning rate applies to every part that has none of its own below.
        schedule: ``WarmupCosine`` (step by step), any torch scheduler (epoch by epoch), or none.
        adapter_lr: learning rate of what the adaptation trains: experts, or any other part but gates. (An encoder or
            layers that are trained as a whole have the optimiser's.)
        gate_lr: learning rate of the gates.
        classifier_lr: learning rate of the classifier.
        class_weights: weights of spoof and bona fide in the loss: numbers of at least 0, not both 0.
        loss: any module that computes losses (n,) of logits (n, 2) and labels (n,); None for the cross entropy. The
            loss of a batch is their mean, weighted by ``class_weights``.
        gradient_checkpointing: recompute the encoder's layers in the backward pass to save memory.
        meta_learning: ``MLDG`` trains for attacks that are not in the training set; None for ordinary training.
        tether: ``Tether`` keeps the detector's scores near those at the start of training; None for no such term.
        freeze_classifier: train the adaptation alone; the classifier and the backbone's layer weights stay as they are.
        init_weights: a model (its folder or hub id), a checkpoint, or a run's folder (its best checkpoint) to start
            from: the weights are taken as far as they fit by name and shape, and the others are listed. Data, optimiser
            and schedule are new.
        compile: compile front end, encoder's layers and classifier, each on its own, by ``torch.compile``; a string is
            its backend, or the mode ``reduce-overhead``. What cannot be compiled runs eagerly; the reason is printed.

    A trainer that has an `AudioDeepfakeDataModule` knows the trials behind its batches. With DataLoaders of your own,
    whose batches are what `as_batch` takes, there are loss, dev EER, checkpoints and the figures of routing, but no
    score files, no `MLDG`, and no check that a run resumes with the same data.

    Attributes:
        score_folder: folder of score files; None for that of `trainer_state.score_folder`.
        configuration: what this experiment was built from, for the provenance of scores.
        untrained: whether scores are those of untrained weights; recorded with them.
        parameter_counts: parameter counts of the detector, in training (see `Detector.parameter_counts`).
    """

    def __init__(
        self,
        backbone: Backbone,
        adaptation: AdaptationMethod,
        classifier: Callable[[int], Classifier],
        optimizer: OptimizerFactory = AdamW,
        schedule: WarmupCosine | SchedulerFactory | None = None,
        adapter_lr: float | None = None,
        gate_lr: float | None = None,
        classifier_lr: float | None = None,
        class_weights: tuple[float, float] = (0.1, 0.9),
        loss: nn.Module | None = None,
        gradient_checkpointing: bool = False,
        meta_learning: MLDG | None = None,
        tether: Tether | None = None,
        freeze_classifier: bool = False,
        init_weights: str | None = None,
        compile: bool | str = False,
    ) -> None:
        super().__init__()
        self.detector = Detector(backbone, adaptation, classifier)
        if freeze_classifier:
            self.detector.freeze_classifier()
        self.gradient_checkpointing = gradient_checkpointing
        self.backend = compile if isinstance(compile, str) else "inductor" if compile else None
        if gradient_checkpointing:
            backbone.enable_gradient_checkpointing()
        self.auxiliary = adaptation.auxiliary_losses()
        self.optimizer = optimizer
        self.schedule = schedule
        self.meta_learning: MLDG | None = meta_learning
        self.tether = tether
        self.init_weights = init_weights
        self.learning_rates = dict.fromkeys(self.detector.parameters_by_part(), adapter_lr)
        self.learning_rates |= {"gates": gate_lr, "classifier": classifier_lr, "backbone": None}
        self.register_buffer("class_weights", weights_of_classes(class_weights), persistent=False)
        self.loss = loss or nn.CrossEntropyLoss(reduction="none")
        if any(parameter.requires_grad for parameter in self.loss.parameters()):
            name = type(self.loss).__name__
            raise InputError(f"model.loss: {name} has weights to train: put them into a head, a loss has no optimiser")
        self.score_folder: Path | None = None
        self.configuration: dict[str, Any] | None = None
        self.untrained = False
        self.parameter_counts: dict[str, int] = {}
        self.evaluated: dict[str, SetFigures] = {}
        self.train_failures: dict[int, str] = {}
        self._unlisted_failures: list[FailedTrial] = []
        self._trials_read = 0
        self._sets: list[Evaluated] = []
        self._dev_sums = torch.zeros(2)  # of the weighted losses, and of the weights
        self._compiled: CompiledDetector | None = None
        self._first_steps: FirstSteps | None = None

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        with nullcontext() if self.training else tf32_allowed(False):
            return (self._compiled or self.detector)(waveforms, lengths)

    def _as_batch(self, batch: Any, dataloader_idx: int) -> Batch:
        return as_batch(batch, labelled=self.trainer.state.fn in ("fit", "validate"))

    # Training

    def setup(self, stage: str) -> None:
        if self.backend is not None and self._compiled is None:
            self._compiled = compiled(self, self.detector, self.backend, self.gradient_checkpointing)
        data = known_data(self.trainer)
        # Lightning warns if a module has this hook beside a data module.
        self.__dict__.pop("on_before_batch_transfer", None)
        if data is None:
            self.on_before_batch_transfer = self._as_batch  # type: ignore[method-assign]
        if stage != "fit":
            return
        if data is not None:
            assert data.train_trials is not None
            self.training_data = training_data(data.train, data.train_trials)
        check_monitors(self.trainer, self)
        self.parameter_counts = self.detector.parameter_counts()  # before parameters are sharded
        if self.has_weights:
            return
        self.has_weights = True  # a second fit continues from the first
        self.start()

    def configure_optimizers(self) -> Any:
        groups: list[dict[str, Any]] = []
        for part, parameters in self.detector.parameters_by_part().items():
            if parameters:
                rate = self.learning_rates[part]
                groups.append({"params": parameters, "name": part} | ({} if rate is None else {"lr": rate}))
        scaler = getattr(getattr(trainer_of(self), "precision_plugin", None), "scaler", None)
        optimizer = fused(self.optimizer(groups), scales_gradients=scaler is not None)
        if self.schedule is None:
            return optimizer
        if isinstance(self.schedule, WarmupCosine):
            scheduler = self.schedule.build(optimizer, optimizer_steps(self.trainer))
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]
        chosen, every = self.schedule(optimizer), 1
        if isinstance(chosen, ReduceLROnPlateau):  # it watches a figure that only epochs with a validation have
            every = self.trainer.check_val_every_n_epoch or 1
        watched = {"interval": "epoch", "frequency": every, "monitor": f"{DEV}/eer", "strict": False}
        return [optimizer], [{"scheduler": chosen, **watched}]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        data = known_data(self.trainer)
        if data is not None:
            seed_batch(data.seed, self.current_epoch, batch_idx, self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self.loss_check is not None
        self._unlisted_failures += batch.failures
        self._trials_read += batch.num_read
        with self._watching():
            if self.meta_learning is not None:
                loss = self.meta_learning.training_loss(self, batch)
            else:
                loss = self.training_loss(batch)
        self.loss_check.add(loss, batch)
        return loss.own

    def _watching(self) -> AbstractContextManager[object]:
        return nullcontext() if self._first_steps is None else self._first_steps.watching()

    def on_fit_start(self) -> None:
        if self.start_error is not None and self.trainer.ckpt_path is None:
            raise self.start_error
        if self.meta_learning is not None:
            self.meta_learning.prepare(self)
        if self.tether is not None:
            if shards_the_model(self.trainer):
                raise InputError("model.tether does not work with a strategy that shards the model: use ddp")
            if self.tether.start is None:
                self.tether.remember(self.detector)

    def on_train_start(self) -> None:
        check_dev_limit(self.trainer)
        accumulate_as_scheduled(self.trainer)
        self._first_steps = FirstSteps(self.detector)
        self.loss_check = LossCheck(self.trainer)

    def on_after_backward(self) -> None:
        if self._first_steps is not None:
            self._first_steps.after_backward(self.trainer)

    def on_train_epoch_end(self) -> None:
        if self._first_steps is not None:
            self._first_steps.after_epoch()
        if self.loss_check is not None:
            self.loss_check.read()
        gathered = TrialFailures().to(self.device)
        gathered.update(self._unlisted_failures)
        failed = gathered.compute()
        self.train_failures |= failed
        read = self.trainer.strategy.reduce(torch.tensor(self._trials_read, device=self.device), reduce_op="sum")
        self._unlisted_failures, self._trials_read = [], 0
        data = known_data(self.trainer)
        if data is not None:
            assert data.train_trials is not None
            self._list_failures(training_folder(self.trainer), TRAIN, data.train_trials, self.train_failures)
        if failed and not int(read):
            raise InputError(f"in this epoch no file of data.train could be read: {min(failed.values())}")

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        if self.loss_check is not None:
            self.loss_check.read()
        self._sets = evaluation_sets(self.trainer)
        self._dev_sums = self.class_weights.new_zeros(2)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        with self._watching():
            logits = self(batch.waveforms, batch.lengths)
        self._sets[0].update(batch, logits)
        if len(batch.trials):  # not an idle pass
            self._dev_sums = self._dev_sums + torch.stack(self._weighted(logits, batch))

    def on_validation_epoch_end(self) -> None:
        self._finish("", write=self.trainer.state.fn == "validate")
        if self.trainer.sanity_checking:
            return
        dev = self.evaluated[DEV]
        if dev.num_scored and not dev.num_known:  # scores of earlier runs have no loss here
            total, weight = self._dev_sums
            self.log(f"{DEV}/loss", shared_loss(total, weight, {}).of_all, sync_dist=True)
        if self.trainer.state.fn == "fit":
            self.validated = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready

    def on_test_epoch_start(self) -> None:
        self._sets = evaluation_sets(self.trainer)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._sets[dataloader_idx].update(batch, self(batch.waveforms, batch.lengths))

    def on_test_epoch_end(self) -> None:
        self._finish("test/", write=True)

    def on_predict_epoch_start(self) -> None:
        self._sets = evaluation_sets(self.trainer)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        logits = self(batch.waveforms, batch.lengths)
        if self._sets:
            self._sets[dataloader_idx].update(batch, logits)
        return logits if len(batch.trials) else logits[:0]

    def on_predict_batch_end(self, *_: object) -> None:
        if self.trainer.received_sigterm:  # Lightning checks this itself in all other loops
            raise SIGTERMException

    def on_predict_epoch_end(self) -> None:
        for part in self._sets:
            self.evaluated[part.name] = self._write(part).figures()

    def _finish(self, prefix: str, write: bool) -> None:
        """Log the EER of every set that has both classes, and write the score files of sets if ``write``."""
        if self.trainer.sanity_checking:
            return
        for part in self._sets:
            figures = (self._write(part) if write else part.result()).figures()
            counts = figures.num_bona_fide, figures.num_spoof
            if part.name == DEV and not all(counts) and not figures.num_failed and not is_fast_dev_run(self.trainer):
                found = f"{counts[0]} bona fide and {counts[1]} spoof"
                if is_limited(self.trainer):
                    raise InputError(f"{DEV} was scored in part, {found}: raise trainer.limit_val_batches")
                raise InputError(f"{DEV} has {found} trials: give it both classes, whose EER selects the checkpoint")
            self.evaluated[part.name] = figures
            if figures.eer is not None:
                name = f"{prefix}{part.name}" if isinstance(part, SetScores) else part.name
                self.log(f"{name}/eer", figures.eer, prog_bar=part.name == DEV, sync_dist=True)

    def _write(self, part: Evaluated) -> SetResult | UnlistedResult:
        result = part.result()
        if isinstance(part, SetScores) and isinstance(result, SetResult):
            if part.kept is not None and self.trainer.is_global_zero:
                described = about(self.trainer, part.name, len(result.reasons), result.num_known, part.started)
                part.kept.finish(result.table, result.indices, described)
            self._list_failures(set_folder(self.trainer, part.name), part.name, part.trials, result.reasons)
        return result

    def _list_failures(self, folder: Path, name: str, trials: TrialList, reasons: dict[int, str]) -> None:
        if self.trainer.is_global_zero and not is_fast_dev_run(self.trainer):
            write_failures(folder / f"{name}.failed.csv", trials, reasons)

"""Which part of a detector in training is in a checkpoint, and how it is restored."""

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import LightningModule

from moelora_ad.adapters import AdapterError
from moelora_ad.configuration.building import PARTS, arguments_of, config_beside
from moelora_ad.data.resuming import (
    CUT_OFF,
    TRAINING_DATA,
    VALIDATION,
    check_training_data,
    cut_off,
    redo_what_was_cut_off,
)
from moelora_ad.data.trainer_state import shards_the_model, trainer_of
from moelora_ad.errors import InputError
from moelora_ad.models import Detector
from moelora_ad.models.saving.checkpoints import (
    ARCHITECTURE,
    PREFIX,
    architecture_of,
    check_encoder,
    check_fit,
    check_readable,
    tell_other_architecture,
)
from moelora_ad.runs.record import InitialWeights
from moelora_ad.training.callbacks.divergence import LossCheck, check_start, check_weights
from moelora_ad.training.initial_weights import OPTION, load_initial_weights
from moelora_ad.training.losses.tether import Tether

INIT_WEIGHTS = "init_weights"  # keys of a checkpoint
TETHER = "tether"
UNAVERAGED = "current_model_state"  # of Lightning's WeightAveraging, beside the average in "state_dict"
Module = TypeVar("Module", bound="CheckpointedModule")


class CheckpointedModule(LightningModule):
    """A module whose checkpoints hold what is trained, and record its initial weights and its training data.

    Attributes:
        detector: the detector in training.
        training_data: what checkpoints record of the training trials; empty if these are not known.
        has_weights: whether fit continues from the present weights.
        init_weights: a model or a checkpoint to start from; None for new weights.
        tether: keeps the detector's scores near those at its start, whose weights are in checkpoints too; or None.
        started_from: what was taken from ``init_weights``, by this run or by the one that it resumes; None before fit,
            and for new weights.
        start_error: why there are no weights to start from; it is not raised if a checkpoint is resumed.
        validated: number of training batches before the end of the last validation within fit.
        loss_check: stops training that diverges; it has the last loss.
    """

    detector: Detector

    def __init__(self) -> None:
        super().__init__()
        # Frozen weights are not in a checkpoint; on_load_checkpoint checks the names that must be.
        self.strict_loading = False
        self.training_data: dict[str, Any] = {}
        self.has_weights = False
        self.init_weights: str | None = None
        self.tether: Tether | None = None
        self.started_from: InitialWeights | None = None
        self.start_error: ValueError | None = None
        self.validated: int | None = None
        self.loss_check: LossCheck | None = None

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls: type[Module],
        checkpoint_path: str | Path,
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool = True,
        allow: Collection[str] = (),
        **arguments: Any,
    ) -> Module:
        """Load a module with the weights of a checkpoint.

        Args:
            checkpoint_path: ``RUN/checkpoints/NAME.ckpt``, or any other with ``hparams_file`` or all three parts given.
            map_location: device of the weights, as for ``torch.load``.
            hparams_file: the configuration of the run; ``RUN/config.yaml`` if it is not given.
            strict: as for Lightning; what a checkpoint must hold is checked in any case.
            weights_only: must be true: a checkpoint never executes code.
            allow: packages besides this one whose classes the configuration may name.
            arguments: arguments of the class, which replace those in the configuration.

        Raises:
            InputError: there is no configuration, or it is faulty, or the checkpoint does not fit it.
        """
        if not weights_only:
            raise ValueError("a checkpoint is always loaded with weights_only=True")
        if Path(checkpoint_path).exists():
            check_readable(str(checkpoint_path), "checkpoint_path")
        configured = {}
        if hparams_file is not None or not {*PARTS} <= arguments.keys():
            config = str(hparams_file or config_beside(str(checkpoint_path)))
            compared = Path(checkpoint_path).is_file() and not {*PARTS} & arguments.keys()
            configured = arguments_of(cls, config, allow, str(checkpoint_path) if compared else None)
        with warnings.catch_warnings():  # frozen weights are in no checkpoint
            warnings.filterwarnings("ignore", message="Found keys that are in the model state dict but not in the ch.*")
            module = super().load_from_checkpoint(
                checkpoint_path, map_location, strict=strict, weights_only=True, **(configured | arguments)
            )
        module.has_weights = True  # fit continues from these weights
        return module

    def start(self) -> None:
        """Give the detector the weights that training starts from."""
        resumes = self.trainer.ckpt_path is not None  # the checkpoint has the weights, and the start may be gone
        try:
            self.detector.adaptation.initialise(self.detector.backbone.encoder)
            if self.init_weights is not None and not resumes:
                self.started_from, told = load_initial_weights(self.detector, self.init_weights)
                if self.trainer.is_global_zero:
                    print("\n".join(told))
            elif not resumes and (continued := self.detector.continued_names()):
                raise InputError(
                    f"{OPTION} is not given: {min(continued)} and others stay as an earlier training left them"
                )
            kept = self.detector.kept_names()
            check_start({name: tensor for name, tensor in self.detector.state_dict().items() if name in kept})
        except (AdapterError, InputError) as error:
            self.start_error = error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = {f"{PREFIX}{name}" for name in self.detector.kept_names()}
        kept |= {name for name, _ in self.named_buffers() if not name.startswith(PREFIX)}  # of a loss that learns
        for key in {"state_dict", UNAVERAGED} & checkpoint.keys():
            checkpoint[key] = {name: tensor for name, tensor in checkpoint[key].items() if name in kept}
        trainer = trainer_of(self)
        if trainer is not None:
            if self.loss_check is not None and not trainer.interrupted:  # if so, other processes may have ended
                self.loss_check.read()
            check_weights(trainer, checkpoint["state_dict"])
            if self.training_data:
                checkpoint[TRAINING_DATA] = self.training_data
            checkpoint[ARCHITECTURE] = architecture_of(self.detector)
            if self.started_from is not None:
                checkpoint[INIT_WEIGHTS] = self.started_from._asdict()
            if self.tether is not None and self.tether.start is not None:
                checkpoint[TETHER] = self.tether.start
            if trainer.state.fn == "fit":
                checkpoint[CUT_OFF] = cut_off(trainer, self.validated)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        given = checkpoint["state_dict"].items()
        state = {name.removeprefix(PREFIX): tensor for name, tensor in given if name.startswith(PREFIX)}
        trainer = trainer_of(self)
        is_whole = trainer is None or not shards_the_model(trainer)
        check_fit(state, self.detector, "the checkpoint", shapes=is_whole)
        check_encoder(checkpoint, self.detector)
        if trainer is None or trainer.is_global_zero:
            tell_other_architecture(checkpoint, self.detector)
        if trainer is not None:
            if trainer.state.fn == "fit":
                check_training_data(checkpoint, self.training_data)
                if self.tether is not None:
                    self.tether.restore(checkpoint.get(TETHER, {}), self.detector)
                started = checkpoint.get(INIT_WEIGHTS, {})
                if started.keys() == set(InitialWeights._fields):
                    self.started_from = InitialWeights(**started)
                if not checkpoint.get(CUT_OFF, {VALIDATION: True})[VALIDATION]:
                    loops = checkpoint["loops"]["fit_loop"]
                    self.validated = loops["epoch_loop.batch_progress"]["total"]["ready"]
            if UNAVERAGED in checkpoint:
                if trainer.state.fn != "fit":  # the callback would evaluate these weights, not the average
                    checkpoint[UNAVERAGED] = checkpoint["state_dict"]
                own = self.state_dict()  # the callback loads the frozen weights, too
                checkpoint |= {key: own | checkpoint[key] for key in ("state_dict", UNAVERAGED)}
            redo_what_was_cut_off(checkpoint, by_steps=trainer.max_steps != -1)

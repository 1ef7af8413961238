"""What of a detector in training is in a checkpoint, and how it comes back."""

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import LightningModule

from moelora_ad.configuration.building import PREFIX, arguments_of, config_beside
from moelora_ad.data.resuming import TRAINING_DATA, check_training_data, redo_what_was_cut_off
from moelora_ad.data.trainer_state import shards_the_model
from moelora_ad.models import Detector
from moelora_ad.models.saving.checkpoints import (
    ARCHITECTURE,
    architecture_of,
    check_fit,
    check_readable,
    tell_other_architecture,
)
from moelora_ad.training.callbacks.divergence import check_weights

Module = TypeVar("Module", bound="CheckpointedModule")


class CheckpointedModule(LightningModule):
    """A module whose checkpoints hold what is trained, and say of what and on what.

    Attributes:
        detector: what is trained.
        training_data: what checkpoints say of the trials that it is trained on; empty if that is not known.
        has_weights: whether fit goes on from the weights that there are.
    """

    detector: Detector

    def __init__(self) -> None:
        super().__init__()
        # Frozen weights are not in a checkpoint; on_load_checkpoint checks the names that must be.
        self.strict_loading = False
        self.training_data: dict[str, Any] = {}
        self.has_weights = False

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
        """A module with the weights of a checkpoint.

        Args:
            checkpoint_path: ``RUN/checkpoints/NAME.ckpt``, or any other with ``hparams_file`` or all three parts given.
            map_location: where the weights go, as for ``torch.load``.
            hparams_file: the configuration of the run; ``RUN/config.yaml`` if it is not given.
            strict: as for Lightning; what a checkpoint must hold is checked in any case.
            weights_only: only true: a checkpoint never executes code.
            allow: packages besides this one whose classes the configuration may name.
            arguments: of the class, in place of the configuration's.

        Raises:
            InputError: there is no configuration, or it is faulty, or the checkpoint does not fit it.
        """
        if not weights_only:
            raise ValueError("a checkpoint is always loaded with weights_only=True")
        if Path(checkpoint_path).exists():
            check_readable(str(checkpoint_path), "checkpoint_path")
        configured = {}
        if hparams_file is not None or not {"backbone", "adaptation", "classifier"} <= arguments.keys():
            configured = arguments_of(cls, str(hparams_file or config_beside(str(checkpoint_path))), allow)
        with warnings.catch_warnings():  # frozen weights are in no checkpoint
            warnings.filterwarnings("ignore", message="Found keys that are in the model state dict but not in the ch.*")
            module = super().load_from_checkpoint(
                checkpoint_path, map_location, strict=strict, weights_only=True, **(configured | arguments)
            )
        module.has_weights = True  # fit goes on from these weights
        return module

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = {f"{PREFIX}{name}" for name in self.detector.kept_names()}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in kept}
        if self._trainer is not None:
            check_weights(self._trainer, checkpoint["state_dict"])
            if self.training_data:
                checkpoint[TRAINING_DATA] = self.training_data
            checkpoint[ARCHITECTURE] = architecture_of(self.detector)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = {name.removeprefix(PREFIX): tensor for name, tensor in checkpoint["state_dict"].items()}
        is_whole = self._trainer is None or not shards_the_model(self._trainer)
        check_fit(state, self.detector, "the checkpoint", shapes=is_whole)
        if self._trainer is None or self._trainer.is_global_zero:
            tell_other_architecture(checkpoint, self.detector)
        if self._trainer is not None:
            if self._trainer.state.fn == "fit":
                check_training_data(checkpoint, self.training_data)
            redo_what_was_cut_off(checkpoint, by_steps=self._trainer.max_steps != -1)

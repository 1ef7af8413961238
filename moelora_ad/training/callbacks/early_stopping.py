"""The callback that ends a training early."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping


class LastingEarlyStopping(EarlyStopping):
    """Lightning's ``EarlyStopping``. A run whose training it had ended, and that was interrupted later in its test, is
    not trained further when it is resumed, unless ``patience`` was raised."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})  # of the configuration, not the checkpoint

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.stopped_epoch > 0 and self.wait_count >= self.patience:
            trainer.should_stop = True

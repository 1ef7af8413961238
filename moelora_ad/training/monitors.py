"""Checks before training: whether the figures that callbacks monitor will be logged, and whether dev gives an EER."""

import difflib

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from moelora_ad.data.data_module import TRAIN, known_data
from moelora_ad.data.trainer_state import is_fast_dev_run
from moelora_ad.errors import InputError, counted
from moelora_ad.runs.record import DEV
from moelora_ad.training.losses.loss_module import LossModule

LOGGED_FIGURES = (f"{DEV}/eer", f"{DEV}/loss", f"{TRAIN}/loss", f"{TRAIN}/loss_epoch", f"{TRAIN}/loss_step")
_OURS = ("moelora_ad", "lightning")


def check_monitors(trainer: Trainer, module: LossModule) -> None:
    """Check that the figures that checkpoints and early stopping monitor will be logged.

    Figures of other callbacks of this package (``routing/``, ``gradients/``, ``train/auxiliary/`` and the like) are not
    checked. Nothing is checked if the user has callbacks or a module of their own, which may log any name.

    Raises:
        InputError: a name will never be logged.
    """
    makers = [module, *trainer.callbacks]  # type: ignore[attr-defined]
    if any(type(maker).__module__.partition(".")[0] not in _OURS for maker in makers):
        return
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name = callback.monitor if isinstance(callback, EarlyStopping | ModelCheckpoint) else None
        if name is None or name in LOGGED_FIGURES or name.startswith(_prefixes(module)):
            continue
        near = difflib.get_close_matches(name, LOGGED_FIGURES, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else f"; choose from {', '.join(LOGGED_FIGURES)}"
        raise InputError(f"{type(callback).__name__}: its monitor {name!r} is never logged{hint}")


def check_dev_limit(trainer: Trainer) -> None:
    """Check that the part of the development set that ``limit_val_batches`` or ``overfit_batches`` leaves has both
    classes, so that there is an EER to select by.

    Raises:
        InputError: a class is missing.
    """
    data = known_data(trainer)
    if data is None or is_fast_dev_run(trainer):
        return
    num_batches = sum(int(count) for count in trainer.num_val_batches)
    if not num_batches:
        return
    (loader,) = trainer.val_dataloaders  # type: ignore[misc]
    scored = data.eval_trials[DEV].labels[loader.sampler.of_first(num_batches)]
    counts = int((scored == 1).sum()), int((scored == 0).sum())
    if not all(counts):
        raise InputError(
            f"{counted(num_batches, 'batch', 'batches')} of {DEV}: {counts[0]} bona fide, {counts[1]} spoof, so there "
            "is no EER to select by: raise trainer.limit_val_batches (trainer.overfit_batches sets it too)"
        )


def _prefixes(module: LossModule) -> tuple[str, ...]:
    logged = ["routing/", "gradients/"]
    if module.auxiliary is not None or module.tether is not None:
        logged += [f"{TRAIN}/auxiliary/", f"{TRAIN}/tether", f"{TRAIN}/total_loss"]
    if module.meta_learning is not None:
        logged.append(f"{TRAIN}/meta_")
    return tuple(logged)

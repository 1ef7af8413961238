"""What Weights & Biases gets of a run besides its figures: its group, its configuration and its best model."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console

from moelora_ad.configuration.building import detector_state, load_weights
from moelora_ad.data.data_module import known_data
from moelora_ad.data.shares import by_name
from moelora_ad.data.trainer_state import is_fast_dev_run, run_directory, shards_the_model
from moelora_ad.errors import InputError
from moelora_ad.training.callbacks.run_recorder import git_commit
from moelora_ad.training.detection_module import DetectionModule

MODEL = "model"


def group_runs(loggers: Any, system: str, seed: int) -> None:
    """Group the runs of a system with different seeds, and name each run, unless the configuration does so.

    Args:
        loggers: ``trainer.logger`` of a parsed configuration, changed in place before anything is built of it.
        system: name of the group.
        seed: seed of this run.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, Namespace) and str(logger.class_path).endswith(".WandbLogger"):
            for name, value in (("group", system), ("name", f"{system}-seed{seed}")):
                if logger.init_args.get(name) is None:
                    logger.init_args[name] = value


class WandbRun(Callback):
    """Sends W&B the configuration of a training run and, at its end, its best model; does nothing without a
    ``WandbLogger``.

    The configuration of the W&B run gets the whole configuration of the run, with ``system``, ``seed``, ``git_commit``
    and ``parameters``. The best model (adapters, gates, classifier: what ``moelora-ad export`` writes) is saved to
    ``RUN/model`` and logged as the artifact ``model-ID`` of type ``model``, offline too; its metadata has the dev EER.
    No model is logged if the encoder itself was trained, which makes it large, or if the strategy shards the weights; a
    warning is printed then.

    Args:
        system: name of the system that is compared, the same for all its seeds; None for the name of the run's folder.
        configuration: the resolved configuration; None for that of the module.
    """

    def __init__(self, system: str | None = None, configuration: Mapping[str, Any] | None = None) -> None:
        self.system = system
        self.configuration = configuration

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in _loggers(trainer):
            assert isinstance(pl_module, DetectionModule)
            configuration = self.configuration or pl_module.configuration or {}
            parameters = pl_module.detector.parameter_counts()
            logger.log_hyperparams({**configuration, **self._about(trainer), "parameters": parameters})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loggers = _loggers(trainer)
        if not loggers:
            return
        assert isinstance(pl_module, DetectionModule)
        callback = trainer.checkpoint_callback
        if not isinstance(callback, ModelCheckpoint) or not callback.best_model_path:
            _warn("there is no checkpoint")
            return
        best = callback.best_model_path
        try:
            folder = save_best(trainer, pl_module, best)
        except (InputError, OSError) as error:  # the run must not fail because of it
            _warn(f"{error}; moelora-ad export --checkpoint {os.path.relpath(best)} makes one")
            return
        import wandb  # here, as it takes seconds

        score = callback.best_model_score
        metadata = {
            **self._about(trainer),
            "dev_eer": None if score is None else float(score),
            "checkpoint": Path(best).name,
        }
        for logger in loggers:
            run = logger.experiment
            artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=metadata)
            artifact.add_dir(str(folder))
            run.log_artifact(artifact, aliases=["best"])

    def _about(self, trainer: Trainer) -> dict[str, Any]:
        data = known_data(trainer)
        system = self.system or run_directory(trainer).name
        return {"system": system, "seed": None if data is None else data.seed, "git_commit": git_commit()}


def save_best(trainer: Trainer, module: DetectionModule, best: str) -> Path:
    """Save the model of a checkpoint of the run to ``RUN/model``; the module's weights stay as they are.

    Raises:
        InputError: the weights are sharded, are those of a whole encoder, or cannot be saved as they are.
    """
    detector, data = module.detector, known_data(trainer)
    if shards_the_model(trainer):
        raise InputError("the strategy shards the weights")
    if detector.parameters_by_part()["backbone"]:
        raise InputError("the encoder itself was trained")
    best_weights = detector_state(best)
    kept = detector.kept_names()
    own = {name: tensor.clone() for name, tensor in detector.state_dict().items() if name in kept}
    if data is not None:
        detector.window, detector.fill = data.scored_clips
        corpora = sorted({corpus.name for corpus in by_name(data.train).values()})
        selection = "" if data.val is None else data.val.name
        detector.about = {"data": {"training": ", ".join(corpora), "selection of the checkpoint": selection}}
    folder = run_directory(trainer) / MODEL
    load_weights(detector, best_weights, best)
    try:
        detector.save_pretrained(folder)
    finally:
        detector.load_state_dict(own, strict=False)
    return folder


def _warn(reason: str) -> None:
    line = f"warning: no model was logged to W&B: {' '.join(reason.split())}"
    Console(file=sys.stderr, soft_wrap=True).print(line, markup=False, highlight=False)


def _loggers(trainer: Trainer) -> list[WandbLogger]:
    """The W&B loggers; none in processes other than the first, which alone logs."""
    if not trainer.is_global_zero or is_fast_dev_run(trainer):
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]

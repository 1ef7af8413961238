"""The verbs fit, validate, test and predict: Lightning's command line around our classes."""

import os
import sys
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from moelora_ad.adapters import AdapterError
from moelora_ad.errors import InputError
from moelora_ad.models.precision import ROUNDED
from moelora_ad.training.announcing import with_start_block
from moelora_ad.training.batch_norm import SyncedBatchNorm
from moelora_ad.training.data_module import DEV, AudioDeepfakeDataModule
from moelora_ad.training.detection_module import DetectionModule
from moelora_ad.training.precision import FrozenHalfPrecision, cast_by_autocast_alone, check_trains
from moelora_ad.training.progress import callbacks_of, silence_banners, with_progress
from moelora_ad.training.recording import RunRecorder
from moelora_ad.training.routing_log import RoutingLog
from moelora_ad.training.run import is_fast_dev_run, run_directory, shards_the_model
from moelora_ad.training.stopping import LastingEarlyStopping, WholeCheckpoint, last_saved, memory_told
from moelora_ad.training.summary import any_failures, print_evaluation, print_fit, unscored
from moelora_ad.training.usage import OneLineParser
from moelora_ad.training.wandb_run import WandbRun, group_runs

FAILED, INTERRUPTED, TERMINATED = 1, 130, 143
# Advice that our own defaults answer already.
SILENCED = (
    ".*does not have many workers.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ".*lightning.pytorch.* due to potential conflicts.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*ended before the epoch ended and your dataloader is not resumable.*",  # TrainingBatches resumes
    ".*The dirpath has changed from.*",  # a test of an earlier run's checkpoint
    ".*module\\(s\\) in eval mode at the start of training.*",  # frozen means frozen
    ".*It is recommended to use `self.log\\('routing/.*sync_dist=True.*",  # the first process logs what all have
    ".*The `srun` command is available on your system but is not used.*",
)


def run(program: str) -> int:
    """Run the verb in ``sys.argv``; returns the exit code."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    silence_banners()
    for message in SILENCED:
        warnings.filterwarnings("ignore", message=message)
    try:
        command = DetectionCommand(
            DetectionModule,
            AudioDeepfakeDataModule,
            save_config_callback=_SaveRunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=1,
            parser_class=OneLineParser,
            parser_kwargs={"allow_abbrev": False},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
    except (InputError, AdapterError, MisconfigurationException) as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        _tell_once(f"{program}: interrupted")
        return INTERRUPTED
    except SIGTERMException:
        _tell_once(f"{program}: terminated")
        return TERMINATED
    # One process tells: Lightning takes another one's exit code for a crash.
    if not command.trainer.is_global_zero:
        return 0
    for problem in unscored(command.model):
        print(f"{program}: error: {problem}", file=sys.stderr)
    return FAILED if any_failures(command.model) else 0


def _tell_once(line: str) -> None:
    """Of several processes, which all end for the same reason, the first tells."""
    if getattr(rank_zero_only, "rank", 0) == 0:
        print(line, file=sys.stderr)


class _SaveRunConfig(SaveConfigCallback):
    """Puts the configuration into the folder of the run, whatever the logger."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = run_directory(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, folder / "config.yaml", skip_unset=False, overwrite=True, multifile=False)


def _listed(plugins: Any) -> list[Any]:
    return [*plugins] if isinstance(plugins, list) else [plugins] if plugins is not None else []


class DetectionCommand(LightningCLI):
    """LightningCLI with our defaults: selection by dev EER, a test of the best checkpoint after fit, plain errors."""

    model: DetectionModule
    datamodule: AudioDeepfakeDataModule

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(WholeCheckpoint, "checkpoint")
        parser.add_lightning_class_args(LastingEarlyStopping, "early_stopping")
        parser.add_argument(
            "--test_after_fit", type=bool, default=True, help="fit ends with a test of the best checkpoint"
        )
        parser.add_argument(
            "--system",
            type=str | None,
            default=None,
            help="name of what is compared, which its seeds share (default: the first logger's name)",
        )
        parser.add_argument(
            "--score_folder",
            type=str | None,
            default=None,
            help="folder of score files (default: scores/NAME of the run of the checkpoint NAME.ckpt)",
        )
        parser.set_defaults(
            {
                "checkpoint.monitor": f"{DEV}/eer",
                "checkpoint.filename": f"epoch{{epoch:02d}}-dev_eer{{{DEV}/eer:.4f}}",
                "checkpoint.auto_insert_metric_name": False,
                "checkpoint.save_last": True,
                "checkpoint.save_on_exception": True,
                "early_stopping.monitor": f"{DEV}/eer",
                "early_stopping.patience": 10,
                # A run that continues from the middle of an epoch may have no figure at the first epoch's end.
                "early_stopping.strict": False,
                # A second GPU doubles the batch of an optimiser step: that is for the user to say.
                "trainer.devices": 1,
                "trainer.sync_batchnorm": True,
            }
        )
        parser.link_arguments("seed_everything", "data.seed")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        # Loading is always weights_only, and our own tables replace the verbose ones.
        ours = {"model", "datamodule", "weights_only"}
        return {
            "fit": ours | {"train_dataloaders", "val_dataloaders"},
            "validate": ours | {"dataloaders", "verbose"},
            "test": ours | {"dataloaders", "verbose"},
            "predict": ours | {"dataloaders", "return_predictions"},
        }

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        if self.subcommand == "fit":
            self.recorder = RunRecorder(self._get(self.config, "system"), tuple(sys.argv[1:]))
            callbacks = [*callbacks, self.recorder, *self._watching(callbacks_of(config))]
            config = with_start_block(config)
        plugins = _listed(config.get("plugins"))
        if (precision := config.get("precision")) in ROUNDED:
            config["precision"] = None
            plugins.append(FrozenHalfPrecision(precision))
        if config.pop("sync_batchnorm"):
            plugins.append(SyncedBatchNorm())
        config = with_progress(config | {"plugins": plugins}, lines=self.subcommand == "fit")
        trainer = super()._instantiate_trainer(config, callbacks)
        cast_by_autocast_alone(trainer.strategy)
        return trainer

    def _watching(self, given: list[Callback]) -> list[Callback]:
        """What watches a training run for its loggers, unless the configuration has such callbacks itself."""
        ours = [RoutingLog(), WandbRun(self._get(self.config, "system"), self.configuration)]
        return [callback for callback in ours if not any(isinstance(other, type(callback)) for other in given)]

    def instantiate_classes(self) -> None:
        parser = self._parser(self.subcommand)
        if self.subcommand == "fit":
            try:
                check_trains(self._get(self.config, "trainer.precision"))
            except InputError as error:
                parser.error(str(error))
        system = self._get(self.config, "system") if self.subcommand == "fit" else None
        if system is not None:
            given = self.config[self.subcommand]
            group_runs(given.trainer.logger, system, given.seed_everything)
        self.configuration = yaml.safe_load(parser.dump(self.config[self.subcommand], skip_validation=True))
        try:
            super().instantiate_classes()
        except (ValueError, MisconfigurationException) as error:
            parser.error(str(error))
        self.model.configuration = {part: self.configuration.get(part) for part in ("model", "data")}
        folder = self._get(self.config, "score_folder")
        self.model.score_folder = None if folder is None else Path(folder)

    def _parse_ckpt_path(self) -> None:
        """Refuse a checkpoint that cannot be read, before anything is built (Lightning would look for
        hyper-parameters in it; ours are in the configuration)."""
        verb = self.config.subcommand
        path = self.config[verb].ckpt_path
        if path is None or path in ("best", "last", "hpc", "registry") or "://" in str(path):
            return
        if not os.path.exists(path):
            self._parser(verb).error(f"--ckpt_path: {path} does not exist")
        if os.path.isfile(path):  # a folder is a sharded checkpoint
            try:
                torch.load(path, weights_only=True, map_location="meta")
            except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                self._parser(verb).error(f"--ckpt_path: {path} is no readable checkpoint: {reason}")

    def fit(self, **arguments: Any) -> None:
        """Train; then score the development set and every test set with the best checkpoint."""
        try:
            with memory_told(self.trainer, self.datamodule):
                self.trainer.fit(**arguments, weights_only=True)
        except SIGTERMException:
            self._tell_saved()
            raise
        except SystemExit:  # Lightning's answer to Ctrl-C, after it has saved a checkpoint
            self._tell_saved()
            raise KeyboardInterrupt from None
        if is_fast_dev_run(self.trainer):
            return
        checkpoint = self._checkpoint()
        tested = self._get(self.config, "test_after_fit") and not shards_the_model(self.trainer)
        if tested:
            evaluation = {"model": self.model, "datamodule": self.datamodule, "ckpt_path": checkpoint}
            self.validate(**evaluation)
            if self.datamodule.test:
                self.test(**evaluation)
        self.recorder.finish(self.trainer, tested)
        if self.trainer.is_global_zero:
            print_fit(self.trainer, self.model, checkpoint, tested, self.recorder.record)

    def validate(self, **arguments: Any) -> None:
        with memory_told(self.trainer, self.datamodule):
            self.trainer.validate(**arguments, weights_only=True, verbose=False)
        self._print_evaluation()

    def test(self, **arguments: Any) -> None:
        with memory_told(self.trainer, self.datamodule):
            self.trainer.test(**arguments, weights_only=True, verbose=False)
        self._print_evaluation()

    def predict(self, **arguments: Any) -> None:
        with memory_told(self.trainer, self.datamodule):
            self.trainer.predict(**arguments, weights_only=True, return_predictions=False)
        self._print_evaluation()

    def _print_evaluation(self) -> None:
        if self.subcommand != "fit" and self.trainer.is_global_zero:
            print_evaluation(self.trainer, self.model)

    def _checkpoint(self) -> str:
        callback = self.trainer.checkpoint_callback
        assert isinstance(callback, ModelCheckpoint)
        return callback.best_model_path or callback.last_model_path

    def _tell_saved(self) -> None:
        saved = last_saved(self.trainer)
        if saved and self.trainer.is_global_zero:
            print(f"\nsaved {saved}; give it as --ckpt_path to continue", file=sys.stderr)

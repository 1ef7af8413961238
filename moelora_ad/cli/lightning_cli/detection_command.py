"""Lightning's command line around our classes: fit, validate, test and predict."""

import os
import shlex
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from moelora_ad.adapters import AdapterError
from moelora_ad.cli.arguments import FAILED
from moelora_ad.cli.lightning_cli.model_folder import is_model, with_model
from moelora_ad.cli.lightning_cli.resuming import expand_home, has_own_checkpoints, in_its_folder, note_other_folder
from moelora_ad.cli.lightning_cli.run_config import SaveRunConfig
from moelora_ad.configuration.parser import OneLineParser
from moelora_ad.configuration.trust import check_made_later, import_from_here, imports_limited
from moelora_ad.data.data_module import AudioDeepfakeDataModule
from moelora_ad.data.trainer_state import is_fast_dev_run, no_empty_folder, shards_the_model
from moelora_ad.errors import InputError
from moelora_ad.lightning_internals import starts_functions
from moelora_ad.models.precision import ROUNDED
from moelora_ad.models.saving.checkpoints import check_readable
from moelora_ad.runs.checkpoints import BEST, LAST, CheckpointError, checkpoint_of, missing, run_of
from moelora_ad.runs.record import DEV
from moelora_ad.training.batch_norm import SyncedBatchNorm
from moelora_ad.training.callbacks.checkpoints import WholeCheckpoint
from moelora_ad.training.callbacks.early_stopping import LastingEarlyStopping
from moelora_ad.training.callbacks.end_summary import any_failures, print_evaluation, print_fit, unscored
from moelora_ad.training.callbacks.progress import callbacks_of, silence_banners, with_progress
from moelora_ad.training.callbacks.routing_log import RoutingLog
from moelora_ad.training.callbacks.run_recorder import RunRecorder
from moelora_ad.training.callbacks.start_summary import with_start_block
from moelora_ad.training.callbacks.wandb import WandbRun, group_runs
from moelora_ad.training.checkpoint_writing import last_saved, write_whole_checkpoints
from moelora_ad.training.detection_module import DetectionModule
from moelora_ad.training.interruptions.signals import StopBetweenBatches, explain_interruptions
from moelora_ad.training.precision import FrozenHalfPrecision, check_trains, compute_as_others_do

HPC = "hpc"  # the checkpoint that Lightning saves before SLURM ends or requeues a job
# Warnings that do not apply to our defaults.
SILENCED = (
    ".*does not have many workers.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ".*lightning.pytorch.* due to potential conflicts.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*ended before the epoch ended and your dataloader is not resumable.*",  # TrainingBatches resumes
    ".*The dirpath has changed from.*",  # a test of an earlier run's checkpoint
    ".*(Checkpoint|Experiment logs) directory .* exists and is not empty.*",  # a run that continues keeps its files
    ".*module\\(s\\) in eval mode at the start of training.*",  # frozen layers are in eval mode on purpose
    ".*It is recommended to use `self.log\\('(routing|train)/.*sync_dist=True.*",  # all processes have the same
    ".*The `srun` command is available on your system but is not used.*",
)


def run_command(argv: Sequence[str], program: str) -> int:
    """Run the command ``argv[0]`` with its arguments ``argv[1:]``; returns the exit code."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import_from_here()
    silence_banners()
    for message in SILENCED:
        warnings.filterwarnings("ignore", message=message)
    try:
        keeping = {"save_config_callback": SaveRunConfig, "save_config_kwargs": {"save_to_log_dir": False}}
        command = DetectionCommand(list(argv), **keeping)
    except (InputError, AdapterError, MisconfigurationException) as error:
        if str(error):  # otherwise another process reports it
            print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    # Only the first process reports failures: Lightning takes a failure code of another one for a crash.
    if not command.trainer.is_global_zero:
        return 0
    problems = [*unscored(command.model), *(f"{name}: {why}" for name, why in command.datamodule.unreadable.items())]
    for problem in problems:
        print(f"{program}: error: {problem}", file=sys.stderr)
    return FAILED if problems or any_failures(command.model) else 0


def _listed(plugins: Any) -> list[Any]:
    return [*plugins] if isinstance(plugins, list) else [plugins] if plugins is not None else []


class DetectionCommand(LightningCLI):
    """LightningCLI with our defaults: selection by dev EER, a test of the best checkpoint after fit, plain errors.

    Args:
        args: the command and its arguments.
        settings: others of ``LightningCLI``. Configurations are saved only if ``save_config_callback`` is given.
    """

    model: DetectionModule
    datamodule: AudioDeepfakeDataModule
    allow: Collection[str] | None = None  # see `imports_limited`
    _parsers: tuple[LightningArgumentParser, ...] = ()  # the one in front of the command's, and the command's

    def __init__(self, args: list[str], **settings: Any) -> None:
        self.verb = args[0]
        ours = {"save_config_callback": None, "seed_everything_default": 1, "parser_class": OneLineParser}
        off = dict.fromkeys(("auto_configure_optimizers", "load_from_checkpoint_support"), False)
        super().__init__(DetectionModule, AudioDeepfakeDataModule, args=args, **(off | ours | settings))

    def init_parser(self, **arguments: Any) -> LightningArgumentParser:
        parser = super().init_parser(**arguments)
        self._parsers += (parser,)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:  # type: ignore[override]
        self.argv = tuple(args)
        try:
            args = with_model(args)
        except InputError as error:
            parser.error(str(error))
        with imports_limited(self.allow):
            self.config = parser.parse_args(args)
        self.given = self.config[self.verb]
        expand_home(self.given)
        self.verb_parser = self._parsers[-1]
        if type(seed := self.given.seed_everything) is int and not 0 <= seed < 2**32:
            self.verb_parser.error(f"seed_everything: {seed} is not a whole number from 0 to 4294967295")
        self._find_checkpoint()
        # Lightning would look for hyper-parameters in the checkpoint next; ours are in the configuration.
        self._checkpoint_given, self.given.ckpt_path = self.given.ckpt_path, None

    def before_instantiate_classes(self) -> None:
        self.given.ckpt_path = self._checkpoint_given

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
            "--untrained",
            type=bool,
            default=False,
            help="validate, test and predict judge the model without a checkpoint: adapters and classifier untrained",
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
                # A second GPU doubles the batch of an optimiser step: the user must decide that.
                "trainer.devices": 1,
                "trainer.sync_batchnorm": True,
            }
        )
        parser.link_arguments("seed_everything", "data.seed")

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        # The one that is called: a parser takes a tenth of a second. Loading is always weights_only, and our own tables
        # replace the verbose ones.
        loaders = {"train_dataloaders", "val_dataloaders", "dataloaders"}
        return {self.verb: loaders | {"model", "datamodule", "weights_only", "verbose", "return_predictions"}}

    def instantiate_trainer(self, **changes: Any) -> Trainer:
        config = {**self.config_init[self.verb].trainer, **changes}
        if self.verb == "fit":
            self.recorder = RunRecorder(self.given.system, self.argv)
            self.interruption = StopBetweenBatches()
            watching = self._watching(callbacks_of(config))
            self.trainer_defaults = {"callbacks": [self.recorder, self.interruption, *watching]}
            config = with_start_block(config)
        plugins = _listed(config.get("plugins"))
        if (precision := config.get("precision")) in ROUNDED:
            config["precision"] = None
            plugins.append(FrozenHalfPrecision(precision))
        if config["sync_batchnorm"]:
            config["sync_batchnorm"] = False
            plugins.append(SyncedBatchNorm())
        config = with_progress(config | {"plugins": plugins}, lines=self.verb == "fit")
        trainer = super().instantiate_trainer(**config)
        if starts_functions(trainer.strategy):
            self.verb_parser.error("trainer.strategy: forked or spawned processes return no scores: give 'ddp'")
        compute_as_others_do(trainer.strategy)
        write_whole_checkpoints(trainer.strategy)
        return trainer

    def _watching(self, given: list[Callback]) -> list[Callback]:
        """The callbacks that log a training run, except those that the configuration has itself."""
        ours = [RoutingLog(), WandbRun(self.given.system, self.configuration)]
        return [callback for callback in ours if not any(isinstance(other, type(callback)) for other in given)]

    def instantiate_classes(self) -> None:
        with imports_limited(self.allow):
            self._instantiate_classes()

    def _instantiate_classes(self) -> None:
        with self._usage_errors():
            check_made_later(self.given.model)
            if self.verb == "fit":
                check_trains(self.given.trainer.precision)
        if self.verb == "fit" and self.given.system is not None:
            group_runs(self.given.trainer.logger, self.given.system, self.given.seed_everything)
        self.configuration = yaml.safe_load(self.verb_parser.dump(self.given, skip_validation=True))
        with self._usage_errors():
            data = self._data()
        self._read_trials(data)  # missing files are reported before a backbone is fetched and built
        with self._usage_errors(), in_its_folder(self.given, self.verb == "fit"):
            super().instantiate_classes()
        self.datamodule = data
        self.model.configuration = {part: self.configuration.get(part) for part in ("model", "data")}
        folder = self.given.score_folder
        self.model.score_folder = None if folder is None else Path(folder)
        self.model.untrained = self.verb != "fit" and self.given.ckpt_path is None

    @contextmanager
    def _usage_errors(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, MisconfigurationException) as error:
            self.verb_parser.error(str(error))

    def _data(self) -> AudioDeepfakeDataModule:
        # With instantiate_groups, the model and the trainer would be built too.
        built = self.verb_parser.instantiate(Namespace(data=self.given.data), instantiate_groups=False)
        return AudioDeepfakeDataModule(**vars(built.data))

    def _read_trials(self, data: AudioDeepfakeDataModule) -> None:
        data.read_trials(self.verb, test=self.verb == "fit" and self.given.test_after_fit)

    def _find_checkpoint(self) -> None:
        """Find and read the checkpoint before anything is built."""
        verb, given = self.verb, self.given
        try:
            if given.untrained and (verb == "fit" or given.ckpt_path is not None):
                raise CheckpointError("--untrained is for validate, test and predict without --ckpt_path")
            if given.ckpt_path is None:
                if verb != "fit" and not given.untrained:
                    raise missing(self._run_of_configuration(), verb)
                return
            if verb == "fit" and is_model(given.ckpt_path):
                raise CheckpointError(
                    f"--ckpt_path: {given.ckpt_path} is a model, not a checkpoint of a run to resume; to "
                    f"start from its weights, --model.init_weights {given.ckpt_path}"
                )
            if given.ckpt_path in (BEST, LAST):
                given.ckpt_path = checkpoint_of(self._run_of_configuration(), given.ckpt_path, verb)
            if given.ckpt_path != HPC:  # only Lightning can find that one
                check_readable(given.ckpt_path, any_folder=has_own_checkpoints(given.trainer))
            elif verb != "fit":
                raise CheckpointError(f"--ckpt_path {HPC}: resumes training, for fit only")
        except InputError as error:
            self.verb_parser.error(str(error))

    def _run_of_configuration(self) -> Path | None:
        logger = self.given.trainer.logger
        loggers = logger if isinstance(logger, list) else [logger]
        first = loggers[0].as_dict() if loggers and isinstance(loggers[0], Namespace) else None
        return run_of([path.absolute for path in self.given.config or []], first)

    def fit(self, **arguments: Any) -> None:
        """Train; then score the development set and every test set with the best checkpoint."""
        note_other_folder(self.trainer, checkpoint := arguments.get("ckpt_path"))
        try:
            with (
                explain_interruptions(self.trainer, self.datamodule),
                self.recorder.nothing_of_a_failed_start(self.trainer, resumes=checkpoint is not None),
                self.interruption.listening(),
            ):
                self.trainer.fit(**arguments, weights_only=True)
        except KeyboardInterrupt as stop:
            if saved := last_saved(self.trainer):
                stop.args = (f"saved {shlex.quote(saved)}; give it as --ckpt_path to continue",)
            raise
        except ValueError as error:
            if checkpoint != HPC or "no HPC checkpoint" not in str(error):
                raise
            self.verb_parser.error(f"--ckpt_path {HPC}: there is none in {self.trainer.default_root_dir}")
        if is_fast_dev_run(self.trainer):
            return
        best = self._checkpoint()
        tested = self.given.test_after_fit and not shards_the_model(self.trainer)
        if tested:
            evaluation = {"model": self.model, "datamodule": self.datamodule, "ckpt_path": best}
            self.validate(**evaluation)
            if self.datamodule.test:
                self.test(**evaluation)
        self.recorder.finish(self.trainer, tested)
        if self.trainer.is_global_zero:
            print_fit(self.trainer, self.model, best, tested, self.recorder.record)

    def validate(self, **arguments: Any) -> None:
        self._evaluate(self.trainer.validate, **arguments, verbose=False)

    def test(self, **arguments: Any) -> None:
        self._evaluate(self.trainer.test, **arguments, verbose=False)

    def predict(self, **arguments: Any) -> None:
        self._evaluate(self.trainer.predict, **arguments, return_predictions=False)

    def _evaluate(self, evaluate: Callable[..., object], **arguments: Any) -> None:
        with explain_interruptions(self.trainer, self.datamodule), no_empty_folder(self.trainer):
            evaluate(**arguments, weights_only=True)
        if self.verb != "fit" and self.trainer.is_global_zero:
            print_evaluation(self.trainer, self.model)

    def _checkpoint(self) -> str:
        callback = self.trainer.checkpoint_callback
        assert isinstance(callback, ModelCheckpoint)
        return callback.best_model_path or callback.last_model_path

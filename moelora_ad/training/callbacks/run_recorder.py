"""The record of a training run, `run.json`, updated while it runs."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

import moelora_ad
from moelora_ad.data.data_module import TRAIN, AudioDeepfakeDataModule
from moelora_ad.data.score_origin import versions
from moelora_ad.data.shares import by_name
from moelora_ad.data.trainer_state import is_fast_dev_run, run_directory, score_folder
from moelora_ad.errors import printable
from moelora_ad.files import written_whole
from moelora_ad.runs.folder import keep_metrics, restore_metrics
from moelora_ad.runs.record import (
    DEV,
    RECORD,
    ConfiguredSet,
    RecordedSet,
    RunRecord,
    State,
    read_record,
    trials_hash,
)
from moelora_ad.training.detection_module import DetectionModule
from moelora_ad.training.interruptions.lost_processes import is_of_lost_process
from moelora_ad.training.schedule import optimizer_steps


class RunRecorder(Callback):
    """Writes ``run.json`` into the folder of a run: at the start, after every validation, and at the end.

    A run that resumes in the same folder continues its record. Only the first process writes.

    Args:
        system: name of the system that is compared, the same for all its seeds; None for the first logger's name.
        command: the arguments of the command line.
    """

    def __init__(self, system: str | None = None, command: tuple[str, ...] = ()) -> None:
        self.system = system
        self.command = command
        self.record: RunRecord | None = None
        self._first_step: int | None = None
        self._begun = time.monotonic()
        self._seconds_before = 0.0
        self._peak_before: dict[str, int | None] = {"host": None, "cuda": None}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_fast_dev_run(trainer):
            return
        assert isinstance(pl_module, DetectionModule)
        folder = run_directory(trainer)
        earlier = read_record(folder) if (folder / RECORD).exists() else None
        self._begun = time.monotonic()
        if earlier is not None:
            self._seconds_before, self._peak_before = earlier.seconds, dict(earlier.peak_memory_bytes)
        data: AudioDeepfakeDataModule = trainer.datamodule  # type: ignore[attr-defined]
        steps = optimizer_steps(trainer)
        name = self.system or (str(trainer.loggers[0].name) if trainer.loggers else folder.name)
        self.record = RunRecord(
            folder=folder,
            state="running",
            reason=None,
            system=printable(name),
            seed=data.seed,
            started=_now() if earlier is None else earlier.started,
            updated=_now(),
            seconds=self._seconds_before,
            attempts=1 if earlier is None else earlier.attempts + 1,
            epoch=trainer.current_epoch,
            max_epochs=None if trainer.max_epochs in (None, -1) else trainer.max_epochs,
            step=trainer.global_step,
            max_steps=int(steps) if steps != float("inf") else None,
            dev_eer=None if earlier is None else earlier.dev_eer,
            best_dev_eer=None if earlier is None else earlier.best_dev_eer,
            parameters=pl_module.parameter_counts,
            training_corpora=tuple(sorted({corpus.name for corpus in by_name(data.train).values()})),
            sets={},
            checkpoint=None if earlier is None else earlier.checkpoint,
            scores=None,
            peak_memory_bytes=self._peak(),
            versions=versions(),
            git_commit=git_commit(),
            command=self.command,
            configured_sets=_configured_sets(data),
            init_weights=pl_module.started_from,
            selections=_selections(data),
        )
        self._write(trainer, "running")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_step = trainer.global_step

    @contextmanager
    def nothing_of_a_failed_start(self, trainer: Trainer, resumes: bool) -> Iterator[None]:
        """Undo what a fit within the block has written if it ends with an error before its first step is done: a new
        folder is removed, and a finished run that was to continue stays as it was.

        Args:
            trainer: before the fit.
            resumes: whether the fit resumes from a checkpoint.
        """
        folder = run_directory(trainer)
        is_new, earlier = not folder.exists(), read_record(folder) if (folder / RECORD).is_file() else None
        finished = earlier is not None and earlier.state == "finished"
        files = [folder / name for name in (RECORD, "config.yaml")] if finished else []
        kept = {path: path.read_bytes() for path in files if path.is_file()}
        if trainer.is_global_zero and earlier is not None and (resumes or not finished):
            keep_metrics(folder, earlier.attempts)
        try:
            yield
        except BaseException:
            has_trained = self._first_step is not None and trainer.global_step > self._first_step
            if trainer.is_global_zero and not has_trained:
                if is_new:
                    shutil.rmtree(folder, ignore_errors=True)
                for path, content in kept.items():
                    with written_whole(path) as unfinished:
                        unfinished.write_bytes(content)
                if earlier is not None and finished and resumes:
                    restore_metrics(folder, earlier.attempts)
            raise

    # Every process takes part, although one writes: some of Lightning's figures are computed by all of them together.
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._write(trainer, "running")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        interrupted = isinstance(exception, KeyboardInterrupt | SystemExit) or "SIGTERM" in type(exception).__name__
        lost = trainer.world_size > 1 and is_of_lost_process(exception)
        words = "another process of the run has ended" if lost else " ".join(str(exception).split())
        try:
            self._write(trainer, "interrupted" if interrupted else "failed", words or type(exception).__name__)
        except OSError as error:  # the run must end with its own error, not with this one
            print(f"warning: {RECORD} cannot be written: {error.strerror}", file=sys.stderr)

    def finish(self, trainer: Trainer, tested: bool) -> None:
        """Close the record of a finished run.

        Args:
            trainer: trainer of the run.
            tested: whether the best checkpoint was evaluated afterwards.
        """
        if self.record is None:
            return
        module: Any = trainer.lightning_module
        data: AudioDeepfakeDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if tested:
            sets = {}
            for name, figures in module.evaluated.items():
                corpus = data.val if name == DEV else data.test[name]
                sets[name] = RecordedSet(
                    corpus.name if corpus else name, figures.eer, figures.num_bona_fide, figures.num_spoof
                )
            scores = _below(score_folder(trainer), self.record.folder)
            self.record = replace(self.record, sets=sets, scores=scores)
        self._write(trainer, "finished")

    def _write(self, trainer: Trainer, state: State, reason: str | None = None) -> None:
        if self.record is None:
            return
        checkpoint = trainer.checkpoint_callback
        found: dict[str, Any] = {}
        best_path = checkpoint.best_model_path if isinstance(checkpoint, ModelCheckpoint) else ""
        if best_path and ("://" in best_path or os.path.exists(best_path)):  # Lightning names it before it is written
            found["checkpoint"] = _below(Path(best_path), self.record.folder)
        # After an error, other processes may be gone, and they are needed to compute figures.
        if state == "running" and f"{DEV}/eer" in trainer.callback_metrics:
            eer = float(trainer.callback_metrics[f"{DEV}/eer"])
            best = self.record.best_dev_eer
            found |= {"dev_eer": eer, "best_dev_eer": eer if best is None else min(best, eer)}
        # Lightning counts the validation at an epoch's end as part of it.
        ended = trainer.validating and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        self.record = replace(
            self.record,
            state=state,
            reason=reason and printable(reason),
            updated=_now(),
            seconds=self._seconds_before + time.monotonic() - self._begun,
            epoch=trainer.current_epoch + ended,
            step=trainer.global_step,
            peak_memory_bytes=self._peak(),
            **found,
        )
        if trainer.is_global_zero:
            self._save()

    def _save(self) -> None:
        assert self.record is not None
        path = self.record.folder / RECORD
        content = (json.dumps(self.record.as_dict(), indent=2) + "\n").encode()
        try:
            with written_whole(path) as unfinished:
                unfinished.write_bytes(content)
        except OSError as error:
            # A full disk has no room for a second file, but the blocks of this one remain allocated.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or len(content) > _allocated(path):
                raise
            with open(path, "r+b") as file:
                file.write(content)
                file.truncate()

    def _peak(self) -> dict[str, int | None]:
        """Peak memory of this process and of earlier attempts, in bytes."""
        cuda = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        found = {"host": peak_of_host(), "cuda": cuda}
        return {
            name: max(filter(None, (value, self._peak_before.get(name))), default=None) for name, value in found.items()
        }


def _configured_sets(data: AudioDeepfakeDataModule) -> dict[str, ConfiguredSet]:
    corpora = {DEV: data.val} | data.test
    read = {name: trials_hash(trials) for name, trials in data.trials_by_set.items()}
    return {name: ConfiguredSet(corpus.name, read.get(name)) for name, corpus in corpora.items() if corpus is not None}


def _selections(data: AudioDeepfakeDataModule) -> dict[str, str]:
    training = {".".join(filter(None, (TRAIN, name))): corpus for name, corpus in by_name(data.train).items()}
    corpora = training | {DEV: data.val} | data.test
    return {place: one.selection_note for place, one in corpora.items() if one is not None and one.selection_note}


def git_commit() -> str | None:
    """The commit of the package's code, with ``-dirty`` if files differ from it; None outside a git repository."""
    folder = Path(moelora_ad.__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
        # The package may be in an environment inside another repository.
        tracked = subprocess.run(
            ["git", "-C", str(folder), "ls-files", "--error-unmatch", "__init__.py"], capture_output=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return told if tracked.returncode == 0 else None


def peak_of_host() -> int | None:
    """Largest resident memory of this process, in bytes."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            line = next(line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):  # not Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512 if path.exists() else 0


def _below(path: Path, folder: Path) -> str:
    """The path relative to the run's folder, or the whole path of a file elsewhere."""
    path, folder = path.resolve(), folder.resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")

"""The corpora of an experiment as a Lightning data module."""

from collections.abc import Sized
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from moelora_ad.audio import SHORTEST, TRAINING_SAMPLES, Augmentation, Excerpt, ScoredClips, Segment
from moelora_ad.corpora import Corpus, TrialList
from moelora_ad.data.dataset import Batch, OnError, TrialDataset
from moelora_ad.data.held_out import without_attack
from moelora_ad.data.lengths import lengths_of
from moelora_ad.data.resuming import TrainingLoader
from moelora_ad.data.samplers import EvaluationBatches, FixedTrainingBatches, Group, TrainingBatches
from moelora_ad.data.score_origin import kept_scores
from moelora_ad.data.shares import by_name, check_labels, check_shares, training_trials, trials_of
from moelora_ad.data.workers import PREFETCHED, SILENT_SECONDS, begin_worker, check_room
from moelora_ad.errors import InputError
from moelora_ad.runs.record import DEV
from moelora_ad.runs.scores import KeptScores
from moelora_ad.torch_internals import WatchedLoader

TRAIN = "train"


class AudioDeepfakeDataModule(LightningDataModule):
    """Training and development corpora, and any number of named test sets.

    Args:
        train: corpus to train on, or several by name, joined.
        val: corpus whose EER selects the checkpoint; never augmented.
        test: corpora to test on, by the names that figures and score files carry.
        batch_size: training utterances of a batch, for each process.
        eval_batch_size: the same in validation, test and prediction; None for ``batch_size``.
        num_workers: processes that read audio, for each training process.
        multiprocessing_context: how these processes are started; None for the system's default.
        train_weights: shares of an epoch for the joined corpora, in proportion to each other; None for their sizes.
        class_balanced: draw bona fide and spoof in equal shares, within the share of each corpus.
        train_segment: what is taken of each utterance to train on.
        eval_segment: what is taken of each utterance to be scored.
        train_augmentation: changes the training segments, such as ``RawBoost``; other segments are never augmented.
        augment_before_crop: augment the whole utterance, and then take the training segment from it.
        train_on_error: what happens to a training file that cannot be read: it stops the run, or is reported at the end
            and left out of the loss.
        eval_on_error: the same for ``validate``, ``test`` and ``predict``; reported files get no score. In the
            validation within ``fit`` such a file always stops the run: selection needs all of the development set.
        seed: fixes the order of trials and every random draw for an utterance; ``seed_everything`` on the command line.
        held_out_attack: an attack that is left out of training and selection; the test set ``held_out`` has the
            development corpus's spoofs of it, and bona fide trials of speakers whose bona fide trials have no part in
            selection.

    Attributes:
        train_trials: the training trials, once they have been read.
        trials_by_set: trials of the development set and the test sets that have been read, by the set's name.
        unreadable: why the trial list of a test set cannot be read, by the set's name; the others are scored.
        eval_trials: trials of the sets of the present stage, by the set's name.

    Raises:
        InputError: a name, a number or a weight is not valid; from ``setup``: see `read_trials`.
    """

    def __init__(
        self,
        train: Corpus | dict[str, Corpus] | None = None,
        val: Corpus | None = None,
        test: dict[str, Corpus] | None = None,
        batch_size: int = 14,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None,
        train_weights: dict[str, float] | None = None,
        class_balanced: bool = False,
        train_segment: Segment | Excerpt | None = None,
        eval_segment: Segment | Excerpt | None = None,
        train_augmentation: Augmentation | None = None,
        augment_before_crop: bool = False,
        train_on_error: OnError = "raise",
        eval_on_error: OnError = "report",
        seed: int = 1,
        held_out_attack: str | None = None,
    ) -> None:
        super().__init__()
        for name in test or {}:
            taken = name in (DEV, TRAIN) or name.endswith(".failed")
            if taken or not name or name.startswith(".") or set(name) & set("/\\"):
                raise InputError(
                    f"data.test: {name!r} cannot name a test set: it names a score file; 'dev' and 'train' are taken"
                )
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        for size in (batch_size, eval_batch_size):
            if size < 1:
                raise InputError(f"data: a batch size of {size} is too small")
        for name, number in (("num_workers", num_workers), ("seed", seed)):
            if number < 0:
                raise InputError(f"data.{name} is {number}: give 0 or more")
        check_shares(train, train_weights)
        test = test or {}
        if held_out_attack is not None:
            train, val, test = without_attack(train, val, test, held_out_attack)
        self.train = train
        self.val = val
        self.test = test
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.multiprocessing_context = multiprocessing_context
        self.train_weights = train_weights
        self.class_balanced = class_balanced
        self.train_segment = train_segment or Segment()
        self.eval_segment = eval_segment or Segment()
        for use, excerpt in (("train_segment", self.train_segment), ("eval_segment", self.eval_segment)):
            if excerpt.samples is not None and excerpt.samples < SHORTEST:
                raise InputError(
                    f"data.{use}: {excerpt.samples} samples are too few for an encoder: give {SHORTEST} or more "
                    "(16000 are a second)"
                )
        self.train_augmentation = train_augmentation
        self.augment_before_crop = augment_before_crop
        self.train_on_error = train_on_error
        self.eval_on_error = eval_on_error
        self.seed = seed
        self.held_out_attack = held_out_attack
        self.train_trials: TrialList | None = None
        self.trials_by_set: dict[str, TrialList] = {}
        self.unreadable: dict[str, str] = {}
        self.eval_trials: dict[str, TrialList] = {}
        self.kept: dict[str, KeptScores] = {}
        self._lengths: dict[str, NDArray[np.int64]] = {}  # headers of files are read once
        self._groups: list[Group] | None = None
        self._on_error: OnError = "raise"

    def read_trials(self, stage: str, test: bool = False) -> None:
        """Read and check the trial lists of a stage, before `setup`, which does not read them again.

        Args:
            stage: "fit", "validate", "test" or "predict".
            test: whether the test sets are read too, for a fit that ends with a test.

        Raises:
            InputError: a corpus is not given, cannot be read or lacks a class that its use needs. For "test" and
                "predict" one set that can be read is enough; the others go to ``unreadable``.
        """
        if stage == "fit":
            if not self.train:
                raise InputError("data.train is not given: fit needs a corpus to train on")
            if self.train_trials is None:
                self.train_trials, self._groups = training_trials(self.train, self.train_weights, self.class_balanced)
        if stage in ("fit", "validate"):
            if self.val is None:
                raise InputError("data.val is not given: its EER selects the checkpoint")
            if DEV not in self.trials_by_set:
                trials = trials_of(self.val, "data.val")
                check_labels(trials, self.val.name, "data.val")
                self.trials_by_set[DEV] = trials
        elif not self.test:
            raise InputError("data.test is not given: name at least one test set")
        if test or stage in ("test", "predict"):
            self._read_test_sets(all_of_them=test)

    def _read_test_sets(self, all_of_them: bool) -> None:
        self.unreadable = {}
        for name, corpus in self.test.items():
            try:
                if name not in self.trials_by_set:
                    self.trials_by_set[name] = trials_of(corpus, f"data.test.{name}")
            except InputError as error:
                self.unreadable[name] = str(error)
        if self.unreadable and (all_of_them or len(self.unreadable) == len(self.test)):
            raise InputError("; ".join(f"data.test.{name}: {reason}" for name, reason in self.unreadable.items()))

    def setup(self, stage: str) -> None:
        """Read what `read_trials` has not read yet."""
        self._on_error = "raise" if stage == "fit" else self.eval_on_error
        self.kept = {}
        self.read_trials(stage)
        names = [DEV] if stage in ("fit", "validate") else self.test
        self.eval_trials = {name: self.trials_by_set[name] for name in names if name not in self.unreadable}

    def train_dataloader(self) -> DataLoader[Batch]:
        assert self.train_trials is not None
        rank, world_size = self._place()
        is_fixed = getattr(self.trainer, "overfit_batches", 0) > 0
        batches = (FixedTrainingBatches if is_fixed else TrainingBatches)(
            len(self.train_trials),
            self.batch_size,
            self.seed,
            rank,
            world_size,
            groups=self._groups,
        )
        dataset = TrialDataset(
            self.train_trials,
            self.train_segment,
            self.seed,
            self.train_augmentation,
            self.train_on_error,
            self.augment_before_crop,
        )
        reading = self.reading(dataset, batches, self.batch_size, again=True)
        return TrainingLoader(self.trainer, batches, dataset=dataset, **reading)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        return self._evaluation_loaders(again=True)

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        return self._evaluation_loaders(again=False)

    def predict_dataloader(self) -> list[DataLoader[Batch]]:
        return self._evaluation_loaders(again=False)

    def _evaluation_loaders(self, again: bool) -> list[DataLoader[Batch]]:
        rank, world_size = self._place()
        self.kept = kept_scores(self.trainer)
        loaders: list[DataLoader[Batch]] = []
        for name, trials in self.eval_trials.items():
            # Rows of one length need no order by length.
            lengths = self._lengths_of(name, trials) if self.eval_segment.samples is None else None
            kept = self.kept.get(name)
            done = None if kept is None else kept.known.indices
            batches = EvaluationBatches(len(trials), self.eval_batch_size, rank, world_size, lengths, done)
            if kept is not None:
                kept.known = kept.known.without(batches.trials)
            dataset = TrialDataset(trials, self.eval_segment, self.seed, on_error=self._on_error)
            loaders.append(
                WatchedLoader(
                    dataset,
                    sampler=batches,
                    **self.reading(dataset, batches, self.eval_batch_size, again),
                )
            )
        return loaders

    @property
    def scored_clips(self) -> ScoredClips:
        """The clips that a detector scores in any file after an evaluation with these segments."""
        window = self.eval_segment.samples or self.train_segment.samples or TRAINING_SAMPLES
        return ScoredClips.of(window, None if self.eval_segment.short == "repeat" else SHORTEST)

    def _lengths_of(self, name: str, trials: TrialList) -> NDArray[np.int64]:
        if name not in self._lengths:
            self._lengths[name] = lengths_of(trials, name, self.trainer)
        return self._lengths[name]

    def reading(
        self, dataset: TrialDataset, batches: Sized, batch_size: int, again: bool, workers: int | None = None
    ) -> dict[str, Any]:
        """Arguments of a `WatchedLoader` that reads a set once, or again in every epoch. The workers of a set that is
        read once end with it, before those of the next set start.

        Args:
            dataset: the set.
            batches: the batches of an epoch.
            batch_size: trials of a batch.
            again: whether the set is read in every epoch.
            workers: processes that read; None for ``num_workers``.

        Raises:
            InputError: there is no room for what the workers read ahead.
        """
        workers = self.num_workers if workers is None else workers
        ahead = min(len(dataset), batch_size * min(len(batches), PREFETCHED * workers))
        samples = dataset.excerpt.samples or 0  # unknown for whole utterances
        check_room(workers, ahead * dataset.excerpt.count * samples * torch.float32.itemsize)
        return {
            "batch_size": None,  # the sampler makes the batches
            "num_workers": workers,
            "persistent_workers": again and workers > 0,
            "prefetch_factor": PREFETCHED if workers > 0 else None,
            "timeout": SILENT_SECONDS if workers > 0 else 0,
            "worker_init_fn": begin_worker,
            "multiprocessing_context": self.multiprocessing_context if workers > 0 else None,
            "pin_memory": self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        }

    def _place(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


def known_data(trainer: Trainer) -> AudioDeepfakeDataModule | None:
    """The data module of a trainer, which knows the trials behind its batches; None for DataLoaders of the user's own,
    and other data modules."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, AudioDeepfakeDataModule) else None


def corpora_in_words(data: AudioDeepfakeDataModule) -> dict[str, str]:
    """What a training uses each of its corpora for, in words."""
    words = {"training": ", ".join(sorted({_in_words(corpus) for corpus in by_name(data.train).values()}))}
    words["selection of the checkpoint"] = _in_words(data.val) if data.val else ""
    words["augmentation in training"] = type(data.train_augmentation).__name__ if data.train_augmentation else "none"
    return {use: what for use, what in words.items() if what}


def _in_words(corpus: Corpus) -> str:
    taken = f"({corpus.selection_note})" if corpus.selection_note else ""
    return " ".join(filter(None, (corpus.name, str(getattr(corpus, "split", None) or ""), taken)))

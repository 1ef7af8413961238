"""The corpora of an experiment as Lightning data."""

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from moelora_ad.audio import Augmentation, Segment
from moelora_ad.corpora import BONA_FIDE, SPOOF, Corpus, TrialList
from moelora_ad.errors import InputError
from moelora_ad.training.dataset import Batch, TrialDataset
from moelora_ad.training.samplers import EvaluationBatches, TrainingBatches

DEV = "dev"


class AudioDeepfakeDataModule(LightningDataModule):
    """Training and development corpora, and any number of named test sets.

    Args:
        train: corpus to train on.
        val: corpus whose EER selects the checkpoint; never augmented.
        test: corpora to test on, by the names that figures and score files carry.
        batch_size: training utterances of a batch, for each process.
        eval_batch_size: the same in validation, test and prediction; None for ``batch_size``.
        num_workers: processes that read audio, for each training process.
        train_segment: the part of each utterance that is trained on.
        eval_segment: the part that is scored.
        train_augmentation: changes the training segments, such as ``RawBoost``; the others are never augmented.
        seed: fixes the order of trials and every random draw for an utterance; ``seed_everything`` on the command line.

    Raises:
        InputError: from ``setup``: a corpus cannot be read or lacks a class that its use needs.
    """

    def __init__(
        self,
        train: Corpus | None = None,
        val: Corpus | None = None,
        test: dict[str, Corpus] | None = None,
        batch_size: int = 14,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        train_segment: Segment | None = None,
        eval_segment: Segment | None = None,
        train_augmentation: Augmentation | None = None,
        seed: int = 1,
    ) -> None:
        super().__init__()
        for name in test or {}:
            if name == DEV or not name or name.startswith(".") or set(name) & set("/\\"):
                raise InputError(f"data.test: {name!r} cannot name a test set: it names a score file, 'dev' is taken")
        for size in (batch_size, eval_batch_size or 1):
            if size < 1:
                raise InputError(f"data: a batch size of {size} is too small")
        self.train = train
        self.val = val
        self.test = test or {}
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.train_segment = train_segment or Segment()
        self.eval_segment = eval_segment or Segment()
        self.train_augmentation = train_augmentation
        self.seed = seed
        self.train_trials: TrialList | None = None
        self.eval_trials: dict[str, TrialList] = {}

    def setup(self, stage: str) -> None:
        """Read the protocols of a stage ("fit", "validate", "test" or "predict")."""
        if stage == "fit":
            if self.train is None:
                raise InputError("data.train is not given: fit needs a corpus to train on")
            self.train_trials = _both_classes(self.train, "data.train")
        if stage in ("fit", "validate"):
            if self.val is None:
                raise InputError("data.val is not given: its EER selects the checkpoint")
            self.eval_trials = {DEV: _both_classes(self.val, "data.val")}
        else:
            if not self.test:
                raise InputError("data.test is not given: name at least one test set")
            self.eval_trials = {name: corpus.trials() for name, corpus in self.test.items()}

    def train_dataloader(self) -> DataLoader[Batch]:
        assert self.train_trials is not None
        rank, world_size = self._place()
        batches = TrainingBatches(len(self.train_trials), self.batch_size, self.seed, rank, world_size)
        return self._loader(
            TrialDataset(self.train_trials, self.train_segment, self.seed, self.train_augmentation), batches
        )

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        return self._evaluation_loaders()

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        return self._evaluation_loaders()

    def predict_dataloader(self) -> list[DataLoader[Batch]]:
        return self._evaluation_loaders()

    def _evaluation_loaders(self) -> list[DataLoader[Batch]]:
        rank, world_size = self._place()
        return [
            self._loader(
                TrialDataset(trials, self.eval_segment, self.seed),
                EvaluationBatches(len(trials), self.eval_batch_size, rank, world_size),
            )
            for trials in self.eval_trials.values()
        ]

    def _loader(self, dataset: TrialDataset, batches: TrainingBatches | EvaluationBatches) -> DataLoader[Batch]:
        return DataLoader(
            dataset,
            sampler=batches,
            batch_size=None,  # the sampler makes the batches
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )

    def _place(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


def _both_classes(corpus: Corpus, where: str) -> TrialList:
    trials = corpus.trials()
    labels = trials.labels
    for label, word in ((BONA_FIDE, "bona fide"), (SPOOF, "spoof")):
        if not (labels == label).any():
            raise InputError(f"{where}: {corpus.name} has no {word} trials among {len(trials)}; it needs both classes")
    if (labels < 0).any():
        raise InputError(f"{where}: {corpus.name} has {int((labels < 0).sum())} trials without a label")
    return trials

"""Scores of one evaluation set while they are being computed."""

from typing import NamedTuple

import numpy as np
from lightning.pytorch import Trainer
from torch import Tensor

from moelora_ad.corpora import TrialList
from moelora_ad.evaluation import ScoreTable, TrialFailures, TrialScores
from moelora_ad.training.dataset import Batch
from moelora_ad.training.run import is_fast_dev_run


class SetFigures(NamedTuple):
    """What is shown of an evaluated set.

    Attributes:
        num_bona_fide: bona fide trials that were scored.
        num_spoof: spoofed trials that were scored.
        eer: in [0, 1]; None when a class is missing or a label is unknown.
        num_scored: trials that were scored, with or without a label.
        num_failed: trials that could not be read.
        first_failure: why the first of them could not.
    """

    num_bona_fide: int
    num_spoof: int
    eer: float | None
    num_scored: int
    num_failed: int
    first_failure: str


class SetResult(NamedTuple):
    """The scores of a set, None if all trials failed, and the reasons of those that did, by index."""

    table: ScoreTable | None
    reasons: dict[int, str]

    def figures(self) -> SetFigures:
        """Counts of what was scored, and its EER."""
        failed = len(self.reasons), next(iter(self.reasons.values()), "")
        if self.table is None:
            return SetFigures(0, 0, None, 0, *failed)
        counts = self.table.trials.num_bona_fide, self.table.trials.num_spoof
        labelled = all(counts) and min(self.table.labels) >= 0
        eer = self.table.equal_error_rate().eer if labelled else None
        return SetFigures(*counts, eer, len(self.table), *failed)


class SetScores:
    """Gathers the scores of a named set over batches and processes.

    Args:
        name: of the set.
        trials: all its trials.
        complete: whether every trial must be scored; False when the trainer was told to run a part only.
    """

    def __init__(self, name: str, trials: TrialList, complete: bool) -> None:
        self.name = name
        self.trials = trials
        self.scores = TrialScores(len(trials), complete=complete)
        self.failures = TrialFailures()

    def update(self, batch: Batch, logits: Tensor) -> None:
        """Add a batch; a score is the log-odds of bona fide, the difference of the two logits, and the mean of those
        of a trial's clips."""
        logits = logits.detach().float()
        scores = (logits[:, 1] - logits[:, 0]).reshape(len(batch.trials), -1).mean(dim=1)
        # A trial that failed keeps its place in the count of trials, and its score is never used.
        scores = scores.where(batch.read(), float("nan"))
        self.scores.to(logits.device).update(batch.trials, scores)
        self.failures.to(logits.device).update(batch.failures)

    def result(self) -> SetResult:
        """The scores of all processes (a collective call: every process must make it).

        Raises:
            RuntimeError: a trial was not scored, or more than once.
        """
        indices, scores = self.scores.compute()
        reasons = self.failures.compute()
        read = ~np.isin(indices.numpy(), list(reasons))
        if not read.any():
            return SetResult(None, reasons)
        if read.all() and len(indices) == len(self.trials):
            scored = self.trials
        else:
            scored = TrialList(self.trials[index] for index in indices.numpy()[read].tolist())
        return SetResult(ScoreTable(scored, scores.double().numpy()[read]), reasons)


def evaluation_sets(trainer: Trainer, limit: float | int | list[float | int]) -> list[SetScores]:
    """The sets that the trainer's data module evaluates in this stage, in the order of its data loaders."""
    complete = (
        limit == 1.0 and isinstance(limit, float) and not trainer.sanity_checking and not is_fast_dev_run(trainer)
    )
    trials: dict[str, TrialList] = trainer.datamodule.eval_trials  # type: ignore[attr-defined]
    return [SetScores(name, part, complete) for name, part in trials.items()]

"""Scores of one evaluation set while they are being computed."""

from typing import NamedTuple

from lightning.pytorch import Trainer
from torch import Tensor

from moelora_ad.corpora import TrialList
from moelora_ad.evaluation import ScoreTable, TrialScores
from moelora_ad.training.dataset import Batch
from moelora_ad.training.run import is_fast_dev_run


class SetFigures(NamedTuple):
    """What is shown of an evaluated set; ``eer`` in [0, 1], None when one class is missing."""

    num_bona_fide: int
    num_spoof: int
    eer: float | None


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

    def update(self, batch: Batch, logits: Tensor) -> None:
        """Add a batch; a score is the log-odds of bona fide, the difference of the two logits."""
        logits = logits.detach().float()
        self.scores.to(logits.device).update(batch.trials, logits[:, 1] - logits[:, 0])

    def table(self) -> ScoreTable:
        """The scores of all processes (a collective call: every process must make it).

        Raises:
            RuntimeError: a trial was not scored, or more than once.
        """
        indices, scores = self.scores.compute()
        scored = self.trials if len(indices) == len(self.trials) else [self.trials[index] for index in indices.tolist()]
        return ScoreTable(scored, scores.double().numpy())


def evaluation_sets(trainer: Trainer, limit: float | int | list[float | int]) -> list[SetScores]:
    """The sets that the trainer's data module evaluates in this stage, in the order of its data loaders."""
    complete = (
        limit == 1.0 and isinstance(limit, float) and not trainer.sanity_checking and not is_fast_dev_run(trainer)
    )
    trials: dict[str, TrialList] = trainer.datamodule.eval_trials  # type: ignore[attr-defined]
    return [SetScores(name, part, complete) for name, part in trials.items()]

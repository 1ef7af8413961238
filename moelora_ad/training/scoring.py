"""Gathers the scores of an evaluation set while they are being computed."""

from collections import deque
from datetime import datetime, timezone
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor

from moelora_ad.corpora import BONA_FIDE, SPOOF, TrialList
from moelora_ad.data.data_module import DEV, known_data
from moelora_ad.data.dataset import Batch
from moelora_ad.data.trainer_state import is_limited
from moelora_ad.errors import InputError
from moelora_ad.evaluation import LabelledScores, ScoreTable, TrialFailures, TrialScores, equal_error_rate
from moelora_ad.models.devices import HostCopy
from moelora_ad.models.scores import trial_scores
from moelora_ad.runs.scores import KeptScores, KnownScores

_UNREAD = -2  # in place of the label of a trial that could not be read


class SetFigures(NamedTuple):
    """The figures of an evaluated set.

    Attributes:
        num_bona_fide: bona fide trials that were scored.
        num_spoof: spoofed trials that were scored.
        eer: in [0, 1]; None when a class is missing or a label is unknown.
        num_scored: trials that were scored, with or without a label.
        num_failed: trials that could not be read.
        first_failure: why the first of these could not be read.
        num_known: number of scores of earlier runs, which were not computed again.
    """

    num_bona_fide: int
    num_spoof: int
    eer: float | None
    num_scored: int
    num_failed: int
    first_failure: str
    num_known: int = 0


class SetResult(NamedTuple):
    """The scores of a set.

    Attributes:
        table: the scores; None if all trials failed.
        indices: (n,) int64 indices of the scored trials, ascending.
        reasons: why trials failed, by index.
        num_known: number of scores of earlier runs.
    """

    table: ScoreTable | None
    indices: NDArray[np.int64]
    reasons: dict[int, str]
    num_known: int = 0

    def figures(self) -> SetFigures:
        """The counts of trials, and the EER of those that were scored."""
        failed = len(self.reasons), next(iter(self.reasons.values()), "")
        if self.table is None:
            return SetFigures(0, 0, None, 0, *failed, self.num_known)
        counts = self.table.trials.num_bona_fide, self.table.trials.num_spoof
        labelled = all(counts) and min(self.table.labels) >= 0
        eer = self.table.equal_error_rate().eer if labelled else None
        return SetFigures(*counts, eer, len(self.table), *failed, self.num_known)


class SetScores:
    """Gathers the scores of a named set over batches and processes.

    Args:
        name: name of the set.
        trials: all its trials.
        complete: whether every trial must be scored; False when the trainer runs only a part.
        kept: stores scores on disk as they come, and has earlier ones; None where no file is written.
        adds_known: whether this process contributes the earlier scores; exactly one must.
        device: device on which the processes gather scores.
    """

    def __init__(
        self,
        name: str,
        trials: TrialList,
        complete: bool,
        kept: KeptScores | None = None,
        adds_known: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        self.name = name
        self.trials = trials
        # Moved while they are empty: moving them later goes through all batches that they hold.
        self.scores = TrialScores(len(trials), complete=complete).to(device)
        self.failures = TrialFailures().to(device)
        self.kept = kept
        self._unkept: deque[tuple[Tensor, HostCopy]] = deque()  # trials, and their scores on the way to the host
        self.started = datetime.now(timezone.utc)
        known = kept.known if kept is not None and adds_known else KnownScores.of({})
        # Metrics warn if they are computed without an update, and a process may have idle passes only.
        self.scores.update(torch.from_numpy(known.indices), torch.from_numpy(known.scores))
        self.failures.update([])

    def update(self, batch: Batch, logits: Tensor) -> None:
        """Add a batch; scores are those of `trial_scores`."""
        if not len(batch.trials):  # an idle pass
            return
        scores = trial_scores(logits.detach(), len(batch.trials))
        # A trial that failed stays in the count of trials, and its score is never used.
        scores = scores.where(batch.read, float("nan"))
        self.scores.update(batch.trials, scores)
        self.failures.update(batch.failures)
        if self.kept is not None:
            self._unkept.append((batch.trials, HostCopy(scores)))
            self._keep(all_of_them=False)

    def _keep(self, all_of_them: bool) -> None:
        """Store the scores that have arrived on the host, in order; wait for the others if ``all_of_them``."""
        assert self.kept is not None
        while self._unkept and (all_of_them or self._unkept[0][1].is_there):
            trials, scores = self._unkept.popleft()
            self.kept.append(trials.tolist(), scores.tensor().tolist())

    def result(self) -> SetResult:
        """The scores of all processes (a collective call: every process must make it).

        Raises:
            RuntimeError: a trial was not scored, or more than once.
        """
        indices, scores = self.scores.compute()
        reasons = self.failures.compute()
        if self.kept is not None:
            self._keep(all_of_them=True)
            self.kept.close()
        read = ~np.isin(indices.numpy(), list(reasons))
        num_known = 0 if self.kept is None else len(self.kept.known.indices)
        scored = indices.numpy()[read]
        if not len(scored):
            return SetResult(None, scored, reasons, num_known)
        trials = self.trials if len(scored) == len(self.trials) else self.trials.select(scored)
        return SetResult(ScoreTable(trials, scores.double().numpy()[read]), scored, reasons, num_known)


class UnlistedScores:
    """Gathers the scores of a set whose trials are not known; it gives figures, but no score file.

    Args:
        name: name of the set.
        device: device on which the processes gather scores.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        self.name = name
        self.scores = LabelledScores().to(device)
        self.failures = TrialFailures().to(device)
        self.failures.update([])

    def update(self, batch: Batch, logits: Tensor) -> None:
        """Add a batch, as `SetScores.update` does."""
        if len(batch.trials):
            scores = trial_scores(logits.detach(), len(batch.trials))
            # Unread trials are marked, since leaving out their scores would mean waiting for a GPU.
            self.scores.update(scores, batch.labels.where(batch.read, _UNREAD))
            self.failures.update(batch.failures)

    def result(self) -> "UnlistedResult":
        """The scores of all processes; a collective call."""
        scores, labels = (values.numpy() for values in self.scores.compute())
        read = labels != _UNREAD
        return UnlistedResult(scores[read], labels[read], self.failures.compute())


class UnlistedResult(NamedTuple):
    """The scores and labels (n,) of a set whose trials are not known, and why trials failed."""

    scores: NDArray[np.float64]
    labels: NDArray[np.float64]
    reasons: dict[int, str]

    def figures(self) -> SetFigures:
        """The counts of trials, and the EER of those that were scored."""
        counts = int((self.labels == BONA_FIDE).sum()), int((self.labels == SPOOF).sum())
        labelled = all(counts) and sum(counts) == len(self.labels)
        eer = equal_error_rate(self.scores, self.labels).eer if labelled else None
        failed = len(self.reasons), next(iter(self.reasons.values()), "")
        return SetFigures(*counts, eer, len(self.scores), *failed)


Evaluated = SetScores | UnlistedScores


def evaluation_sets(trainer: Trainer) -> list[Evaluated]:
    """The sets that the trainer evaluates in this stage, in the order of its data loaders.

    Those of a user's own DataLoaders are named ``dev``, and ``test`` or ``test_0``, ``test_1`` and so on.

    Raises:
        InputError: there are several DataLoaders for validation.
    """
    data, device = known_data(trainer), trainer.strategy.root_device
    if data is None:
        return [UnlistedScores(name, device) for name in _names(trainer)]
    complete = not is_limited(trainer)
    return [
        SetScores(name, trials, complete, data.kept.get(name), trainer.is_global_zero, device)
        for name, trials in data.eval_trials.items()
    ]


def _names(trainer: Trainer) -> list[str]:
    if trainer.state.fn == "test":
        count = len(trainer.num_test_batches)
        return ["test"] if count == 1 else [f"test_{number}" for number in range(count)]
    if trainer.state.fn == "predict":
        return []
    if len(trainer.num_val_batches) > 1:
        raise InputError(f"{len(trainer.num_val_batches)} DataLoaders for validation: give one, whose EER selects")
    return [DEV]

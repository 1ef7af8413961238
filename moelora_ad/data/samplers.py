"""Which trials make up which batch, in every process.

Both samplers yield whole batches of keys, in which the epoch travels with the trial's index, so that a worker draws the
same random numbers however many workers there are and however long they live. They derive from torch's
``DistributedSampler``, and those of a fixed order from its ``SequentialSampler`` too, so that Lightning leaves them in
place.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, DistributedSampler, SequentialSampler

from moelora_ad.errors import InputError, counted


class Key(NamedTuple):
    """One draw of a trial: the epoch, its index in the list of trials, and how often the epoch has drawn it before."""

    epoch: int
    trial: int
    repeat: int = 0


class Group(NamedTuple):
    """Trials that are drawn alike: their indices (n,), and the share of an epoch's draws that falls to them."""

    trials: NDArray[np.int64]
    share: float


class TrainingBatches(DistributedSampler):
    """Shuffled batches of one size, a new order each epoch, drawn from (seed, epoch) alone.

    An epoch has as many draws as there are trials. A group gets its share of them: all its trials, as many times as
    they fit, and a random choice of them for the rest. Batch i of the W processes together is batch i of a single
    process with W times the batch size. Draws that do not fill a last batch are left out.

    Args:
        num_trials: number of trials in all groups together.
        batch_size: trials of a batch, for each process.
        seed: with the epoch, it fixes the draws and their order.
        rank: rank of this process.
        world_size: number of processes.
        groups: groups of trials and their shares; None to draw each trial once an epoch.

    Attributes:
        first: number of the batch that an epoch begins with; 0 except for the rest of an interrupted epoch.

    Raises:
        InputError: there are fewer trials than one batch of all processes.
    """

    def __init__(
        self,
        num_trials: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        groups: Sequence[Group] | None = None,
    ) -> None:
        super().__init__(
            cast(Dataset, range(num_trials)), num_replicas=world_size, rank=rank, seed=seed, drop_last=True
        )
        self.num_trials = num_trials
        self.batch_size = batch_size
        self.groups = groups or [Group(np.arange(num_trials), 1.0)]
        self.first = 0
        self.num_batches = num_trials // (batch_size * world_size)
        if not self.num_batches:
            raise InputError(
                f"{counted(num_trials, 'training trial')} cannot fill one batch of {batch_size} in "
                f"{counted(world_size, 'process', 'processes')}: "
                "lower data.batch_size"
            )

    def __len__(self) -> int:
        """The number of batches of a whole epoch."""
        return self.num_batches

    def __iter__(self) -> Iterator[list[Key]]:
        trials, repeats = self._draws(self.epoch)
        used = np.arange(self.num_batches * self.batch_size * self.num_replicas)
        own = used[self.rank :: self.num_replicas].reshape(self.num_batches, self.batch_size)
        for batch in own[self.first :]:
            yield [Key(self.epoch, int(trials[draw]), int(repeats[draw])) for draw in batch]

    def _draws(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's trials in their order, and how often each had been drawn before: both (num_trials,)."""
        generator = np.random.default_rng([self.seed, epoch])
        counts = _apportioned(self.num_trials, [group.share for group in self.groups])
        trials, repeats = [], []
        for (members, _), count in zip(self.groups, counts, strict=True):
            passes, rest = divmod(count, len(members))
            more = generator.choice(members, rest, replace=False) if rest else members[:0]
            trials += [np.tile(members, passes), more]
            repeats.append(np.arange(count) // len(members))
        order = generator.permutation(self.num_trials)
        return np.concatenate(trials)[order], np.concatenate(repeats)[order]


class FixedTrainingBatches(TrainingBatches, SequentialSampler):  # type: ignore[misc]
    """The batches of the first epoch in every epoch, for ``trainer.overfit_batches``; crops and augmentation vary."""

    def _draws(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return super()._draws(0)


class EvaluationBatches(DistributedSampler, SequentialSampler):
    """Every trial exactly once over all processes, in batches that do not depend on how many there are.

    The whole list is cut into batches, and the processes take turns: a score is computed in the same batch, and so is
    the same bit for bit, whichever process computes it. Each process gets the same number of batches, since strategies
    synchronise at every forward pass: one that is short gets an empty batch, which is an idle pass. There is at least
    one batch, an idle one if all is done, so that the end of an evaluation is reached.

    Args:
        num_trials: number of trials of the set.
        batch_size: trials of a batch at most, for each process.
        rank: rank of this process.
        world_size: number of processes.
        lengths: (num_trials,) samples of each trial: batches then hold trials of like length, the longest first, so
            that a lack of memory shows at once. None keeps the order of the trials.
        done: (n,) indices of trials that need not be scored again. Batches with only such trials are left out.

    Attributes:
        trials: (n,) indices of the trials that all processes together score, including those already done whose batch
            is not done as a whole.
    """

    def __init__(
        self,
        num_trials: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        lengths: NDArray[np.int64] | None = None,
        done: NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__(cast(Dataset, range(num_trials)), num_replicas=world_size, rank=rank, shuffle=False)
        order = np.arange(num_trials) if lengths is None else np.argsort(-lengths, kind="stable")
        left = np.ones(num_trials, bool)
        left[[] if done is None else done] = False
        batches = [order[start : start + batch_size] for start in range(0, num_trials, batch_size)]
        batches = [batch for batch in batches if left[batch].any()]
        self.trials = np.concatenate(batches) if batches else order[:0]
        self.batches = batches
        self.own = batches[rank::world_size]
        self.num_batches = max(1, -(-len(batches) // world_size))

    def __len__(self) -> int:
        return self.num_batches

    def of_first(self, num_batches: int) -> NDArray[np.int64]:
        """(n,) indices of the trials in the first batches of every process."""
        first = self.batches[: num_batches * self.num_replicas]
        return np.concatenate(first) if first else self.trials

    def __iter__(self) -> Iterator[list[Key]]:  # type: ignore[override]
        for batch in self.own:
            yield [Key(0, int(trial)) for trial in batch]
        for _ in range(self.num_batches - len(self.own)):
            yield []


def _apportioned(total: int, shares: Sequence[float]) -> list[int]:
    """``total`` in whole numbers in proportion to ``shares``, by largest remainders (Hamilton's method)."""
    exact = np.asarray(shares) * (total / sum(shares))
    counts = np.floor(exact + 1e-9).astype(int)
    missing = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return [int(count) for count in counts]

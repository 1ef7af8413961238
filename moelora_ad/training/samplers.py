"""Which trials make up which batch, in every process.

Both samplers yield whole batches of keys ``(epoch, trial index)``: the epoch travels with the index, so that a worker
draws the same random numbers however many workers there are and however long they live. They derive from torch's
``DistributedSampler`` so that Lightning leaves them in place.
"""

from collections.abc import Iterator
from typing import cast

import numpy as np
from torch.utils.data import Dataset, DistributedSampler

from moelora_ad.errors import InputError

Key = tuple[int, int]


class TrainingBatches(DistributedSampler):
    """Shuffled batches of one size, a new order each epoch, drawn from (seed, epoch) alone.

    Batch i of the W processes together is batch i of a single process with W times the batch size. The trials that do
    not fill a last batch wait for another epoch's order.

    Raises:
        InputError: there are fewer trials than one batch of all processes.
    """

    def __init__(self, num_trials: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(
            cast(Dataset, range(num_trials)), num_replicas=world_size, rank=rank, seed=seed, drop_last=True
        )
        self.num_trials = num_trials
        self.batch_size = batch_size
        self.num_batches = num_trials // (batch_size * world_size)
        if not self.num_batches:
            raise InputError(
                f"{num_trials} training trials do not fill one batch of {batch_size} in {world_size} processes: "
                "lower data.batch_size"
            )

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_trials)
        order = order[: self.num_batches * self.batch_size * self.num_replicas]
        for batch in order[self.rank :: self.num_replicas].reshape(self.num_batches, self.batch_size):
            yield [(self.epoch, int(index)) for index in batch]


class EvaluationBatches(DistributedSampler):
    """Every trial exactly once, in order, over all processes; each process gets the same number of batches.

    Equal numbers matter: strategies synchronise at every forward pass of a validation epoch. Nothing is repeated to
    reach them. Instead the batches of a process differ by at most one trial, and never exceed ``batch_size``, save that
    with ``batch_size`` 1 and a number of trials that the processes do not divide, some batches hold 2.

    Raises:
        InputError: there are fewer trials than processes.
    """

    def __init__(self, num_trials: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(cast(Dataset, range(num_trials)), num_replicas=world_size, rank=rank, shuffle=False)
        if num_trials < world_size:
            raise InputError(f"{num_trials} trials cannot be shared by {world_size} processes: use fewer devices")
        self.num_trials = num_trials
        most, fewest = -(-num_trials // world_size), num_trials // world_size
        self.num_batches = min(-(-most // batch_size), fewest)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[Key]]:
        own = np.arange(self.rank, self.num_trials, self.num_replicas)
        for batch in np.array_split(own, self.num_batches):
            yield [(0, int(index)) for index in batch]

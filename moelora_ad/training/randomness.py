"""Seeds of the model's random draws in training: a batch draws the same numbers wherever a run begins."""

import numpy as np
import torch


def seed_batch(seed: int, epoch: int, batch: int, process: int) -> None:
    """Seed PyTorch's generators on all devices for one training batch of one process.

    Dropout and gate noise are then the same in a run that continues from a checkpoint as in one that was never
    interrupted, in every process, and with no state of generators in the checkpoint.
    """
    key = np.random.SeedSequence([seed, epoch, batch, process]).generate_state(1, np.uint64)
    torch.manual_seed(int(key[0] >> 1))

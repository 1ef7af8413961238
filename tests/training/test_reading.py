"""Readers outlive the signals that are meant for the training process."""

import os
import signal
import time

import torch
from torch.utils.data import DataLoader, Dataset

from moelora_ad.training.reading import outlive_signals


class Places(Dataset):
    """The process that reads."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.tensor([index, os.getpid()])


def test_a_reader_ends_at_the_second_request():
    batches = iter(
        DataLoader(Places(), num_workers=1, batch_size=None, prefetch_factor=2, worker_init_fn=outlive_signals)
    )
    reader = int(next(batches)[1])
    assert reader != os.getpid()
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        os.kill(reader, number)
    time.sleep(0.5)
    assert [int(batch[0]) for batch in batches] == list(range(1, 12))

    batches = iter(DataLoader(Places(), num_workers=1, batch_size=None, worker_init_fn=outlive_signals))
    next(batches)
    (worker,) = batches._workers
    os.kill(worker.pid, signal.SIGTERM)
    time.sleep(0.5)
    assert worker.is_alive()
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(timeout=20)
    assert worker.exitcode == -signal.SIGTERM

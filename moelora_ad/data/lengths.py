"""The lengths of a set's utterances, so that batches can hold trials of like length."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from moelora_ad.audio import AudioError, audio_length
from moelora_ad.corpora import TrialList
from moelora_ad.corpora.storage.files import StorageError, is_in_archive, open_file

_WORTH_A_BAR = 2_000  # files, which take a second or two
_AT_ONCE = 16  # files at once, as nearly all of the time over a network is waiting
_IN_A_PART = 500
_archives = Lock()  # an open archive has one file position for all threads


def lengths_of(trials: TrialList, name: str, trainer: Trainer | None) -> NDArray[np.int64]:
    """Samples at 16 kHz of every trial, from the files' headers: (n,); 0 for a file that cannot be read, which is
    reported when its batch is read.

    The processes of ``trainer`` share the work (a collective call).
    """
    rank, world_size = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
    lengths = torch.zeros(len(trials), dtype=torch.int64)
    own = np.arange(rank, len(trials), world_size)
    parts = track(
        np.split(own, range(_IN_A_PART, len(own), _IN_A_PART)),
        description=f"{name}: lengths",
        console=Console(stderr=True),
        disable=rank > 0 or len(trials) < _WORTH_A_BAR,
        transient=True,
    )
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for part in parts:
            found = list(threads.map(_length, trials.columns.audio[part]))
            lengths[part] = torch.tensor(found, dtype=torch.int64)
    if trainer is not None:
        lengths = trainer.strategy.reduce(lengths.to(trainer.strategy.root_device), reduce_op="sum")
    return lengths.cpu().numpy()


def _length(place: str) -> int:
    try:
        with _archives if is_in_archive(place) else contextlib.nullcontext():
            return audio_length(open_file(place), place)
    except (AudioError, StorageError):
        return 0

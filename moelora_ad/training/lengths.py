"""How long the utterances of a set are, so that batches can hold trials of like length."""

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from moelora_ad.audio import AudioError, audio_length
from moelora_ad.corpora import TrialList
from moelora_ad.corpora.storage import StorageError, open_file

_WORTH_A_BAR = 2_000  # files; a second or two


def lengths_of(trials: TrialList, name: str, trainer: Trainer | None) -> NDArray[np.int64]:
    """Samples at 16 kHz of every trial, from the files' headers: (n,); 0 for a file that cannot be read, which is told
    when its turn to be read comes.

    The processes of ``trainer`` share the work (a collective call).
    """
    rank, world_size = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
    lengths = torch.zeros(len(trials), dtype=torch.int64)
    own = track(
        range(rank, len(trials), world_size),
        description=f"{name}: lengths",
        console=Console(stderr=True),
        disable=rank > 0 or len(trials) < _WORTH_A_BAR,
        transient=True,
    )
    for index in own:
        lengths[index] = _length(trials[index].audio)
    if trainer is not None:
        lengths = trainer.strategy.reduce(lengths.to(trainer.strategy.root_device), reduce_op="sum")
    return lengths.cpu().numpy()


def _length(place: str) -> int:
    try:
        return audio_length(open_file(place), place)
    except (AudioError, StorageError):
        return 0

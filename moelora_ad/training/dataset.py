"""From trials to batches of waveforms."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from moelora_ad.audio import Augmentation, Segment, keyed_generator, read_segment
from moelora_ad.corpora import Trial
from moelora_ad.training.samplers import Key


class Batch(NamedTuple):
    """What the detector sees.

    Attributes:
        waveforms: (B, samples) float32, 16 kHz mono.
        lengths: (B,) int64 valid samples of each row; None when all rows are full.
        labels: (B,) int64, 1 bona fide, 0 spoof, -1 unknown.
        trials: (B,) int64 indices into the list of trials.
    """

    waveforms: Tensor
    lengths: Tensor | None
    labels: Tensor
    trials: Tensor


class TrialDataset(Dataset[Batch]):
    """Reads whole batches: an item's key is a list of ``(epoch, trial index)`` from a batch sampler.

    Args:
        trials: the list that indices point into.
        segment: the part of each utterance that is read.
        seed: with the epoch and the utterance id, it fixes every random draw for an utterance.
        augmentation: changes the segment; for training only.
    """

    def __init__(
        self, trials: Sequence[Trial], segment: Segment, seed: int, augmentation: Augmentation | None = None
    ) -> None:
        self.trials = trials
        self.segment = segment
        self.seed = seed
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.trials)

    def __getitem__(self, keys: list[Key]) -> Batch:
        trials = [self.trials[index] for _, index in keys]
        waveforms = [self._waveform(trial, epoch) for trial, (epoch, _) in zip(trials, keys, strict=True)]
        return Batch(
            waveforms=torch.from_numpy(np.stack(waveforms)),
            lengths=None,
            labels=torch.tensor([-1 if trial.label is None else trial.label for trial in trials]),
            trials=torch.tensor([index for _, index in keys]),
        )

    def _waveform(self, trial: Trial, epoch: int) -> NDArray[np.float32]:
        generator = keyed_generator(self.seed, epoch, trial.utterance)
        waveform = read_segment(trial.audio, self.segment, generator)
        return waveform if self.augmentation is None else self.augmentation(waveform, generator)

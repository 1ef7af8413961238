"""From trials to batches of waveforms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from moelora_ad.audio import SAMPLE_RATE, AudioError, AudioReader, Augmentation, Excerpt, keyed_generator
from moelora_ad.audio.segments import Clip
from moelora_ad.corpora import Trial
from moelora_ad.corpora.storage.files import StorageError, open_file
from moelora_ad.data.samplers import Key
from moelora_ad.data.workers import is_out_of_files
from moelora_ad.errors import InputError

OnError = Literal["raise", "report"]


class FailedTrial(NamedTuple):
    """A trial that could not be read: its index in the list of trials, and why in one line."""

    trial: int
    reason: str


@dataclass(eq=False)
class Batch:
    """The detector's input: B trials with C clips of each, mostly one. A trial that could not be read is silence.

    The batch of an idle pass, of a process that waits for others, has no trials, and the silence of one.

    Attributes:
        waveforms: (B C, samples) float32, 16 kHz mono; the clips of a trial are neighbours.
        lengths: (B C,) int64 valid samples of each row; None when all rows are full.
        labels: (B,) int64, 1 bona fide, 0 spoof, -1 unknown.
        trials: (B,) int64 indices into the list of trials. They stay on the host, where they are looked up.
        failures: the trials among them whose audio could not be read.
        read: (B,) bool, false for trials that failed; made of ``failures`` if not given.
    """

    waveforms: Tensor
    lengths: Tensor | None
    labels: Tensor
    trials: Tensor
    failures: list[FailedTrial]
    read: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.read is None:
            failed = torch.tensor([failure.trial for failure in self.failures], dtype=torch.int64)
            self.read = ~torch.isin(self.trials, failed)

    @property
    def num_read(self) -> int:
        return len(self.trials) - len(self.failures)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch with what a model computes on moved to a device; to a GPU, from pinned memory, without waiting."""
        is_gpu = torch.device(device).type == "cuda"
        return self._with(lambda tensor: tensor.to(device, non_blocking=is_gpu))

    def pin_memory(self) -> "Batch":
        """The batch with the tensors that `to` moves in pinned memory; a ``DataLoader`` calls this method."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            waveforms=change(self.waveforms),
            lengths=None if self.lengths is None else change(self.lengths),
            labels=change(self.labels),
            read=change(self.read),
        )


class _Changed(NamedTuple):
    """A whole utterance after its augmentation, from which an excerpt is read as from a file."""

    waveform: Clip
    name: str

    @property
    def length(self) -> int:
        return len(self.waveform)

    def read(self, start: int, samples: int) -> Clip:
        return self.waveform[start : start + samples]


class TrialDataset(Dataset[Batch]):
    """Reads whole batches: an item's key is a list of `Key` from a batch sampler.

    Args:
        trials: the list that indices point into.
        excerpt: what is read of each utterance.
        seed: with the epoch and the utterance id, it fixes every random draw for an utterance.
        augmentation: changes the clips; for training only.
        augment_whole: augment the whole utterance, and then take the clips from it.
        on_error: what happens to audio that cannot be read: it stops the run, or is reported in the batch.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        excerpt: Excerpt,
        seed: int,
        augmentation: Augmentation | None = None,
        on_error: OnError = "raise",
        augment_whole: bool = False,
    ) -> None:
        self.trials = trials
        self.excerpt = excerpt
        self.seed = seed
        self.augmentation = augmentation
        self.on_error = on_error
        self.augment_whole = augment_whole

    def __len__(self) -> int:
        return len(self.trials)

    def __getitem__(self, keys: list[Key]) -> Batch:
        """Read a batch; without keys, that of an idle pass.

        Raises:
            AudioError: audio cannot be read and ``on_error`` is "raise".
            StorageError: likewise.
            InputError: the augmentation cannot read a recording that it needs, whatever ``on_error`` is.
        """
        clips: list[Clip] = []
        labels: list[int] = []
        failures: list[FailedTrial] = []
        for key in keys:
            trial = self.trials[key.trial]
            labels.append(-1 if trial.label is None else trial.label)
            try:
                clips += self._clips(trial, key)
            except (AudioError, StorageError) as error:
                if self.on_error == "raise" or is_out_of_files(str(error)):
                    raise
                failures.append(FailedTrial(key.trial, str(error)))
                clips += self._silence()
        if not keys:
            clips = self._silence()
        waveforms, lengths = padded(clips, self.excerpt.samples)
        trials = torch.tensor([key.trial for key in keys], dtype=torch.int64)
        return Batch(waveforms, lengths, torch.tensor(labels, dtype=torch.int64), trials, failures)

    def _silence(self) -> list[Clip]:
        return [np.zeros(self.excerpt.samples or SAMPLE_RATE, np.float32)] * self.excerpt.count

    def _clips(self, trial: Trial, key: Key) -> list[Clip]:
        # A trial that is drawn again in an epoch gets other random numbers.
        name = f"{trial.utterance}\0{key.repeat}" if key.repeat else trial.utterance
        generator = keyed_generator(self.seed, key.epoch, name)
        with AudioReader(open_file(trial.audio), trial.audio) as sound:
            if self.augmentation is not None and self.augment_whole:
                changed = _Changed(_augmented(self.augmentation, sound.read(0, sound.length), generator), sound.name)
                return self.excerpt.read(cast(AudioReader, changed), generator)
            clips = self.excerpt.read(sound, generator)
        if self.augmentation is None:
            return clips
        return [_augmented(self.augmentation, clip, generator) for clip in clips]


def _augmented(augmentation: Augmentation, clip: Clip, generator: np.random.Generator) -> Clip:
    try:
        return augmentation(clip, generator)
    except (AudioError, StorageError) as error:  # a recording of noise, which is no fault of the trial
        raise InputError(str(error)) from None


def padded(clips: Sequence[Clip], samples: int | None) -> tuple[Tensor, Tensor | None]:
    """Pad clips to rows of one length.

    Args:
        clips: n arrays (at most samples,).
        samples: length of a row; None for the longest clip's.

    Returns:
        (n, samples) with zeros behind the clips, and the clips' lengths (n,) int64, None if they all fill their row.
    """
    lengths = torch.tensor([len(clip) for clip in clips])
    rows = torch.zeros(len(clips), samples or int(lengths.max()))
    for row, clip in zip(rows, clips, strict=True):
        row[: len(clip)] = torch.from_numpy(clip)
    return rows, None if bool((lengths == rows.shape[1]).all()) else lengths

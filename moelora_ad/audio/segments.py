"""What a detector takes of an utterance: a stretch of fixed length, the whole, or several crops."""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moelora_ad.audio.decoding import SAMPLE_RATE, AudioError, AudioReader
from moelora_ad.errors import InputError

TRAINING_SAMPLES = 64_600
"""4.0375 s at 16 kHz, the field's length since RawNet2 (Tak et al., ICASSP 2021)."""

SHORTEST = 1_600
"""0.1 s. Encoders need a few frames: what is shorter is repeated, even if it is then padded."""

Clip = NDArray[np.float32]


class Excerpt(ABC):
    """What a detector takes of each utterance; a new kind is one new subclass and no edit elsewhere.

    Attributes:
        samples: Length of a row of a batch, at 16 kHz; shorter clips are zero-padded to it. None: the longest clip of
            the batch decides.
        count: Clips of each utterance; its score is the mean of theirs.
        short: Whether a shorter utterance is repeated until it is ``samples`` long, or padded by the batch.
    """

    samples: int | None
    count: int = 1
    short: Literal["repeat", "pad"] = "pad"

    @abstractmethod
    def read(self, sound: AudioReader, generator: np.random.Generator | None = None) -> list[Clip]:
        """The clips of an open utterance: ``count`` arrays (n,) float32 with 1 <= n <= ``samples``.

        Args:
            sound: The utterance.
            generator: The only source of randomness.

        Raises:
            AudioError: The file cannot be decoded, or is too long.
        """


@dataclass(frozen=True)
class Segment(Excerpt):
    """One stretch of fixed length, as training and the field's usual evaluation take it.

    Args:
        samples: Length in 16 kHz samples.
        position: Where a longer utterance is cut: its ``first`` samples, its ``centre``, or a ``random`` place.
        short: ``repeat`` repeats a shorter utterance until it is that long; with ``pad`` the batch pads it with zeros
            and gives its length, which is `SHORTEST` at least.

    Raises:
        InputError: ``samples`` is not positive, or ``position`` or ``short`` is unknown.
    """

    samples: int = TRAINING_SAMPLES
    position: Literal["first", "random", "centre"] = "first"
    short: Literal["repeat", "pad"] = "repeat"

    def __post_init__(self) -> None:
        _check("segment", self.samples, self.short)
        if self.position not in ("first", "random", "centre"):
            raise InputError(f"segment: position must be first, random or centre, not {self.position!r}")

    def start(self, length: int, generator: np.random.Generator | None = None) -> int:
        """The first sample to take of an utterance of ``length`` samples; ``random`` draws it from ``generator``."""
        if length < 1:
            raise ValueError(f"an utterance of {length} samples has no segment")
        spare = max(0, length - self.samples)
        if self.position == "first":
            return 0
        if self.position == "centre":
            return spare // 2
        if generator is None:
            raise ValueError("a segment at a random position needs a generator")
        return int(generator.integers(spare + 1))

    def fill(self, clip: Clip) -> Clip:
        """Bring ``clip`` (n,) to (samples,): cut at the end if it is long, repeated whole if it is short, unless the
        batch is to pad it."""
        least = min(self.samples, SHORTEST) if self.short == "pad" else self.samples
        return repeated(clip, least) if len(clip) < least else clip[: self.samples]

    def read(self, sound: AudioReader, generator: np.random.Generator | None = None) -> list[Clip]:
        """See `Excerpt.read`; no more is decoded than needed."""
        return [self.fill(sound.read(self.start(sound.length, generator), self.samples))]


@dataclass(frozen=True)
class Crops(Excerpt):
    """Several stretches at equal distances, from the beginning to the end of the utterance; a single one is its centre.

    A batch has ``count`` rows for each trial.

    Args:
        count: Number of stretches.
        samples: Length of each in 16 kHz samples. They overlap when the utterance is short.
        short: As for `Segment`; all crops of an utterance that is shorter than one are the same.

    Raises:
        InputError: ``count`` or ``samples`` is not positive, or ``short`` is unknown.
    """

    count: int
    samples: int = TRAINING_SAMPLES
    short: Literal["repeat", "pad"] = "repeat"

    def __post_init__(self) -> None:
        _check("crops", self.samples, self.short)
        if self.count < 1:
            raise InputError(f"crops: count must be at least 1, not {self.count}")

    def starts(self, length: int) -> list[int]:
        """The first sample of each crop of an utterance of ``length`` samples."""
        spare = max(0, length - self.samples)
        if self.count == 1:
            return [spare // 2]
        return [round(number * spare / (self.count - 1)) for number in range(self.count)]

    def read(self, sound: AudioReader, generator: np.random.Generator | None = None) -> list[Clip]:
        """See `Excerpt.read`; nothing is drawn at random."""
        part = Segment(self.samples, short=self.short)
        return [part.fill(sound.read(start, self.samples)) for start in self.starts(sound.length)]


@dataclass(frozen=True)
class FullUtterance(Excerpt):
    """The whole utterance. The batch pads to the longest of its rows; evaluation batches hold trials of like length.

    Args:
        longest: In 16 kHz samples. A longer utterance is refused, as it might not fit into memory.

    Raises:
        InputError: ``longest`` is less than `SHORTEST`.
    """

    longest: int = 60 * SAMPLE_RATE
    samples = None

    def __post_init__(self) -> None:
        if self.longest < SHORTEST:
            raise InputError(f"full utterance: longest must be at least {SHORTEST} samples, not {self.longest}")

    def read(self, sound: AudioReader, generator: np.random.Generator | None = None) -> list[Clip]:
        """See `Excerpt.read`."""
        if sound.length > self.longest:
            raise AudioError(
                f"cannot use {sound.name}: it has {sound.length / SAMPLE_RATE:.1f} s, FullUtterance takes "
                f"{self.longest / SAMPLE_RATE:.1f} s: set its longest to {sound.length} (samples) or more, "
                "or use Segment or Crops"
            )
        clip = sound.read(0, sound.length)
        return [repeated(clip, max(len(clip), SHORTEST))]


class ScoredClips(NamedTuple):
    """The kind of clips that a detector scores: those that it was evaluated on.

    Attributes:
        window: Samples of a clip, at 16 kHz.
        fill: Samples that a shorter clip is repeated to fill, at most ``window``.
    """

    window: int
    fill: int

    @classmethod
    def of(cls, window: int, fill: int | None) -> "ScoredClips":
        """The clips of a model's record, where a ``fill`` of None stands for a whole window."""
        return cls(window, window if fill is None else min(fill, window))

    @property
    def short(self) -> Literal["repeat", "pad"]:
        """The argument of the `Segment` that takes such clips of ``window`` samples."""
        return "repeat" if self.fill == self.window else "pad"


def repeated(clip: Clip, samples: int) -> Clip:
    """``clip`` (n,) repeated whole and cut to (samples,).

    Raises:
        ValueError: ``clip`` is empty.
    """
    if len(clip) == 0:
        raise ValueError("a clip of zero samples cannot fill a segment")
    return np.tile(clip, -(-samples // len(clip)))[:samples] if len(clip) < samples else clip[:samples]


def read_segment(
    source: str | os.PathLike[str] | BinaryIO,
    segment: Segment,
    generator: np.random.Generator | None = None,
    name: str | None = None,
) -> Clip:
    """Decode one segment of an audio file: (segment.samples,) at 16 kHz; no more is decoded than needed.

    Raises:
        AudioError: see `AudioReader`.
    """
    with AudioReader(source, name) as sound:
        return segment.read(sound, generator)[0]


def _check(what: str, samples: int, short: str) -> None:
    if samples < 1:
        raise InputError(f"{what}: samples must be at least 1, not {samples}")
    if short not in ("repeat", "pad"):
        raise InputError(f"{what}: short must be repeat or pad, not {short!r}")

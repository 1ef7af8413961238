"""Stretches of fixed length, as training and the field's usual evaluation take them."""

import os
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moelora_ad.audio.decoding import audio_length, read_audio
from moelora_ad.errors import InputError

TRAINING_SAMPLES = 64_600
"""4.0375 s at 16 kHz, the field's length since RawNet2 (Tak et al., ICASSP 2021)."""


@dataclass(frozen=True)
class Segment:
    """Which stretch of an utterance is taken.

    Args:
        samples: Length in 16 kHz samples. A shorter utterance is repeated until it is that long.
        position: Where a longer utterance is cut: its ``first`` samples, its ``centre``, or a ``random`` place.

    Raises:
        InputError: ``samples`` is not positive or ``position`` is unknown.
    """

    samples: int = TRAINING_SAMPLES
    position: Literal["first", "random", "centre"] = "first"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"segment: samples must be at least 1, not {self.samples}")
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

    def fill(self, clip: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring ``clip`` (n,) to (samples,): repeated whole if it is short, cut at the end if it is long."""
        if len(clip) == 0:
            raise ValueError("a clip of zero samples cannot fill a segment")
        if len(clip) >= self.samples:
            return clip[: self.samples]
        return np.tile(clip, -(-self.samples // len(clip)))[: self.samples]


def read_segment(
    path: str | os.PathLike[str], segment: Segment, generator: np.random.Generator | None = None
) -> NDArray[np.float32]:
    """Decode one segment of an audio file: (segment.samples,) at 16 kHz; no more is decoded than needed.

    Raises:
        AudioError: see `read_audio`.
    """
    start = segment.start(audio_length(path), generator)
    return segment.fill(read_audio(path, start, segment.samples))

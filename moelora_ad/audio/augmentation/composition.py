"""Augmentations made of others: in series, with a probability, one of several."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moelora_ad.audio.augmentation.base import Augmentation
from moelora_ad.errors import InputError


@dataclass(frozen=True)
class Chain(Augmentation):
    """One augmentation after the other.

    Args:
        augmentations: At least one, in the order in which they are applied.

    Raises:
        InputError: ``augmentations`` is empty.
    """

    augmentations: Sequence[Augmentation]

    def __post_init__(self) -> None:
        if not self.augmentations:
            raise InputError("Chain: augmentations is empty; name at least one")

    def __call__(self, waveform: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """Change ``waveform`` by all of them: see `Augmentation`."""
        for augmentation in self.augmentations:
            waveform = augmentation(waveform, generator)
        return waveform


@dataclass(frozen=True)
class WithProbability(Augmentation):
    """An augmentation of some waveforms only; the others stay as they are.

    Args:
        augmentation: The augmentation.
        probability: How likely it is applied to a waveform, 0 to 1.

    Raises:
        InputError: ``probability`` is out of range.
    """

    augmentation: Augmentation
    probability: float

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise InputError(f"WithProbability: probability must be 0 to 1, not {self.probability}")

    def __call__(self, waveform: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """Change or copy ``waveform``: see `Augmentation`."""
        if generator.random() < self.probability:
            return self.augmentation(waveform, generator)
        return waveform.copy()


@dataclass(frozen=True)
class OneOf(Augmentation):
    """One augmentation out of several, drawn for every waveform.

    Args:
        augmentations: At least one.
        weights: How likely each is, relative to the others; None if all are equally likely.

    Raises:
        InputError: ``augmentations`` is empty, or ``weights`` does not fit.
    """

    augmentations: Sequence[Augmentation]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not self.augmentations:
            raise InputError("OneOf: augmentations is empty; name at least one")
        if self.weights is None:
            return
        if len(self.weights) != len(self.augmentations):
            raise InputError(f"OneOf: {len(self.augmentations)} augmentations need as many weights, not {self.weights}")
        if not all(0 <= weight < float("inf") for weight in self.weights) or not sum(self.weights) > 0:
            raise InputError(f"OneOf: weights must be finite, none below 0 and not all 0, not {self.weights}")

    def __call__(self, waveform: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """Change ``waveform`` by one of them: see `Augmentation`."""
        weights = np.ones(len(self.augmentations)) if self.weights is None else np.asarray(self.weights, float)
        drawn = generator.choice(len(weights), p=weights / weights.sum())
        return self.augmentations[drawn](waveform, generator)

"""The score of a sound, or the error why it has none; importable without torch."""

import math
import os
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moelora_ad.audio.notes import Note
from moelora_ad.errors import InputError
from moelora_ad.evaluation.metrics.calibration import probability_of_bona_fide

Verdict = Literal["bonafide", "spoof", "inconclusive"]

LEAST_SECONDS = 0.5
"""Shortest sound that gets a verdict: two or three syllables. No utterance of a usual corpus is shorter."""

MOST_REPEATS = 8
"""Most times that a sound may be repeated to fill a window: repeated more often, it is a rhythm rather than speech."""


class WindowScore(NamedTuple):
    """Score of a window, from ``start`` to ``end`` in seconds, on the scale of the file's score."""

    start: float
    end: float
    score: float


@dataclass(frozen=True)
class FileScore:
    """The score of a sound.

    Attributes:
        name: Name of the file.
        score: Higher is more bona fide. If ``is_calibrated``, the log-likelihood ratio of bona fide against spoof
            (natural logarithm); otherwise the model's raw log-odds, on a scale of its own.
        is_calibrated: Whether ``score`` is a log-likelihood ratio.
        seconds: Length of the sound.
        windows: Scores of the windows, at least one; ``score`` is their mean.
        envelope: (n, 2) lowest and highest sample of n stretches of ``envelope_step`` seconds.
        notes: What makes the score unreliable, or is unusual about the file; see `audio.quality`. They change no score.
        reason: Why there is no verdict; the score is meaningless then. None if there is one.
        notice: The model's notice, shown with every score, such as that it is a demonstration; None if it has none.
    """

    name: str
    score: float
    is_calibrated: bool
    seconds: float
    windows: tuple[WindowScore, ...]
    envelope: NDArray[np.float32] = field(repr=False, compare=False)
    envelope_step: float = field(repr=False)
    notes: tuple[Note, ...] = ()
    reason: str | None = None
    notice: str | None = None

    def probability(self, prior: float = 0.5) -> float | None:
        """The probability that the sound is bona fide; None if the score is not calibrated.

        Args:
            prior: Prior probability of bona fide, above 0 and below 1.
        """
        return probability(self.score, prior) if self.is_calibrated else None

    def verdict(self, prior: float = 0.5, threshold: float | None = None) -> Verdict:
        """Return "bonafide" if the score reaches the threshold (None: `default_threshold`), otherwise "spoof"; and
        "inconclusive" if there is a ``reason`` to give no verdict."""
        if threshold is None:
            threshold = default_threshold(self.is_calibrated, prior)
        if self.reason is not None:
            return "inconclusive"
        return "bonafide" if self.score >= threshold else "spoof"

    def as_dict(self, prior: float = 0.5, threshold: float | None = None) -> dict[str, Any]:
        """Return everything but the envelope as plain JSON, with the probability and the verdict for a prior and a
        threshold; a number that JSON cannot represent becomes None."""
        return {
            "name": os.fsdecode(self.name),
            "score": _number(self.score),
            "is_calibrated": bool(self.is_calibrated),
            "probability": self.probability(prior),
            "verdict": self.verdict(prior, threshold),
            "reason": self.reason,
            "seconds": _number(self.seconds),
            "windows": [{name: _number(value) for name, value in w._asdict().items()} for w in self.windows],
            "notes": [note._asdict() for note in self.notes],
            "notice": self.notice,
        }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class FileFailure:
    """A sound that has no score.

    Attributes:
        name: Name of the file.
        error: Exception that says why.
    """

    name: str
    error: Exception

    @property
    def reason(self) -> str:
        """The error in one line, with the name of the file."""
        if isinstance(self.error, InputError):
            return str(self.error)
        return str(InputError(f"cannot use {self.name}: {type(self.error).__name__}: {self.error}"))

    def as_dict(self) -> dict[str, Any]:
        """Return name and reason as plain JSON."""
        return {"name": os.fsdecode(self.name), "error": self.reason}


def probability(score: float, prior: float) -> float:
    """The probability of bona fide for a log-likelihood ratio; ``prior`` as in `FileScore.probability`."""
    return float(probability_of_bona_fide(np.array([score]), prior)[0])


def no_verdict(seconds: float, fill: float, is_silent: bool, has_speech: bool) -> str | None:
    """Return why a sound gets no verdict, although a detector gives it a score; None if it gets one.

    Args:
        seconds: Length of the sound, above 0.
        fill: Seconds to which a shorter sound is repeated.
        is_silent: Whether it is silent, see `audio.quality.SILENT`.
        has_speech: Whether it may have speech, see `audio.speech`.
    """
    if is_silent:
        return "no speech: silent"
    if seconds < LEAST_SECONDS:
        return f"too short: {seconds:.3g} s, of at least {LEAST_SECONDS:g} s"
    if fill > MOST_REPEATS * seconds:
        return f"repeated to fill: {seconds:.3g} s, {fill / seconds:.0f} times in a window of {fill:.3g} s"
    return None if has_speech else "no speech: noise or tones alone"


def default_threshold(is_calibrated: bool, prior: float) -> float:
    """The threshold with the fewest expected errors for calibrated scores, -logit(prior); 0 for raw ones.

    Raises:
        InputError: ``prior`` is not above 0 and below 1.
    """
    if not 0 < prior < 1:
        raise InputError(f"prior: must be above 0 and below 1, not {prior}")
    return math.log1p(-prior) - math.log(prior) if is_calibrated else 0.0

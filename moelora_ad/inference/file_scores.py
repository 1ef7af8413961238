"""The score of a sound, or the reason why it has none. No torch is needed."""

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
"""A sound below is too short for a verdict: two or three syllables. No utterance of a usual corpus is that short."""

MOST_REPEATS = 8
"""A sound that fills a window only if it is repeated more often is heard as a rhythm, no longer as speech."""


class WindowScore(NamedTuple):
    """A stretch of a sound, from ``start`` to ``end`` in seconds, and its score, on the scale of the file's."""

    start: float
    end: float
    score: float


@dataclass(frozen=True)
class FileScore:
    """The score of a sound.

    Attributes:
        name: Of the file.
        score: Higher is more bona fide. If ``is_calibrated``, the log-likelihood ratio of bona fide against spoof
            (natural logarithm); otherwise the model's raw log-odds, on a scale of its own.
        is_calibrated: See above.
        seconds: Length of the sound.
        windows: At least one; ``score`` is their mean.
        envelope: (n, 2) lowest and highest sample of n stretches of ``envelope_step`` seconds.
        notes: What makes the score unreliable, or is unusual about the file; see `audio.quality`. They change no score.
        reason: Why there is nothing to judge, see `no_verdict`: the score is meaningless then. None if there is.
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
            prior: How probable that is before the sound is heard, above 0 and below 1.
        """
        return probability(self.score, prior) if self.is_calibrated else None

    def verdict(self, prior: float = 0.5, threshold: float | None = None) -> Verdict:
        """Bona fide if the score reaches a threshold, see `default_threshold`; inconclusive if there is a reason."""
        if threshold is None:
            threshold = default_threshold(self.is_calibrated, prior)
        if self.reason is not None:
            return "inconclusive"
        return "bonafide" if self.score >= threshold else "spoof"

    def as_dict(self, prior: float = 0.5, threshold: float | None = None) -> dict[str, Any]:
        """All but the envelope as plain JSON, with the probability and the verdict for a prior and a threshold; None
        for a number that JSON cannot represent."""
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
        name: Of the file.
        error: Why.
    """

    name: str
    error: Exception

    @property
    def reason(self) -> str:
        """One line that has the name."""
        if isinstance(self.error, InputError):
            return str(self.error)
        return str(InputError(f"cannot use {self.name}: {type(self.error).__name__}: {self.error}"))

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"name": os.fsdecode(self.name), "error": self.reason}


def probability(score: float, prior: float) -> float:
    """The probability of bona fide for a log-likelihood ratio; ``prior`` as in `FileScore.probability`."""
    return float(probability_of_bona_fide(np.array([score]), prior)[0])


def no_verdict(seconds: float, fill: float, is_silent: bool, has_speech: bool) -> str | None:
    """Why there is nothing to judge in a sound, which a detector scores all the same; None if there is something.

    Args:
        seconds: Its length, above 0.
        fill: Seconds that a shorter sound is repeated to fill.
        is_silent: See `audio.quality.SILENT`.
        has_speech: See `audio.speech`.
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

"""Results, and the model that they come from, as plain JSON for the pages and the API."""

import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moelora_ad import __version__
from moelora_ad.audio import SAMPLE_RATE
from moelora_ad.errors import printable
from moelora_ad.inference.file_scores import FileFailure, FileScore
from moelora_ad.inference.output import DecisionRule

if TYPE_CHECKING:
    from moelora_ad.inference.scorer import Scorer

WAVEFORM_POINTS = 500
_REAL, _FAKE = "a real recording of a person", "synthetic, converted or manipulated speech"
_SIDES = {"bonafide": "bona fide", "spoof": "a spoof"}

About = dict[str, Any]
"""The description of a model that `described_model` returns."""


def described(result: FileScore | FileFailure, decision: DecisionRule, waveform: bool = False) -> dict[str, Any]:
    """Return ``as_dict`` of a result, with verdict and probability by ``decision``, the ``threshold``, and ``meaning``,
    the verdict in one sentence for people. A failure only has ``name`` and ``error``.

    Args:
        result: Result of one sound.
        decision: Prior and threshold of the verdict.
        waveform: Whether to add ``waveform``: at most `WAVEFORM_POINTS` stretches of ``step`` seconds, with the lowest
            (``low``) and the highest (``high``) sample of each, divided by the ``peak`` of the sound.
    """
    if isinstance(result, FileFailure):
        return result.as_dict()
    told = result.as_dict(decision.prior, decision.threshold)
    told["threshold"] = decision.threshold
    told["meaning"] = _meaning(result, decision)
    if waveform:
        told["waveform"] = _waveform(result)
    return told


def _meaning(result: FileScore, decision: DecisionRule) -> str:
    if result.reason is not None:
        return f"No verdict ({result.reason}): the score is meaningless."
    verdict = result.verdict(threshold=decision.threshold)
    side = _SIDES[verdict]
    edge = f"{'reaches' if verdict == 'bonafide' else 'is below'} the threshold of {decision.threshold:.3g}"
    if not decision.is_calibrated:
        return (
            f"Classified as {side}: the raw score of {result.score:.3g} {edge}. The model is not calibrated, so this "
            "cannot be given as a probability."
        )
    more, less = (_REAL, _FAKE) if result.score >= 0 else (_FAKE, _REAL)
    begin = f"Classified as {side}: the score {edge}." if decision.threshold else f"Classified as {side}."
    return f"{begin} By this model the sound is {_times(abs(result.score))} for {more} as for {less}."


def _times(log_ratio: float) -> str:
    ratio = math.exp(min(log_ratio, 50.0))
    if ratio < 1.05:
        return "about as probable"
    return "over 1,000 times as probable" if ratio > 1_000 else f"{float(f'{ratio:.2g}'):g} times as probable"


def _waveform(result: FileScore) -> dict[str, Any]:
    together = -(-len(result.envelope) // WAVEFORM_POINTS)
    begins = np.arange(0, len(result.envelope), together)
    envelope = result.envelope.astype(np.float64)  # rounded float32 values would become long decimals in JSON
    low = np.minimum.reduceat(envelope[:, 0], begins)
    high = np.maximum.reduceat(envelope[:, 1], begins)
    peak = float(np.abs(envelope).max())
    low, high = (np.round(side / (peak or 1.0), 2).tolist() for side in (low, high))
    return {"step": result.envelope_step * together, "peak": peak, "low": low, "high": high}


def described_model(scorer: "Scorer", name: str, decision: DecisionRule) -> About:
    """Return the description of a scorer's model.

    Args:
        scorer: Computes scores with the model.
        name: Path or name that the model was loaded from.
        decision: Prior and threshold of verdicts.
    """
    about = _about(scorer)
    counts: Callable[[], dict[str, int]] | None = getattr(scorer.detector, "parameter_counts", None)
    calibration = None if scorer.calibration is None else scorer.calibration.as_dict()
    return {
        "name": model_name(name),
        "notices": notices(scorer),
        "is_calibrated": decision.is_calibrated,
        "calibration": calibration,
        "scale": decision.scale,
        "prior": decision.prior,
        "threshold": decision.threshold,
        "explained": decision.explained(),
        "window_seconds": scorer.window / SAMPLE_RATE,
        "hop_seconds": scorer.hop / SAMPLE_RATE,
        "precision": scorer.precision,
        "data": about.get("data") or {},
        "parameters": None if counts is None else counts(),
        "library": f"moelora_ad {__version__}",
    }


def model_name(source: str) -> str:
    """The name of a model by its source: the last part of a path that exists, or the whole of another name."""
    return printable(os.path.basename(os.path.abspath(source)) if os.path.exists(source) else source)


def notices(scorer: "Scorer") -> list[str]:
    """Notices to show with scores: the model's own, and notes on the precision that scores are computed in."""
    return [printable(line) for line in (_about(scorer).get("notice"), *scorer.precision_notes) if line]


def _about(scorer: "Scorer") -> Mapping[str, Any]:
    return getattr(scorer.detector, "about", None) or {}  # the detector may be any module that computes logits

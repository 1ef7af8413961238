"""Scoring of sound files with trained detectors, such as saved models."""

from typing import TYPE_CHECKING

from moelora_ad.lazy import lazy_names

if TYPE_CHECKING:
    from moelora_ad.audio.notes import Note
    from moelora_ad.inference.file_scores import FileFailure, FileScore, WindowScore
    from moelora_ad.inference.loading import load
    from moelora_ad.inference.scorer import Scorer
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["FileFailure", "FileScore", "Note", "Scorer", "WindowScore", "load"]

"""Trained detectors at work: scores of a person's own files, and models to keep."""

from moelora_ad.inference.scorer import FileScore, Scorer, WindowScore

__all__ = ["FileScore", "Scorer", "WindowScore"]

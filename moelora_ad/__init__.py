"""Mixtures of low-rank adapter experts for generalisable audio deepfake detection (arXiv 2509.13878).

The packages, from the bottom up: ``audio`` and ``corpora`` (trials), ``adapters`` and ``models`` (the detector),
``evaluation`` (scores to figures), ``training`` (Lightning) and ``cli`` (the door). Importing ``moelora_ad`` alone
imports none of them.
"""

__version__ = "0.1.0"

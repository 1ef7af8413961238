"""Mixtures of low-rank adapter experts for generalisable audio deepfake detection (arXiv 2509.13878).

The public names. Importing the package is fast: the modules behind a name are imported when it is first used.

- ``load(RUN)``: a trained detector, from the folder of a run, a checkpoint, the folder of a model or the hub;
- ``Scorer``: scores of audio; ``evaluate(scores, key)``: figures (error rates and costs) of scores;
- ``Detector``, ``LoRA``, ``MoELoRA``, ``DetectionModule``, ``AudioDeepfakeDataModule``: the parts of training.

The packages, from the bottom up: ``audio`` and ``corpora`` (trials), ``adapters`` and ``models`` (the detector),
``evaluation`` (scores to figures), ``data``, ``training`` (Lightning), ``inference`` and ``analysis``.
"""

from typing import TYPE_CHECKING

from moelora_ad.lazy import lazy_names

if TYPE_CHECKING:
    from moelora_ad import adapters, analysis, audio, corpora, data, evaluation, inference, models, runs, training
    from moelora_ad.adapters import LoRA, MoELoRA
    from moelora_ad.data.data_module import AudioDeepfakeDataModule
    from moelora_ad.evaluation.reports.evaluate import evaluate
    from moelora_ad.inference.loading import load
    from moelora_ad.inference.scorer import Scorer
    from moelora_ad.models.detector import Detector
    from moelora_ad.training.detection_module import DetectionModule
else:
    __getattr__, __dir__ = lazy_names(__name__)

__version__ = "0.1.0"

__all__ = [
    "AudioDeepfakeDataModule",
    "DetectionModule",
    "Detector",
    "LoRA",
    "MoELoRA",
    "Scorer",
    "adapters",
    "analysis",
    "audio",
    "corpora",
    "data",
    "evaluate",
    "evaluation",
    "inference",
    "load",
    "models",
    "runs",
    "training",
]

"""Training with Lightning: the module, its data and samplers, schedules, callbacks and meta-learning."""

from moelora_ad.data.data_module import AudioDeepfakeDataModule
from moelora_ad.data.dataset import Batch, TrialDataset
from moelora_ad.data.samplers import EvaluationBatches, TrainingBatches
from moelora_ad.training.callbacks.routing_log import RoutingLog
from moelora_ad.training.callbacks.wandb import WandbRun
from moelora_ad.training.checkpoint_writing import WholeCheckpointIO
from moelora_ad.training.detection_module import DetectionModule
from moelora_ad.training.losses.tether import Tether
from moelora_ad.training.mldg import MLDG
from moelora_ad.training.schedule import WarmupCosine

__all__ = [
    "MLDG",
    "AudioDeepfakeDataModule",
    "Batch",
    "DetectionModule",
    "EvaluationBatches",
    "RoutingLog",
    "Tether",
    "TrainingBatches",
    "TrialDataset",
    "WandbRun",
    "WarmupCosine",
    "WholeCheckpointIO",
]

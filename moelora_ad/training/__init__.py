"""Training with Lightning: the module, the data, the samplers, the command line's verbs."""

from moelora_ad.training.data_module import AudioDeepfakeDataModule
from moelora_ad.training.dataset import Batch, TrialDataset
from moelora_ad.training.detection_module import DetectionModule
from moelora_ad.training.mldg import MLDG
from moelora_ad.training.routing_log import RoutingLog
from moelora_ad.training.samplers import EvaluationBatches, TrainingBatches
from moelora_ad.training.schedule import WarmupCosine
from moelora_ad.training.wandb_run import WandbRun
from moelora_ad.training.whole_checkpoints import WholeCheckpointIO

__all__ = [
    "MLDG",
    "AudioDeepfakeDataModule",
    "Batch",
    "DetectionModule",
    "EvaluationBatches",
    "RoutingLog",
    "TrainingBatches",
    "TrialDataset",
    "WandbRun",
    "WarmupCosine",
    "WholeCheckpointIO",
]

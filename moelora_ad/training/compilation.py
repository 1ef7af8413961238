"""Which parts of a detector in training are compiled."""

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from moelora_ad.data.trainer_state import shards_the_model
from moelora_ad.models import Detector
from moelora_ad.models.compilation import CompiledDetector, eager_parts
from moelora_ad.training.losses.loss_module import LossModule


def compiled(module: LossModule, detector: Detector, backend: str, checkpointing: bool) -> CompiledDetector:
    """Return the detector of a module with all possible parts compiled; the first process prints which parts run
    eagerly, and why.

    Args:
        module: the module in training or evaluation, with its trainer.
        detector: the detector of the module; changed in place.
        backend: name of a backend of ``torch.compile``.
        checkpointing: whether gradient checkpointing runs layers again in the backward pass.

    Raises:
        InputError: there is no such backend.
    """
    eager = eager_parts(
        detector,
        module.trainer.world_size,
        sharded=shards_the_model(module.trainer),
        meta_learning=module.meta_learning is not None,
        auxiliary=module.auxiliary is not None,
        checkpointing=checkpointing,
    )
    return CompiledDetector(detector, backend, eager, rank_zero_info)

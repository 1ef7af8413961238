"""Which parts of a detector in training are compiled."""

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from moelora_ad.data.trainer_state import shards_the_model
from moelora_ad.models import Detector
from moelora_ad.models.compilation import GRAPHS, CompiledDetector, eager_parts
from moelora_ad.training.losses.loss_module import LossModule
from moelora_ad.training.schedule import most_accumulated_batches


def compiled(module: LossModule, detector: Detector, backend: str, checkpointing: bool) -> CompiledDetector:
    """Return the detector of a module with all possible parts compiled; the first process prints which parts run
    eagerly, and why.

    Args:
        module: the module in training or evaluation, with its trainer.
        detector: the detector of the module; changed in place.
        backend: name of a backend of ``torch.compile``, or its mode with CUDA graphs.
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
    if backend == GRAPHS and (why := _no_graphs(module)):
        rank_zero_info(f"model.compile: {GRAPHS} goes without CUDA graphs: {why}")
        backend = "inductor"
    return CompiledDetector(detector, backend, eager, rank_zero_info)


def _no_graphs(module: LossModule) -> str | None:
    """Why the memory of a step's results and gradients cannot be that of the next step's."""
    if most_accumulated_batches(module.trainer) > 1:
        return "gradients of several batches are accumulated"
    return "the tether runs the detector a second time in each step" if module.tether is not None else None

"""Checkpoints of training runs: whether one can be read, is undamaged, and fits a detector."""

import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.utilities.cloud_io import get_filesystem
from torch import Tensor

from moelora_ad.errors import printable
from moelora_ad.models import Detector
from moelora_ad.models.saving.containers import check_container
from moelora_ad.runs.checkpoints import CheckpointError

ARCHITECTURE = "architecture"  # key of a checkpoint
_ELSEWHERE = {"source", "revision"}  # arguments that say where weights come from, and not what is computed with them


def check_readable(path: str, option: str = "--ckpt_path") -> None:
    """See that a checkpoint is there and can be read, before anything is built.

    Raises:
        CheckpointError: it is not.
    """
    if "://" in path:
        try:
            is_there = bool(get_filesystem(path).exists(path))
        except (OSError, ImportError, ValueError) as error:  # no such protocol, no package for it, no access
            raise CheckpointError(f"{option}: {path} cannot be reached: {' '.join(str(error).split())}") from None
    else:
        is_there = os.path.exists(path)
    if not is_there:
        raise CheckpointError(f"{option}: {path} does not exist")
    if os.path.isfile(path):
        check_container(path, option)
        try:
            checkpoint = torch.load(path, weights_only=True, map_location="meta")
        except Exception as error:  # PyTorch meets a damaged file with many kinds of errors
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"{option}: {path} is no readable checkpoint: {reason}") from None
        check_content(checkpoint, path, option)
    elif "://" not in path and not os.path.isdir(path):  # a folder is a sharded checkpoint
        raise CheckpointError(f"{option}: {path} is no regular file")


def check_content(checkpoint: Any, path: str, option: str) -> None:
    """See that a file is a checkpoint of a training run, and no bare ``state_dict``.

    Raises:
        CheckpointError: it is not.
    """
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(f"{option}: {path} is no checkpoint of a training run: it has no state_dict")


def check_fit(state: Mapping[str, Tensor], detector: Detector, checkpoint: str, shapes: bool = True) -> None:
    """See that a checkpoint holds what a detector needs, and nothing else.

    Args:
        state: its tensors by their names in the detector.
        detector: of the configuration.
        checkpoint: how the message calls it.
        shapes: whether to compare shapes too; a strategy that shards parameters has others.

    Raises:
        CheckpointError: it does not fit.
    """
    kept, own = detector.kept_names(), detector.state_dict() if shapes else {}
    faults = [
        f"it {what} {len(names)} tensors, first {min(names)}"
        for names, what in ((kept - state.keys(), "lacks"), (state.keys() - kept, "holds what the model has not:"))
        if names
    ] + [
        f"{name} is {tuple(tensor.shape)}, the model has {tuple(own[name].shape)}"
        for name, tensor in state.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if faults:
        hint = "give the configuration that it was trained with"
        raise CheckpointError(f"{checkpoint} does not fit the configuration: {faults[0]}; {hint}")


def architecture_of(detector: Detector) -> dict[str, str]:
    """What is computed with the weights of a detector, which their names and shapes do not tell; plain values."""
    told, method = {}, detector.adaptation
    left_out = {*_ELSEWHERE, *method.initial_arguments, *method.training_arguments}
    for name in ("backbone", "adaptation", "classifier"):
        part = getattr(detector, name)
        told[name] = type(part).__qualname__
        told |= {f"{name}.{key}": repr(value) for key, value in part.init_args.items() if key not in left_out}
    return told


def tell_other_architecture(checkpoint: Mapping[str, Any], detector: Detector) -> None:
    """Print a line if a checkpoint was trained with other settings than the detector it is loaded into has.

    Args:
        checkpoint: as it was saved; one of an earlier version, which does not tell, passes.
        detector: of the configuration.
    """
    theirs, ours = checkpoint.get(ARCHITECTURE), architecture_of(detector)
    if not isinstance(theirs, dict):
        return
    names = [name for name in ours | theirs if theirs.get(name) != ours.get(name)]
    if names:
        told = "; ".join(f"{name} was {theirs.get(name)}, is {ours.get(name)}" for name in names)
        print(f"note: this is not the model that was trained: {printable(told)}", file=sys.stderr)

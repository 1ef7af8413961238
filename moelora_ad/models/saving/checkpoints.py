"""Checkpoints of training runs: whether one can be read, is undamaged, and fits a detector."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.cloud_io import get_filesystem
from torch import Tensor

from moelora_ad.errors import InputError, counted, printable
from moelora_ad.models import Detector
from moelora_ad.models.saving.containers import check_container
from moelora_ad.models.saving.files import CONFIG, WEIGHTS, read_config, read_tensors, short
from moelora_ad.models.saving.loading import check_weights
from moelora_ad.models.saving.specification import describe
from moelora_ad.runs.checkpoints import CheckpointError, no_checkpoint

ARCHITECTURE = "architecture"  # key of a checkpoint
ENCODER = "encoder_sha256"  # key of a checkpoint that was made of a saved model
PREFIX = "detector."  # of the names of the detector's tensors in a checkpoint
_PARTS = ("backbone", "adaptation", "classifier")
_NORMALIZE = "backbone.normalize"
_SHARDED = ("meta.pt", "checkpoint")  # in the folders that FSDP and DeepSpeed write
_ELSEWHERE = {"source", "revision", "pretrained"}  # arguments that say where weights come from, not what is computed


def check_readable(path: str, option: str = "--ckpt_path", any_folder: bool = False) -> None:
    """Check that a checkpoint exists and can be read, before anything is built.

    Args:
        path: a file; the folder of a model, or one that FSDP or DeepSpeed wrote, whose content is not read here.
        option: the option that gave the path, for messages.
        any_folder: whether other folders may be checkpoints too, as of a plugin that the user wrote.

    Raises:
        CheckpointError: it does not exist, or cannot be read.
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
        except Exception as error:  # PyTorch raises many kinds of errors for a damaged file
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"{option}: {path} is not a readable checkpoint: {reason}") from None
        check_content(checkpoint, path, option)
    elif "://" not in path:
        if not os.path.isdir(path):
            raise CheckpointError(f"{option}: {path} is not a regular file")
        if not any_folder and not any(Path(path, name).exists() for name in (CONFIG, *_SHARDED)):
            raise no_checkpoint(Path(path), option)


def check_content(checkpoint: Any, path: str, option: str) -> None:
    """Check that a file is a checkpoint of a training run, not a bare ``state_dict``.

    Raises:
        CheckpointError: it is not.
    """
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(f"{option}: {path} is not a checkpoint of a training run: it has no state_dict")


def checkpoint_of_model(folder: Path) -> dict[str, Any]:
    """A saved model as a checkpoint with weights alone, and the hash of the encoder that they belong to.

    Raises:
        InputError: it is damaged.
    """
    config, tensors = read_config(folder), read_tensors(folder / WEIGHTS)
    check_weights(folder, config, tensors)
    return {
        "state_dict": {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()},
        ENCODER: config["backbone_sha256"],
        "pytorch-lightning_version": lightning.__version__,
        "epoch": 0,
        "global_step": 0,
    }


def check_encoder(checkpoint: Mapping[str, Any], detector: Detector) -> None:
    """Check that a saved model was loaded on the encoder that it was trained on; a checkpoint of a run records none.

    Raises:
        CheckpointError: the encoder is another one.
    """
    wanted = checkpoint.get(ENCODER)
    if wanted is not None and detector.frozen_hash() != wanted:
        source = detector.backbone.init_args.get("source")
        raise CheckpointError(f"the encoder at {source} is not the one that the model was trained on ({short(wanted)})")


def check_fit(state: Mapping[str, Tensor], detector: Detector, checkpoint: str, shapes: bool = True) -> None:
    """Check that a checkpoint contains what a detector needs, and nothing else.

    Args:
        state: the checkpoint's tensors by their names in the detector.
        detector: the detector of the configuration.
        checkpoint: the checkpoint's name in the message.
        shapes: whether to compare shapes too; those of a strategy that shards parameters differ.

    Raises:
        CheckpointError: it does not fit.
    """
    kept, own = detector.kept_names(), detector.state_dict() if shapes else {}
    faults = [
        f"it {what} {counted(len(names), 'tensor')}, first {min(names)}"
        for names, what in ((kept - state.keys(), "lacks"), (state.keys() - kept, "has besides the model's own"))
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
    """What names and shapes of a detector's weights do not show: classes and arguments of its parts; plain values."""
    told, left_out = {}, _left_out(detector)
    for name in _PARTS:
        part = getattr(detector, name)
        told[name] = type(part).__qualname__
        told |= {f"{name}.{key}": repr(value) for key, value in part.init_args.items() if key not in left_out}
    return told


def settings_of(detector: Detector) -> dict[str, Any] | None:
    """What `architecture_of` gives as plain JSON, the same for a run and the model that is exported from it; None for a
    detector that cannot be exported."""
    told: dict[str, Any] = {}
    for name in _PARTS:
        try:
            described = describe(getattr(detector, name), _left_out(detector))
        except InputError:
            return None
        told[name] = described["class_path"]
        told |= {f"{name}.{key}": value for key, value in described["init_args"].items()}
    return told


def _left_out(detector: Detector) -> set[str]:
    method = detector.adaptation
    return {*_ELSEWHERE, *method.initial_arguments, *method.training_arguments}


def tell_other_architecture(checkpoint: Mapping[str, Any], detector: Detector) -> None:
    """Print a line if a checkpoint was trained with other settings than the detector it is loaded into has.

    Args:
        checkpoint: content of the checkpoint; one of an earlier version, without a record, passes.
        detector: the detector of the configuration.
    """
    theirs, ours = checkpoint.get(ARCHITECTURE), architecture_of(detector)
    if not isinstance(theirs, dict):
        return
    left_out = {f"{part}.{name}" for part in _PARTS for name in _left_out(detector)}  # earlier versions had some
    if theirs.get(_NORMALIZE) == "None":  # of an earlier version, which did not record what the preprocessor said
        left_out.add(_NORMALIZE)
    names = [name for name in ours | theirs if theirs.get(name) != ours.get(name) and name not in left_out]
    if names:
        told = "; ".join(f"{name} was {theirs.get(name)}, is {ours.get(name)}" for name in names)
        print(f"note: this is not the model that was trained: {printable(told)}", file=sys.stderr)

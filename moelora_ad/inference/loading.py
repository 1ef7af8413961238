"""Loads a trained detector from the folder of a run, a checkpoint, the folder of a model, or the hub."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch

from moelora_ad.configuration.building import Built, build_from_configs, detector_state, load_weights
from moelora_ad.configuration.files import read_configuration
from moelora_ad.errors import InputError
from moelora_ad.inference.onnx import SUFFIX
from moelora_ad.models.detector import Detector
from moelora_ad.models.devices import on_device
from moelora_ad.models.saving.files import CONFIG
from moelora_ad.models.saving.packaged import found_model
from moelora_ad.runs.checkpoints import best_checkpoint
from moelora_ad.runs.record import RECORD

_GIVE = "give the folder of a run, or a checkpoint in it"


class LoadedRun(NamedTuple):
    """A trained run.

    Attributes:
        built: its detector, with the trained weights and in evaluation mode, and its data.
        checkpoint: the file that the weights were loaded from.
        config: the run's configuration file.
    """

    built: Built
    checkpoint: Path
    config: Path


def load(
    source: str | os.PathLike[str],
    *,
    backbone: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    device: str | torch.device | None = None,
    allow: Collection[str] = (),
) -> Detector:
    """Load a trained detector in evaluation mode, with its configuration, window, precision and calibration.

    Args:
        source: the folder of a run, whose best checkpoint is loaded; a checkpoint ``RUN/checkpoints/NAME.ckpt``; the
            folder of an exported model; the name of a model that comes with the package, as ``moelora-ad models`` lists
            them (``./NAME`` is a folder); or the id of a model on the Hugging Face hub.
        backbone: folder or hub id of the pretrained encoder, if it is not where the run or the model says.
        revision: commit, tag or branch of a repository on the hub.
        device: device to put the detector on; the CPU if not given.
        allow: packages besides this one whose classes the detector may be built of. No code that comes with a model is
            executed.

    Raises:
        InputError: there is no such run, checkpoint or model, it is damaged, or its parts do not fit each other.
    """
    source = found_model(source)
    path = Path(source)
    place = None if backbone is None else os.fspath(backbone)
    if path.suffix == SUFFIX and path.is_file():
        raise InputError(f"{source}: an ONNX file is for scoring alone: Scorer.from_pretrained, or moelora-ad score")
    is_run = path.is_file() or (path.is_dir() and not (path / CONFIG).exists())
    if not is_run:
        if not path.is_dir() and os.fspath(source).count("/") != 1:
            raise InputError(f"{source}: no such folder or file, and not an id (owner/name) of a model on the hub")
        return Detector.from_pretrained(
            path if path.is_dir() else os.fspath(source), revision=revision, backbone=place, device=device, allow=allow
        )
    if revision is not None:
        raise InputError(f"{source} is a local path: revision {revision!r} is for the hub")
    if path.is_dir() and not _looks_like_run(path):
        raise InputError(f"{path}: is neither the folder of a run nor that of a model, which has {CONFIG}")
    built, _, config = load_run(path, place, allow)
    detector = built.detector
    detector.configuration = read_configuration(config)
    return on_device(detector, device)


def load_run(path: str | os.PathLike[str], backbone: str | None = None, allow: Collection[str] = ()) -> LoadedRun:
    """Load the detector of a run with its trained weights, and its data.

    Args:
        path: a run's folder, whose best checkpoint is loaded, or a checkpoint in RUN/checkpoints.
        backbone: folder or hub id of the encoder, if it is not where the run's configuration says.
        allow: packages besides this one whose classes the run's configuration may name.

    Raises:
        InputError: there is no such run, it has no checkpoint, or configuration and checkpoint do not fit.
    """
    path = Path(path)
    if path.is_dir() and not _looks_like_run(path):
        what = "the folder of a model, not" if (path / CONFIG).exists() else "not the folder"
        raise InputError(f"{path}: is {what} of a run, which has config.yaml and checkpoints; {_GIVE}")
    checkpoint = best_checkpoint(path) if path.is_dir() else path
    if not checkpoint.is_file():
        raise InputError(f"{checkpoint}: no such checkpoint; {_GIVE}")
    config = checkpoint.absolute().parent.parent / "config.yaml"
    if not config.is_file():
        raise InputError(f"{checkpoint}: is no checkpoint of a run, as there is no {config}; {_GIVE}")
    state = detector_state(str(checkpoint), "checkpoint")
    built = build_from_configs([str(config)], state, str(checkpoint), backbone, allow)
    load_weights(built.detector, state, str(checkpoint))
    (built.detector.window, built.detector.fill), built.detector.precision = built.clips, built.precision
    built.detector.eval()
    return LoadedRun(built, checkpoint, config)


def _looks_like_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (RECORD, "config.yaml", "checkpoints"))

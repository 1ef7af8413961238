"""A trained detector from wherever it is: the folder of a run, a checkpoint, the folder of a model, or the hub."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch

from moelora_ad.configuration.building import Built, build_from_configs, config_beside, detector_state, load_weights
from moelora_ad.configuration.files import read_configuration
from moelora_ad.errors import InputError
from moelora_ad.inference.onnx import SUFFIX
from moelora_ad.models.detector import Detector
from moelora_ad.models.devices import on_device
from moelora_ad.models.saving.files import CONFIG
from moelora_ad.models.saving.packaged import found_model
from moelora_ad.runs.checkpoints import best_checkpoint
from moelora_ad.runs.record import RECORD


class LoadedRun(NamedTuple):
    """A trained run.

    Attributes:
        built: its detector, with the trained weights and in evaluation mode, and its data.
        checkpoint: where the weights come from.
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
    """A trained detector in evaluation mode, with its configuration, window, precision and calibration.

    Args:
        source: the folder of a run, for its best checkpoint; a checkpoint ``RUN/checkpoints/NAME.ckpt``; the folder of
            a model that was exported; the name of one that comes with the package, as ``moelora-ad models`` lists them
            (``./NAME`` is a folder); or the id of one on the Hugging Face hub.
        backbone: where the pretrained encoder is, if not where the run or the model says.
        revision: commit, tag or branch of a repository on the hub.
        device: where to put it; the CPU if not given.
        allow: packages besides this one whose classes it may be built of. Nothing that comes with it is executed.

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
    if path.is_dir() and not any((path / name).exists() for name in (RECORD, "config.yaml", "checkpoints")):
        raise InputError(f"{path}: is neither the folder of a run nor that of a model, which has {CONFIG}")
    built, _, config = load_run(path, place, allow)
    detector = built.detector
    detector.configuration = read_configuration(config)
    return on_device(detector, device)


def load_run(path: str | os.PathLike[str], backbone: str | None = None, allow: Collection[str] = ()) -> LoadedRun:
    """The detector of a run with its trained weights, and its data.

    Args:
        path: a run's folder, for its best checkpoint, or a checkpoint in RUN/checkpoints.
        backbone: where the encoder is, if not where the run found it.
        allow: packages besides ours whose classes the run's configuration may name.

    Raises:
        InputError: there is no such run, it has no checkpoint, or the two do not fit.
    """
    path = Path(path)
    checkpoint = best_checkpoint(path) if path.is_dir() else path
    if not checkpoint.is_file():
        raise InputError(f"{checkpoint}: no such checkpoint; give the folder of a run, or a file in its checkpoints")
    config = Path(config_beside(str(checkpoint)))
    state = detector_state(str(checkpoint))
    built = build_from_configs([str(config)], state, str(checkpoint), backbone, allow)
    load_weights(built.detector, state, str(checkpoint))
    (built.detector.window, built.detector.fill), built.detector.precision = built.clips, built.precision
    built.detector.eval()
    return LoadedRun(built, checkpoint, config)

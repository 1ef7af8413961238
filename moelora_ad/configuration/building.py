"""The detector and the data of a run, built again from its configuration, and its weights from a checkpoint."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import is_zipfile

import torch
from jsonargparse import Namespace
from torch import Tensor

from moelora_ad.adapters import AdaptationMethod
from moelora_ad.audio import ScoredClips
from moelora_ad.configuration.files import part_of, read_configuration
from moelora_ad.configuration.objects import instantiate, parse_parts
from moelora_ad.configuration.parser import OneLineParser
from moelora_ad.data.data_module import AudioDeepfakeDataModule
from moelora_ad.errors import InputError
from moelora_ad.models import Backbone, Classifier, Detector
from moelora_ad.models.dry_build import MOST_OF_ENCODER, dry_build, most_for
from moelora_ad.models.precision import precision_name
from moelora_ad.models.saving.checkpoints import (
    PREFIX,
    CheckpointError,
    check_content,
    check_fit,
    tell_other_architecture,
)
from moelora_ad.models.saving.containers import check_container

ClassifierOf = Callable[[int], Classifier]
PARTS = ("backbone", "adaptation", "classifier")
_FROZEN = "freeze_classifier"


class Built(NamedTuple):
    """What a configuration describes.

    Attributes:
        detector: the detector, without the weights of a checkpoint.
        data: the data module; nothing is read yet.
        clips: the clips that the detector scores.
        precision: the precision that the detector is trained and evaluated in, by Lightning's name.
    """

    detector: Detector
    data: AudioDeepfakeDataModule
    clips: ScoredClips
    precision: str


def build_from_configs(
    paths: list[str],
    state: Mapping[str, Tensor],
    checkpoint: str,
    backbone: str | None = None,
    allow: Collection[str] = (),
) -> Built:
    """Build the detector and the data module of configurations, once a build without memory has shown that the detector
    is that of a checkpoint.

    Args:
        paths: the files, as for fit: later ones change earlier ones. Used are the three parts and
            ``freeze_classifier`` of ``model``, all of ``data``, ``trainer.precision`` and ``seed_everything``.
        state: tensors of the checkpoint, see `detector_state`.
        checkpoint: path of the checkpoint.
        backbone: where the encoder is, if it is not where the configurations say.
        allow: packages besides ours whose classes may be built.

    Raises:
        InputError: a file is missing or faulty, or the parts do not fit each other or the checkpoint.
    """
    parser = OneLineParser(exit_on_error=False)
    # No part is required here: a file that others complete may lack any of them.
    for name, kind in (("backbone", Backbone), ("adaptation", AdaptationMethod), ("classifier", ClassifierOf)):
        parser.add_argument(f"--model.{name}", type=kind)
    parser.add_argument(f"--model.{_FROZEN}", type=bool, default=False)
    parser.add_class_arguments(AudioDeepfakeDataModule, "data")
    parsed = parse_parts(parser, paths, {"model": (*PARTS, _FROZEN), "data": None}, allow)
    named = ", ".join(paths)
    if missing := [name for name in PARTS if parsed.model.get(name) is None]:
        raise InputError(f"{named}: no model.{missing[0]}")
    if backbone is not None:
        given = parsed.model.backbone.init_args
        if "source" not in given:
            raise InputError(f"--backbone: a {parsed.model.backbone.class_path} is built from no source")
        given["source"] = backbone
        if "revision" in given:
            given["revision"] = None
    precision = None
    for path in paths:
        config = read_configuration(path)
        precision = part_of(config, "trainer", path).get("precision", precision)
        if type(config.get("seed_everything")) is int:
            parsed.data.seed = config["seed_everything"]
    try:
        _check_dry(
            lambda: instantiate(parser, Namespace(model=parsed.model), paths, allow, groups=False).model,
            state,
            checkpoint,
        )
        built = instantiate(parser, parsed, paths, allow)
        detector = Detector(built.model.backbone, built.model.adaptation, built.model.classifier)
        if built.model[_FROZEN]:  # for its parameter counts
            detector.freeze_classifier()
    except CheckpointError:
        raise
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        line = str(error) if str(error).startswith(named) else f"{named}: {' '.join(str(error).split())}"
        elsewhere = backbone is None and "no such folder" in line
        raise InputError(f"{line}; give its place now with --backbone" if elsewhere else line) from None
    data_module: AudioDeepfakeDataModule = built.data
    return Built(detector, data_module, data_module.scored_clips, precision_name(precision))


def _check_dry(parts: Callable[[], Any], state: Mapping[str, Tensor], checkpoint: str) -> None:
    """Check that a checkpoint matches a configuration, before anything is built that takes memory.

    Args:
        parts: builds the three parts of the detector.
        state: tensors of the checkpoint.
        checkpoint: name of the checkpoint in messages.

    Raises:
        CheckpointError: the checkpoint does not match.
    """
    with dry_build(MOST_OF_ENCODER):
        made = parts()
    with dry_build(most_for(state)):
        detector = Detector(made.backbone, made.adaptation, made.classifier)
    check_fit(state, detector, checkpoint)


def arguments_of(kind: type, config: str, allow: Collection[str] = (), checkpoint: str | None = None) -> dict[str, Any]:
    """The arguments of a module's class, built from the part ``model`` of a run's configuration.

    Args:
        kind: the module's class.
        config: the configuration file.
        allow: packages besides ours whose classes may be built.
        checkpoint: a checkpoint that must be of the same detector, checked before memory is taken; None for none.

    Raises:
        InputError: the file is missing or faulty, or the checkpoint does not match.
    """
    parser = OneLineParser(exit_on_error=False)
    parser.add_class_arguments(kind, "model")
    parsed = parse_parts(parser, [config], {"model": None}, allow)

    def parts() -> Any:
        return instantiate(parser, parsed, [config], allow, groups=False).model

    if checkpoint is not None:
        _check_dry(parts, detector_state(checkpoint), "the checkpoint")
    return vars(parts())


def config_beside(checkpoint: str) -> str:
    """The path RUN/config.yaml of a checkpoint RUN/checkpoints/X.ckpt.

    Raises:
        InputError: there is no such file.
    """
    path = Path(checkpoint).absolute().parent.parent / "config.yaml"
    if not path.is_file():
        raise InputError(
            f"no configuration {path}: give that of the run with --config (in Python hparams_file, or backbone, "
            "adaptation and classifier)"
        )
    return str(path)


def detector_state(path: str, option: str = "--checkpoint") -> dict[str, Tensor]:
    """The tensors of a detector in a Lightning checkpoint.

    Args:
        path: the checkpoint.
        option: the option that names the checkpoint, for messages.

    Raises:
        InputError: the file is not a readable checkpoint of a training run.
    """
    checkpoint = _checkpoint(path, option)
    check_container(path, option)
    check_content(checkpoint, path, option)
    state = checkpoint["state_dict"]
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}


def _checkpoint(path: str, option: str = "--checkpoint") -> dict[str, Any]:
    if not Path(path).is_file():
        raise InputError(f"{option}: {path} is not a file")
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True) if is_zipfile(path) else None
    except Exception as error:  # PyTorch meets a damaged file with many kinds of errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{option}: {path} is not a readable checkpoint: {reason}") from None
    if checkpoint is None:
        raise InputError(f"{option}: {path} is not a checkpoint, or is truncated")
    return checkpoint if isinstance(checkpoint, dict) else {}


def load_weights(detector: Detector, state: dict[str, Tensor], path: str) -> None:
    """Load the tensors that `detector_state` read; print a note if they were trained with other settings.

    Raises:
        InputError: the tensors do not fit the detector.
    """
    check_fit(state, detector, path)
    tell_other_architecture(_checkpoint(path), detector)
    detector.load_state_dict(state, strict=False)

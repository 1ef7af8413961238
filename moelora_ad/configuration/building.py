"""The detector and the data of a run, built again from its configuration, and its weights from a checkpoint."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import is_zipfile

import torch
from jsonargparse import ArgumentError
from torch import Tensor

from moelora_ad.adapters import AdaptationMethod
from moelora_ad.audio import TRAINING_SAMPLES
from moelora_ad.configuration.parser import OneLineParser, explain, read_yaml
from moelora_ad.configuration.trust import check_made_later, imports_limited
from moelora_ad.data.data_module import AudioDeepfakeDataModule
from moelora_ad.errors import InputError
from moelora_ad.models import Backbone, Classifier, Detector
from moelora_ad.models.precision import precision_name
from moelora_ad.models.saving.checkpoints import check_container, check_content, check_fit, tell_other_architecture

ClassifierOf = Callable[[int], Classifier]
PARTS = ("backbone", "adaptation", "classifier")
PREFIX = "detector."  # of the detector's tensors in a Lightning checkpoint


class Built(NamedTuple):
    """What a configuration describes.

    Attributes:
        detector: its weights are not those of any checkpoint.
        data: the data module; nothing is read yet.
        window: samples of the clips that the detector scores.
        precision: that it is trained and judged in, by Lightning's name.
    """

    detector: Detector
    data: AudioDeepfakeDataModule
    window: int
    precision: str


def build_from_configs(paths: list[str], backbone: str | None, program: str, allow: Collection[str] = ()) -> Built:
    """Build the detector and the data module of configurations.

    Args:
        paths: as for fit; later files change earlier ones. Of ``model`` the three parts are used, all of ``data``,
            and ``trainer.precision``.
        backbone: where the encoder is, if not where the configurations say.
        program: for error messages, which end the program.
        allow: packages besides ours whose classes may be built.

    Raises:
        InputError: a file is missing or faulty, or the parts do not fit each other.
    """
    with imports_limited(allow):
        return _build(paths, backbone, program)


def _build(paths: list[str], backbone: str | None, program: str) -> Built:
    parser = OneLineParser(prog=program)
    # Not required here: a file that others complete may lack any of them.
    for name, kind in (("backbone", Backbone), ("adaptation", AdaptationMethod), ("classifier", ClassifierOf)):
        parser.add_argument(f"--model.{name}", type=kind)
    parser.add_class_arguments(AudioDeepfakeDataModule, "data")
    parsed = parser.get_defaults()
    precision = None
    for path in paths:
        config = _config(path)
        model, data = _part(config, "model", path), _part(config, "data", path)
        precision = _part(config, "trainer", path).get("precision", precision)
        if type(config.get("seed_everything")) is int:
            data = data | {"seed": config["seed_everything"]}
        content = {"model": {name: model[name] for name in PARTS if name in model}, "data": data}
        parsed = parser.parse_object(content, cfg_base=parsed)
    check_made_later(parsed.model)
    if missing := [name for name in PARTS if parsed.model.get(name) is None]:
        raise InputError(f"{', '.join(paths)}: no model.{missing[0]}")
    if backbone is not None:
        given = parsed.model.backbone.init_args
        if "source" not in given:
            raise InputError(f"--backbone: a {parsed.model.backbone.class_path} is built from no source")
        given["source"], given["revision"] = backbone, None
    try:
        built = parser.instantiate_classes(parsed)
        detector = Detector(built.model.backbone, built.model.adaptation, built.model.classifier)
    except (ValueError, TypeError) as error:
        line = f"{', '.join(paths)}: {' '.join(str(error).split())}"
        elsewhere = backbone is None and "no such folder" in line
        raise InputError(f"{line}; give its place now with --backbone" if elsewhere else line) from None
    data_module: AudioDeepfakeDataModule = built.data
    window = data_module.eval_segment.samples or data_module.train_segment.samples or TRAINING_SAMPLES
    return Built(detector, data_module, window, precision_name(precision))


def arguments_of(kind: type, config: str, allow: Collection[str] = ()) -> dict[str, Any]:
    """The arguments of a module's class, built from the part ``model`` of a run's configuration.

    Args:
        kind: the module's class.
        config: the file.
        allow: packages besides ours whose classes may be built.

    Raises:
        InputError: the file is missing or faulty.
    """
    parser = OneLineParser(exit_on_error=False)
    parser.add_class_arguments(kind, "model")
    try:
        with imports_limited(allow):
            parsed = parser.parse_object({"model": _part(_config(config), "model", config)})
            check_made_later(parsed.model)
            return vars(parser.instantiate(parsed, instantiate_groups=False).model)
    except InputError:
        raise
    except (ArgumentError, ValueError, TypeError) as error:
        raise InputError(f"{config}: {explain(str(error), parser)}") from None


def config_beside(checkpoint: str) -> str:
    """RUN/config.yaml of RUN/checkpoints/X.ckpt.

    Raises:
        InputError: it is not there.
    """
    path = Path(checkpoint).absolute().parent.parent / "config.yaml"
    if not path.is_file():
        raise InputError(
            f"no configuration {path}: give that of the run with --config (in Python hparams_file, or backbone, "
            "adaptation and classifier)"
        )
    return str(path)


def detector_state(path: str) -> dict[str, Tensor]:
    """The tensors of a detector in a Lightning checkpoint.

    Raises:
        InputError: the file is no readable checkpoint of a training run.
    """
    checkpoint = _checkpoint(path)
    check_container(path, "--checkpoint")
    check_content(checkpoint, path, "--checkpoint")
    state = checkpoint["state_dict"]
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}


def _checkpoint(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise InputError(f"--checkpoint: {path} is no file")
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True) if is_zipfile(path) else None
    except Exception as error:  # PyTorch meets a damaged file with many kinds of errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"--checkpoint: {path} is no readable checkpoint: {reason}") from None
    if checkpoint is None:
        raise InputError(f"--checkpoint: {path} is no checkpoint, or is cut off")
    return checkpoint if isinstance(checkpoint, dict) else {}


def load_weights(detector: Detector, state: dict[str, Tensor], path: str) -> None:
    """Load what `detector_state` read; a line tells if it was trained with other settings than the detector has.

    Raises:
        InputError: it does not fit the detector.
    """
    check_fit(state, detector, f"--checkpoint: {path}")
    tell_other_architecture(_checkpoint(path), detector)
    detector.load_state_dict(state, strict=False)


def _config(path: str) -> dict[str, Any]:
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise InputError(f"--config: {path} is no configuration of a run")
    return config


def _part(config: dict[str, Any], name: str, path: str) -> dict[str, Any]:
    part = config.get(name) or {}
    if not isinstance(part, dict):
        raise InputError(f"--config: the part {name!r} of {path} is no mapping")
    return part

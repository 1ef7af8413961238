"""A saved model in the place of a checkpoint: ``--ckpt_path MODEL`` of validate, test and predict."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from moelora_ad.adapters import AdaptationMethod
from moelora_ad.audio import ScoredClips
from moelora_ad.cli.arguments import OneLineArgumentParser
from moelora_ad.configuration.building import PARTS
from moelora_ad.configuration.trust import add_allow
from moelora_ad.errors import InputError
from moelora_ad.models import Backbone, Classifier
from moelora_ad.models.saving.files import CONFIG, ENCODER_FOLDER, read_config
from moelora_ad.models.saving.loading import check_named
from moelora_ad.models.saving.packing import check_encoder_files
from moelora_ad.models.saving.specification import resolve, without_source

_OPTION = "--ckpt_path"
_KINDS = dict(zip(PARTS, (Backbone, AdaptationMethod, Classifier), strict=True))


def is_model(path: str | None) -> bool:
    """Whether a path is the folder of a saved model."""
    return path is not None and (Path(path) / CONFIG).is_file()


def with_model(arguments: Sequence[str]) -> list[str]:
    """Complete a command line whose ``--ckpt_path`` names a saved model: that model's parts replace those of all
    configurations, and its window is taken where these name none. ``--allow PACKAGE`` and ``--backbone DIR`` are those
    of all commands that read a model. Any other command line is returned as it is.

    Args:
        arguments: the command line, beginning with the command.

    Raises:
        InputError: the model is damaged, or is built of classes that are neither ours nor allowed: an untrusted file
            must not import them.
    """
    path = _given(arguments)
    if arguments[:1] == ["fit"] or path is None or not is_model(path):
        return [*arguments]
    parser = OneLineArgumentParser(prog=f"moelora-ad {arguments[0]}", add_help=False)
    parser.add_argument("--backbone")
    add_allow(parser)
    own, (verb, *rest) = parser.parse_known_args(arguments)
    config, parts = model_parts(Path(path), own.allow, own.backbone)
    chosen = [f"--model.{name}={json.dumps(parts[name])}" for name in PARTS]
    return [verb, f"--data.eval_segment={json.dumps(segment_of(config))}", *rest, *chosen]


def segment_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The clips that a saved model was evaluated on, as a configuration has them.

    Args:
        config: the model's ``config.json``.
    """
    clips = ScoredClips.of(config["window"], config["fill"])
    return {"class_path": "moelora_ad.audio.Segment", "init_args": {"samples": clips.window, "short": clips.short}}


def model_parts(
    folder: Path, allow: Collection[str] = (), backbone: str | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ``config.json`` of a saved model, and the model's three parts by name as a configuration has them, with the
    place where its encoder is now.

    Args:
        folder: the model's folder.
        allow: packages besides ours whose classes the model may name.
        backbone: where the encoder is, if it is not where the model says.

    Raises:
        InputError: the model is damaged, or names other classes; or its encoder is not there.
    """
    config = read_config(folder)
    parts: dict[str, Any] = {name: config[name] for name in PARTS}
    classes = {name: resolve(parts[name], kind, allow) for name, kind in _KINDS.items()}
    given = parts["backbone"]["init_args"]
    if config["backbone_files"]:
        check_encoder_files(folder, config["backbone_files"])
        given |= {name: value for name, value in _place(str(folder / ENCODER_FOLDER)).items() if name in given}
    if backbone is not None:
        if given.get("source") is None:
            raise InputError(f"--backbone: a {parts['backbone']['class_path']} is built from no source")
        given |= {name: value for name, value in _place(backbone).items() if name in given}
    elif config["backbone_sha256"] and not config["backbone_files"]:
        check_named(given, config["backbone_sha256"])
    if config["backbone_sha256"] is None:  # every weight is in the model's own file
        given |= without_source(classes["backbone"])
    return config, parts


def _given(arguments: Sequence[str]) -> str | None:
    for number, argument in enumerate(arguments):
        if argument.startswith(f"{_OPTION}="):
            return argument.partition("=")[2]
        if argument == _OPTION and number + 1 < len(arguments):
            return arguments[number + 1]
    return None


def _place(source: str) -> dict[str, Any]:
    return {"source": source, "revision": None}

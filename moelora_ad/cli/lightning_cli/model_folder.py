"""A saved model in the place of a checkpoint: ``--ckpt_path MODEL`` of validate, test and predict."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moelora_ad.adapters import AdaptationMethod
from moelora_ad.configuration.building import PARTS
from moelora_ad.models import Backbone, Classifier
from moelora_ad.models.saving.files import CONFIG, ENCODER_FOLDER, read_config
from moelora_ad.models.saving.packing import check_encoder_files
from moelora_ad.models.saving.specification import resolve, without_source

_OPTION = "--ckpt_path"
_KINDS = dict(zip(PARTS, (Backbone, AdaptationMethod, Classifier), strict=True))


def is_model(path: str | None) -> bool:
    """Whether a path is the folder of a saved model."""
    return path is not None and (Path(path) / CONFIG).is_file()


def with_model(arguments: Sequence[str]) -> list[str]:
    """A command line whose ``--ckpt_path`` names a saved model, with that model's parts in the place of those of all
    configurations, and its window where these name none; any other as it is.

    Args:
        arguments: the verb first.

    Raises:
        InputError: the model is damaged, or is built of classes that are not ours: a file that comes from a stranger
            must not import them.
    """
    path = _given(arguments)
    if arguments[:1] == ["fit"] or path is None or not is_model(path):
        return [*arguments]
    folder = Path(path)
    config = read_config(folder)
    parts: dict[str, Any] = {name: config[name] for name in PARTS}
    classes = {name: resolve(parts[name], kind) for name, kind in _KINDS.items()}
    given = parts["backbone"]["init_args"]
    if config["backbone_files"]:
        check_encoder_files(folder, config["backbone_files"])
        given |= {name: value for name, value in _place(folder).items() if name in given}
    if config["backbone_sha256"] is None:  # every weight is in the model's own file
        given |= without_source(classes["backbone"])
    window, fill = config["window"], config["fill"]
    short = "repeat" if fill is None or fill >= window else "pad"
    segment = {"class_path": "moelora_ad.audio.Segment", "init_args": {"samples": window, "short": short}}
    verb, *rest = arguments
    chosen = [f"--model.{name}={json.dumps(parts[name])}" for name in PARTS]
    return [verb, f"--data.eval_segment={json.dumps(segment)}", *rest, *chosen]


def _given(arguments: Sequence[str]) -> str | None:
    for number, argument in enumerate(arguments):
        if argument.startswith(f"{_OPTION}="):
            return argument.partition("=")[2]
        if argument == _OPTION and number + 1 < len(arguments):
            return arguments[number + 1]
    return None


def _place(folder: Path) -> dict[str, Any]:
    return {"source": str(folder / ENCODER_FOLDER), "revision": None}

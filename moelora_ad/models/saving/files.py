"""The files of a saved detector: read, checked, written, fetched from the hub."""

import copy
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from moelora_ad.audio import SAMPLE_RATE
from moelora_ad.documents import read_json
from moelora_ad.errors import InputError
from moelora_ad.files import file_hash, written_whole
from moelora_ad.models.saving.card import model_card
from moelora_ad.models.saving.packaged import packaged_models

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
ONNX = "model.onnx"
ENCODER_FOLDER = "backbone"
FORMAT = 1
LABELS = ["spoof", "bonafide"]
MIN_WINDOW, MAX_WINDOW = SAMPLE_RATE // 10, 3_600 * SAMPLE_RATE
"""Bounds of a clip in samples: a sound must neither give millions of clips, nor be repeated endlessly to fill one."""
_LONGEST_LINE = 1_000
TOLD = {
    "notice": "a line, which is shown with every score",
    "licence": "a line: of the weights, an SPDX identifier or in words",
    "limits": "a list of lines: what the model cannot do",
    "recordings": "a list of lines: what it was trained on, and under which licences",
}
"""What a user may state about a model."""
CALIBRATED_FIGURES = ("actDCF", "Cllr")
"""Figures of a model card that another calibration changes."""


def read_config(folder: str | Path) -> dict[str, Any]:
    """The ``config.json`` of a saved detector.

    Raises:
        InputError: it is missing, is not JSON, is of a newer format, or a field is missing or faulty.
    """
    path = Path(folder) / CONFIG
    check_regular(path)
    try:
        config = read_json(path)
    except OSError as error:
        if (told := of_a_run(Path(folder))) is not None:
            raise InputError(told) from None
        raise InputError.at(path, f"cannot be read: {error.strerror}; is this a saved detector?") from None
    if not isinstance(config, dict) or "format" not in config or "backbone" not in config:
        raise InputError.at(path, "is not of a detector that moelora-ad saved; make one with moelora-ad export")
    if config["format"] != FORMAT:
        raise InputError.at(path, f"is of format {config['format']!r}, this moelora_ad reads {FORMAT}: upgrade it")
    for name in ("precision", "backbone_files", "fill"):
        config.setdefault(name, None)  # models of earlier versions do not have it
    if missing := [name for name in _FIELDS if name not in config]:
        raise InputError.at(path, f"has no field {missing[0]!r}")
    for name, right in _FIELDS.items():
        if not right(config[name]):
            raise InputError.at(path, f"the field {name!r} cannot be {_cut(config[name])}")
    return config


def store_calibration(folder: str | Path, calibration: dict[str, Any]) -> None:
    """Store a calibration with a saved detector; its model card is updated, unless it was edited. Figures that
    hold only for another calibration are removed.

    Args:
        folder: the detector's folder.
        calibration: as ``evaluation.Calibration.as_dict`` gives it.

    Raises:
        InputError: see `read_config`.
    """
    config = read_config(folder)
    changed = copy.deepcopy(config) | {"calibration": calibration}
    for result in (changed["about"] or {}).get("results", []):
        result["figures"] = {name: one for name, one in result["figures"].items() if name not in CALIBRATED_FIGURES}
    card = Path(folder) / CARD
    if card.is_file() and card.read_bytes() == model_card(config).encode():
        with written_whole(card) as unfinished:
            unfinished.write_text(model_card(changed), encoding="utf-8")
    with written_whole(Path(folder) / CONFIG) as unfinished:
        write_config(unfinished, changed)


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        InputError: it is missing or damaged.
    """
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a mapping)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise InputError.at(path, f"is not a readable safetensors file: {str(error).splitlines()[0]}") from None


def check_regular(path: Path) -> None:
    """Check that a path, if it exists, is a regular file: a pipe or a device may have no end.

    Raises:
        InputError: it is something else.
    """
    if path.exists() and not path.is_file():
        raise InputError.at(path, "is not a regular file")


def check_hash(path: Path, digest: str) -> None:
    """Check that a file of a saved detector is the one recorded in its ``config.json``.

    Raises:
        InputError: it is another one.
    """
    if file_hash(path) != digest:
        raise InputError.at(path, f"is not the file that {CONFIG} was written with: save or download it again")


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file.

    Raises:
        OSError: it cannot be written.
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:  # the system's error, only as text
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from None


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors, whatever file they came from: over ``name type shape`` and the values of each, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        kind = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name} {kind} {'x'.join(map(str, tensor.shape))}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def downloaded(source: str, revision: str | None) -> Path:
    """Download a detector's repository, and return its folder in the local hub cache.

    Raises:
        InputError: the files are not available, or see `read_config`.
    """
    path = Path(source)
    if path.is_file():
        raise InputError(of_a_run(path) or f"model {source}: is a file, not the folder of a model")
    if "/" not in source:
        known = ", ".join(packaged_models())
        raise InputError(f"model {source}: no such folder, and no packaged model (moelora-ad models has them: {known})")
    if path.is_absolute() or source.count("/") != 1 or source.startswith("."):
        raise InputError(f"model {source}: no such folder")
    with downloading(f"model {source}: no such folder"):
        for name in (WEIGHTS, CONFIG):
            file = hf_hub_download(source, name, revision=revision)
        folder = Path(file).parent
        for name in read_config(folder)["backbone_files"] or ():
            hf_hub_download(source, name, revision=revision)
    return folder


def of_a_run(path: Path) -> str | None:
    """What a path is, if it is the folder or a checkpoint of a run, and how a model is made of it; None if it is
    neither."""
    name, checkpoint, run = "a checkpoint", path, path.absolute().parent.parent
    if path.is_dir():
        name, checkpoint, run = "the folder of a run", path / "checkpoints" / "NAME.ckpt", path
    if not (run / "config.yaml").is_file() or checkpoint.parent.absolute().name != "checkpoints":
        return None
    made = f"moelora-ad export --checkpoint {quote(str(checkpoint))} --to MODEL"
    return f"{path}: is {name}, not a saved model; {made} makes one"


@contextmanager
def downloading(told: str) -> Iterator[None]:
    """Report errors of the hub within the block in one line, which begins with ``told``.

    Raises:
        InputError: instead of the hub client's errors.
    """
    try:
        yield
    except (OSError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{told}, and not available from the hub: {reason}") from None


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if tensor.device.type != "meta" and not tensor.isfinite().all():
            raise InputError(f"{where}: {name} has values that are not finite: the training diverged")


def short(digest: str | None) -> str:
    return f"{digest[:16]}..." if digest else "unknown"


def is_window(value: Any) -> bool:
    return type(value) is int and MIN_WINDOW <= value <= MAX_WINDOW


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _are_encoder_files(value: Any) -> bool:
    """Names of files in the encoder's folder, without paths, with the SHA-256 of each."""
    return isinstance(value, dict) and all(
        re.fullmatch(rf"{ENCODER_FOLDER}/\w[\w.-]*", name) and _is_sha256(digest) for name, digest in value.items()
    )


def _is_part(value: Any) -> bool:
    return isinstance(value, dict) and "class_path" in value


def is_told(about: Mapping[str, Any]) -> bool:
    """Whether what the user has stated about the model has the types in `TOLD`."""
    lines = [about[name] for name in ("notice", "licence") if name in about]
    lists = [about[name] for name in ("limits", "recordings", "history") if name in about]
    if not all(isinstance(one, list) for one in lists):
        return False
    lines += [line for one in lists for line in one]
    return all(isinstance(line, str) and 0 < len(line) <= _LONGEST_LINE for line in lines)


def _is_about(value: Any) -> bool:
    """Whether `model_card` can use a value of the field ``about``."""
    if value is None:
        return True
    results = value.get("results", []) if isinstance(value, dict) else None
    return (
        isinstance(results, list)
        and is_told(value)
        and isinstance(value.get("data", {}), dict)
        and all(map(_is_result, results))
    )


def _is_result(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("figures"), dict):
        return False
    numbers = [value.get("num_bona_fide"), value.get("num_spoof")]
    for figure in value["figures"].values():
        if not isinstance(figure, dict):
            return False
        interval = [figure.get("low"), figure.get("high")]
        numbers += [figure.get("value"), *([] if interval == [None, None] else interval)]
    return isinstance(value.get("set"), str) and all(type(number) in (int, float) for number in numbers)


_FIELDS = {
    "labels": lambda value: value == LABELS,
    "sample_rate": lambda value: value == SAMPLE_RATE,
    "window": is_window,
    "fill": lambda value: value is None or is_window(value),
    "precision": lambda value: value is None or isinstance(value, str),
    "backbone": lambda value: _is_part(value) and isinstance(value.get("init_args"), dict),
    "backbone_sha256": lambda value: value is None or _is_sha256(value),
    "backbone_files": lambda value: value is None or _are_encoder_files(value),
    "adaptation": _is_part,
    "sites": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "classifier": _is_part,
    "weights_sha256": _is_sha256,
    "calibration": lambda value: value is None or isinstance(value, dict),
    "parameters": lambda value: (
        isinstance(value, dict) and "total" in value and all(type(count) is int for count in value.values())
    ),
    "about": _is_about,
}

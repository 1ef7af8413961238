"""The pretrained encoder in the folder of a saved detector, so that the folder is self-contained.

``backbone/`` holds the files that the encoder is built from: ``config.json``, the preprocessor, the weights as
safetensors, and the licence files beside them. ``config.json`` of the detector has the SHA-256 of each.
"""

import re
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moelora_ad.documents import read_json
from moelora_ad.errors import InputError
from moelora_ad.models.backbones.base import Backbone
from moelora_ad.models.backbones.pretrained import checkpoint_files, snapshot_of
from moelora_ad.models.saving.files import (
    CONFIG,
    ENCODER_FOLDER,
    WEIGHTS,
    check_hash,
    check_regular,
    read_tensors,
    save_tensors,
    write_config,
)

MOST_WEIGHTS = 50_000_000
"""An encoder with fewer frozen weights is packed by default: 200 MB in float32."""

Writer = Callable[[Path], object]
_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
_LICENCE = re.compile(r"(licen[cs]e|notice|copying|copyright|attribution|readme|model_card)\b.*", re.IGNORECASE)
_MOST_OF_LICENCE = 2**20  # bytes


def encoder_files(backbone: Backbone, weights: bool) -> dict[str, Writer] | None:
    """Functions that write the files of an encoder, by the files' names in the folder of a detector.

    Args:
        backbone: built from its argument ``source``.
        weights: whether to write the encoder's weights too, and not only what describes its architecture.

    Returns:
        The functions; None if the encoder was not built from files in transformers' layout.

    Raises:
        InputError: the weights are no longer there, or cannot be read.
    """
    source, revision = backbone.init_args.get("source"), backbone.init_args.get("revision")
    folder = None if source is None else snapshot_of(source, revision)
    if folder is None:
        return None
    config: dict[str, Any] = read_json(folder / CONFIG)
    written: dict[str, Writer] = {CONFIG: partial(shutil.copyfile, folder / CONFIG)}
    for path in sorted(folder.iterdir()):
        is_licence = _LICENCE.fullmatch(path.name) and path.is_file() and path.stat().st_size <= _MOST_OF_LICENCE
        if path.name in _PREPROCESSORS or is_licence:
            written[path.name] = partial(shutil.copyfile, path)
    if weights:
        files = checkpoint_files(config.get("transformers_weights"), folder, None)
        if not files:
            raise InputError(f"backbone {source}: its weights are no longer there")
        written[WEIGHTS] = partial(shutil.copyfile, files[0])
        alone = _alone(backbone, files)
        if alone is not None or len(files) > 1 or files[0].suffix != ".safetensors" or "transformers_weights" in config:
            config.pop("transformers_weights", None)
            if alone is not None:
                config["architectures"] = [backbone.alone[1]]  # type: ignore[index]
            written[CONFIG] = partial(write_config, config=config)
            written[WEIGHTS] = partial(save_tensors, _every_tensor(files) if alone is None else alone)
    return {f"{ENCODER_FOLDER}/{name}": write for name, write in written.items()}


def check_encoder_files(folder: Path, hashes: Mapping[str, str]) -> None:
    """Check that the encoder's files in a detector's folder are those that it was saved with.

    Raises:
        InputError: a file is missing, or is another one.
    """
    for name, digest in hashes.items():
        path = folder / name
        check_regular(path)
        if not path.exists():
            raise InputError.at(path, "is missing: the encoder belongs to the model; copy or download the whole folder")
        check_hash(path, digest)


def remove_other_files(folder: Path, hashes: Mapping[str, str]) -> None:
    """Remove the files of an earlier encoder from a detector's folder."""
    packed = folder / ENCODER_FOLDER
    if not packed.is_dir() or packed.is_symlink():
        return
    for path in packed.iterdir():
        if f"{ENCODER_FOLDER}/{path.name}" not in hashes and path.is_file():
            path.unlink()
    if not any(packed.iterdir()):
        packed.rmdir()


def _alone(backbone: Backbone, files: list[Path]) -> dict[str, Tensor] | None:
    """The encoder's tensors out of a checkpoint of a larger model; None for one that is of the encoder alone."""
    if backbone.alone is None:
        return None
    prefix = backbone.alone[0]
    tensors = {name.removeprefix("model."): tensor for name, tensor in _every_tensor(files).items()}
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)} or None


def _every_tensor(files: list[Path]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in files:
        if path.suffix == ".safetensors":
            tensors |= read_tensors(path)
            continue
        try:
            found = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:  # PyTorch raises many kinds of errors for a damaged file
            raise InputError.at(path, f"cannot be read: {' '.join(str(error).split())}") from None
        # Cloned, since safetensors stores two names of one tensor as two tensors.
        tensors |= {name: one.detach().clone().contiguous() for name, one in found.items() if isinstance(one, Tensor)}
    return tensors

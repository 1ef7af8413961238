"""Starts a training from the weights of a model or a checkpoint, with new data, optimiser and schedule.

(`adapters.surgery.starting` makes experts of trained LoRAs, for the adaptation's ``init_from``. That happens first;
this module copies tensors by their names.)
"""

import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from moelora_ad.adapters import AdaptationMethod
from moelora_ad.configuration.building import detector_state
from moelora_ad.errors import InputError, printable
from moelora_ad.files import file_hash
from moelora_ad.models import Detector
from moelora_ad.models.saving.files import (
    CONFIG,
    ENCODER_FOLDER,
    WEIGHTS,
    check_finite,
    read_config,
    read_tensors,
    tensors_hash,
)
from moelora_ad.models.saving.loading import check_weights, folder_of, without_silence
from moelora_ad.runs.checkpoints import best_checkpoint
from moelora_ad.runs.record import InitialWeights

OPTION = "model.init_weights"
_ENCODER = "backbone.encoder."
_NAMED = 3  # names of each part that a message lists


class _Given(NamedTuple):
    """Weights to start from.

    Attributes:
        path: file of the weights.
        tensors: the weights by their names in a detector.
        frozen: SHA-256 of the encoder's other tensors, as the model records it; None if it is not known, or there are
            none.
        encoder: the folder of the model's encoder, if it is part of the model.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    frozen: str | None = None
    encoder: Path | None = None


def load_initial_weights(detector: Detector, source: str | Path) -> tuple[InitialWeights, list[str]]:
    """Copy the weights of a model into a detector, as far as they fit it by name and shape.

    Adapters that the adaptation itself has started from trained ones (``init_from``) stay as they are.

    Args:
        detector: detector whose trained parts get the weights; nothing else in it changes.
        source: the folder of a model, the id of one on the hub, a checkpoint, or the folder of a run, whose best
            checkpoint is taken.

    Returns:
        The record of what was done, and lines that report it.

    Raises:
        InputError: there are no such weights, they are damaged, none of them fits, they lack what must stay as it was
            trained (`Detector.continued_names`), or they change what the detector keeps frozen, which its checkpoints
            would not have.
    """
    given = _read(source)
    kept, own = detector.kept_names(), detector.state_dict()
    frozen = {f"{_ENCODER}{name}": tensor for name, tensor in detector.frozen_tensors().items()}
    notes = _check_encoder(detector, given, source)
    start = _start_of(detector.adaptation)
    fitting, misshapen, unused, started = {}, [], [], []
    for name, tensor in given.tensors.items():
        if start and name in kept and name.startswith(_ENCODER):
            started.append(name)
        elif name in kept and own[name].shape == tensor.shape:
            fitting[name] = tensor
        elif name in kept:
            misshapen.append(f"{name} ({tuple(tensor.shape)} there, {tuple(own[name].shape)} here)")
        elif name not in frozen:
            unused.append(name)
        elif not _equal(frozen[name], tensor):
            raise InputError(
                f"{OPTION}: {source} has trained the encoder ({name}), which is frozen here and in no checkpoint: "
                "train it too, or save it once and give that as model.backbone.init_args.source (in Python "
                "Detector.from_pretrained(MODEL).backbone.encoder.save_pretrained(FOLDER))"
            )
    if not any(own[name].is_floating_point() for name in fitting):
        raise InputError(
            f"{OPTION}: nothing in {source} fits the configured model; it has {_named(given.tensors)}, and "
            f"here {_named(kept)}"
        )
    if lacking := detector.continued_names() - fitting.keys():
        raise InputError(
            f"{OPTION}: {source} lacks some of what must stay as it is, in the shape that is configured: "
            f"{_named(lacking)}"
        )
    detector.load_state_dict(fitting, strict=False)
    anew = kept - fitting.keys() - {one.partition(" ")[0] for one in misshapen}
    if start:
        anew = {name for name in anew if not name.startswith(_ENCODER)}
    notes.insert(0, f"{OPTION}: {len(fitting):,} of {len(kept):,} tensors are taken from {source}")
    for names, what in ((anew, "missing, initialised"), (misshapen, "of another shape, initialised")):
        if names:
            notes.append(f"{OPTION}: {what}: {_named(names)}")
    if unused:
        notes.append(f"{OPTION}: present and not used: {_named(unused)}")
    if started:
        notes.append(f"{OPTION}: started from model.adaptation.init_args.{start} instead: {_named(started)}")
    record = InitialWeights(
        str(source), file_hash(given.path), len(fitting), len(anew) + len(misshapen), len(unused + started + misshapen)
    )
    return record, [printable(note) for note in notes]


def _read(source: str | Path) -> _Given:
    path = Path(source)
    is_model = (path / CONFIG).is_file()
    if path.is_dir() and not is_model:
        path = best_checkpoint(path)
    if path.is_file():
        tensors = detector_state(str(path), OPTION)
        check_finite(without_silence(tensors), f"{OPTION}: {path}")
        return _Given(path, tensors)
    if not is_model and str(source).count("/") != 1:
        raise InputError(f"{OPTION}: {source}: no such folder or file, and not a model's id (owner/name) on the hub")
    folder = folder_of(source)
    config = read_config(folder)
    tensors = read_tensors(folder / WEIGHTS)
    check_weights(folder, config, tensors)
    packed = f"{ENCODER_FOLDER}/{WEIGHTS}" in (config["backbone_files"] or {})
    encoder = folder / ENCODER_FOLDER if packed else None
    return _Given(folder / WEIGHTS, tensors, config["backbone_sha256"], encoder)


def _check_encoder(detector: Detector, given: _Given, source: str | Path) -> list[str]:
    """A line if the frozen tensors of the model's encoder differ from the detector's."""
    if given.frozen is None:
        return []
    pretrained = detector.ownership.pretrained()
    same = {name: tensor for name, tensor in pretrained.items() if f"{_ENCODER}{name}" not in given.tensors}
    if tensors_hash(same) == given.frozen:
        return []
    where = f": give {given.encoder}" if given.encoder else ": if that is not intended, give its own"
    return [
        f"{OPTION}: warning: {source} was trained on another encoder than the one configured{where} as "
        "model.backbone.init_args.source"
    ]


def _start_of(method: AdaptationMethod) -> str | None:
    """The name of the argument that gives the adapters their initial weights, if one is given."""
    parameters = inspect.signature(type(method)).parameters
    given = (name for name in method.initial_arguments if method.init_args[name] != parameters[name].default)
    return next(given, None)


def _equal(own: Tensor, given: Tensor) -> bool:
    return own.is_meta or (own.shape == given.shape and torch.equal(own.cpu(), given.to(own.dtype)))


def _named(names: Collection[str]) -> str:
    """A text with a few of the names in each part of the detector."""
    parts: dict[str, list[str]] = {}
    for name in sorted(names):
        parts.setdefault(name.partition(".")[0], []).append(name)
    told = []
    for members in parts.values():
        more = f" and {len(members) - _NAMED:,} more" if len(members) > _NAMED else ""
        told.append(", ".join(members[:_NAMED]) + more)
    return "; ".join(told) or "nothing"

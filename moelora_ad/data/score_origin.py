"""Where scores come from: what they depend on, and what else a reader may want to know."""

import hashlib
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from rich.console import Console
from torch import Tensor, nn

import moelora_ad
from moelora_ad.corpora import TrialList
from moelora_ad.data.trainer_state import (
    is_fast_dev_run,
    is_limited,
    other_score_folder,
    record_of_checkpoint,
    score_folder,
)
from moelora_ad.files import file_hash
from moelora_ad.models.saving.checkpoints import PREFIX, settings_of
from moelora_ad.models.saving.files import tensors_hash
from moelora_ad.runs.scores import KeptScores

PACKAGES = ("torch", "torchaudio", "lightning", "transformers", "numpy", "soundfile", "av")
_SCORING = ("adapters", "audio", "models")  # the parts of the package whose code computes scores of audio


def kept_scores(trainer: Trainer | None) -> dict[str, KeptScores]:
    """The stores for the scores of the sets of the trainer's data module, by the set's name, with the scores that they
    have already; empty if no score files are written. A collective call.

    Raises:
        InputError: a file cannot be read.
    """
    if trainer is None or not _writes_scores(trainer):
        return {}
    trials: dict[str, TrialList] = trainer.datamodule.eval_trials  # type: ignore[attr-defined]
    common = _common_origin(trainer)
    # Predictions in memory are always complete.
    in_memory = trainer.state.fn == "predict" and trainer.predict_loop.return_predictions
    resumes = not is_limited(trainer) and not in_memory
    record = record_of_checkpoint(trainer)
    sets = {}
    for name, part in trials.items():
        origin = common | _hashes(part) if trainer.is_global_zero else {}
        is_configured = record is None or record.is_configured(name, part)
        folder = score_folder(trainer) if is_configured else other_score_folder(trainer)
        kept = KeptScores(folder, name, part, trainer.strategy.broadcast(origin), resumes)
        if trainer.is_global_zero:
            for line in kept.find():
                Console(stderr=True, soft_wrap=True).print(line, markup=False, highlight=False)
        kept.known = trainer.strategy.broadcast(kept.known)
        sets[name] = kept
    return sets


def _writes_scores(trainer: Trainer) -> bool:
    scoring = trainer.state.fn in ("validate", "test", "predict") and trainer.state.status == "running"
    return scoring and not is_fast_dev_run(trainer)


def about(trainer: Trainer, name: str, num_failed: int, num_known: int, started: datetime) -> dict[str, Any]:
    """What the provenance of a set's scores contains besides their origin; plain JSON."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    corpus = data.test.get(name, data.val)
    configuration = getattr(trainer.lightning_module, "configuration", None)
    checkpoint = trainer.ckpt_path
    trials: TrialList = data.eval_trials[name]
    record = record_of_checkpoint(trainer)
    return {
        "set_of_run": None if record is None else record.is_configured(name, trials),
        "failed": num_failed,
        "taken_from_earlier_runs": num_known,
        "corpus": {
            "class": f"{type(corpus).__module__}.{type(corpus).__qualname__}",
            "name": corpus.name,
            "selection": corpus.selection_note or None,
            "splits": sorted(value for value in trials.column("split").values if value),
            "trial_list_sha256": _trial_list_hash(trials),
        },
        "checkpoint": None if checkpoint is None else {"path": str(checkpoint), "sha256": _hash_of(str(checkpoint))},
        "untrained": bool(getattr(trainer.lightning_module, "untrained", False)),
        "verb": trainer.state.fn.value if trainer.state.fn else None,
        "seed": data.seed,
        "processes": trainer.world_size,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "configuration": configuration,
    }


def versions() -> dict[str, str]:
    """The versions of Python, of this package and of those that its scores depend on."""
    found = {"python": platform.python_version(), "moelora_ad": moelora_ad.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _common_origin(trainer: Trainer) -> dict[str, Any]:
    """What the scores of all sets depend on."""
    detector: Any = trainer.lightning_module.detector
    data = trainer.datamodule  # type: ignore[attr-defined]
    # Some strategies collect the weights of all processes here.
    state = trainer.strategy.lightning_module_state_dict()
    if not trainer.is_global_zero:
        return {}
    # A loss may have tensors, too, which scores do not depend on.
    tensors = {name: one for name, one in state.items() if name.startswith(PREFIX) and isinstance(one, Tensor)}
    parts = (detector.backbone, detector.adaptation, detector.classifier)
    backend: str | None = getattr(trainer.lightning_module, "backend", None)
    settings = settings_of(detector)  # unlike "architecture", the same wherever the encoder is
    optional = {"compiled": backend, "settings": settings}
    return {name: value for name, value in optional.items() if value is not None} | {
        "weights": tensors_hash(tensors),
        "architecture": _text_hash(f"{_class_name(part)} {part.init_args}" for part in parts),
        "code": _code_hash(detector),
        "eval_segment": _described(data.eval_segment),
        "eval_batch_size": str(data.eval_batch_size),
        "seed": str(data.seed),
        "precision": str(trainer.precision),
        "device": trainer.strategy.root_device.type,
        "torch": str(torch.__version__),
        "transformers": version("transformers"),
    }


def _hashes(trials: TrialList) -> dict[str, str]:
    return {"utterances": _text_hash(trials.columns.utterance), "audio_paths": _text_hash(trials.columns.audio)}


def _trial_list_hash(trials: TrialList) -> str:
    """Hash of all that is known of the trials; it does not affect their scores, but is in the score file."""
    digest = hashlib.sha256(_text_hash(trials.columns.utterance).encode())
    digest.update(trials.columns.label.tobytes())
    for column in trials.columns.texts:
        digest.update(repr(column.values).encode("utf-8", "surrogatepass"))
        digest.update(column.codes.astype(np.int64).tobytes())
    return digest.hexdigest()


def _text_hash(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogatepass"))
        digest.update(b"\n")
    return digest.hexdigest()


def _code_hash(detector: nn.Module) -> str:
    """Hash of the source files that compute scores of audio: the package's, and those of a user's own modules."""
    package = Path(moelora_ad.__file__).parent
    files = {path for folder in _SCORING for path in (package / folder).rglob("*.py")}
    for module in {type(part).__module__ for part in detector.modules()}:
        path = Path(getattr(sys.modules.get(module), "__file__", None) or "")
        if path.suffix == ".py" and "site-packages" not in path.parts:
            files.add(path)
    return _text_hash(file_hash(path) for path in sorted(files))


def _described(excerpt: Any) -> str:
    arguments = asdict(excerpt) if is_dataclass(excerpt) and not isinstance(excerpt, type) else vars(excerpt)
    return f"{_class_name(excerpt)} {arguments}"


def _class_name(part: object) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


def _hash_of(checkpoint: str) -> str | None:
    """Hash of a checkpoint file, or of all files of a sharded one; None if it is not on this machine."""
    path = Path(checkpoint)
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file())
        return _text_hash(f"{file.relative_to(path)} {file_hash(file)}" for file in inside)
    return file_hash(path) if path.is_file() else None

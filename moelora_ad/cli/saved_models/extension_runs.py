"""The training runs of the command extend: the extension, and the alternatives to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moelora_ad.configuration.files import part_of, read_configuration
from moelora_ad.errors import InputError

EXTENDED, ON_NEW, ON_ALL = "extended", "all_on_new", "all_on_old_and_new"
"""Names of the three runs that an extension compares."""
WORDS = {EXTENDED: "new expert", ON_NEW: "all, on new", ON_ALL: "all, on old and new"}
_LORA, _MIXTURE = "moelora_ad.adapters.LoRA", "moelora_ad.adapters.MoELoRA"
_OF_TRAINING = ("auxiliary", "freeze_experts", "init_from", "perturbation")
_NEW = "new"
BATCH, RATE, TETHER = 8, 1e-3, 0.3


@dataclass(frozen=True)
class Options:
    """The options of the command line.

    Args:
        few: number of new utterances that are drawn of each class; None for all.
        steps: optimiser steps of each run.
        seed: seed of all random numbers.
        start: weight of the new expert at first.
        train_gates: train the old gate rows too.
        train_classifier: train the classifier too.
        tether: weight of the tether; None for the default, which is 0 with old data.
    """

    few: int | None
    steps: int
    seed: int
    start: float
    train_gates: bool
    train_classifier: bool
    tether: float | None


def read_data(path: str, options: Options, clips: Mapping[str, Any]) -> dict[str, Any]:
    """The part ``data`` of the file with the new attack, completed with defaults.

    Args:
        path: the file.
        options: the options of the command line.
        clips: the clips that the model was evaluated on.

    Raises:
        InputError: the file cannot be read, has other parts, or names no new utterances or no new test set.
    """
    config = read_configuration(path)
    if others := config.keys() - {"data"}:
        raise InputError.at(path, f"has {min(others)!r} beside data: give that in a file of its own, by --config")
    data = dict(part_of(config, "data", path))
    train, tests = data.get("train"), data.get("test")
    if not isinstance(train, dict) or not train:
        raise InputError.at(path, "has no data.train: give a corpus, or new: and replay: with a corpus each")
    if "class_path" in train:
        train = {_NEW: train}
    if not any(map(is_new, train)):
        raise InputError.at(path, f"data.train has {', '.join(train)}: call what is new 'new', or 'new_...'")
    if not isinstance(tests, dict) or not any(map(is_new, tests)):
        raise InputError.at(path, "data.test has no set of the new attack: call it 'new', or 'new_...'")
    size = BATCH
    if options.few is not None:
        size = min(size, 2 * options.few)
        train = {name: _few(corpus, options) if is_new(name) else corpus for name, corpus in train.items()}
    defaults: dict[str, Any] = {"batch_size": size, "class_balanced": True}
    if not {"train_segment", "eval_segment"} & data.keys():
        samples = {"samples": clips["init_args"]["samples"]}
        defaults |= {"train_segment": samples | {"position": "random"}, "eval_segment": clips}
    if any(not is_new(name) for name in train):  # half of the draws are new utterances, however few there are
        counts = {new: sum(is_new(name) == new for name in train) for new in (True, False)}
        defaults["train_weights"] = {name: 0.5 / counts[is_new(name)] for name in train}
    return defaults | data | {"train": train}


def is_new(name: str) -> bool:
    """Whether a corpus of training or a test set is of the new attack, by its name."""
    return name == _NEW or name.startswith(f"{_NEW}_")


def _few(corpus: Any, options: Options) -> dict[str, Any]:
    arguments = {"corpus": corpus, "num": options.few, "seed": options.seed}
    return {"class_path": "moelora_ad.corpora.Few", "init_args": arguments}


def configurations(
    model: Path, parts: dict[str, Any], precision: str | None, data: Mapping[str, Any], options: Options
) -> dict[str, dict[str, Any]]:
    """The configuration of each run, by the run's name; without old data there is no run on old and new.

    Args:
        model: folder of the model.
        parts: the model's backbone, adaptation and classifier.
        precision: the precision that the model was evaluated in; None for single.
        data: see `read_data`.
        options: the options of the command line.

    Raises:
        InputError: the model's adaptation cannot be extended.
    """
    extended, whole = adaptations(parts["adaptation"], options)
    new = {name: corpus for name, corpus in data["train"].items() if is_new(name)}
    has_old = len(new) < len(data["train"])
    tether = (0.0 if has_old else TETHER) if options.tether is None else options.tether
    fixed = {"freeze_classifier": not options.train_classifier, "tether": _tether(tether)}
    made = {
        EXTENDED: _configuration(model, parts | {"adaptation": extended}, precision, data, options, fixed),
        ON_NEW: _configuration(model, parts | {"adaptation": whole}, precision, _alone(data, new), options, {}),
    }
    if has_old:
        made[ON_ALL] = _configuration(model, parts | {"adaptation": whole}, precision, data, options, {})
    return made


def adaptations(described: Mapping[str, Any], options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model's adaptation with one more expert to train, and the present adaptation, to be trained as a whole.

    Args:
        described: class and arguments, as the model has them.
        options: the options of the command line.

    Raises:
        InputError: the adaptation is neither a mixture of LoRAs nor a LoRA.
    """
    kind = described["class_path"]
    given = {name: value for name, value in described["init_args"].items() if name not in _OF_TRAINING}
    extension = {"start": options.start, "train_gates": options.train_gates}
    if kind == _LORA:
        single = given | {"num_experts": 1, "gate": {"noise": "none"}, "extend": extension | {"experts": 1}}
        return _described(_MIXTURE, single), _described(_LORA, given)
    if kind != _MIXTURE:
        raise InputError(f"the model is adapted with {kind}: {_MIXTURE} or {_LORA} can be extended")
    gate = dict(given.pop("gate", None) or {})
    earlier = given.pop("extend", None)
    added = gate.pop("added", 0) if earlier is None else earlier["experts"]
    before = given["num_experts"] - (added if earlier is None else 0)
    more = {"num_experts": before, "gate": gate, "extend": extension | {"experts": added + 1}}
    all_of_it = {"num_experts": before + added, "gate": gate | {"added": added}}
    return _described(_MIXTURE, given | more), _described(_MIXTURE, given | all_of_it)


def _described(kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": kind, "init_args": arguments}


def _tether(weight: float) -> dict[str, Any] | None:
    return {"class_path": "moelora_ad.training.Tether", "init_args": {"weight": weight}} if weight else None


def _alone(data: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The part ``data`` without the old corpora and their weights."""
    weights = data.get("train_weights")
    chosen = None if weights is None else {name: weights[name] for name in new if name in weights}
    return {**data, "train": dict(new), "train_weights": chosen}


def _configuration(
    model: Path,
    parts: Mapping[str, Any],
    precision: str | None,
    data: Mapping[str, Any],
    options: Options,
    fixed: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "seed_everything": options.seed,
        "trainer": {
            "accelerator": "auto",
            "max_epochs": -1,
            "max_steps": options.steps,
            "val_check_interval": options.steps,  # results on few trials are no reason to stop earlier
            "check_val_every_n_epoch": None,
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 10,
            "num_sanity_val_steps": 0,
            "precision": precision or "32-true",
        },
        "model": {
            **parts,
            "init_weights": str(model),
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": RATE / 10, "weight_decay": 0.01}},
            "schedule": {"class_path": "moelora_ad.training.WarmupCosine", "init_args": {"warmup": 0.1}},
            "adapter_lr": RATE,
            "gate_lr": RATE,
            "class_weights": [0.5, 0.5],
            **fixed,
        },
        "data": dict(data),
    }


def why_not(name: str, made: Mapping[str, object]) -> str:
    """Why there is no run of that name."""
    return "left out by --alone" if name in made else "no old data: data.train has no replay"

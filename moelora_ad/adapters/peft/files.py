"""LoRAs outside a model: read from folders, copied from models, loaded into models."""

import math
import re
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from moelora_ad.adapters.errors import AdapterError
from moelora_ad.adapters.injection import adapted_sites
from moelora_ad.adapters.patterns import SECONDS, bounded_pattern
from moelora_ad.documents import read_json
from moelora_ad.errors import InputError

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEPT_CONFIG, KEPT_WEIGHTS = "config.json", "model.safetensors"
PEFT_PREFIX = "base_model.model."
_HALF = re.compile(r"(?P<site>.+)\.lora_(?P<half>[AB])\.weight")
_KEPT_HALF = re.compile(r"backbone\.encoder\.(?P<site>.+)\.experts\.(?P<expert>\d+)\.lora_(?P<half>[AB])")
# Fields of adapter_config.json that are read here, and those that leave W_0 x + scaling B A x as it is: bookkeeping,
# where the LoRAs are (the names of the weights show it too), how training began. Any other field is refused if set.
_READ = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias", "init_lora_weights"}
_WITHOUT_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
    *("corda_config", "eva_config", "loftq_config", "lora_ga_config", "megatron_core", "qalora_group_size"),
    "runtime_config",
}
# Values of init_lora_weights with which peft leaves the adapted weights alone, and those with which it changes them but
# can make a plain LoRA of the result.
_BASE_KEPT = {"true", "false", "none", "gaussian", "orthogonal", "eva", "mica"}
_CONVERTIBLE = ("pissa", "olora", "corda", "lora_ga")


class LoRAUpdate(NamedTuple):
    """One low-rank update of a projection: Delta W = scaling * lora_B @ lora_A.

    Attributes:
        lora_A: (r, in_features).
        lora_B: (out_features, r).
        scaling: alpha / r.
    """

    lora_A: Tensor
    lora_B: Tensor
    scaling: float


def lora_updates(model: nn.Module) -> dict[str, LoRAUpdate]:
    """Copies of the updates of a model that is adapted with LoRA, by the dotted path of the projection.

    Raises:
        AdapterError: the model is not adapted, or is adapted with mixtures.
    """
    sites = dict(adapted_sites(model))
    if not sites:
        raise AdapterError("the model has no adapted projections")
    for site, layer in sites.items():
        if len(layer.experts) != 1:
            raise AdapterError(f"{site} is a mixture of {len(layer.experts)} experts, not one LoRA")
    return {
        site: LoRAUpdate(expert.lora_A.detach().clone(), expert.lora_B.detach().clone(), layer.scaling)
        for site, layer in sites.items()
        for expert in layer.lora_experts()
    }


def read_lora(folder: str | Path) -> dict[str, LoRAUpdate]:
    """Read the updates in a folder, by the dotted path of the projection inside the encoder; nothing is executed.

    Args:
        folder: an adapter folder of peft, or one that ``Detector.save_pretrained`` wrote for a LoRA.

    Raises:
        AdapterError: a file is missing or damaged, or contains more than a plain LoRA.
    """
    folder = Path(folder)
    if (folder / PEFT_CONFIG).is_file():
        return _read_peft(folder)
    if (folder / KEPT_CONFIG).is_file():
        return _read_kept(folder)
    if not folder.is_dir():
        raise AdapterError(f"{folder}: no such folder with a LoRA; a checkpoint must be exported first")
    raise AdapterError(f"{folder} has no {PEFT_CONFIG} of peft, and no {KEPT_CONFIG} of a saved detector")


@torch.no_grad()
def load_lora(model: nn.Module, updates: Mapping[str, LoRAUpdate]) -> None:
    """Put updates into a model that is adapted with LoRA; lora_B is rescaled where the scalings differ.

    Raises:
        AdapterError: a projection is adapted on one side only, or the shapes differ. The model is unchanged then.
    """
    sites = dict(adapted_sites(model))
    check_sites(sites, updates)
    for site, layer in sites.items():
        (expert, *others), update = layer.lora_experts(), updates[site]
        if others:
            raise AdapterError(f"{site} is a mixture of {len(layer.experts)} experts, not one LoRA")
        shapes = [tuple(t.shape) for t in (expert.lora_A, expert.lora_B, update.lora_A, update.lora_B)]
        if shapes[:2] != shapes[2:]:
            raise AdapterError(f"{site}: lora_A, lora_B of the update are {shapes[2:]}, of the model {shapes[:2]}")
    for site, layer in sites.items():
        (expert,), update = layer.lora_experts(), updates[site]
        expert.lora_A.copy_(update.lora_A)
        expert.lora_B.copy_(update.lora_B.to(expert.lora_B.device) * (update.scaling / layer.scaling))


def check_sites(sites: Mapping[str, Any], updates: Mapping[str, Any]) -> None:
    """Check that updates belong to exactly the adapted projections of a model.

    Raises:
        AdapterError: they do not; the message names the first projections that differ.
    """
    for names, what in (
        ([site for site in sites if site not in updates], "adapted in the model, and the update lacks"),
        ([site for site in updates if site not in sites], "in the update, and not adapted in the model:"),
    ):
        if names:
            raise AdapterError(
                f"{len(names)} projections are {what} {', '.join(names[:3])}{', ...' * (len(names) > 3)}"
            )


def _read_peft(folder: Path) -> dict[str, LoRAUpdate]:
    path = folder / PEFT_CONFIG
    config = _json(path)
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{path}: peft_type is {config.get('peft_type')!r}, not 'LORA'")
    for name, value in config.items():
        if value and name not in _READ | _WITHOUT_EFFECT:
            raise AdapterError(f"{path}: {name} is set: only plain LoRAs can be read")
    _check_start(config.get("init_lora_weights"), path)
    if config.get("bias", "none") != "none":
        raise AdapterError(f"{path}: bias is {config['bias']!r}: only LoRAs without trained biases can be read")
    if not (folder / PEFT_WEIGHTS).is_file():
        raise AdapterError(f"{folder} has no {PEFT_WEIGHTS}: save the adapter with safetensors")
    halves = _halves(folder / PEFT_WEIGHTS, _HALF, PEFT_PREFIX)
    updates = {}
    ranks = _of_patterns(config, "rank_pattern", halves, config.get("r"), path)
    alphas = _of_patterns(config, "alpha_pattern", halves, config.get("lora_alpha"), path)
    for site, (down, up) in halves.items():
        rank, alpha = ranks[site], alphas[site]
        if rank != down.shape[0]:
            raise AdapterError(f"{path}: the rank of {site} is {rank}, but its lora_A has {down.shape[0]} rows")
        updates[site] = LoRAUpdate(down, up, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    return updates


def _check_start(start: Any, path: Path) -> None:
    """Refuse a LoRA whose training changed the adapted weights too: on the model's, it computes another function."""
    name = str(start).lower()
    if name in _BASE_KEPT:
        return
    if name.startswith(_CONVERTIBLE):
        told = "save it in peft with path_initial_model_for_weight_conversion, which makes it a plain LoRA"
    elif name == "loftq":
        told = "merge it in peft (merge_and_unload) and use the merged model as the backbone"
    else:
        raise AdapterError(f"{path}: init_lora_weights is {start!r}, unknown here: only plain LoRAs can be read")
    raise AdapterError(f"{path}: init_lora_weights is {start!r}: peft changed the weights below this LoRA too; {told}")


def _of_patterns(
    config: Mapping[str, Any], name: str, sites: Collection[str], default: Any, path: Path
) -> dict[str, float]:
    """The value of each site by a field of patterns. peft's convention: a key is a regular expression for the end of
    the dotted path; the first that fits counts."""
    patterns = config.get(name) or {}
    if not isinstance(patterns, dict):
        raise AdapterError(f"{path}: {name} is not a JSON object")
    values = dict.fromkeys(sites, default)
    open_sites, start = [*sites], time.monotonic()
    for key, value in patterns.items():
        try:
            found = {*filter(bounded_pattern(rf"(.*\.)?({key})", SECONDS + start - time.monotonic()), open_sites)}
        except ValueError as error:
            raise AdapterError(f"{path}: {name} is not readable: {error}") from None
        values |= dict.fromkeys(found, value)
        open_sites = [site for site in open_sites if site not in found]
    for site, value in values.items():
        if not _is_positive(value):
            what = "rank" if name == "rank_pattern" else "lora_alpha"
            raise AdapterError(f"{path}: the {what} of {site} is {value!r}")
    return values


def _read_kept(folder: Path) -> dict[str, LoRAUpdate]:
    path = folder / KEPT_CONFIG
    adaptation = _json(path).get("adaptation")
    if not isinstance(adaptation, dict) or not isinstance(adaptation.get("init_args"), dict):
        raise AdapterError(f"{path} is not a saved detector: it describes no adaptation")
    arguments = adaptation["init_args"]
    if "num_experts" in arguments:
        raise AdapterError(f"{path}: the detector is adapted with {adaptation.get('class_path')}, not with one LoRA")
    alpha = arguments.get("alpha")
    if alpha is not None and not _is_positive(alpha):
        raise AdapterError(f"{path}: alpha is {alpha!r}")
    halves = _halves(folder / KEPT_WEIGHTS, _KEPT_HALF, "").items()
    return {site: LoRAUpdate(down, up, 1.0 if alpha is None else alpha / down.shape[0]) for site, (down, up) in halves}


def _is_positive(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 < value < 1e300


def _halves(path: Path, pattern: re.Pattern[str], prefix: str) -> dict[str, tuple[Tensor, Tensor]]:
    """lora_A and lora_B of every projection in a file; of a saved detector, other tensors are skipped."""
    if not path.is_file():  # a pipe may have no end
        raise AdapterError(f"{path} is missing, or is not a regular file")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = pattern.fullmatch(name.removeprefix(prefix))
        if match is None:
            if prefix:
                raise AdapterError(f"{path}: {name} is not one half of a LoRA of a linear layer")
            continue
        if match.groupdict().get("expert", "0") != "0":
            raise AdapterError(f"{path}: {name} belongs to a mixture, not to one LoRA")
        if tensor.dim() != 2 or not tensor.is_floating_point() or not tensor.isfinite().all():
            raise AdapterError(f"{path}: {name} is not a matrix of finite numbers")
        found.setdefault(match["site"], {})[match["half"]] = tensor
    if not found:
        raise AdapterError(f"{path} has no LoRA")
    for site, halves in found.items():
        if len(halves) != 2:
            raise AdapterError(f"{path}: {site} has only lora_{next(iter(halves))}")
        if halves["A"].shape[0] != halves["B"].shape[1]:
            raise AdapterError(f"{path}: the ranks of lora_A and lora_B of {site} differ")
    return {site: (halves["A"], halves["B"]) for site, halves in found.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror}") from None
    except InputError as error:
        raise AdapterError(str(error)) from None
    if not isinstance(content, dict):
        raise AdapterError(f"{path} is not a JSON object")
    return content

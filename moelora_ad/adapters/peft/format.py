"""Adapters as folders that peft loads: ``adapter_config.json`` and ``adapter_model.safetensors``."""

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from moelora_ad.adapters.errors import AdapterError
from moelora_ad.adapters.injection import adapted_sites
from moelora_ad.adapters.methods import LoRA
from moelora_ad.adapters.peft.files import PEFT_CONFIG, PEFT_PREFIX, PEFT_WEIGHTS, LoRAUpdate, load_lora, read_lora


def save_peft(updates: Mapping[str, LoRAUpdate], folder: str | Path, base_model: str | None = None) -> None:
    """Write updates as an adapter of peft, for ``PeftModel.from_pretrained(base, folder)``.

    Args:
        updates: ``lora_updates(model)`` of a LoRA, or ``static_mixture(model, mean_gates)`` of a mixture.
        folder: created if missing; the two files are replaced if they exist, each atomically.
        base_model: hub id or folder of the model that the paths of ``updates`` belong to; it is only recorded.

    Raises:
        AdapterError: there are no updates.
    """
    if not updates:
        raise AdapterError("there are no updates to save")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ranks = {site: update.lora_A.shape[0] for site, update in updates.items()}
    alphas = {site: update.scaling * ranks[site] for site, update in updates.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    # A list of names would match the ends of other paths too.
    exact = {site: f"^{re.escape(site)}" for site in updates}
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "target_modules": "|".join(re.escape(site) for site in updates),
        "rank_pattern": {exact[site]: value for site, value in ranks.items() if value != rank},
        "alpha_pattern": {exact[site]: value for site, value in alphas.items() if value != alpha},
    }
    tensors = {}
    for site, update in updates.items():
        for half, tensor in (("A", update.lora_A), ("B", update.lora_B)):
            tensors[f"{PEFT_PREFIX}{site}.lora_{half}.weight"] = tensor.detach().cpu().contiguous()
    _write(folder / PEFT_WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    text = json.dumps(config, indent=2) + "\n"
    _write(folder / PEFT_CONFIG, lambda path: path.write_text(text, encoding="utf-8"))


def adapt_from_peft(model: nn.Module, folder: str | Path) -> tuple[str, ...]:
    """Adapt a fresh model with the LoRA in a folder; returns the dotted paths of the adapted projections.

    The LoRA must have one rank for all projections; it is trainable, everything else is frozen.

    Raises:
        AdapterError: see `read_lora`; or the model lacks projections of the LoRA, or these have several ranks.
    """
    updates = read_lora(folder)
    ranks = {update.lora_A.shape[0] for update in updates.values()}
    if len(ranks) > 1:
        raise AdapterError(f"{folder}: the projections have ranks {sorted(ranks)}, one rank can be adapted")
    (rank,) = ranks
    scaling = next(iter(updates.values())).scaling
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if missing := [site for site in updates if site not in linears]:
        raise AdapterError(f"{folder}: the model has no linear layer {missing[0]} ({len(missing)} are missing)")
    targets = "|".join(re.escape(site) for site in updates)
    sites = LoRA(rank, alpha=scaling * rank, targets=targets).adapt(model)
    load_lora(model, updates)
    assert len(sites) == len(list(adapted_sites(model)))
    return sites


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        unfinished = Path(folder) / path.name
        unfinished.touch()
        mode = unfinished.stat().st_mode
        write(unfinished)
        unfinished.chmod(mode)  # safetensors makes its files private
        os.replace(unfinished, path)

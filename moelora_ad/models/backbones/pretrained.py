"""Finding and loading pretrained encoders through transformers."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from moelora_ad.errors import InputError
from moelora_ad.models.transformers_internals import attention_of

Model = TypeVar("Model", bound=PreTrainedModel)


def is_meta() -> bool:
    """Whether modules are being built on the meta device, where weights cannot be loaded and are not wanted."""
    return torch.get_default_device().type == "meta"


def load_config(source: str | Path, revision: str | None, model_type: str) -> PreTrainedConfig:
    """The configuration of a hub id, or of a folder with ``config.json``; code that comes with it is never run.

    Raises:
        InputError: it is not there or is faulty, it describes another kind of model, or it wants code of its own.
    """
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise _wants_code(source, "auto_map") from None
        raise _unavailable(source, revision, error) from None
    except Exception as error:  # a faulty file makes transformers fail in many ways
        raise _faulty(source, error) from None
    if config.model_type != model_type:
        raise InputError(f"backbone {source} is a {config.model_type!r} model, this class loads {model_type!r}")
    if "/" in str(attention_of(config)):
        raise _wants_code(source, "attn_implementation")
    return config


def load_encoder(
    model_class: type[Model],
    config: PreTrainedConfig,
    source: str | Path,
    revision: str | None,
    may_miss: Iterable[str] = (),
) -> Model:
    """A pretrained model in float32, every weight of it read from the checkpoint.

    Args:
        may_miss: names that checkpoints leave out and that have no effect here.

    Raises:
        InputError: the checkpoint is not there, is damaged, or lacks weights.
    """
    try:
        with _without_progress_bar():
            model, report = model_class.from_pretrained(
                source,
                config=config,
                revision=revision,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError) as error:
        raise _unavailable(source, revision, error) from None
    except Exception as error:
        raise _faulty(source, error) from None
    lacking = sorted(set(report["missing_keys"]) - set(may_miss)) + sorted(str(k) for k in report["mismatched_keys"])
    if lacking:
        name = model_class.__name__
        raise InputError(f"backbone {source} lacks {len(lacking)} weights of a {name}, first {lacking[0]}")
    return model


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """transformers would show one on standard error for the moment that it takes to read a file."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def commit_of(source: str | Path, revision: str | None) -> str | None:
    """The commit that a hub id and a revision stand for, by the local cache that its files were taken from; None for a
    folder."""
    if Path(source).is_dir():
        return None
    try:
        found = try_to_load_from_cache(str(source), "config.json", revision=revision)
    except HFValidationError:  # a folder that is gone
        return None
    return Path(found).parent.name if isinstance(found, str) else None


def has_file(folder: str | Path, name: str) -> bool:
    return (Path(folder) / name).is_file()


def _wants_code(source: str | Path, field: str) -> InputError:
    return InputError(
        f"backbone {source}: its config.json wants code of its own to be run ({field}), which is never done; "
        "take a model that transformers has itself"
    )


def _faulty(source: str | Path, error: Exception) -> InputError:
    return InputError(f"backbone {source} cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())}")


def _unavailable(source: str | Path, revision: str | None, error: Exception) -> InputError:
    path = Path(source)
    if path.is_dir():
        needed = [name for name in ("config.json", "model.safetensors") if not has_file(path, name)]
        told = str(error).strip() or type(error).__name__
        reason = f"the folder has no {' and no '.join(needed)}" if needed else told.splitlines()[0]
        return InputError(f"backbone {source}: {reason}")
    if path.is_absolute() or str(source).count("/") != 1 or str(source).startswith("."):
        return InputError(f"backbone {source}: no such folder")
    at = f" --revision {revision}" if revision else ""
    return InputError(
        f"backbone {source}: no such folder, and not in the local hub cache or reachable on the hub; "
        f"on a machine with network run: hf download {source}{at}"
    )


def unused_mask(encoder: PreTrainedModel, spec_augment: bool) -> list[str]:
    """The name of the vector that time masking puts in the place of frames, if the encoder has it and never does so."""
    used = spec_augment and encoder.config.mask_time_prob > 0
    return ["masked_spec_embed"] if hasattr(encoder, "masked_spec_embed") and not used else []


def settings(config: PreTrainedConfig, **values: Any) -> None:
    """Set fields of a configuration, refusing a name that it does not have."""
    for name, value in values.items():
        if not hasattr(config, name):
            raise AttributeError(f"{type(config).__name__} has no {name}")
        setattr(config, name, value)

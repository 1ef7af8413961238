"""Finding and loading pretrained encoders through transformers."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
    logging,
)
from transformers.utils.hub import get_checkpoint_shard_files

from moelora_ad.audio import SAMPLE_RATE
from moelora_ad.documents import read_json
from moelora_ad.errors import InputError
from moelora_ad.models.dry_build import MOST_OF_ENCODER, dry_build
from moelora_ad.models.transformers_internals import attention_of

Model = TypeVar("Model", bound=PreTrainedModel)


def is_meta() -> bool:
    """Whether modules are being built on the meta device, where weights cannot be loaded and are not needed."""
    return torch.get_default_device().type == "meta"


def load_config(source: str | Path, revision: str | None, model_type: str) -> PreTrainedConfig:
    """The configuration of a hub id, or of a folder with ``config.json``; code that comes with it is never run.

    Raises:
        InputError: it is missing or faulty, it describes another kind of model, or it needs code of its own.
    """
    try:
        check_json(source, revision, "config.json")
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except InputError:
        raise
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


def random_encoder(model_class: type[Model], config: PreTrainedConfig, source: str | Path) -> Model:
    """A model with random weights.

    Raises:
        InputError: the configuration is faulty.
    """
    try:
        return model_class(config)
    except InputError as error:
        raise InputError(f"backbone {source}: {error}") from None
    except Exception as error:
        raise _faulty(source, error) from None


def load_encoder(
    model_class: type[Model],
    config: PreTrainedConfig,
    source: str | Path,
    revision: str | None,
    may_miss: Iterable[str] = (),
    exact: bool = False,
) -> Model:
    """A pretrained model in float32, every weight of it read from the checkpoint.

    Args:
        may_miss: names that checkpoints leave out and that have no effect here.
        exact: whether the checkpoint may contain nothing else.

    Raises:
        InputError: the checkpoint is missing, is damaged, lacks weights, or holds others.
    """
    try:
        _check_size(model_class, config, source, revision)
        with _quiet():
            model, report = model_class.from_pretrained(
                source,
                config=config,
                revision=revision,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the report names them
                trust_remote_code=False,
            )
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise _unavailable(source, revision, error) from None
    except Exception as error:
        raise _faulty(source, error) from None
    lacking = sorted(set(report["missing_keys"]) - set(may_miss)) + sorted(str(k) for k in report["mismatched_keys"])
    if lacking:
        name = model_class.__name__
        raise InputError(f"backbone {source} lacks {len(lacking)} weights of a {name}, first {lacking[0]}")
    if exact and (others := sorted(set(report["unexpected_keys"]) - set(may_miss))):
        raise InputError(
            f"{source} has {len(others)} weights that do not belong to a {model_class.__name__}, first {others[0]}"
        )
    return model


def _check_size(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, source: str | Path, revision: str | None
) -> None:
    """Check that a checkpoint is large enough for the weights that its configuration describes, before memory is
    allocated for them: transformers initialises what is missing.

    Raises:
        InputError: the configuration describes more weights than the files can hold.
    """
    files = checkpoint_files(getattr(config, "transformers_weights", None), source, revision)
    if not files:  # transformers reports what is missing
        return
    size = sum(path.stat().st_size for path in files)
    with dry_build(MOST_OF_ENCODER):
        dry = random_encoder(model_class, copy.deepcopy(config), source)
    weights = sum(parameter.numel() for parameter in dry.parameters())
    if weights > size:  # each takes a byte at least
        raise InputError(
            f"backbone {source}: its config.json describes a model of {weights:,} weights, which its checkpoint of "
            f"{size:,} bytes cannot hold: the two do not belong together; download or save them again"
        )


def checkpoint_files(named: str | None, source: str | Path, revision: str | None) -> list[Path]:
    """The files that transformers takes the weights from; empty if there are none.

    Args:
        named: the file that the configuration names, if any.
        source: hub id or folder.
        revision: revision of the hub repository.
    """
    names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    for name in names if named is None else (named,):
        path = _file_of(source, revision, name)
        if path is None:
            continue
        if not name.endswith(".index.json"):
            return [Path(path)]
        read_json(path)
        shards, _ = get_checkpoint_shard_files(source, path, revision=revision)
        return [Path(shard) for shard in shards]
    return []


def check_json(source: str | Path, revision: str | None, name: str) -> None:
    """Check that a JSON file of a checkpoint, if there is one, can be read within the bounds of ``read_json``.

    Raises:
        OSError: it cannot be read.
        InputError: it is not JSON, or beyond the bounds.
    """
    path = _file_of(source, revision, name)
    if path is not None:
        read_json(path)


def check_rate(extractor: Any, source: str | Path) -> None:
    """Check that a preprocessor of transformers is for sound at 16 kHz.

    Raises:
        InputError: it is for another sample rate.
    """
    rate = getattr(extractor, "sampling_rate", None)
    if rate != SAMPLE_RATE:
        raise InputError(f"{source}: its preprocessor is for sound at {rate} Hz, and sound here has {SAMPLE_RATE} Hz")


def _file_of(source: str | Path, revision: str | None, name: str) -> str | None:
    """A checkpoint's file on this machine, downloaded if necessary; None if it is unavailable, for whatever reason."""
    return cached_file(
        source,
        name,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers within the block: it would show a progress bar while it reads a file, and log a table of the
    missing weights, which our error reports."""
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def snapshot_of(source: str | Path, revision: str | None) -> Path | None:
    """The folder on this machine with the ``config.json`` that an encoder was loaded from: its own, or that of the
    local hub cache; None if there is none."""
    if Path(source).exists():
        return Path(source) if has_file(source, "config.json") else None
    try:
        found = try_to_load_from_cache(str(source), "config.json", revision=revision)
    except HFValidationError:  # the path of a deleted folder
        return None
    return Path(found).parent if isinstance(found, str) else None


def commit_of(source: str | Path, revision: str | None) -> str | None:
    """The commit that a hub id and a revision stand for, according to the local cache of its files; None for a
    folder."""
    snapshot = None if Path(source).exists() else snapshot_of(source, revision)
    return None if snapshot is None else snapshot.name


def is_hub_id(source: str | Path) -> bool:
    """Whether a source is the id of a repository on the hub, ``owner/name``, and not a path of this machine."""
    path = Path(source)
    return not path.exists() and not path.is_absolute() and str(source).count("/") == 1 and str(source)[0] not in ".~"


def has_file(folder: str | Path, name: str) -> bool:
    return (Path(folder) / name).is_file()


def _wants_code(source: str | Path, field: str) -> InputError:
    return InputError(
        f"backbone {source}: its config.json needs code of its own ({field}), which is never run; "
        "use a model that transformers itself has"
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
    """The names of unused parameters: the vector that replaces masked frames, if the encoder has it and never masks."""
    used = spec_augment and encoder.config.mask_time_prob > 0
    return ["masked_spec_embed"] if hasattr(encoder, "masked_spec_embed") and not used else []


def settings(config: PreTrainedConfig, **values: Any) -> None:
    """Set fields of a configuration, refusing a name that it does not have."""
    for name, value in values.items():
        if not hasattr(config, name):
            raise AttributeError(f"{type(config).__name__} has no {name}")
        setattr(config, name, value)

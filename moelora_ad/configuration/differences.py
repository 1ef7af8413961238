"""What differs between two configurations."""

from collections.abc import Iterator, Mapping
from typing import Any

# What may differ between the seeds of one system: the seed, names, and paths of files that are written or read.
_FREE = ("seed_everything", "system", "ckpt_path", "score_folder", "data.seed", "trainer.logger")
_FREE_PLACES = ("trainer.default_root_dir", "checkpoint.dirpath")
_MISSING = object()


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What differs besides the seed and the places of files, one ``field (value, other value)`` each."""
    ones, others = (dict(_fields(one)) for one in (first, second))
    return [
        f"{name} ({_value_text(ones, name)}, {_value_text(others, name)})"
        for name in dict.fromkeys((*ones, *others))
        if not _is_free(name) and ones.get(name, _MISSING) != others.get(name, _MISSING)
    ]


def _fields(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that contains no other values, by its dotted name."""
    if isinstance(value, dict) and value:
        parts = value.items()
    elif isinstance(value, list) and value:
        parts = enumerate(value)  # type: ignore[assignment]
    else:
        yield name, value
        return
    for key, part in parts:
        yield from _fields(part, f"{name}.{key}" if name else str(key))


def _is_free(name: str) -> bool:
    within_callbacks = name.startswith("trainer.callbacks") and name.endswith(".dirpath")
    return within_callbacks or any(name == free or name.startswith(f"{free}.") for free in (*_FREE, *_FREE_PLACES))


def _value_text(fields: Mapping[str, Any], name: str) -> str:
    return str(fields[name]) if name in fields else "not set"

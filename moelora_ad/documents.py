"""Untrusted YAML and JSON files: read within bounds, and every fault reported in one line."""

import json
from pathlib import Path
from typing import Any

import yaml

from moelora_ad.errors import InputError

_MOST_YAML = 2**20
"""Bytes, and characters with all that aliases repeat: a few lines of them can stand for any number."""
_MOST_JSON = 2**22
"""Bytes."""
_MOST_DEPTH = 100
_LONGEST = 100
"""Characters of a number."""
_LARGEST = 2**64
"""No whole number of ours is as large as this."""
_Fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_KEY = "tag:yaml.org,2002:"
_NUMBERS = (f"{_KEY}int", f"{_KEY}float")
_NO_NAMES = tuple(f"{_KEY}{kind}" for kind in ("bool", "null", "float", "timestamp"))
"""Types that words meant as keys may be read as. Whole numbers may be keys: some classes take ``{0: 8, 4: 2}``."""


class DocumentError(yaml.YAMLError):
    """A YAML or JSON text that is refused; ``str()`` gives the reason in one line."""


def read_yaml(path: str | Path, loader: type = _Fast) -> Any:
    """The content of a YAML file.

    Args:
        path: The file.
        loader: A loader of PyYAML that builds nothing but plain values.

    Raises:
        OSError: It cannot be read.
        InputError: It is not YAML, or beyond the bounds of `check_yaml`.
    """
    try:
        text = _read(path, _MOST_YAML).decode()
        check_yaml(text)
        content = yaml.load(text, Loader=loader)
    except DocumentError as error:
        raise InputError.at(path, f"is not used: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "in ")
        raise InputError.at(path, f"is not YAML: {reason}") from None
    for key in content if isinstance(content, dict) else ():
        if not isinstance(key, str):
            raise InputError.at(path, f"has the key {key!r}, which is not text")
    return content


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: It cannot be read.
        InputError: It is not JSON, nested too deeply, has a whole number of more than 64 bits, or a key twice.
    """
    try:
        return parse_json(_read(path, _MOST_JSON).decode())
    except DocumentError as error:
        raise InputError.at(path, f"is not used: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError.at(path, f"is not JSON: {error}") from None


def parse_json(text: str | bytes) -> Any:
    """The content of a JSON text.

    Raises:
        DocumentError: It is beyond the bounds of `read_json`.
        ValueError, RecursionError: It is not JSON.
    """
    content = json.loads(text, object_pairs_hook=_object)
    _check_values(content)
    return content


def check_yaml(text: str) -> None:
    """Check in one pass, before a YAML text is read, that it stays small when its aliases are expanded.

    Raises:
        DocumentError: It is nested too deeply, too large with what its aliases repeat, has a number that is too long
            or large, or a key that is not text (``on``, which YAML reads as true, or ``1.5``).
        yaml.YAMLError: It is not YAML.
    """
    loader = _Fast(text)
    sizes: dict[str, int] = {}  # by anchor, the size of what it names
    opened: list[_Collection] = []
    total = 0
    try:
        while loader.check_event():
            event = loader.get_event()
            if isinstance(event, yaml.CollectionEndEvent):
                closed = opened.pop()
                size = closed.size
                if closed.anchor:
                    sizes[closed.anchor] = size
            elif isinstance(event, yaml.AliasEvent):
                if event.anchor not in sizes:
                    raise _error(event, f"the alias {event.anchor} refers to nothing before it, or to itself")
                if opened and opened[-1].expects_key:
                    raise _error(event, "a key must be text, not an alias")
                size = sizes[event.anchor]
                total += size
            elif isinstance(event, yaml.NodeEvent):
                size = 1 + len(getattr(event, "value", ""))
                total += size
                is_key = bool(opened) and opened[-1].expects_key
                if isinstance(event, yaml.ScalarEvent):
                    _check_scalar(loader, event, is_key)
                    if event.anchor:
                        sizes[event.anchor] = size
                else:
                    if is_key:
                        raise _error(event, "a key must be text, not a list or a mapping")
                    if len(opened) == _MOST_DEPTH:
                        raise _error(event, f"nested more than {_MOST_DEPTH} deep")
                    opened.append(_Collection(isinstance(event, yaml.MappingStartEvent), event.anchor))
                    continue
            else:
                continue
            if total > _MOST_YAML:
                raise _error(event, f"more than {_MOST_YAML:,} characters with what aliases repeat")
            if opened:
                opened[-1].add(size)
    finally:
        loader.dispose()


class _Collection:
    """A list or mapping that is being read."""

    def __init__(self, is_mapping: bool, anchor: str | None) -> None:
        self.is_mapping, self.anchor = is_mapping, anchor
        self.size, self._number = 1, 0

    @property
    def expects_key(self) -> bool:
        return self.is_mapping and self._number % 2 == 0

    def add(self, size: int) -> None:
        self.size += size
        self._number += 1


def _check_scalar(loader: Any, event: yaml.ScalarEvent, is_key: bool) -> None:
    tag = event.tag if event.tag not in (None, "!") else loader.resolve(yaml.ScalarNode, event.value, event.implicit)
    if tag in _NUMBERS and len(event.value) > _LONGEST:
        raise _error(event, f"a number of {len(event.value):,} characters")
    if tag in (*_NUMBERS, *_NO_NAMES):
        node = yaml.ScalarNode(tag, event.value, event.start_mark, event.end_mark)
        try:
            value = yaml.SafeLoader.yaml_constructors[tag](loader, node)
        except (ValueError, LookupError, AttributeError, ArithmeticError):  # how PyYAML reports it
            raise _error(event, f"{event.value!r} is not a valid {tag.removeprefix(_KEY)}") from None
        if isinstance(value, int) and abs(value) >= _LARGEST:
            raise _error(event, f"the whole number {event.value} has more than 64 bits")
    if is_key and tag in _NO_NAMES:
        raise _error(event, f"the key {event.value!r} is read as {tag.removeprefix(_KEY)}: put it in quotes")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise DocumentError(f"the key {key!r} occurs twice in one object")
        content[key] = value
    return content


def _check_values(content: Any) -> None:
    level, depth = [content], 0
    while level:
        if depth > _MOST_DEPTH:
            raise DocumentError(f"nested more than {_MOST_DEPTH} deep")
        inside: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inside += value.values()
            elif isinstance(value, list):
                inside += value
            elif isinstance(value, int) and abs(value) >= _LARGEST:
                raise DocumentError(f"a whole number of {len(str(value)):,} digits")
        level, depth = inside, depth + 1


def _error(event: yaml.Event, what: str) -> DocumentError:
    return DocumentError(f"line {event.start_mark.line + 1}: {what}")


def _read(path: str | Path, most: int) -> bytes:
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise DocumentError(f"it is larger than {most:,} bytes")
    return data

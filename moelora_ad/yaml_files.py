"""YAML from files that may be a stranger's."""

from typing import Any

import yaml

_MOST_VALUES = 1_000_000
_MOST_CHARACTERS = 2**20  # a configuration has some thousands; reading takes a second for every 100,000


class BoundedLoader(yaml.SafeLoader):
    """Of the values that merge keys bring, one of each name is kept: otherwise few lines could ask for billions."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len({id(value) for _, value in node.value}) < len(node.value):
            node.value = list({(key.tag, str(key.value)): (key, value) for key, value in node.value}.values())


def load_yaml(text: str, loader: type[yaml.SafeLoader] = BoundedLoader) -> Any:
    """The content of YAML, of plain values only.

    Raises:
        ValueError: it is not YAML, is far too long or too deeply nested, holds itself, or its aliases stand for too
            many values; the message is one line.
    """
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"it has more than {_MOST_CHARACTERS:,} characters")
    try:
        content = yaml.load(text, loader)
        size = _size(content, {})
    except RecursionError:
        raise ValueError("it is nested too deeply, or holds itself") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    if size > _MOST_VALUES:
        raise ValueError(f"its aliases stand for more than {_MOST_VALUES:,} values")
    return content


def _size(value: Any, known: dict[int, int]) -> int:
    """How many values there are once each alias stands for a copy."""
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(value)]

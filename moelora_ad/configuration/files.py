"""The content of configuration files, with nothing built from it."""

from pathlib import Path
from typing import Any

from moelora_ad.configuration.packaged import configuration_file
from moelora_ad.documents import read_yaml
from moelora_ad.errors import InputError


def read_configuration(path: str | Path) -> dict[str, Any]:
    """The fields of a configuration file, or of the packaged configuration of that name.

    Raises:
        InputError: the file is missing, cannot be read, is not YAML, is too large, or has no fields.
    """
    path = configuration_file(path)
    try:
        content = read_yaml(path)
    except OSError as error:
        raise InputError.at(path, f"cannot be read: {error.strerror}") from None
    if not isinstance(content, dict):
        raise InputError.at(path, "is not a configuration: it has no fields")
    return content


def part_of(config: dict[str, Any], name: str, path: str | Path) -> dict[str, Any]:
    """The fields of a part, such as ``model``; none if it is missing or empty.

    Raises:
        InputError: the part is not a mapping.
    """
    part = config.get(name) or {}
    if not isinstance(part, dict):
        raise InputError.at(path, f"the part {name!r} is not a mapping")
    return part

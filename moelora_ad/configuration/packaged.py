"""Configurations that come with the package, by their names, and the data that they name.

The repository's folder ``experiments`` is in the installed package too. ``quickstart`` is the name of
``experiments/quickstart.yaml`` there, ``adapters/lora_r8`` that of ``experiments/adapters/lora_r8.yaml``. A path in a
configuration that leads into the quickstart's data (``experiments/quickstart/corpus/...``) means the package's where
the current folder has no such file.
"""

import difflib
import os
from argparse import Namespace  # jsonargparse's is one, too
from pathlib import Path
from typing import Any

from moelora_ad.documents import read_yaml
from moelora_ad.errors import InputError

_PACKAGE = Path(__file__).parents[1]
_NAME = "experiments"
_SUFFIX = ".yaml"
# Folders that an installed package has only once, in another place.
_ELSEWHERE = {"quickstart/backbone": _PACKAGE / "packaged" / "mini" / "backbone"}
DATA = {
    "quickstart/corpus": "The quickstart's corpora, MiniLA and MiniOOD: 612 utterances of real speech and real spoofs.",
    "quickstart/backbone": "The quickstart's pretrained encoder, that of Whisper tiny.en.",
}
"""Folders that packaged configurations name, by name, and what is in them."""
_PARTS = {"model", "data", "trainer", "checkpoint", "early_stopping", "system", "seed_everything"}


def packaged_folder() -> Path:
    """Where the packaged configurations are: within the installed package, or beside it in the repository."""
    installed = _PACKAGE / _NAME
    return installed if installed.is_dir() else _PACKAGE.parent / _NAME


def packaged_configurations() -> dict[str, Path]:
    """The files of all configurations by their names; those in no folder first."""
    return {name: path for name, path in _files().items() if kind(path)}


def _files() -> dict[str, Path]:
    folder = packaged_folder()
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob(f"*{_SUFFIX}")}
    return {name: found[name] for name in sorted(found, key=lambda name: ("/" in name, name))}


def packaged_data() -> dict[str, Path]:
    """The folders of data by their names."""
    return {name: _place(name) for name in DATA}


def kind(path: str | Path) -> str | None:
    """What a file is: ``sweep``, ``experiment`` (a whole configuration of fit), ``overlay`` (which changes others), or
    None if it is not a configuration.

    Raises:
        InputError: the file cannot be read, or is not YAML.
    """
    try:
        content = read_yaml(path)
    except OSError as error:
        raise InputError.at(path, f"cannot be read: {error.strerror}") from None
    if not isinstance(content, dict):
        return None
    if "systems" in content:
        return "sweep"
    model, data = (content[part] if isinstance(content.get(part), dict) else {} for part in ("model", "data"))
    if "backbone" in model and "train" in data:
        return "experiment"
    return "overlay" if _PARTS & content.keys() else None


def configuration_file(given: str | Path) -> str:
    """The path of a configuration: ``given`` itself where there is such a file or it is absolute, otherwise that of the
    packaged configuration of this name. ``experiments/NAME.yaml`` is the same as ``NAME``.

    Raises:
        InputError: there is neither; the message names the nearest ones.
    """
    text = os.fspath(given)
    if os.path.isabs(text) or (os.path.exists(text) and not os.path.isdir(text)):
        return text
    name = text.removeprefix(f"{_NAME}/").removesuffix(_SUFFIX)
    known = _files()
    if name in known:
        return str(known[name])
    if os.path.exists(text):  # a folder: reading it raises the error
        return text
    near = [one for one in known if one.endswith(f"/{name}")] or difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "'moelora-ad configs list' has them"
    raise InputError(f"{text}: no such file, and no packaged configuration of that name; {hint}")


def existing_configuration(given: str | Path) -> str:
    """The path of a configuration as `configuration_file` finds it, after a check that it is a file.

    Raises:
        InputError: there is no such file.
    """
    path = configuration_file(given)
    if not os.path.isfile(path):
        raise InputError.at(given, "no such file")
    return path


def with_packaged_paths(value: Any) -> Any:
    """Replace each path in a value of a configuration, also within lists and mappings, that leads into `DATA` and is
    not in the current folder, by the package's own. Other paths stay: they may say where something is written."""
    if isinstance(value, Namespace):
        copy = type(value)()
        vars(copy).update(with_packaged_paths(vars(value)))
        return copy
    if isinstance(value, dict):
        return {name: with_packaged_paths(part) for name, part in value.items()}
    if isinstance(value, list):
        return [with_packaged_paths(part) for part in value]
    if isinstance(value, str | Path) and not os.path.exists(text := str(value)):
        leads = any(f"{text}/".startswith(f"{_NAME}/{data}/") for data in DATA)
        if leads and (place := _place(text.removeprefix(f"{_NAME}/"))).exists():
            return type(value)(place)
    return value


def _place(name: str) -> Path:
    """The path of a file or folder in the packaged folder, wherever it is stored."""
    path = packaged_folder() / name
    for folder, same in _ELSEWHERE.items():
        if not path.exists() and f"{name}/".startswith(f"{folder}/"):
            return same / name[len(folder) + 1 :]
    return path

"""The description of a sweep: a YAML file that names systems, options and seeds."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from moelora_ad.configuration.packaged import configuration_file, existing_configuration
from moelora_ad.documents import read_yaml
from moelora_ad.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][\w.+=,-]*", re.ASCII)
_OPTION = re.compile(r"[A-Za-z_]\w*(\.\w+)*\+?", re.ASCII)
# Options that the sweep sets itself for every run.
_OURS = ("config", "seed_everything", "system", "ckpt_path", "trainer.default_root_dir", "trainer.logger")
_WANDB = {"project": str, "entity": str, "offline": bool, "tags": list, "notes": str}


@dataclass(frozen=True)
class System:
    """A system to compare: a row of the results.

    Attributes:
        configs: configuration files of fit, after the common ones.
        options: options of fit, which override those of the files.
    """

    configs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """The description of a sweep, whose runs are all combinations of systems, grid, held-out attacks and seeds.

    Attributes:
        path: path of the file as it was given: a packaged sweep may be given by its name.
        folder: folder of the sweep; that of a run is ``folder/SYSTEM/seed_S``.
        configs: configuration files of every run, or names of packaged ones.
        options: options of fit for every run, by dotted name.
        systems: the systems by name.
        grid: options and the values that each of them takes, crossed with the systems.
        leave_one_out: attacks that are held out in turn, crossed with the systems; empty for those of the training
            corpora, None to hold none out.
        seeds: seeds of all random numbers, one for each run of a system.
        environment: environment variables of every run.
        wandb: arguments of a ``WandbLogger`` beside the ``CSVLogger``; None for no such logger.
        slurm: resources of a job, by submitit's names, and lines of ``setup``.
    """

    path: Path
    folder: Path
    configs: tuple[str, ...]
    systems: Mapping[str, System]
    seeds: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    leave_one_out: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    wandb: Mapping[str, Any] | None = None
    slurm: Mapping[str, Any] = field(default_factory=dict)


def read_sweep(path: str | Path) -> Sweep:
    """Read and check the description of a sweep.

    Raises:
        InputError: the file is missing or faulty; the message names the file, the key, and what is wrong with it.
    """
    path = Path(path)
    try:
        content = read_yaml(configuration_file(path), _Loader)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError.at(path, f"cannot be read: {error.strerror}") from None
    reader = _Reader(path)
    names = [one.name for one in fields(Sweep) if one.name != "path"]
    if isinstance(content, dict) and content and not {*names} & content.keys():
        raise InputError.at(path, f"is not a sweep, which has {', '.join(names)}; a configuration is for fit --config")
    top = reader.mapping(content, "the file", names)
    for needed in ("folder", "configs", "systems", "seeds"):
        if needed not in top:
            raise InputError.at(path, f"{needed} is missing")
    return Sweep(
        path=path,
        folder=reader.folder(top["folder"]),
        configs=reader.configs(top["configs"], "configs"),
        systems=reader.systems(top["systems"]),
        seeds=reader.seeds(top["seeds"]),
        options=reader.options(top.get("options"), "options"),
        grid=reader.grid(top.get("grid")),
        leave_one_out=reader.leave_one_out(top.get("leave_one_out")),
        environment=reader.environment(top.get("environment")),
        wandb=reader.wandb(top["wandb"]) if top.get("wandb") is not None else None,
        slurm=reader.mapping(top.get("slurm"), "slurm"),
    )


class _Loader(yaml.SafeLoader):
    """A loader of YAML with the numbers of YAML 1.2 (1e-3 is one, the time 24:00:00 is not), which refuses repeated
    keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} occurs twice", key.start_mark)
        return super().construct_mapping(node, deep)


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag not in (_INT, _FLOAT, "tag:yaml.org,2002:timestamp")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"),
    list("-+.0123456789"),
)


class _Reader:
    """Checks of the values in the file at ``path``; their errors name the key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def error(self, key: str, what: str) -> InputError:
        return InputError.at(self.path, f"{key} {what}")

    def mapping(self, value: Any, key: str, names: list[str] | None = None) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.error(key, f"must map names to values, not be {value!r}")
        for name in value:
            if not isinstance(name, str):
                raise self.error(key, f"has the key {name!r}, which is not text: put it in quotes")
            if names is not None and name not in names:
                raise self.error(key, f"has the unknown key {name!r}; known: {', '.join(names)}")
        return value

    def text(self, value: Any, key: str) -> str:
        if not isinstance(value, str) or not value:
            raise self.error(key, f"must be text, not {value!r}")
        return value

    def folder(self, value: Any) -> Path:
        path = Path(os.path.expanduser(self.text(value, "folder")))
        sizes = [len(part.encode(errors="replace")) for part in path.parts]
        if not str(path).isprintable() or sum(sizes) > 2_000 or max(sizes, default=0) > 255:
            raise self.error("folder", f"is {value!r}, which is not a valid folder name")
        return path

    def list(self, value: Any, key: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise self.error(key, f"must be a non-empty list, not {value!r}")
        return value

    def configs(self, value: Any, key: str) -> tuple[str, ...]:
        paths = tuple(self.text(path, key) for path in self.list(value, key))
        for path in paths:
            try:
                existing_configuration(path)
            except InputError as error:
                raise self.error(key, f"names {error} (seen from {Path.cwd()})") from None
        return paths

    def options(self, value: Any, key: str) -> dict[str, Any]:
        options = self.mapping(value, key)
        for name, one in options.items():
            self.option(name, key)
            if isinstance(one, str) and "\0" in one:
                raise self.error(f"{key}.{name}", f"must be text without a NUL, not {one!r}")
        return options

    def option(self, name: str, key: str) -> None:
        if not _OPTION.fullmatch(name):
            raise self.error(key, f"has {name!r}, which is not a dotted name of an option of fit")
        if any(name == ours or name.startswith((f"{ours}.", f"{ours}+")) for ours in _OURS):
            raise self.error(key, f"sets {name}, which the sweep sets itself")

    def systems(self, value: Any) -> dict[str, System]:
        found = {}
        for name, parts in self.mapping(value, "systems").items():
            key = f"systems.{name}"
            if not _NAME.fullmatch(name):
                raise self.error(key, "is not a valid folder name: use letters, digits and . _ - + = ,")
            parts = self.mapping(parts, key, ["configs", "options"])
            configs = self.configs(parts["configs"], f"{key}.configs") if parts.get("configs") is not None else ()
            found[name] = System(configs, self.options(parts.get("options"), f"{key}.options"))
        if not found:
            raise self.error("systems", "is empty: name what is to be compared")
        return found

    def seeds(self, value: Any) -> tuple[int, ...]:
        seeds = tuple(self.list(value, "seeds"))
        for seed in seeds:
            if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
                raise self.error("seeds", f"has {seed!r}; a seed is a whole number from 0 to 4294967295")
            if seeds.count(seed) > 1:
                raise self.error("seeds", f"has {seed} twice")
        return seeds

    def grid(self, value: Any) -> dict[str, tuple[Any, ...]]:
        grid = {name: tuple(self.list(values, f"grid.{name}")) for name, values in self.mapping(value, "grid").items()}
        for name, values in grid.items():
            self.option(name, "grid")
            for one in values:
                if isinstance(one, dict | list):
                    raise self.error(f"grid.{name}", f"has {one!r}; only plain values name a system")
        return grid

    def leave_one_out(self, value: Any) -> tuple[str, ...] | None:
        if value is None or value == "attack":
            return None if value is None else ()
        if not isinstance(value, dict) or [*value] != ["attack"]:
            raise self.error("leave_one_out", f"must be attack, or {{attack: [A01, A02]}}, not {value!r}")
        attacks = self.list(value["attack"], "leave_one_out.attack")
        for one in attacks:
            self.text(one, "leave_one_out.attack")
            if attacks.count(one) > 1:
                raise self.error("leave_one_out.attack", f"has {one} twice")
        return tuple(attacks)

    def environment(self, value: Any) -> dict[str, str]:
        found = self.mapping(value, "environment")
        for name, one in found.items():
            if not re.fullmatch(r"[^=\0]+", name):
                raise self.error("environment", f"has {name!r}, which is not a name of a variable")
            if isinstance(one, dict | list | bool | None) or "\0" in str(one):
                raise self.error(f"environment.{name}", f"must be text, not {one!r}: put it in quotes")
        return {name: str(one) for name, one in found.items()}

    def wandb(self, value: Any) -> dict[str, Any]:
        found = self.mapping(value, "wandb", list(_WANDB))
        self.text(found.get("project"), "wandb.project")
        for name, one in found.items():
            if not isinstance(one, _WANDB[name]):
                raise self.error(f"wandb.{name}", f"must be {_WANDB[name].__name__}, not {one!r}")
        return found

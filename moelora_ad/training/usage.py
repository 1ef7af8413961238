"""One clear line for a mistake on the command line or in a configuration."""

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from moelora_ad.errors import InputError

_WORDS = {"int": "whole number", "float": "number", "bool": "true, false", "str": "text", "NoneType": "null"}
_SHOWN = 80  # characters of a value


class OneLineParser(LightningArgumentParser):
    """Lightning's parser, but a mistake is one line on standard error, with the nearest known name, and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        if not self.exit_on_error:
            super().error(message, ex)
        verb = self.prog.replace(" [options]", "")
        self.exit(2, f"{verb}: error: {explain(message, self)}\n")


def read_yaml(path: str) -> Any:
    """The content of a configuration file, given as ``--config``.

    Raises:
        InputError: It cannot be read, or is not YAML.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.safe_load(file)
    except OSError as reason:
        raise InputError(f"--config: {path} cannot be read: {reason.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as reason:
        raise InputError(f"--config: {path} is not YAML: {' '.join(str(reason).split())}") from None


def explain(message: str, parser: LightningArgumentParser) -> str:
    """A parser's message in one line, with the name that was probably meant."""
    line = re.sub(r"\s+", " ", message).strip()
    key = re.search(r'Parser key "([^"]+)"', message)
    where = f"{key[1]}: " if key else ""
    if found := re.search(r"unrecognized arguments: --([\w.]+)", message):
        return f"unknown option --{found[1]}{_nearest(found[1], _options(parser))}"
    if found := re.search(r"Subcommand '(\w+)' does not accept option '([^']+)'", message):
        return f"unknown key {found[2]!r}{_nearest(found[2], _options(_subparser(parser, found[1])))}"
    if found := re.search(r"class_path '([^']+)':\s+Option '([^']+)' is not accepted", message):
        return f"{where}{found[1]} has no argument {found[2]!r}{_nearest(found[2], _arguments(found[1]))}"
    if found := re.search(r"module '([^']+)' has no attribute '([^']+)'", message):
        return f"{where}{found[1]} has no {found[2]!r}{_nearest(found[2], dir(importlib.import_module(found[1])))}"
    # A value that fits none of several types is told of each of them: of a class that is named, the lines below it.
    if found := re.search(r"^( *)- Problem with given class_path '([^']+)':\n((?:\1  .*\n?)+)", message, re.MULTILINE):
        return f"{where}{found[2]}: {explain(found[3], parser)}"
    if found := re.search(r"Errors:\n(?s:.*?)^ *- (?!Expected)(.+)", message, re.MULTILINE):  # of a type's own words
        return f"{where}{found[1]}"
    if found := re.search(r"Subtypes: \[(.*)\]\n(?s:.*)Given value: (?!Namespace)(.*)", message):
        choices = _choices(found[1])
        return f"{where}{found[2][:_SHOWN]!r} is none of: {', '.join(choices)}{_nearest(found[2], choices)}"
    return re.sub(r'Parser key "([^"]+)":', r"\1:", line)


def _choices(types: str) -> list[str]:
    """What the types of a union take, in words."""
    parts = re.findall(r"typing\.Literal\[([^]]*)\]|<class '([^']+)'>|([\w.]+(?:\[.*?\])?)", types)
    choices: list[str] = []
    for literals, named, other in parts:
        if literals:
            choices += [word.strip(" '") for word in literals.split(",")]
        else:
            name = re.sub(r"\b(?:\w+\.)+", "", named or other)
            choices.append(_WORDS.get(name, name))
    return list(dict.fromkeys(choices))


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _options(parser: LightningArgumentParser) -> set[str]:
    """Option names and the groups that they stand in (``model``, ``trainer``, ...)."""
    names = {action.dest for action in parser._actions}
    return names | {name.rpartition(".")[0] for name in names} - {""}


def _subparser(parser: LightningArgumentParser, verb: str) -> LightningArgumentParser:
    choices = (action.choices for action in parser._actions if isinstance(action.choices, Mapping))
    return next(parsers[verb] for parsers in choices if verb in parsers)


def _arguments(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    return list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)

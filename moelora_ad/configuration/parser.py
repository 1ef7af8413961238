"""A parser that reports a mistake on the command line or in a configuration in one clear line."""

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, Namespace, get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser

from moelora_ad import documents
from moelora_ad.adapters import LoRA, MoELoRA
from moelora_ad.configuration.jsonargparse_internals import begin_anew, parser_of, resolved_import_paths
from moelora_ad.configuration.packaged import configuration_file, kind, with_packaged_paths
from moelora_ad.corpora.corpus import Corpus
from moelora_ad.errors import InputError, printable, shortened
from moelora_ad.models.saving.specification import not_found, outside_code

_load = get_loader("yaml")


def _load_checked(text: str) -> Any:
    documents.check_yaml(text)
    return _load(text)


# This checks all that jsonargparse reads: configurations, and values on the command line.
set_loader("yaml", _load_checked, exceptions=(yaml.YAMLError, ValueError, RecursionError))

for _method in (LoRA, MoELoRA):  # these can be imported from moelora_ad, too
    resolved_import_paths.add(_method, f"moelora_ad.adapters.{_method.__name__}")

begin_anew(Corpus)  # one corpus must not get the name or the split of another, as reports show them

_WORDS = {"int": "whole number", "float": "number", "bool": "true, false", "str": "text", "NoneType": "null"}
_SHOWN = 80  # characters of a value
_ABSENT = object()


class _ConfigurationFile(ActionConfigFile):
    """Takes a file, the name of a packaged configuration, or a text of YAML."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
        try:
            given = values if re.search(r"[:{\n]", values) else configuration_file(values)
        except InputError as error:
            parser.error(f"{option_string} {error}")
        super().__call__(parser, cfg, given, option_string)


class OneLineParser(LightningArgumentParser):
    """Lightning's parser, but options are never abbreviated, packaged configurations can be given by name, and a
    mistake is reported in one line on standard error, with its file and the nearest known name, and exit code 2.

    Attributes:
        more_options: options that are taken before this parser sees the command line; they may be meant, too.
    """

    more_options: Collection[str] = ()

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        is_module = Path(sys.argv[0]).parts[-2:] == ("moelora_ad", "__main__.py")
        module = {"prog": "python -m moelora_ad"} if is_module else {}
        super().__init__(*arguments, **({"allow_abbrev": False} | module | settings))
        self.files: list[str] = []  # configurations that were read
        self._file: str | None = None  # the one that is being read

    def add_argument(self, *names: Any, **settings: Any) -> Any:
        if settings.get("action") is ActionConfigFile:
            settings["action"] = _ConfigurationFile
        return super().add_argument(*names, **settings)

    def instantiate(self, namespace: Namespace, *args: Any, **kwargs: Any) -> Namespace:
        """Build what was parsed, see jsonargparse. The parsed configuration, which is saved, keeps ``experiments/...``
        as it was written, so that it is valid on other machines."""
        return super().instantiate(with_packaged_paths(namespace), *args, **kwargs)

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Read a configuration file; see jsonargparse."""
        self._file = str(cfg_path)
        self.files.append(self._file)
        try:
            content = documents.read_yaml(cfg_path)
            if not isinstance(content, dict):
                self.error("is not a configuration, which has the keys model, data, trainer and others")
            if "systems" in content:
                self.error("describes a sweep, and not one run: give it to the command sweep")
        except (OSError, InputError) as error:
            self.error(str(error).removeprefix(f"{cfg_path}: "))
        try:
            return super().parse_path(cfg_path, *args, **kwargs)
        finally:
            self._file = None

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        if not self.exit_on_error:
            super().error(message, ex)
        message = "\n".join(map(printable, shortened(message).splitlines()))  # a message may quote a faulty file
        parser = getattr(ex, "subcommand_parser", self)  # the parser of the command that does not know a key
        if lacks := re.match(r"the following arguments are required: ((\w+)\.model\..+)", message):
            parser = parser_of(lacks[2], self)
            message = _incomplete(lacks[1].replace(f"{lacks[2]}.", ""), parser.files)
        verb = parser.prog.replace(" [options]", "")
        key = re.match(r"(\w+(?:\.\w+)+): ", message)  # messages on values that have been read begin with a key
        place = f"{self._file}: " if self._file else _file_with(key[1], parser) if key else ""
        self.exit(2, f"{verb}: error: {place}{explain(message, parser)}\n")

    def add_function_arguments(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[str]:
        """Refuse a function that a configuration names: jsonargparse asks for its arguments and would call it, but a
        configuration may only build objects of classes.

        Raises:
            ImportError: always; the parser reports it.
        """
        raise ImportError(f"'{function.__module__}.{function.__qualname__}' is a function")


def explain(message: str, parser: LightningArgumentParser) -> str:
    """A parser's message in one line, with the name that was probably meant.

    jsonargparse's errors carry nothing but their text (4.53); that of a union has the texts of the errors of all its
    types. A message that is not recognised below is passed on as it is, in one line.
    """
    line = re.sub(r"\s+", " ", message).strip()
    key = re.search(r'Parser key "([^"]+)"', message)
    where = f"{key[1]}: " if key else ""
    # A package that is not trusted: say how to trust it, instead of naming the setting of jsonargparse.
    if found := re.search(r"Importing '([^']+)' is not allowed, denied by the '([^']+)' entry", line):
        return f"{where}{_not_imported(found[1], is_unknown=found[2] == '*')}"
    # Our own message (see `OneLineParser.add_function_arguments`) within those of every type that was tried.
    if found := re.search(r"'([\w.<>]+)' is a function", line):
        return f"{where}{found[1]} is a function: give a class"
    if (found := re.search(r"No module named '(\w+)'", line)) and key:
        return f"{where}{not_found(found[1])}"
    # Messages of argparse, jsonargparse and Python, with the nearest name: an option, a key, an argument, a class.
    if found := re.search(r"unrecognized arguments: --([\w.]+)", message):
        return "unknown option " + _unknown(found[1], _options(parser), "--{}")
    if found := re.search(r"(Subcommand|Group) '([\w.]+)' does not accept option '([^']+)'", message):
        name = found[3] if found[1] == "Subcommand" else f"{found[2]}.{found[3]}"
        return f"{_file_with(name, parser)}unknown key " + _unknown(name, _options(parser), "{!r}")
    if found := re.search(r"class_path '([^']+)':\s+Option '([^']+)' is not accepted", message):
        return f"{where}{found[1]} has no argument {found[2]!r}{_nearest(found[2], _arguments(found[1]))}"
    if found := re.search(r"module '([^']+)' has no attribute '([^']+)'", message):
        return f"{where}{found[1]} has no {found[2]!r}{_nearest(found[2], dir(importlib.import_module(found[1])))}"
    # A value that fits none of several types has an error for each: if it names a class, take the error of that class.
    if found := re.search(r"^( *)- Problem with given class_path '([^']+)':\n((?:\1  .*\n?)+)", message, re.MULTILINE):
        return f"{where}{found[2]}: {explain(found[3], parser)}"
    if found := re.search(r"Errors:\n(?s:.*?)^ *- (?!Expected)(.+)", message, re.MULTILINE):  # a type's own message
        return f"{where}{found[1]}"
    # Otherwise name the types in words, each once.
    if found := re.search(r"Subtypes: \[(.*)\]\n(?s:.*)Given value: (?!Namespace)(.*)", message):
        choices = _choices(found[1])
        place = ".".join(re.findall(r'Parser key "([^"]+)"', message))
        # A value merged of two configurations holds jsonargparse's own objects.
        value = "what the configurations give together" if "Namespace(" in found[2] else repr(found[2][:_SHOWN])
        told = f"{value} is not one of: {', '.join(choices)}{_nearest(found[2], choices)}"
        return f"{place}: {told}" if place else told
    line = re.sub(rf"(Got value: .{{{_SHOWN}}}).+", r"\1...", line)
    return re.sub(r'Parser key "([^"]+)":', r"\1:", line)


def _incomplete(names: str, files: Sequence[str]) -> str:
    """The message about what a command line and its configurations lack."""
    if not files:
        advice = "give an experiment's with --config, such as quickstart or RUN/config.yaml"
    elif any(kind(file) == "experiment" for file in files):
        advice = f"add it to {files[-1]}"
    else:
        advice = f"{', '.join(files)} only changes an experiment: name one before it, such as --config quickstart"
    return f"the configuration has no {names}; {advice}"


def _file_with(key: str, parser: LightningArgumentParser) -> str:
    """The last configuration that has a key, as the beginning of a message."""
    for file in reversed(getattr(parser, "files", [])):
        content = documents.read_yaml(file)
        for name in key.split("."):
            content = content.get(name, _ABSENT) if isinstance(content, dict) else _ABSENT
        if content is not _ABSENT:
            return f"{file}: "
    return ""


def _not_imported(path: str, is_unknown: bool) -> str:
    if not is_unknown:
        return f"{path} cannot be named by a configuration"
    return outside_code(path)


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
    """Option names and the groups that they belong to (``model``, ``trainer``, ...)."""
    return {"print_config", *getattr(parser, "more_options", ()), *parser.get_defaults().keys(branches=True)}


def _unknown(name: str, known: set[str], form: str) -> str:
    """The shortest unknown part of an option, and the one that was probably meant: beside it, or elsewhere."""
    parts = name.split(".")
    depth = next(
        depth for depth in range(1, len(parts) + 1) if depth == len(parts) or ".".join(parts[:depth]) not in known
    )
    above = "".join(f"{part}." for part in parts[: depth - 1])
    beside = sorted({above + one[len(above) :].partition(".")[0] for one in known if one.startswith(above)})
    elsewhere = sorted(one for one in known if one.rpartition(".")[2] == parts[depth - 1])
    shown = form.format(above + parts[depth - 1])
    if near := _equally_near(parts[depth - 1], [one[len(above) :] for one in beside]):
        return f"{shown}; did you mean {' or '.join(form.format(above + one) for one in near)}?"
    if elsewhere:
        return f"{shown}; did you mean {form.format(elsewhere[0])}?"
    return f"{shown}; {above[:-1] or 'the command'} has {', '.join(one[len(above) :] for one in beside)}"


def _equally_near(name: str, known: Sequence[str]) -> list[str]:
    """The known names that resemble ``name`` most, all that are equally near: epochs is max_epochs or min_epochs."""
    near = difflib.get_close_matches(name, known)
    best = near and difflib.SequenceMatcher(None, near[0], name).ratio()
    return sorted(one for one in near if difflib.SequenceMatcher(None, one, name).ratio() == best)


def _arguments(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    return list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)

"""Generates the page of a configuration's keys, from the parser of ``fit``."""

import re
from argparse import ArgumentParser
from typing import Any, NoReturn

import yaml
from commands import definition
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from moelora_ad.cli.lightning_cli.detection_command import DetectionCommand

PAGE = "reference/keys.md"
PARTS = {
    "model": "The detector, its loss and its optimiser.",
    "data": "The corpora and how batches are made of them.",
    "checkpoint": "Lightning's `ModelCheckpoint`; with `save_last` true, `last.ckpt` is saved after every epoch.",
    "early_stopping": "When training stops early: Lightning's `EarlyStopping`.",
    "trainer": "Lightning's `Trainer`.",
    "": "The run.",
}
INTRODUCTION = """# YAML keys

A configuration has the parts `model`, `data`, `trainer`, `checkpoint` and `early_stopping`, and a few keys of
its own. Each key is also an option on the command line: `--model.adapter_lr 1e-4`. Several configurations are
read in order, and later ones change earlier ones. A key whose type is a class takes `class_path` and
`init_args`; their arguments are in the [Python reference](api/index.md), and those of one class are printed by
`moelora-ad fit --model.adaptation.help LoRA`. `${NAME}` stands for an environment variable. An unknown key is
an error that names the nearest known one.
"""


class _Command(DetectionCommand):
    """Raises its parsers instead of reading arguments."""

    def parse_arguments(self, parser: Any, args: Any) -> NoReturn:
        raise _Parsers(self._parsers)


class _Parsers(Exception):
    pass


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Generate the page."""
    files.append(File.generated(config, PAGE, content=_page()))


def parser_of_fit() -> ArgumentParser:
    """The parser of ``fit`` and its configurations."""
    try:
        _Command(args=["fit"])
    except _Parsers as caught:
        return caught.args[0][1]  # the first parser is the one in front of the command
    raise PluginError("fit has no parser to make a page of")


def _page() -> str:
    fit = parser_of_fit()
    actions = [action for action in fit._actions if type(action).__name__ == "ActionTypeHint"]
    lines = [INTRODUCTION]
    for part, what in PARTS.items():
        lines.append(f"## {part or 'Other keys'}\n\n{what}\n")
        for action in actions:
            if action.dest.rpartition(".")[0].partition(".")[0] == part:
                lines.append(
                    definition(action.dest, f"{_type(action._typehint)}{_default(action)}. {_help(action.help)}")
                )
    return "\n".join(lines)


def _type(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)
    text = re.sub(r"(?:\w+\.)+(?=\w)", "", text)  # names without their modules
    if found := re.fullmatch(r"Callable\[\[.*?\], (\w+)\]", text):
        text = found[1]
    text = text if len(text) < 160 else f"{text[:150]}…"
    return f"`{text}`"


def _default(action: Any) -> str:
    value = action.default
    if value is None or value == "==SUPPRESS==":
        return ""
    shown = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=200)
    return f", default `{shown.splitlines()[0].strip()}`"


def _help(text: str | None) -> str:
    """The first paragraph of a help text, without the markup of Sphinx."""
    first = re.split(r"\n\s*\n|Example::|\.\. |Default: ", text or "")[0]
    first = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(first.split()))
    return f"{first[:1].upper()}{first[1:]}"

"""Generates a page for each command, from its own parser."""

import argparse
import importlib
import re
from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from moelora_ad.cli import fit
from moelora_ad.cli.analyze import ANALYSES
from moelora_ad.cli.arguments import OneLineArgumentParser
from moelora_ad.cli.main import VERBS

FOLDER = "reference/commands"
PROGRAM = "moelora-ad"
PARTS = {"analyze": ANALYSES}  # commands that choose one of several parsers by their first argument
PRINTS_HELP = "fit", "validate", "test", "predict"  # commands of Lightning, whose keys have a page of their own


class _Caught(Exception):
    """Carries the parser that a command was about to use."""


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Generate the pages."""
    pages = {"index": _index()} | {name: _page(name) for name in VERBS}
    for name, text in pages.items():
        files.append(File.generated(config, f"{FOLDER}/{name}.md", content=text))


def on_config(config: MkDocsConfig) -> None:
    """Put the pages into the navigation, in the place of their folder."""
    replace(config.nav, f"{FOLDER}/", [f"{FOLDER}/index.md", *({name: f"{FOLDER}/{name}.md"} for name in VERBS)])


def replace(nav: object, place: str, pages: list[str | dict[str, str]]) -> None:
    """Replace the value ``place`` in a navigation by pages."""
    for part in nav if isinstance(nav, list) else []:
        for title, value in part.items() if isinstance(part, dict) else ():
            if value == place:
                part[title] = pages
            replace(value, place, pages)


def _index() -> str:
    rows = "\n".join(f"| [`{name}`]({name}.md) | {what} |" for name, (what, _) in VERBS.items())
    return f"""# Commands

`{PROGRAM} COMMAND --help` prints what these pages say. `{PROGRAM}`, `lightning` and `python -m moelora_ad` are the same
program. Exit codes: 0, 1 if work failed, 2 for a mistake in the command line or the configuration, 130 after Ctrl-C,
143 after SIGTERM.

| Command | What it does |
|---|---|
{rows}
"""


def _page(name: str) -> str:
    title = f"# {PROGRAM} {name}\n"
    if name in PRINTS_HELP:
        return "\n".join([title, *_lightning(name)])
    calls = [[name, part] for part in PARTS[name]] if name in PARTS else [[name]]
    return "\n".join([title, *(line for call in calls for line in _parser(parser_of(call), level=2))])


def parser_of(call: list[str]) -> argparse.ArgumentParser:
    """The parser of a command, as it is about to read its arguments."""

    def catch(parser: argparse.ArgumentParser, *_: object) -> None:
        raise _Caught(parser)

    run = importlib.import_module(f"moelora_ad.cli.{VERBS[call[0]][1]}").run
    names = ("parse_args", "parse_known_args")
    before = {name: getattr(OneLineArgumentParser, name) for name in names}
    for name in names:
        setattr(OneLineArgumentParser, name, catch)
    try:
        run(call, PROGRAM)
    except _Caught as caught:
        return caught.args[0]
    finally:
        for name in names:
            setattr(OneLineArgumentParser, name, before[name])
    raise PluginError(f"{' '.join(call)}: the command has no parser to make a page of")


def options_of(call: list[str]) -> set[str]:
    """The options of a command, or of the subcommand that the second word of ``call`` names."""
    parser = parser_of(call)
    parts = next((a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)), {})
    return {option for action in parts.get(call[-1], parser)._actions for option in action.option_strings}


def _parser(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    parts = next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
    if parts is not None:
        helps = {action.dest: action.help for action in parts._choices_actions}
        for name, part in parts.choices.items():
            part.description = part.description or f"{helps[name][0].upper()}{helps[name][1:]}."
            yield from _parser(part, level)
        return
    if parser.prog.count(" ") > 1:  # the parser of a subcommand
        yield f"{'#' * level} {parser.prog.removeprefix(f'{PROGRAM} ')}\n"
    if parser.description:
        what = re.sub(r"^The \w+ [\w ]+: (.)", lambda found: found[1].upper(), " ".join(parser.description.split()))
        yield f"{escaped(what)}\n"
    usage = parser.format_usage().removeprefix("usage: ").rstrip()
    yield f"```text\n{usage}\n```\n"
    if parser.epilog:
        yield f"{escaped(' '.join(parser.epilog.split()))}\n"
    formatter = parser._get_formatter()
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if not isinstance(a, argparse._HelpAction)]
        if not actions:
            continue
        yield f"**{group.title[0].upper()}{group.title[1:]}**\n"
        for action in actions:
            shown = formatter._format_action_invocation(action)
            told = formatter._expand_help(action) if action.help else ""
            if action.choices and "{" not in shown:
                told += f" (one of {', '.join(map(str, action.choices))})"
            yield definition(shown, told)


def _lightning(name: str) -> Iterator[str]:
    what, own = fit.FIRST[name]
    yield f"{what}\n"
    yield f"```text\n{PROGRAM} {name} --config FILE [--config FILE ...] [options]\n```\n"
    yield f"""The options that people use first. Every key of a configuration is an option, too: see
[YAML keys](../keys.md). `{PROGRAM} {name} --config FILE --print_config` prints the whole configuration, with the
defaults, and `{PROGRAM} {name} --model.adaptation.help LoRA` the arguments of a class.
"""
    for option, told in (fit._CONFIG | own | fit._MACHINE).items():
        yield definition(option, told)


def definition(term: str, text: str) -> str:
    """An item of a definition list."""
    return f"`` {term} ``\n:   {escaped(' '.join(text.split())) or '&nbsp;'}\n"


def escaped(text: str) -> str:
    """Plain text for Markdown; text in backticks remains code."""
    parts = re.split(r"(`+[^`]+`+)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\<>*_\[\]{}|$])", r"\\\1", part) for part in parts)

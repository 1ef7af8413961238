"""The verb analyze: what the experts of trained models do."""

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moelora_ad.cli.arguments import FAILED, USAGE, OneLineArgumentParser
from moelora_ad.cli.terminal import print_line, print_table
from moelora_ad.errors import InputError, printable

if TYPE_CHECKING:
    from moelora_ad.analysis.analysis import Analysis


# analysis -> (what it tells, its module, which has add_arguments(parser) and run(arguments) -> Analysis)
ANALYSES = {
    "singular-values": ("where experts are active: the largest singular value of each update", "singular_values"),
    "routing": ("which experts attacks, codecs and labels use, and whether that is more than chance", "routing_usage"),
    "experts": ("EER when an expert is removed, or left alone", "experts"),
    "ensemble": ("independently trained LoRAs, averaged, against a mixture", "ensemble"),
    "stability": ("what differs from seed to seed: EER, scores, and routing once experts are matched", "stability"),
}


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the verb with its arguments ``argv[1:]``; returns the exit code: 1 the work failed, 2 usage."""
    program = f"{program} analyze"
    arguments = argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help(program))
        return 0
    name = arguments[0]
    if name not in ANALYSES:
        near = difflib.get_close_matches(name, ANALYSES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(ANALYSES)}"
        print(f"{program}: error: no analysis {printable(name)!r}; {hint}", file=sys.stderr)
        return USAGE
    what, module_name = ANALYSES[name]
    module = importlib.import_module(f"moelora_ad.analysis.{module_name}")
    parser = OneLineArgumentParser(prog=f"{program} {name}", description=f"{what[0].upper()}{what[1:]}.")
    module.add_arguments(parser)
    parser.add_argument("--to", metavar="DIR", help=f"write {name}.json, .csv, .md and the figures there")
    given = parser.parse_args(arguments[1:])
    if given.to is not None and os.path.exists(given.to) and not os.path.isdir(given.to):
        parser.error(f"--to: {given.to} is not a folder")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        return _analyse(module.run, given)
    except InputError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return FAILED


def _analyse(analyse: "Callable[[argparse.Namespace], Analysis]", given: argparse.Namespace) -> int:
    from moelora_ad.analysis.analysis import write

    analysis = analyse(given)
    try:
        if given.to is not None:
            write(analysis, given.to)
    except OSError as error:
        raise InputError(f"{given.to}: cannot be written: {error.strerror}") from None
    finally:  # what was found is shown even if a disk is full
        _print(analysis)
    if given.to is not None:
        print_line(f"files: {Path(given.to, analysis.name)}.json, .csv, .md, and figures beside them")
    return 0


def _print(analysis: "Analysis") -> None:
    for table in analysis.tables:
        print_table(table)
    for note in analysis.notes:
        print_line(f"note: {note}")
    print_line(analysis.finding)


def _help(program: str) -> str:
    names = "\n".join(f"  {name:16} {what}" for name, (what, _) in ANALYSES.items())
    return f"""usage: {program} ANALYSIS RUN... [options]

What the experts of trained models do. A RUN is the folder of a training run, or a checkpoint in it.

analyses:
{names}

{program} ANALYSIS --help lists the options of an analysis."""

"""The verb analyze: what the experts of trained models do."""

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moelora_ad.cli.arguments import OneLineArgumentParser
from moelora_ad.cli.terminal import print_line, print_table
from moelora_ad.configuration.trust import add_allow
from moelora_ad.errors import InputError, printable

if TYPE_CHECKING:
    from moelora_ad.analysis.analysis import Analysis

FAILED, USAGE = 1, 2

Add = Callable[..., Any]
"""``add_argument`` of a parser."""


def _existing(text: str) -> str:
    """The type of an argument that is the folder of a run or a checkpoint."""
    if not os.path.exists(text):
        raise argparse.ArgumentTypeError(f"{text}: no such folder or file; give the folder of a run, or a checkpoint")
    return text


def _whole_number(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number, at least ``least``."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is less than {least}")
        return number

    return parse


def _add_building(add: Add) -> None:
    """The options of building a run's model, besides --allow."""
    add("--backbone", metavar="DIR", help="where the encoder is, if not where the run found it")


def _add_reading(add: Add) -> None:
    """The options of a pass over audio."""
    _add_building(add)
    add("--batch-size", type=_whole_number(1), metavar="N", help="utterances at once (default: as the run evaluated)")
    add("--workers", type=_whole_number(0), metavar="N", help="processes that read audio (default: as the run had)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: the first GPU, if there is one)")


def _of_singular_values(add: Add) -> None:
    add("run", type=_existing, metavar="RUN", help="folder of a run, or a checkpoint in it")
    _add_building(add)


def _of_routing(add: Add) -> None:
    add("run", type=_existing, metavar="RUN", help="folder of a run, or a checkpoint in it")
    add("--set", dest="set_name", default="dev", metavar="NAME", help="dev, train or a test set (default: dev)")
    add("--permutations", type=_whole_number(1), default=1000, metavar="N", help="default: 1000")
    add("--seed", type=_whole_number(0), default=1, help="of the permutations (default: 1)")
    _add_reading(add)


def _of_experts(add: Add) -> None:
    add("run", type=_existing, metavar="RUN", help="folder of a run of a mixture, or a checkpoint in it")
    add("--set", dest="sets", nargs="+", metavar="NAME", help="dev, train or test sets (default: all test sets)")
    add(
        "--keep-gates",
        action="store_true",
        help="keep the gates' weights as they are (default: they decide between the experts that remain)",
    )
    add("--resamples", type=_whole_number(1), default=1000, metavar="N", help="default: 1000")
    add("--seed", type=_whole_number(0), default=1, help="of the bootstrap (default: 1)")
    _add_reading(add)


def _of_ensemble(add: Add) -> None:
    add("runs", nargs="+", type=_existing, metavar="RUN", help="folders of LoRA runs, or checkpoints")
    add("--against", type=_existing, metavar="RUN", help="a run of a mixture")
    add("--set", dest="sets", nargs="+", metavar="NAME", help="dev, train or test sets (default: all test sets)")
    add("--resamples", type=_whole_number(1), default=1000, metavar="N", help="default: 1000")
    add("--seed", type=_whole_number(0), default=1, help="of the bootstrap (default: 1)")
    _add_reading(add)


def _of_stability(add: Add) -> None:
    add("runs", nargs="+", type=_existing, metavar="RUN", help="folders of runs of one system, or folders above them")
    add(
        "--set",
        dest="set_name",
        default="dev",
        metavar="NAME",
        help="where routing is compared: dev, train or a test set (default: dev)",
    )
    add("--permutations", type=_whole_number(1), default=100, metavar="N", help="default: 100")
    add("--seed", type=_whole_number(0), default=1, help="of the permutations (default: 1)")
    _add_reading(add)


# analysis -> (what it tells, its module, which has the function analyse, its options)
ANALYSES: dict[str, tuple[str, str, Callable[[Add], None]]] = {
    "singular-values": (
        "where experts are active: the largest singular value of each update",
        "singular_values",
        _of_singular_values,
    ),
    "routing": (
        "which experts attacks, codecs and labels use, and whether that is more than chance",
        "routing_usage",
        _of_routing,
    ),
    "experts": ("EER when an expert is removed, or left alone", "experts", _of_experts),
    "ensemble": ("independently trained LoRAs, averaged, against a mixture", "ensemble", _of_ensemble),
    "stability": (
        "what differs from seed to seed: EER, scores, and routing once experts are matched",
        "stability",
        _of_stability,
    ),
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
    what, module_name, add_options = ANALYSES[name]
    parser = OneLineArgumentParser(prog=f"{program} {name}", description=f"{what[0].upper()}{what[1:]}.")
    add_options(parser.add_argument)
    add_allow(parser)
    parser.add_argument("--to", metavar="DIR", help=f"write {name}.json, .csv, .md and the figures there")
    given = parser.parse_args(arguments[1:])
    if given.to is not None and os.path.exists(given.to) and not os.path.isdir(given.to):
        parser.error(f"--to: {given.to} is not a folder")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    module = importlib.import_module(f"moelora_ad.analysis.{module_name}")
    try:
        return _analyse(module.analyse, given)
    except InputError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return FAILED


def _analyse(analyse: "Callable[..., Analysis]", given: argparse.Namespace) -> int:
    from moelora_ad.analysis.analysis import write
    from moelora_ad.analysis.batches import Reading

    arguments = {name: value for name, value in vars(given).items() if name != "to"}
    if "device" in arguments:
        arguments["reading"] = Reading(*(arguments.pop(name) for name in ("batch_size", "workers", "device")))
    analysis = analyse(**arguments)
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
    names = "\n".join(f"  {name:16} {what}" for name, (what, *_) in ANALYSES.items())
    return f"""usage: {program} ANALYSIS RUN... [options]

What the experts of trained models do. A RUN is the folder of a training run, or a checkpoint in it.

analyses:
{names}

{program} ANALYSIS --help lists the options of an analysis."""

"""What the commands that change the experts of a model have in common."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from moelora_ad.cli.analyze import Keywords, add_bootstrap, add_passes, computed, tell
from moelora_ad.cli.arguments import FAILED, OneLineArgumentParser, check_folder, new_folder
from moelora_ad.cli.imports import at_once
from moelora_ad.cli.terminal import print_line
from moelora_ad.errors import InputError

if TYPE_CHECKING:
    from moelora_ad.analysis import Report
    from moelora_ad.analysis.changes import Changed

Work = Callable[[Keywords], "tuple[Report, Changed | None]"]
"""A function that returns the report of a change and the changed model, or None if no model is to be saved."""


def parser_of(program: str, description: str, epilog: str, decides: str) -> OneLineArgumentParser:
    """A parser with the options that these commands share; options that are not given have the function's defaults."""
    parser = OneLineArgumentParser(
        prog=program, description=description, epilog=epilog, argument_default=argparse.SUPPRESS
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run, a checkpoint, a model's folder, a packaged model, or a hub id")
    add("--to", metavar="DIR", help="folder of the changed model, a new one")
    add(
        "--data",
        action="append",
        metavar="FILE",
        help="configuration whose part 'data' has val and test, as for fit; may be repeated, later ones change earlier "
        "ones (default: that of the run)",
    )
    add("--decide-on", nargs="+", metavar="SET", help=f"dev, train or test sets {decides} (default: dev)")
    add("--report", metavar="DIR", help="write what was measured there, as JSON, CSV and Markdown")
    add("--revision", help="commit, tag or branch of the hub repository")
    add_bootstrap(parser)
    add_passes(parser)
    return parser


def points(text: str) -> float:
    """The type of an option that is a number of points of EER."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (number >= 0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of points, 0 or more")
    return number


def run_change(parser: OneLineArgumentParser, arguments: Sequence[str], work: Work) -> int:
    """Measure, print, and write the changed model, if there is one; returns the exit code: 1 if none is written."""
    keywords = vars(parser.parse_args(arguments))
    to, folder = keywords.pop("to", None), keywords.pop("report", None)
    if to is None and not keywords.get("dry_run"):
        parser.error("--to DIR is needed: the folder of the changed model")
    try:
        if to is not None:
            new_folder(to)
        _check_inputs(keywords)
    except InputError as error:
        parser.error(str(error))
    check_folder(parser, "--report", folder)
    with at_once():
        from moelora_ad.analysis.trained import RequestError  # it imports torch

    try:
        report, changed = computed(work, keywords)
        try:
            tell(report, folder)
        finally:  # what was computed is not lost because another folder cannot be written
            if changed is not None:
                changed.save_pretrained(to)
                _tell_next(parser.prog.rpartition(" ")[0], to, changed)
    except RequestError as error:
        parser.error(str(error))
    except InputError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return FAILED
    if keywords.get("dry_run"):
        return 0
    if changed is None:
        print(f"{parser.prog}: error: nothing is written: see above", file=sys.stderr)
        return FAILED
    return 0


def _check_inputs(keywords: Keywords) -> None:
    """Check that the model and the configurations are there, before anything is loaded."""
    from moelora_ad.configuration.packaged import existing_configuration
    from moelora_ad.models.saving.files import downloaded
    from moelora_ad.models.saving.packaged import found_model

    if not Path(model := found_model(keywords["model"])).exists():
        downloaded(str(model), keywords.get("revision"))
    for given in keywords.get("data", ()):
        existing_configuration(given)


def _tell_next(program: str, to: str, changed: "Changed") -> None:
    if changed.detector.calibration is None:
        print_line(f"calibrate it: {program} calibrate DEV_SCORES.csv --model {quote(to)}")
    print_line(f"next: {program} score FILES --model {quote(to)}")

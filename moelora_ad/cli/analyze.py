"""The command analyze: what the experts of trained models do."""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from moelora_ad.cli.arguments import FAILED, USAGE, OneLineArgumentParser, add_precision, check_folder
from moelora_ad.cli.imports import at_once
from moelora_ad.cli.terminal import print_line, print_table, progress
from moelora_ad.configuration.trust import add_allow
from moelora_ad.errors import InputError, printable
from moelora_ad.evaluation.metrics.least import LEAST_PERMUTATIONS, LEAST_RESAMPLES

if TYPE_CHECKING:
    from moelora_ad.analysis import Report

Parser = argparse.ArgumentParser
Keywords = dict[str, Any]
Made = TypeVar("Made")


class Analysis(NamedTuple):
    """An analysis on the command line.

    Attributes:
        what: its line in the help.
        add_arguments: adds its options, by the names of the function's keywords.
        report: makes the report, from keywords.
        reads_audio: whether it passes audio through models.
    """

    what: str
    add_arguments: Callable[[Parser], None]
    report: "Callable[[Keywords], Report]"
    reads_audio: bool = True


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the command with its arguments ``argv[1:]``; returns the exit code: 1 if the work failed, 2 usage error."""
    program = f"{program} analyze"
    arguments = argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help(program))
        return 0
    name = arguments[0]
    if name not in ANALYSES:
        near = difflib.get_close_matches(name, ANALYSES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(ANALYSES)}"
        print(f"{program}: error: unknown analysis {printable(name)!r}; {hint}", file=sys.stderr)
        return USAGE
    analysis = ANALYSES[name]
    what = f"{analysis.what[0].upper()}{analysis.what[1:]}."
    # Options that are not given have the defaults of the function.
    parser = OneLineArgumentParser(prog=f"{program} {name}", description=what, argument_default=argparse.SUPPRESS)
    analysis.add_arguments(parser)
    parser.add_argument("--to", metavar="DIR", help=f"write {name}.json, .csv, .md and the figures there")
    keywords = vars(parser.parse_args(arguments[1:]))
    folder = keywords.pop("to", None)
    check_folder(parser, "--to", folder)
    with at_once():
        from moelora_ad.analysis.trained import RequestError  # it imports torch

    try:
        return _analyze(analysis, keywords, folder)
    except RequestError as error:
        parser.error(str(error))
    except InputError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return FAILED


def _analyze(analysis: Analysis, keywords: Keywords, folder: str | None) -> int:
    report = computed(analysis.report, keywords, analysis.reads_audio)
    tell(report, folder)
    return 0


def computed(work: Callable[[Keywords], Made], keywords: Keywords, reads_audio: bool = True) -> Made:
    """Return the result of a function for the options of `add_passes`; its progress is shown meanwhile.

    Args:
        work: the function, which takes all keywords.
        keywords: the options that were given.
        reads_audio: whether ``work`` takes a device and a progress.

    Raises:
        RequestError: there is no such device, or the function raises it.
        InputError: there is too little memory, or the function raises it.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from moelora_ad.analysis.trained import requested
    from moelora_ad.models.devices import is_out_of_memory, usable_device

    with progress() as show:
        if reads_audio:
            with requested():
                device = usable_device(keywords.get("device"), "--device:")
            keywords |= {"device": device, "progress": show}
        try:
            return work(keywords)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            where = keywords.get("device", "the machine")
            raise InputError(f"{where} has too little memory: give a smaller --batch-size") from None


def tell(report: "Report", folder: str | None) -> None:
    """Print a report, and write it to ``folder`` if that is given.

    Raises:
        InputError: the report cannot be written.
    """
    from moelora_ad.analysis import write_report

    try:
        if folder is not None:
            write_report(report, folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from None
    finally:  # the result is shown even if the disk is full
        _print(report)
    if folder is not None:
        figures = ", and figures beside them" if report.figures else ""
        print_line(f"files: {Path(folder, report.name)}.json, .csv, .md{figures}")


def _print(report: "Report") -> None:
    for table in report.tables:
        print_table(table)
    for note in report.notes:
        print_line(f"note: {note}")
    print_line(report.finding)


# The analyses: their options are the keywords of the functions.


def _singular_values_arguments(parser: Parser) -> None:
    parser.add_argument("run", type=_existing, metavar="RUN", help="folder of a run, or a checkpoint in it")
    _add_building(parser)


def _singular_values(keywords: Keywords) -> "Report":
    from moelora_ad.analysis import analyze_singular_values, singular_values_report

    return singular_values_report(analyze_singular_values(**keywords))


def _routing_arguments(parser: Parser) -> None:
    parser.add_argument("run", type=_existing, metavar="RUN", help="folder of a run, or a checkpoint in it")
    parser.add_argument("--set", metavar="NAME", help="dev, train or a test set (default: dev)")
    _add_tests(parser, permutations=1000, draws=99)
    add_passes(parser)


def _routing(keywords: Keywords) -> "Report":
    from moelora_ad.analysis import analyze_routing, routing_report

    return routing_report(analyze_routing(**keywords))


def _experts_arguments(parser: Parser) -> None:
    parser.add_argument(
        "run", type=_existing, metavar="RUN", help="folder of a run of a mixture, or a checkpoint in it"
    )
    _add_sets(parser)
    parser.add_argument(
        "--keep-gates",
        action="store_true",
        help="keep the gates' weights as they are (default: they decide between the experts that remain)",
    )
    add_bootstrap(parser)
    add_passes(parser)


def _experts(keywords: Keywords) -> "Report":
    from moelora_ad.analysis import analyze_experts, experts_report

    return experts_report(analyze_experts(**keywords))


def _ensemble_arguments(parser: Parser) -> None:
    parser.add_argument("runs", nargs="+", type=_existing, metavar="RUN", help="folders of LoRA runs, or checkpoints")
    parser.add_argument("--against", type=_existing, metavar="RUN", help="a run of a mixture")
    _add_sets(parser)
    add_bootstrap(parser)
    add_passes(parser)


def _ensemble(keywords: Keywords) -> "Report":
    from moelora_ad.analysis import analyze_ensemble, ensemble_report

    return ensemble_report(analyze_ensemble(**keywords))


def _stability_arguments(parser: Parser) -> None:
    parser.add_argument(
        "runs", nargs="+", type=_folder, metavar="RUN", help="folders of runs of one system, or folders above them"
    )
    parser.add_argument(
        "--set",
        metavar="NAME",
        help="set whose routing is compared: dev, train or a test set (default: dev)",
    )
    _add_tests(parser, permutations=100, draws=19)
    add_passes(parser)


def _stability(keywords: Keywords) -> "Report":
    from moelora_ad.analysis import analyze_stability, stability_report

    return stability_report(analyze_stability(**keywords))


ANALYSES = {
    "singular-values": Analysis(
        "where experts are active: the largest singular value of each update",
        _singular_values_arguments,
        _singular_values,
        reads_audio=False,
    ),
    "routing": Analysis(
        "which experts attacks, codecs and labels use, and whether that is more than chance",
        _routing_arguments,
        _routing,
    ),
    "experts": Analysis("EER when an expert is removed, or left alone", _experts_arguments, _experts),
    "ensemble": Analysis("independently trained LoRAs, averaged, against a mixture", _ensemble_arguments, _ensemble),
    "stability": Analysis(
        "what differs from seed to seed: EER, scores, and routing once experts are matched",
        _stability_arguments,
        _stability,
    ),
}


def _add_sets(parser: Parser) -> None:
    parser.add_argument(
        "--set", dest="sets", nargs="+", metavar="NAME", help="dev, train or test sets (default: all test sets)"
    )


def _add_tests(parser: Parser, permutations: int, draws: int) -> None:
    least = LEAST_PERMUTATIONS
    parser.add_argument(
        "--permutations", type=_whole(least), metavar="N", help=f"{least} or more (default: {permutations})"
    )
    parser.add_argument(
        "--draws",
        type=_whole(least, or_none=True),
        metavar="N",
        help=f"untrained gates to compare with, {least} or more, 0 for none (default: {draws})",
    )
    parser.add_argument("--seed", type=_whole(0), help="seed of the permutations and the draws (default: 1)")


def add_bootstrap(parser: Parser) -> None:
    least = LEAST_RESAMPLES
    parser.add_argument("--resamples", type=_whole(least), metavar="N", help=f"{least} or more (default: 1000)")
    parser.add_argument("--seed", type=_whole(0), help="seed of the bootstrap (default: 1)")


def _add_building(parser: Parser) -> None:
    parser.add_argument("--backbone", metavar="DIR", help="folder of the encoder, if it has moved since the run")
    add_allow(parser)


def add_passes(parser: Parser) -> None:
    """Add the options for building a model and passing audio through it."""
    _add_building(parser)
    parser.add_argument(
        "--batch-size", type=_whole(1), metavar="N", help="utterances at once (default: as the run evaluated)"
    )
    parser.add_argument(
        "--workers", type=_whole(0), metavar="N", help="processes that read audio (default: as the run had)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the first GPU, if there is one)")
    add_precision(parser)


def _existing(text: str) -> str:
    """The type of an argument that is the folder of a run or a checkpoint."""
    if not os.path.exists(text):
        raise argparse.ArgumentTypeError(f"{text}: no such folder or file; give the folder of a run, or a checkpoint")
    return text


def _folder(text: str) -> str:
    """The type of an argument that is the folder of a run or one above runs."""
    if not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text}: no such folder; give the folders of runs, or folders above them")
    return text


def _whole(least: int, or_none: bool = False) -> Callable[[str], int]:
    """The type of an option that is a whole number, at least ``least``; 0 is allowed too with ``or_none``."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if number < least and not (or_none and number == 0):
            raise argparse.ArgumentTypeError(f"{number} is less than {least}")
        return number

    return parse


def _help(program: str) -> str:
    names = "\n".join(f"  {name:16} {analysis.what}" for name, analysis in ANALYSES.items())
    return f"""usage: {program} ANALYSIS RUN... [options]

What the experts of trained models do. A RUN is the folder of a training run, or a checkpoint in it.

analyses:
{names}

{program} ANALYSIS --help lists the options of an analysis."""

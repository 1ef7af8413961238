"""The command evaluate: figures, plots and a report from score files."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moelora_ad.cli.arguments import FAILED, OneLineArgumentParser, add_resamples, check_folder, check_resamples, words
from moelora_ad.errors import InputError
from moelora_ad.evaluation.score_files.formats import FORMATS
from moelora_ad.evaluation.score_files.keys import PHASES

if TYPE_CHECKING:
    from moelora_ad.evaluation.reports.results import Results


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the command with its arguments ``argv[1:]``; returns the exit code: 1 if a file is faulty or not written."""
    parser = _parser(f"{program} evaluate")
    given = parser.parse_args(argv[1:])
    _check(parser, given)
    from moelora_ad.cli.terminal import print_line, step_progress
    from moelora_ad.evaluation.reports.evaluate import FaultyFiles, evaluate
    from moelora_ad.evaluation.score_files.paths import PathError

    arguments = vars(given) | {"tandem": given.tandem or "2021", "progress": step_progress}
    folder = arguments.pop("to")
    try:
        results = evaluate(**arguments)
        try:
            if folder is not None:
                _write(results, folder)
        finally:  # last, since a closed pipe ends the program; figures are shown even if the disk is full
            _print(results)
        if folder is not None:
            print_line(f"report: {Path(folder, 'report.html')}")
    except PathError as error:
        parser.error(str(error))
    except InputError as error:
        for line in error.lines if isinstance(error, FaultyFiles) else (error,):
            print(f"{parser.prog}: error: {line}", file=sys.stderr)
        return FAILED
    return 0


def _parser(program: str) -> OneLineArgumentParser:
    parser = OneLineArgumentParser(prog=program, description=__doc__)
    add = parser.add_argument
    add(
        "scores",
        nargs="*",
        metavar="SCORES",
        help="score files, folders of them, or runs; a set is named after its file",
    )
    add("--compare", nargs=2, metavar=("A", "B"), help="score files (or folders) of two systems on the same trials")
    add("--to", metavar="DIR", help="write figures.csv, .json, .md, .tex, plots and report.html there")
    labels = parser.add_argument_group("labels and sets")
    add = labels.add_argument
    add("--key", metavar="FILE", help="official protocol or key, manifest or table with the labels that scores lack")
    add(
        "--phase",
        choices=PHASES,
        help="phase of an ASVspoof 2021 key (default: eval), or trial list of FakeAVCeleb (default: all)",
    )
    add("--format-in", choices=sorted(FORMATS), help="format of the score files (default: detected)")
    add("--allow-partial", action="store_true", help="use the trials that scores and key both have, and say how many")
    add("--names", type=words, default=(), metavar="A,B", help="names of the sets, one for each score file")
    add("--own", nargs="+", default=(), metavar="SET", help="sets of the training corpus; macro_ood leaves them out")
    add("--average", nargs="+", default=(), metavar="SET", help="sets to average and pool (default: the test sets)")
    figures = parser.add_argument_group("figures")
    add = figures.add_argument
    scale = figures.add_mutually_exclusive_group()
    scale.add_argument(
        "--calibrated", action="store_true", help="the scores are log-likelihood ratios: actDCF and Cllr"
    )
    scale.add_argument("--calibration", metavar="DEV", help="development scores to fit a calibration on, for SCORES")
    add("--threshold", type=float, metavar="T", help="accuracy at this (calibrated) score")
    add("--asv", metavar="FILE", help="official scores of a speaker verification system, for min t-DCF")
    add("--tandem", choices=("2019", "2021"), help="the year's form of t-DCF (default: 2021)")
    add_resamples(figures, "; 0: no intervals")
    return parser


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    if not given.scores and not given.compare:
        parser.error("name score files, or two systems by --compare")
    if given.calibration is not None and not given.scores:
        parser.error("--calibration is for SCORES; --compare takes the scores as they are")
    if given.own and not given.scores:
        parser.error("--own is for SCORES")
    if given.tandem and not given.asv:
        parser.error("--tandem needs --asv")
    if given.allow_partial and not given.key:
        parser.error("--allow-partial needs --key")
    check_resamples(parser, given)
    if given.compare and not given.resamples:
        parser.error("--compare needs resamples; leave out --resamples 0")
    if given.threshold is not None and not math.isfinite(given.threshold):
        parser.error(f"--threshold: {given.threshold} is not finite")
    check_folder(parser, "--to", given.to)
    for option in ("key", "calibration", "asv"):
        path = getattr(given, option)
        if path is not None and not Path(path).is_file():
            parser.error(f"--{option}: no such file: {path}")


def _write(results: "Results", folder: str) -> None:
    from moelora_ad.cli.terminal import step_progress
    from moelora_ad.evaluation.reports.report import number_of_plots  # matplotlib takes a second
    from moelora_ad.evaluation.reports.writing import write_results

    try:
        with step_progress(number_of_plots(results)) as tick:
            write_results(results, folder, tick)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from None


def _print(results: "Results") -> None:
    from moelora_ad.cli.terminal import print_line, print_table
    from moelora_ad.evaluation.reports.tables import calibration_table, comparison_table, over_runs_table, sets_table

    for table in (
        sets_table(results, brief=True),
        over_runs_table(results, ("eer",)),
        calibration_table(results),
        comparison_table(results),
    ):
        if table.rows:
            print_table(table)
    for comparison in results.comparisons:
        for sentence in comparison.sentences:
            print_line(sentence)
    for note in results.notes:
        print_line(f"note: {note}")

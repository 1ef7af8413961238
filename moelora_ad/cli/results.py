"""The verb results: systems over their seeds (table 1 and figure 3 of the paper) from the folders of runs."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from moelora_ad.cli.arguments import FAILED, OneLineArgumentParser
from moelora_ad.cli.terminal import print_line, print_table, step_progress
from moelora_ad.errors import InputError

if TYPE_CHECKING:
    from moelora_ad.evaluation.comparison.systems import Comparison
    from moelora_ad.evaluation.reports.text_table import TextTable


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the verb with its arguments ``argv[1:]``; returns the exit code: 1 a run is faulty or a file cannot be
    written."""
    parser = _parser(f"{program} results")
    given = parser.parse_args(argv[1:])
    _check(parser, given)
    try:
        comparison = _comparison(parser, given)
        try:
            if given.to is not None:
                _write(comparison, given)
        finally:  # figures are shown even if a disk is full
            _print(comparison, given.against)
        if given.to is not None:
            print_line(f"report: {Path(given.to, 'report.html')}")
    except InputError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return FAILED
    return 0


def _parser(program: str) -> OneLineArgumentParser:
    parser = OneLineArgumentParser(prog=program, description=__doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUNS", help="folders of runs, or folders above runs")
    add("--own", nargs="+", metavar="SET", help="sets that macro_ood leaves out (default: those of a training corpus)")
    add("--against", metavar="SYSTEM", help="what the others' macro_ood is compared with, seed by seed")
    add("--to", metavar="DIR", help="write results.csv, .json, table.md, .tex, plots, attacks.* and report.html there")
    return parser


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    for path in given.runs:
        if not Path(path).is_dir():
            parser.error(f"{path}: no such folder: give the folder of a run, or one above runs")
    if given.to is not None and Path(given.to).exists() and not Path(given.to).is_dir():
        parser.error(f"--to: {given.to} is not a folder")


def _comparison(parser: argparse.ArgumentParser, given: argparse.Namespace) -> "Comparison":
    from moelora_ad.evaluation.comparison.scored_runs import read_runs
    from moelora_ad.evaluation.comparison.systems import MACRO_OOD, Comparison
    from moelora_ad.runs.record import find_records

    records = find_records(given.runs)
    with step_progress(len(records)) as tick:
        runs, notes = read_runs(records, tick)
    comparison = Comparison(runs, given.own, tuple(notes))
    strangers = sorted(set(given.own or ()) - set(comparison.sets))
    if strangers:
        parser.error(f"--own: no set is called {strangers[0]!r}; there are {', '.join(comparison.sets)}")
    if given.against is not None:
        if given.against not in comparison.systems:
            parser.error(f"--against: no system is called {given.against!r}; there are {', '.join(comparison.systems)}")
        if MACRO_OOD not in comparison.averages:
            parser.error("--against: there is no macro_ood: every set that all runs have is of a training corpus")
        if not comparison.against(given.against):
            parser.error(f"--against: no other system has a seed of {given.against!r}")
    return comparison


def _write(comparison: "Comparison", given: argparse.Namespace) -> None:
    from moelora_ad.evaluation.comparison.writing import write_comparison  # matplotlib takes a second

    try:
        write_comparison(comparison, given.to, given.against)
    except OSError as error:
        raise InputError(f"{given.to}: cannot be written: {error.strerror}") from None


def _print(comparison: "Comparison", reference: str | None) -> None:
    from moelora_ad.evaluation.comparison.attack_tables import matrix_table
    from moelora_ad.evaluation.comparison.attacks import attack_matrix
    from moelora_ad.evaluation.comparison.table_one import against_table, table_one

    matrix = attack_matrix(comparison.runs)
    if matrix is not None:
        _print_table(matrix_table(matrix))
    _print_table(table_one(comparison))
    if reference is not None:
        _print_table(against_table(comparison, reference))
    for note in comparison.notes:
        print_line(f"note: {note}")


def _print_table(table: "TextTable") -> None:
    console = Console()
    if not console.is_terminal:  # nothing is bold there
        rows = [
            [f"*{c}" if table.is_bold(at, n) else c for n, c in enumerate(row)] for at, row in enumerate(table.rows)
        ]
        table = replace(table, rows=rows)
    print_table(table)
    if not table.notes:
        print_line("")

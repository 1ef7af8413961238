"""The command results: systems over their seeds (table 1 and figure 3 of the paper) from the folders of runs."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moelora_ad.cli.arguments import FAILED, OneLineArgumentParser, add_resamples, check_folder, check_resamples
from moelora_ad.cli.terminal import print_line, print_table, progress, step_progress
from moelora_ad.errors import InputError

if TYPE_CHECKING:
    from moelora_ad.evaluation.comparison.attack_pairs import OverAttacks
    from moelora_ad.evaluation.comparison.attacks import AttackMatrix
    from moelora_ad.evaluation.comparison.pairs import ComparedPairs, Pair
    from moelora_ad.evaluation.comparison.systems import Comparison


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the command with its arguments ``argv[1:]``; returns the exit code: 1 if a run is faulty or a file cannot be
    written."""
    parser = _parser(f"{program} results")
    given = parser.parse_args(argv[1:])
    _check(parser, given)
    from moelora_ad.evaluation.comparison.attack_pairs import compare_over_attacks

    try:
        comparison, matrices = _comparison(parser, given)
        pairs = _pairs(parser, given, comparison, matrices)
        over_attacks = compare_over_attacks(matrices, pairs)
        compared = None
        try:
            compared = _compared(comparison, pairs, given)
            if given.to is not None:
                _write(comparison, given.to, matrices, compared, over_attacks)
        finally:  # figures are shown even if a disk is full
            _print(comparison, matrices, compared, over_attacks)
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
    add(
        "--to",
        metavar="DIR",
        help="write results.*, table.md, .tex, attacks.* (systems x attacks), plots and report.html there",
    )
    pairs = parser.add_argument_group("pairs of systems, over seeds and trials, and over attacks")
    add = pairs.add_argument
    add("--compare", nargs="+", default=(), metavar="SYSTEM", help="compare every pair of these, named as in the table")
    add("--against", metavar="SYSTEM", help="compare every other system with this one")
    add_resamples(pairs)
    return parser


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    for path in given.runs:
        if not Path(path).is_dir():
            parser.error(f"{path}: no such folder: give the folder of a run, or one above runs")
    check_folder(parser, "--to", given.to)
    if given.compare and len(set(given.compare)) < 2:
        parser.error("--compare: name at least two systems; --against compares one with all others")
    check_resamples(parser, given)
    if not given.resamples and (given.compare or given.against is not None):
        parser.error(f"--resamples: {given.resamples} is too few to compare systems; leave it out for 1000")


def _comparison(parser: argparse.ArgumentParser, given: argparse.Namespace) -> "tuple[Comparison, list[AttackMatrix]]":
    from moelora_ad.evaluation.comparison.attacks import attack_matrices
    from moelora_ad.evaluation.comparison.scored_runs import read_runs
    from moelora_ad.evaluation.comparison.systems import Comparison
    from moelora_ad.runs.record import find_records

    records = find_records(given.runs)
    with step_progress(len(records)) as tick:
        runs, notes = read_runs(records, tick)
    comparison = Comparison(runs, given.own, tuple(notes))
    strangers = sorted(set(given.own or ()) - set(comparison.sets))
    if strangers:
        parser.error(f"--own: no set is named {strangers[0]!r}; there are {', '.join(comparison.sets)}")
    return comparison, attack_matrices(comparison)


def _pairs(
    parser: argparse.ArgumentParser,
    given: argparse.Namespace,
    comparison: "Comparison",
    matrices: "Sequence[AttackMatrix]",
) -> "list[Pair]":
    """Return the pairs to compare: of systems, or of systems over the attacks that their runs held out."""
    from moelora_ad.evaluation.comparison.pairs import pairs_of

    groups = [*(matrix.systems for matrix in matrices if matrix.held_out), comparison.systems]
    every = list(dict.fromkeys(system for group in groups for system in group))
    named = {"--compare": given.compare, "--against": () if given.against is None else (given.against,)}
    for option, systems in named.items():
        for system in systems:
            if system not in every:
                parser.error(f"{option}: no system is named {system!r}; there are {', '.join(every)}")
    chosen = list(dict.fromkeys(given.compare))
    pairs = pairs_of(chosen, given.against, every)
    compared = [pair for pair in pairs if any({*pair} <= {*group} for group in groups)]
    for first, second in pairs:
        if {first, second} <= {*chosen} and (first, second) not in compared:
            alone, other = (first, second) if second in comparison.systems else (second, first)
            parser.error(
                f"--compare: {alone!r} has a held-out attack in each run, so it does not compare with {other!r}"
            )
    if given.against is not None and not compared:
        parser.error(f"--against: there is no system other than {given.against!r}")
    return compared


def _compared(comparison: "Comparison", pairs: "Sequence[Pair]", given: argparse.Namespace) -> "ComparedPairs | None":
    pairs = [pair for pair in pairs if {*pair} <= {*comparison.systems}]
    if not pairs:
        return None
    from moelora_ad.evaluation.comparison.pairs import compare_systems
    from moelora_ad.evaluation.metrics.options import FigureOptions

    options = FigureOptions(resamples=given.resamples, seed=given.seed, clusters=given.cluster)
    with progress() as show:
        return compare_systems(comparison, pairs, options, show)


def _write(
    comparison: "Comparison",
    folder: str,
    matrices: "Sequence[AttackMatrix]",
    compared: "ComparedPairs | None",
    over_attacks: "OverAttacks",
) -> None:
    from moelora_ad.evaluation.comparison.writing import write_comparison  # matplotlib takes a second

    try:
        write_comparison(comparison, folder, matrices, compared, over_attacks)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from None


def _print(
    comparison: "Comparison",
    matrices: "Sequence[AttackMatrix]",
    compared: "ComparedPairs | None",
    over_attacks: "OverAttacks",
) -> None:
    from moelora_ad.evaluation.comparison.attack_pairs import differences_table
    from moelora_ad.evaluation.comparison.attack_tables import matrix_table
    from moelora_ad.evaluation.comparison.pair_tables import pair_tables
    from moelora_ad.evaluation.comparison.table_one import table_one

    found = [*map(matrix_table, matrices), table_one(comparison)]
    found += [] if compared is None else pair_tables(compared)
    found += [differences_table(*one) for one in over_attacks]
    said: set[str] = set()
    for table in found:
        print_table(replace(table, notes=[note for note in table.notes if note not in said]))
        said.update(table.notes)
    for note in comparison.notes:
        print_line(f"note: {note}")

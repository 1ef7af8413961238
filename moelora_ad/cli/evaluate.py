"""The verb evaluate: figures, plots and a report from score files."""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moelora_ad import __version__
from moelora_ad.cli.arguments import FAILED, OneLineArgumentParser
from moelora_ad.cli.terminal import print_line, print_table, step_progress
from moelora_ad.corpora.trial import TEXT_FIELDS, TrialList
from moelora_ad.errors import InputError
from moelora_ad.evaluation.metrics.costs import TandemCosts2019, TandemCosts2021, read_asv_error_rates
from moelora_ad.evaluation.metrics.options import FigureOptions
from moelora_ad.evaluation.provenance import partial_note, provenance_of
from moelora_ad.evaluation.reports.evaluating import (
    all_notes,
    calibrated,
    compare_pairs,
    evaluate_files,
    summarise_runs,
)
from moelora_ad.evaluation.reports.results import Results
from moelora_ad.evaluation.reports.tables import (
    calibration_table,
    comparison_table,
    over_runs_table,
    sets_table,
)
from moelora_ad.evaluation.score_files.formats import FORMATS
from moelora_ad.evaluation.score_files.keys import PARTS, read_key
from moelora_ad.evaluation.score_files.labelled import Labelled, ScoreReader
from moelora_ad.evaluation.score_files.paths import (
    Compared,
    FoundFile,
    Pair,
    PathError,
    failed_note,
    find_pairs,
    find_score_files,
)

_TANDEM = {"2019": TandemCosts2019, "2021": TandemCosts2021}


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the verb with its arguments ``argv[1:]``; returns the exit code: 1 a file is faulty or cannot be written."""
    parser = _parser(f"{program} evaluate")
    given = parser.parse_args(argv[1:])
    _check(parser, given)
    try:
        found = find_score_files(given.scores, given.names)
        compared = find_pairs(*given.compare) if given.compare else Compared()
    except PathError as error:
        parser.error(str(error))
    for option in ("own", "average"):
        strangers = sorted(set(getattr(given, option)) - {file.set_name for file in found.files})
        if strangers:
            parser.error(f"--{option}: no set is called {strangers[0]!r}")
    try:
        notes = (*found.notes, *compared.notes)
        results = _results(given, found.files, compared.pairs, compared.systems, notes)
        try:
            if given.to is not None:
                _write(results, given.to)
        finally:  # last, since a reader that goes away ends the program; and figures are shown even if a disk is full
            _print(results)
        if given.to is not None:
            print_line(f"report: {Path(given.to, 'report.html')}")
    except _Faulty as faulty:
        for line in faulty.args:
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
        help="score files, folders of them, or runs; a set is called as its file is",
    )
    add("--compare", nargs=2, metavar=("A", "B"), help="score files (or folders) of two systems on the same trials")
    add("--to", metavar="DIR", help="write figures.csv, .json, .md, .tex, plots and report.html there")
    labels = parser.add_argument_group("labels and sets")
    add = labels.add_argument
    add("--key", metavar="FILE", help="official protocol or key, manifest or table with the labels that scores lack")
    add(
        "--phase",
        choices=PARTS,
        help="of a key of ASVspoof 2021 (default: eval), or list of FakeAVCeleb (default: all)",
    )
    add("--format-in", choices=sorted(FORMATS), help="format of the score files (default: found out)")
    add("--allow-partial", action="store_true", help="use the trials that scores and key both have, and say how many")
    add("--names", type=_words, default=(), metavar="A,B", help="names of the sets, one for each score file")
    add("--own", nargs="+", default=(), metavar="SET", help="sets of the training corpus; macro_ood leaves them out")
    add("--average", nargs="+", default=(), metavar="SET", help="sets to average and pool (default: those of the run)")
    figures = parser.add_argument_group("figures")
    add = figures.add_argument
    scale = figures.add_mutually_exclusive_group()
    scale.add_argument(
        "--calibrated", action="store_true", help="the scores are log-likelihood ratios: actDCF and Cllr"
    )
    scale.add_argument("--calibration", metavar="DEV", help="development scores to fit a calibration on, for SCORES")
    add("--threshold", type=float, metavar="T", help="accuracy at this (calibrated) score")
    add("--asv", metavar="FILE", help="official scores of a speaker verification system, for min t-DCF")
    add("--tandem", choices=sorted(_TANDEM), help="the year's form of t-DCF (default: 2021)")
    add("--resamples", type=int, default=1000, metavar="N", help="of the bootstrap (default: 1000; 0: no intervals)")
    add(
        "--cluster",
        type=_words,
        metavar="A,B",
        help="fields whose combinations are resampled (default: speaker,attack)",
    )
    add("--seed", type=int, default=1, help="of the bootstrap (default: 1)")
    return parser


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


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
    if given.resamples < 0:
        parser.error(f"--resamples: {given.resamples} is negative")
    if given.seed < 0:
        parser.error(f"--seed: {given.seed} is negative")
    if given.compare and not given.resamples:
        parser.error("--compare needs resamples; leave out --resamples 0")
    if given.threshold is not None and not math.isfinite(given.threshold):
        parser.error(f"--threshold: {given.threshold} is not finite")
    for field in given.cluster or ():
        if field not in TEXT_FIELDS:
            parser.error(f"--cluster: no field {field!r}; choose from {', '.join(TEXT_FIELDS)}")
    if given.to is not None and Path(given.to).exists() and not Path(given.to).is_dir():
        parser.error(f"--to: {given.to} is not a folder")
    for option in ("key", "calibration", "asv"):
        path = getattr(given, option)
        if path is not None and not Path(path).is_file():
            parser.error(f"--{option}: no such file: {path}")


class _Faulty(Exception):
    """Files that cannot be evaluated or written; one line for each."""


def _results(
    given: argparse.Namespace,
    found: Sequence[FoundFile],
    pairs: Sequence[Pair],
    systems: tuple[str, str],
    notes: Sequence[str],
) -> Results:
    """Everything that is asked for; all files are read before anything is computed."""
    try:
        key = None if given.key is None else read_key(given.key, given.phase)
        asv = None if given.asv is None else read_asv_error_rates(given.asv, given.phase or "eval")
        reader = ScoreReader(key, given.format_in, given.allow_partial)
        labelled = _read_all(reader, [*found, *(file for pair in pairs for file in pair.files)])
        options = FigureOptions(
            calibrated=given.calibrated or given.calibration is not None,
            threshold=given.threshold,
            resamples=given.resamples,
            seed=given.seed,
            clusters=given.cluster,
            asv=asv,
            tandem=_TANDEM[given.tandem or "2021"](),
        )
        tables = {file: labelled[file].table for file in found}
        raw, calibration = None, None
        if given.calibration is not None:
            development = ScoreReader(None, given.format_in).read(given.calibration).table
            raw = tables
            calibration, tables = calibrated(tables, development, given.calibration)
        with step_progress(len(found) + len({file.run for file in found}) + len(pairs)) as tick:
            files = evaluate_files(tables, options, raw, tick)
            runs = summarise_runs(files, given.own, options, tick, given.average)
            comparisons = compare_pairs(pairs, labelled, systems, options, tick)
    except InputError as error:
        raise _Faulty(str(error)) from None
    notes = (*notes, *all_notes(labelled, files, runs, comparisons))
    return Results(files, runs, comparisons, systems, calibration, _told(given, options, key), notes)


def _read_all(reader: ScoreReader, found: Sequence[FoundFile]) -> dict[FoundFile, Labelled]:
    """Every file, or a line for each that is faulty."""
    labelled, faults = {}, []
    for file in found:
        try:
            read = reader.read(file.path)
        except InputError as error:
            faults.append(str(error))
            continue
        missing = failed_note(file.path) or partial_note(file.path, len(read.table))
        beside = (missing, provenance_of(file.path).note)
        labelled[file] = Labelled(read.table, [*read.notes, *filter(None, beside)])
    if faults:
        raise _Faulty(*faults)
    return labelled


def _told(given: argparse.Namespace, options: FigureOptions, key: TrialList | None) -> Mapping[str, Any]:
    """How the figures were made, for the reader of a report."""
    told = {
        "moelora_ad": __version__,
        "calibrated": options.calibrated,
        "calibration": given.calibration,
        "threshold": options.threshold,
        "key": given.key,
        "trials of the key": key and f"{len(key):,}: {', '.join(_named(key, 'corpus') + _named(key, 'split'))}",
        "allow_partial": given.allow_partial or None,
        "own": ", ".join(given.own) or None,
        "average": ", ".join(given.average) or None,
        "costs": asdict(options.costs),
        "asv": given.asv,
        "tandem": (given.tandem or "2021") if given.asv else None,
        "resamples": options.resamples,
        "seed": options.seed,
        "clusters": " x ".join(given.cluster) if given.cluster else None,
    }
    return {name: value for name, value in told.items() if value is not None}


def _named(key: TrialList, field: str) -> list[str]:
    return list(filter(None, key.column(field).values))


def _write(results: Results, folder: str) -> None:
    from moelora_ad.evaluation.reports.report import number_of_plots  # matplotlib takes a second
    from moelora_ad.evaluation.reports.writing import write_results

    try:
        with step_progress(number_of_plots(results)) as tick:
            write_results(results, folder, tick)
    except OSError as error:
        raise _Faulty(f"{folder}: cannot be written: {error.strerror}") from None


def _print(results: Results) -> None:
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

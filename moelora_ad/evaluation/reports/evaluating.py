"""The evaluation of score files: everything that is reported of them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from moelora_ad.evaluation.metrics.averages import macro_averages
from moelora_ad.evaluation.metrics.calibration import Calibration, fit_calibration, refuse_own_calibration
from moelora_ad.evaluation.metrics.clusters import paired_clusters
from moelora_ad.evaluation.metrics.curve import ScoreCurve
from moelora_ad.evaluation.metrics.equal_error_rate import ScoreError
from moelora_ad.evaluation.metrics.figures import evaluate_set, pooled
from moelora_ad.evaluation.metrics.intervals import Difference, compare
from moelora_ad.evaluation.metrics.options import FigureOptions
from moelora_ad.evaluation.provenance import provenance_of, read_provenance, refuse_other_model
from moelora_ad.evaluation.reports.results import EvaluatedFile, RunSummary, SetComparison, Uncalibrated
from moelora_ad.evaluation.score_files.labelled import Labelled
from moelora_ad.evaluation.score_files.paths import Pair, ScoreFile
from moelora_ad.evaluation.score_table import ScoreTable
from moelora_ad.runs.held_out import HELD_OUT, held_out_attack
from moelora_ad.runs.record import DEV

Tick = Callable[[str], None]
"""Called before each piece of work with its description."""


def calibrated_scores(
    found: Mapping[ScoreFile, ScoreTable], development: ScoreTable, path: str | Path
) -> tuple[Calibration, dict[ScoreFile, ScoreTable]]:
    """Fit a calibration on development scores, and apply it to other scores.

    Raises:
        ScoreError: A file shares trials with the development scores or is of another model, or those allow no
            calibration.
    """
    for file, table in found.items():
        try:
            refuse_own_calibration(development, table)
        except ScoreError as error:
            raise ScoreError(f"{file.where}: {error}") from None
        if file.path is not None:
            refuse_other_model(path, file.path)
    calibration = fit_calibration(development.scores, development.labels, Path(path).name)
    return calibration, {file: table.with_scores(calibration.apply(table.scores)) for file, table in found.items()}


def evaluate_files(
    found: Mapping[ScoreFile, ScoreTable],
    options: FigureOptions,
    raw: Mapping[ScoreFile, ScoreTable] | None = None,
    tick: Tick = lambda what: None,
) -> tuple[EvaluatedFile, ...]:
    """Compute the figures of each file.

    Args:
        found: The scores, calibrated or not.
        options: How the figures are computed.
        raw: The scores before the calibration, if there was one.
        tick: Called before each file.
    """
    evaluated = []
    for file, table in found.items():
        tick(file.set_name)
        evaluation = evaluate_set(file.set_name, table, options)
        before = None
        if raw is not None:
            curve = ScoreCurve(raw[file].scores, raw[file].labels)
            before = Uncalibrated(curve.act_dcf(options.costs), curve.cllr())
        text = None if file.path is None else provenance_of(file.path).text
        apart = why_in_no_average(file.path, file.set_name)
        evaluated.append(EvaluatedFile(file.set_name, file.run, file.path, table, evaluation, before, text, apart))
    return tuple(evaluated)


def why_in_no_average(path: Path | None, set_name: str) -> str:
    """Return why a set is in no average over sets unless it is asked for; empty if it is in the averages.

    Args:
        path: The score file; None for scores in memory.
        set_name: The name of the set.
    """
    recorded = {} if path is None else read_provenance(path)
    if DEV in (set_name, recorded.get("set")):
        return "models are selected on the development set"
    configuration = recorded.get("configuration")
    if recorded.get("set") == HELD_OUT and isinstance(configuration, dict) and held_out_attack(configuration):
        return "development's trials of the attack that its run held out"
    return "not a set that its run is configured with" if recorded.get("set_of_run") is False else ""


def summarise_runs(
    files: Sequence[EvaluatedFile],
    own: Collection[str],
    options: FigureOptions,
    tick: Tick = lambda what: None,
    averaged: Collection[str] = (),
) -> dict[str, RunSummary]:
    """Compute the averages and the pool of each run that has several sets.

    Args:
        files: Score files with their figures.
        own: The sets of the training corpus; if none is named, there is no average out of domain.
        options: How the figures are computed.
        tick: Called before each run.
        averaged: The sets to average; empty for those that `why_in_no_average` has nothing against.
    """
    runs: dict[str, dict[str, EvaluatedFile]] = {}
    for file in files:
        if file.set_name in averaged if averaged else not file.apart:
            runs.setdefault(file.run, {})[file.set_name] = file
    summaries = {}
    for run, sets in runs.items():
        if len(sets) > 1:
            tick(f"pooled {run}".strip())
            averages = macro_averages({name: file.evaluation for name, file in sets.items()}, own)
            kept = tuple(one for one in averages if own or one.name != "macro_ood")
            summaries[run] = RunSummary(kept, pooled({name: file.table for name, file in sets.items()}, options))
    return summaries


def compare_pairs(
    pairs: Sequence[Pair],
    labelled: Mapping[ScoreFile, Labelled],
    systems: tuple[str, str],
    options: FigureOptions,
    tick: Tick = lambda what: None,
) -> tuple[SetComparison, ...]:
    """Compare two systems set by set.

    Raises:
        ScoreError: The two have scores of different trials.
    """
    comparisons = []
    for pair in pairs:
        tick(f"comparing on {pair.set_name}")
        first, second = (labelled[file].table for file in pair.files)
        try:
            differences = compare(first, second, options)
        except ScoreError as error:
            raise ScoreError(f"{pair.files[0].where} and {pair.files[1].where}: {error}") from None
        sentences = (f"{pair.set_name}: {conclusion(systems, differences['eer'])}",)
        notes = tuple(paired_clusters(first.trials, first.labels, options.clusters).notes)
        comparisons.append(SetComparison(pair.set_name, differences, sentences, (first, second), notes))
    return tuple(comparisons)


def conclusion(systems: tuple[str, str], eer: Difference) -> str:
    """Return a sentence on what a difference of equal error rates shows."""
    low, high = sorted((abs(100 * eer.interval.low), abs(100 * eer.interval.high)))
    if eer.interval.low > 0 or eer.interval.high < 0:
        better, worse = systems if eer.difference < 0 else systems[::-1]
        points = f"{abs(100 * eer.difference):.2f} points lower (95 % interval {low:.2f} to {high:.2f})"
        return f"{better} is better than {worse}: its EER is {points}."
    interval = f"{100 * eer.interval.low:.2f} to {100 * eer.interval.high:.2f}"
    shown = f"{100 * eer.difference:.2f} points, 95 % interval {interval}"
    return f"no difference is shown between {systems[0]} and {systems[1]} (EER: {shown})."


def all_notes(
    found: Mapping[ScoreFile, Labelled],
    files: Sequence[EvaluatedFile],
    runs: Mapping[str, RunSummary],
    comparisons: Sequence[SetComparison],
) -> list[str]:
    """Return the notes from reading and evaluating; sentences that several files share are given once."""
    places: dict[str, dict[str, None]] = {}
    for file in files:
        for note in file.evaluation.notes:
            places.setdefault(note, {})[file.title] = None
    for file_found, labelled in found.items():
        title = f"{file_found.set_name}, {file_found.run}" if file_found.run else file_found.set_name
        for note in labelled.notes:
            places.setdefault(note, {})[title] = None
    for comparison in comparisons:
        for note in comparison.notes:
            places.setdefault(note, {})[comparison.set_name] = None
    if len(files) > 1:
        for file in files:
            if file.apart:
                note = f"{file.apart}: in no average unless --average names it"
                places.setdefault(note, {})[file.title] = None
    told = {f"{file.set_name}: {note}" for file in files for note in file.evaluation.notes}
    for run, summary in runs.items():
        for note in summary.pooled.notes:
            if note not in told:
                places.setdefault(note, {})[f"pooled, {run}" if run else "pooled"] = None
    every = {file.title for file in files}
    return [
        f"{'all sets' if len(every) > 1 and every <= {*titles} else _listed(list(titles))}: {note}"
        for note, titles in places.items()
    ]


def _listed(titles: Sequence[str], most: int = 8) -> str:
    more = f" and {len(titles) - most} more" if len(titles) > most else ""
    return "; ".join(titles[:most]) + more

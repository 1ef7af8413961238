"""The evaluation that the command evaluate reports, of files or of scores in memory."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from moelora_ad import __version__
from moelora_ad.corpora.trial import Trial, TrialList
from moelora_ad.errors import InputError, counted
from moelora_ad.evaluation.metrics.costs import TandemCosts2019, TandemCosts2021, read_asv_error_rates
from moelora_ad.evaluation.metrics.equal_error_rate import ScoreError, as_array, check_classes
from moelora_ad.evaluation.metrics.options import FigureOptions
from moelora_ad.evaluation.provenance import partial_note, provenance_of
from moelora_ad.evaluation.reports.evaluating import (
    Tick,
    all_notes,
    calibrated_scores,
    compare_pairs,
    evaluate_files,
    summarise_runs,
)
from moelora_ad.evaluation.reports.results import Results
from moelora_ad.evaluation.score_files.keys import read_key
from moelora_ad.evaluation.score_files.labelled import Labelled, ScoreReader
from moelora_ad.evaluation.score_files.paths import (
    Compared,
    PathError,
    ScoreFile,
    ScoreFiles,
    failed_note,
    find_pairs,
    find_score_files,
)
from moelora_ad.evaluation.score_table import ScoreTable

_TANDEM = {"2019": TandemCosts2019, "2021": TandemCosts2021}
_AVERAGES = ("macro_ood", "macro_all", "pooled")
_ONE = "scores"  # the set of an array or a single table

Place = str | os.PathLike[str]


class FaultyFiles(InputError):
    """Score files that cannot be evaluated.

    Attributes:
        lines: one message for each file.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


@contextmanager
def _silent(total: int) -> Iterator[Tick]:
    yield lambda what: None


def evaluate(
    scores: Place | ScoreTable | ArrayLike | Sequence[Place] | Mapping[str, ScoreTable] = (),
    key: Place | TrialList | ArrayLike | None = None,
    *,
    compare: tuple[Place, Place] | None = None,
    names: Sequence[str] = (),
    phase: str | None = None,
    format_in: str | None = None,
    allow_partial: bool = False,
    own: Sequence[str] = (),
    average: Sequence[str] = (),
    calibrated: bool = False,
    calibration: Place | ScoreTable | None = None,
    threshold: float | None = None,
    asv: Place | None = None,
    tandem: Literal["2019", "2021"] = "2021",
    resamples: int = 1000,
    seed: int = 1,
    cluster: Sequence[str] | None = None,
    progress: Callable[[int], AbstractContextManager[Tick]] = _silent,
) -> Results:
    """Compute figures of scores with their 95 % intervals, averages and notes: all that the command evaluate reports.

    ``evaluate("scores.csv", "key.txt").overall.eer`` is the EER of a file, ``evaluate(RUN).sets["in_domain"]`` has the
    figures of a set of a run, and ``evaluate(scores, labels)`` takes arrays.

    Args:
        scores: Score files, folders of them, or folders of runs, one or several; or a `ScoreTable`, or several by the
            names of their sets; or an array (n,), higher for bona fide.
        key: Where the labels are if scores lack them: the path of a key, its trials, or for an array the labels (n,),
            1 for bona fide and 0 for spoof.
        compare: Score files, or folders of them, of two systems on the same trials.
        names: Names of the sets, one for each score file; by default the names of the files.
        phase: Phase of a key of ASVspoof 2021, or list of FakeAVCeleb, see `read_key`.
        format_in: Format of the score files, see ``FORMATS``; detected by default.
        allow_partial: Whether to use the trials that both scores and key have if they differ.
        own: Sets of the training corpus, which ``macro_ood`` leaves out.
        average: Sets to average and pool; by default those that their run is configured with, but neither the
            development set nor that of a held-out attack.
        calibrated: Whether the scores are log-likelihood ratios, so that actDCF and Cllr have a meaning.
        calibration: Development scores to fit a calibration on, which is applied to ``scores``.
        threshold: Threshold of the accuracy.
        asv: Official scores of a speaker verification system, for min t-DCF.
        tandem: The form of t-DCF.
        resamples: Number of resamples of the bootstrap, at least 20; 0 for no intervals.
        seed: Seed of the bootstrap.
        cluster: Fields whose combinations are resampled together; None for `default_clusters`.
        progress: Called with the number of steps; returns a context with a function that is called before each step.

    Raises:
        PathError: A path does not exist, a named set does not exist, or a set has the name of an average.
        FaultyFiles: Files are faulty; all of them are reported.
        InputError: A key or a table is faulty, scores and key do not fit, or an option has no meaning.
    """
    if tandem not in _TANDEM:
        raise InputError(f"tandem: must be {' or '.join(map(repr, _TANDEM))}, not {tandem!r}")
    tables, labels = _in_memory(scores, key)
    if tables is None:
        places = [scores] if isinstance(scores, str | os.PathLike) else scores
        found = find_score_files([os.fspath(place) for place in places], names)  # type: ignore[union-attr, arg-type]
    else:
        found = ScoreFiles([ScoreFile(None, name, "") for name in tables], [])
    compared = find_pairs(os.fspath(compare[0]), os.fspath(compare[1])) if compare else Compared()
    if not found.files and not compared.pairs:
        raise InputError("nothing to evaluate: give score files, score tables by set, or arrays of scores and labels")
    taken = [file.set_name for file in found.files if file.set_name in _AVERAGES]
    if taken and len(found.files) > 1:
        raise PathError(f"a set is named {taken[0]!r}, like an average: give other --names")
    for option, chosen in (("own", own), ("average", average)):
        if strangers := sorted(set(chosen) - {file.set_name for file in found.files}):
            raise PathError(f"--{option}: no set is named {strangers[0]!r}")
    trials = read_key(os.fspath(labels), phase) if isinstance(labels, str | os.PathLike) else labels
    reader = ScoreReader(trials, format_in, allow_partial)
    options = FigureOptions(
        calibrated=calibrated or calibration is not None,
        threshold=threshold,
        resamples=resamples,
        seed=seed,
        clusters=None if cluster is None else tuple(cluster),
        asv=None if asv is None else read_asv_error_rates(os.fspath(asv), phase or "eval"),
        tandem=_TANDEM[tandem](),
    )
    labelled = _read_all(reader, [*found.files, *(file for pair in compared.pairs for file in pair.files)], tables)
    read = {file: labelled[file].table for file in found.files}
    raw, fitted = None, None
    if calibration is not None:
        raw = read
        fitted, read = calibrated_scores(read, *_development(calibration, format_in))
    with progress(len(found.files) + len({file.run for file in found.files}) + len(compared.pairs)) as tick:
        files = evaluate_files(read, options, raw, tick)
        runs = summarise_runs(files, own, options, tick, average)
        comparisons = compare_pairs(compared.pairs, labelled, compared.systems, options, tick)
    notes = tuple(dict.fromkeys((*found.notes, *compared.notes, *all_notes(labelled, files, runs, comparisons))))
    told = {
        "moelora_ad": __version__,
        "calibrated": options.calibrated,
        "calibration": None if calibration is None else _named(calibration),
        "threshold": threshold,
        "key": None if trials is None else _named(key),
        "trials of the key": trials and f"{len(trials):,}: {', '.join(_listed(trials))}",
        "allow_partial": allow_partial or None,
        "own": ", ".join(own) or None,
        "average": ", ".join(average) or None,
        "costs": asdict(options.costs),
        "asv": None if asv is None else os.fspath(asv),
        "tandem": None if asv is None else tandem,
        "resamples": resamples,
        "seed": seed,
        "clusters": " x ".join(cluster) if cluster else None,
    }
    told = {name: value for name, value in told.items() if value is not None}
    return Results(files, runs, comparisons, compared.systems, fitted, told, notes)


def _in_memory(scores: Any, key: Any) -> tuple[Mapping[str, ScoreTable] | None, Place | TrialList | None]:
    """Return scores in memory by set, or None for scores in files; and the key, unless it is the labels of an array."""
    tables = {_ONE: scores} if isinstance(scores, ScoreTable) else scores if isinstance(scores, Mapping) else None
    for name, table in (tables or {}).items():
        if not isinstance(table, ScoreTable):
            raise ScoreError(f"{name}: scores by set must be of type ScoreTable, not {type(table).__name__}")
    has_labels = not (key is None or isinstance(key, str | os.PathLike | TrialList))
    places = [scores] if isinstance(scores, str | os.PathLike) else scores
    of_files = isinstance(places, list | tuple) and all(isinstance(place, str | os.PathLike) for place in places)
    if tables is not None or (of_files and (places or not has_labels)):
        if has_labels:
            raise ScoreError(
                f"a key of score files or tables must be a path or a TrialList, not of type {type(key).__name__}"
            )
        return tables, key
    if not has_labels:
        raise ScoreError("an array of scores needs an array of labels as its key: 1 for bona fide, 0 for spoof")
    values, labels = as_array(scores), as_array(key)
    if values.ndim != 1 or labels.shape != values.shape:
        raise ScoreError(f"scores {values.shape} and labels {labels.shape} must be two arrays of one length")
    if not np.isin(labels, (0, 1)).all():
        raise ScoreError("labels must be 1 for bona fide or 0 for spoof")
    check_classes(int((labels == 1).sum()), int((labels == 0).sum()))
    trials = [Trial(str(number), "", label=int(label)) for number, label in enumerate(labels)]
    return {_ONE: ScoreTable(trials, values)}, None


def _read_all(
    reader: ScoreReader, found: Sequence[ScoreFile], tables: Mapping[str, ScoreTable] | None
) -> dict[ScoreFile, Labelled]:
    """Read all scores, those in memory from ``tables``; `FaultyFiles` has a line for each faulty file."""
    labelled, faults = {}, []
    for file in found:
        try:
            if file.path is None:
                labelled[file] = reader.labelled((tables or {})[file.set_name], file.set_name)
                continue
            read = reader.read(file.path)
        except InputError as error:
            faults.append(str(error))
            continue
        missing = failed_note(file.path) or partial_note(file.path, len(read.table))
        beside = (missing, provenance_of(file.path).note)
        labelled[file] = Labelled(read.table, [*read.notes, *filter(None, beside)])
    if faults:
        raise FaultyFiles(*faults)
    return labelled


def _development(given: Place | ScoreTable, format_in: str | None) -> tuple[ScoreTable, str]:
    if isinstance(given, ScoreTable):
        return given, _named(given)
    return ScoreReader(None, format_in).read(os.fspath(given)).table, os.fspath(given)


def _named(given: Any) -> str:
    return os.fspath(given) if isinstance(given, str | os.PathLike) else f"{counted(len(given), 'trial')} in memory"


def _listed(key: TrialList) -> list[str]:
    """Return the corpora and splits of a key."""
    return [name for field in ("corpus", "split") for name in key.column(field).values if name]

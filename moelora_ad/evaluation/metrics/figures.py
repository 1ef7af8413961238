"""The figures of a set of scores: overall, per attack, per codec and per group of speakers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moelora_ad.errors import counted
from moelora_ad.evaluation.metrics.clusters import clusters_of, few_clusters_notes
from moelora_ad.evaluation.metrics.curve import ScoreCurve
from moelora_ad.evaluation.metrics.equal_error_rate import ScoreError
from moelora_ad.evaluation.metrics.intervals import Interval, OneCluster, bootstrap
from moelora_ad.evaluation.metrics.options import FigureOptions
from moelora_ad.evaluation.metrics.set_evaluation import Figures, SetEvaluation
from moelora_ad.evaluation.score_table import ScoreTable

_OF_GROUPS = ("eer", "min_dcf")  # the figures of attacks, codecs and speakers that have intervals
_SPEAKER_FIELDS = ("gender", "language", "race")


@dataclass(frozen=True)
class _Trials:
    """The arrays that figures are computed from, all of one length (n,)."""

    scores: NDArray[np.float64]
    labels: NDArray[np.int8]
    clusters: NDArray[np.int64]
    sets: NDArray[np.int64] | None = None

    def figures(self, options: FigureOptions, with_intervals: tuple[str, ...] | None = None) -> Figures:
        """Compute the figures, with intervals for those named in ``with_intervals``, or for all."""
        curve = ScoreCurve(self.scores, self.labels)
        intervals = self.intervals(options, with_intervals) if options.resamples else {}
        return Figures(
            num_bona_fide=curve.num_bona_fide,
            num_spoof=curve.num_spoof,
            eer_threshold=curve.equal_error_rate().threshold,
            threshold=options.threshold,
            intervals=intervals,
            **{name: curve.figure(name, options) for name in options.figures},
        )

    def intervals(self, options: FigureOptions, names: tuple[str, ...] | None) -> dict[str, Interval]:
        """Return the intervals of figures; none if the trials of each class are in a single cluster."""
        try:
            return bootstrap(self.scores, self.labels, self.clusters, options, names, self.sets)
        except OneCluster:
            return {}

    def surely_reversed(self, overall: Figures, options: FigureOptions) -> bool:
        """Whether the EER is above chance, and its interval too, if there can be one; computes a missing interval."""
        if overall.eer <= 0.5:
            return False
        some = replace(options, resamples=FigureOptions.resamples)
        interval = overall.intervals.get("eer") or self.intervals(some, ("eer",)).get("eer")
        return interval is None or interval.low > 0.5

    def part(self, which: NDArray[np.bool_]) -> "_Trials":
        places = np.flatnonzero(which)  # three masks would take longer
        return _Trials(self.scores[places], self.labels[places], self.clusters[places])


def evaluate_set(name: str, table: ScoreTable, options: FigureOptions | None = None) -> SetEvaluation:
    """Compute all figures of a set.

    Args:
        name: The name of the set.
        table: The scores of the set; every trial needs a label.
        options: How the figures are computed.

    Raises:
        ScoreError: Trials have no label, one class is missing, or no t-DCF is defined beside the ASV system.
    """
    options = options or FigureOptions()
    _check_labels(name, table)
    clusters = clusters_of(table.trials, options.clusters)
    trials = _Trials(table.scores, table.labels, clusters.codes)
    overall = trials.figures(options)
    notes = _notes(overall, options, trials, clusters.notes)
    groups: dict[str, dict[str, Figures]] = {"attack": {}, "codec": {}, "speaker": {}}
    for kind, names in (("attack", ("attack",)), ("codec", ("codec",)), ("speaker", _SPEAKER_FIELDS)):
        for column in names:
            one_class = []
            for value, which in _groups(table, column):
                part = trials.part(which)
                if part.labels.min() == part.labels.max():
                    one_class.append(value)
                    continue
                title = f"{column}: {value}" if kind == "speaker" else value
                groups[kind][title] = part.figures(options, _OF_GROUPS)
            if one_class:
                notes.append(f"left out, as they have trials of one class only: {column} {_listed(one_class)}")
    return SetEvaluation(name, overall, groups["attack"], groups["codec"], groups["speaker"], notes)


def pooled(tables: Mapping[str, ScoreTable], options: FigureOptions | None = None) -> SetEvaluation:
    """Evaluate all sets as one, each trial with the same weight; sets are resampled separately.

    Args:
        tables: The scores by set; every trial needs a label.
        options: How the figures are computed.

    Returns:
        The set ``pooled``, without attacks, codecs and speakers.

    Raises:
        ScoreError: See `evaluate_set`, except that one set may have a single class; or there is no set.
    """
    options = options or FigureOptions()
    if not tables:
        raise ScoreError("no set to pool")
    notes: dict[str, None] = {}
    clusters, num_clusters = [], 0
    for name, table in tables.items():
        _check_labels(name, table)
        found = clusters_of(table.trials, options.clusters)
        clusters.append(found.codes + num_clusters)
        num_clusters += int(found.codes.max()) + 1
        notes.update(dict.fromkeys(f"{name}: {note}" for note in found.notes))
    trials = _Trials(
        np.concatenate([table.scores for table in tables.values()]),
        np.concatenate([table.labels for table in tables.values()]),
        np.concatenate(clusters),
        np.repeat(np.arange(len(tables)), [len(table) for table in tables.values()]),
    )
    overall = trials.figures(options)
    return SetEvaluation("pooled", overall, notes=_notes(overall, options, trials, list(notes)))


def _check_labels(name: str, table: ScoreTable) -> None:
    unknown = np.flatnonzero(table.labels < 0)
    if len(unknown):
        first = table.trials[int(unknown[0])].utterance
        raise ScoreError(
            f"{name}: {len(unknown):,} of {counted(len(table), 'trial')} without a label, the first is {first!r}; "
            "give a key with the labels"
        )


def _groups(table: ScoreTable, column: str) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield each known value of a field, sorted, with a mask of the trials that its figures are computed from."""
    found = table.trials.column(column)
    is_bona_fide = table.labels == 1
    present = set(np.unique(found.codes[~is_bona_fide] if column == "attack" else found.codes).tolist())
    known = {value: code for code, value in enumerate(found.values) if value is not None and code in present}
    for value in sorted(known):
        which = found.codes == known[value]
        yield value, which | is_bona_fide if column == "attack" else which


def _notes(overall: Figures, options: FigureOptions, trials: _Trials, of_clusters: list[str]) -> list[str]:
    notes = []
    if trials.surely_reversed(overall, options):
        notes.append(
            f"EER above 50 % ({100 * overall.eer:.2f} %): the scores look reversed; a higher score must mean more "
            "bona fide"
        )
    if options.resamples:
        notes += of_clusters
        if not overall.intervals:
            notes.append(
                "no intervals: the trials of each class are in a single cluster, so that resamples do not differ"
            )
            return notes
        notes += few_clusters_notes(trials.clusters, trials.labels)
    return notes


def _listed(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

"""Results as tables for people, rounded."""

from collections.abc import Iterable, Mapping, Sequence

from moelora_ad.errors import printable
from moelora_ad.evaluation.metrics.intervals import Interval
from moelora_ad.evaluation.metrics.options import FIGURES
from moelora_ad.evaluation.metrics.set_evaluation import Figures
from moelora_ad.evaluation.reports.results import OVER_RUNS, EvaluatedFile, Results, averages_by_name
from moelora_ad.evaluation.reports.text_table import TextTable

NAMES = {
    "eer": "EER %",
    "min_dcf": "minDCF",
    "auc": "AUC",
    "min_cllr": "minCllr",
    "act_dcf": "actDCF",
    "cllr": "Cllr",
    "accuracy": "accuracy %",
    "min_tdcf": "min t-DCF",
}
_RATES = ("eer", "accuracy")
_MORE = "… and {} more in figures.csv"


def rounded(figure: str, value: float | None, interval: Interval | None = None) -> str:
    """Return a figure for people, rates in percent, with its interval if there is one; empty if it is not defined."""
    if value is None:
        return ""
    text = _number(figure, value)
    return text if interval is None else f"{text} [{_number(figure, interval.low)}, {_number(figure, interval.high)}]"


def _number(figure: str, value: float) -> str:
    return f"{100 * value:.2f}" if figure in _RATES else f"{value:.4f}"


def tables(results: Results, most_groups: int | None = None) -> list[TextTable]:
    """Return every table that has a row.

    Args:
        results: The evaluation.
        most_groups: How many attacks, codecs or speaker groups of a set are listed at most, the highest EER first.
    """
    found = [sets_table(results), over_runs_table(results), calibration_table(results), comparison_table(results)]
    for file in results.files:
        found += group_tables(file, most_groups).values()
    return [table for table in found if table.rows]


def sets_table(results: Results, brief: bool = False) -> TextTable:
    """Return a table with a row for each score file, each average and each pool; ``brief`` leaves out what does not fit
    on a terminal."""
    several = any(file.run for file in results.files)
    found = [file.evaluation.overall for file in results.files]
    figures = [name for name in FIGURES if any(getattr(one, name) is not None for one in found)]
    if brief and "cllr" not in figures:
        figures = [name for name in figures if name != "min_cllr"]
    intervals = [
        name for name in figures if any(name in one.intervals for one in found) and not (brief and name != "eer")
    ]

    def row(name: str, run: str, one: Figures) -> tuple[str, ...]:
        place = (printable(name), printable(run))[: 1 + several]
        return (*place, f"{one.num_bona_fide:,}", f"{one.num_spoof:,}", *_cells(one, figures, intervals))

    rows = [row(file.set_name, file.run, file.evaluation.overall) for file in results.files]
    notes = []
    for run, summary in results.runs.items():
        for name, averages in averages_by_name(summary.averages).items():
            values = {average.figure: average.value for average in averages}
            place = (name, printable(run))[: 1 + several]
            rows.append((*place, "", "", *(rounded(figure, values.get(figure)) for figure in figures)))
            notes.append(f"{name}: mean of {', '.join(map(printable, averages[0].sets))}")
        rows.append(row("pooled", run, summary.pooled.overall))
    columns = ("set", *(("run",) if several else ()), "bona fide", "spoof")
    headings = [_heading(name, name in intervals) for name in figures]
    return TextTable("Sets", (*columns, *headings), rows, 1 + several, tuple(dict.fromkeys(notes)))


def _heading(figure: str, has_interval: bool) -> str:
    return f"{NAMES[figure]} [95 %]" if has_interval else NAMES[figure]


def _cells(figures: Figures, names: Iterable[str], with_interval: Sequence[str]) -> list[str]:
    intervals = figures.intervals
    return [rounded(n, getattr(figures, n), intervals.get(n) if n in with_interval else None) for n in names]


def over_runs_table(results: Results, figures: Sequence[str] = OVER_RUNS) -> TextTable:
    """Return a table of mean, standard deviation, best and worst for each set that several runs have."""
    rows = [
        (printable(name), NAMES[figure], *(rounded(figure, value) for value in summary[:4]), str(summary.num))
        for (name, figure), summary in results.over_runs().items()
        if figure in figures
    ]
    return TextTable("Over runs", ("set", "figure", "mean", "std", "best", "worst", "runs"), rows, 2)


def group_tables(file: EvaluatedFile, most: int | None = None) -> dict[str, TextTable]:
    """Return tables of the attacks, codecs and speaker groups of one file, the highest EER first; empty tables are left
    out."""
    found = {}
    for kind, groups in groups_of(file).items():
        ordered = by_eer(groups)
        figures = [name for name in FIGURES if any(getattr(row, name) is not None for row in groups.values())]
        intervals = [name for name in figures if any(name in row.intervals for row in groups.values())]
        rows = [
            (printable(name), f"{row.num_bona_fide:,}", f"{row.num_spoof:,}", *_cells(row, figures, intervals))
            for name, row in list(ordered.items())[:most]
        ]
        left_out = len(groups) - len(rows)
        if left_out:
            rows.append((_MORE.format(left_out), *[""] * (2 + len(figures))))
        headings = [_heading(name, name in intervals) for name in figures]
        found[kind] = TextTable(
            f"{kind.capitalize()} of {printable(file.title)}", (kind, "bona fide", "spoof", *headings), rows
        )
    return found


def groups_of(file: EvaluatedFile) -> dict[str, Mapping[str, Figures]]:
    """Return the groups of a set by kind (attacks, codecs, speaker groups); kinds without groups are left out."""
    evaluation = file.evaluation
    kinds = {"attacks": evaluation.attacks, "codecs": evaluation.codecs, "speaker groups": evaluation.speakers}
    return {kind: groups for kind, groups in kinds.items() if groups}


def by_eer(groups: Mapping[str, Figures]) -> dict[str, Figures]:
    """Sort groups by their EER, the highest first."""
    return dict(sorted(groups.items(), key=lambda group: (-group[1].eer, group[0])))


def calibration_table(results: Results) -> TextTable:
    """Return a table of the effect of the calibration on actDCF and Cllr, beside the minima that no calibration goes
    below."""
    rows = []
    for file in results.files:
        if file.before is not None:
            after = file.evaluation.overall
            costs = (file.before.act_dcf, after.act_dcf, after.min_dcf, file.before.cllr, after.cllr, after.min_cllr)
            rows.append((printable(file.title), *(rounded("cllr", cost) for cost in costs)))
    columns = ("set", "actDCF before", "actDCF after", "minDCF", "Cllr before", "Cllr after", "minCllr")
    return TextTable("Calibration", columns, rows)


def comparison_table(results: Results) -> TextTable:
    """Return a table of two systems, figure by figure, with the interval of the difference."""
    first, second = map(printable, results.systems)
    rows = [
        (
            printable(comparison.set_name),
            NAMES[figure],
            rounded(figure, found.first),
            rounded(figure, found.second),
            rounded(figure, found.difference, found.interval),
        )
        for comparison in results.comparisons
        for figure, found in comparison.differences.items()
        if figure in NAMES
    ]
    return TextTable("Comparison", ("set", "figure", first, second, "difference [95 %]"), rows, 2)

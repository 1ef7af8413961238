"""Results as one HTML page that needs no other files, no network and no scripts."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from markupsafe import Markup

from moelora_ad.errors import counted, printable
from moelora_ad.evaluation.metrics.curve import ScoreCurve
from moelora_ad.evaluation.metrics.set_evaluation import Figures
from moelora_ad.evaluation.reports.pages import DARK_LINES, inline_svg, template
from moelora_ad.evaluation.reports.plots import (
    LINES,
    MOST_BARS,
    Plot,
    bars_plot,
    det_plot,
    histogram_plot,
)
from moelora_ad.evaluation.reports.results import Results
from moelora_ad.evaluation.reports.tables import (
    NAMES,
    calibration_table,
    comparison_table,
    group_tables,
    groups_of,
    over_runs_table,
    rounded,
    sets_table,
)
from moelora_ad.evaluation.reports.text_table import TextTable
from moelora_ad.files import unused_name

_KIND_TEXTS = {
    "attacks": "EER of each attack against all bona fide trials of its set, the highest first.",
    "codecs": "EER of each codec or transmission condition, bona fide against spoof within it.",
    "speaker groups": "EER within each group of speakers.",
}


class NamedPlot(NamedTuple):
    """A plot, its title on a page and the stem of its files."""

    title: str
    stem: str
    plot: Plot
    kind: str
    run: str


class Card(NamedTuple):
    """A headline figure."""

    name: str
    value: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Chart:
    title: str
    svg: Markup


def plots(results: Results, tick: Callable[[str], None] = lambda what: None) -> list[NamedPlot]:
    """Draw every plot: DET curves, histograms, and bars of attacks, codecs and speaker groups.

    Args:
        results: The evaluation.
        tick: Called before each plot with its title.
    """
    made: list[NamedPlot] = []
    stems: set[str] = set()

    def add(title: str, stem: str, draw: Callable[[], Plot], kind: str, run: str = "") -> None:
        tick(title)
        stem = unused_name(re.sub(r"[^\w.-]+", "_", stem, flags=re.ASCII)[:100], stems)
        made.append(NamedPlot(title, stem, draw(), kind, run))

    curves = {file.title: ScoreCurve(file.table.scores, file.table.labels) for file in results.files}
    if curves:
        add("All sets" if len(curves) > 1 else next(iter(curves)), "det", partial(det_plot, curves), "det")
    for comparison in results.comparisons:
        two = {
            system: ScoreCurve(table.scores, table.labels)
            for system, table in zip(results.systems, comparison.tables, strict=True)
        }
        title = f"Compared: {comparison.set_name}"
        add(title, f"det-compared-{comparison.set_name}", partial(det_plot, two), "det")
    for file in results.files:
        overall = file.evaluation.overall
        thresholds = {"EER threshold": overall.eer_threshold}
        thresholds |= {} if overall.threshold is None else {"threshold": overall.threshold}
        plot = partial(histogram_plot, file.table.scores, file.table.labels, thresholds)
        add(file.title, f"scores-{file.title}", plot, "scores", file.run)
        for kind, groups in groups_of(file).items():
            more = f" ({MOST_BARS} of {len(groups)})" if len(groups) > MOST_BARS else ""
            plot = partial(bars_plot, groups, overall.eer)
            add(f"{file.title}{more}", f"{kind.replace(' ', '-')}-{file.title}", plot, kind, file.run)
    return made


def number_of_plots(results: Results) -> int:
    """Return how many plots `plots` makes."""
    bars = sum(len(groups_of(file)) for file in results.files)
    return bool(results.files) + len(results.comparisons) + len(results.files) + bars


def report_page(results: Results, drawn: Iterable[NamedPlot]) -> str:
    """Return the HTML page of results.

    Args:
        results: The evaluation; its names come from files and are not trusted.
        drawn: The plots that `plots` made of the results.
    """
    drawn = list(drawn)
    runs = list(dict.fromkeys(file.run for file in results.files))
    first = [plot for plot in drawn if plot.run in runs[:1]]
    kinds = []
    for kind, text in _KIND_TEXTS.items():
        charts = _charts(first, kind)
        if charts:
            listed = [tables for file in results.files if (tables := group_tables(file, MOST_BARS).get(kind))]
            kinds.append({"title": kind.capitalize(), "text": text, "charts": charts, "tables": listed})
    comparison, calibration = comparison_table(results), calibration_table(results)
    one_run = f" Plots of {printable(runs[0])}; those of the other runs are files beside this page." if runs[1:] else ""
    return template("report.html.j2").render(
        title=_title(results),
        subtitle=_subtitle(results),
        cards=cards(results),
        notes=[printable(note) for note in results.notes],
        tables=[table for table in (sets_table(results), over_runs_table(results)) if table.rows],
        det=_charts(drawn, "det"),
        histograms=_charts(first, "scores"),
        one_run=one_run,
        kinds=kinds,
        calibration=calibration if calibration.rows else None,
        calibration_text=_calibration_text(results),
        comparison=comparison if comparison.rows else None,
        sentences=[printable(sentence) for one in results.comparisons for sentence in one.sentences],
        files=_files(results),
        options=TextTable("Options", ("option", "value"), [(k, _text(v)) for k, v in results.options.items()], 2),
        provenance=[(printable(f.title), f.provenance) for f in results.files if f.provenance],
        cost_text=_cost_text(results),
        interval_text=_interval_text(results),
        lines=list(zip(LINES, DARK_LINES, strict=True)),
    )


def cards(results: Results) -> list[Card]:
    """Return the headline figures: averages and the pooled EER of several sets, the figures of a single set, or the
    differences of two systems."""
    if not results.files:
        return [
            Card(
                f"EER difference: {printable(one.set_name)}",
                f"{rounded('eer', one.differences['eer'].difference)} %",
                (
                    _between(one.differences["eer"].interval),
                    f"{printable(results.systems[0])} less {printable(results.systems[1])}",
                ),
            )
            for one in results.comparisons[:4]
            if "eer" in one.differences
        ]
    if len(results.runs) > 1 or (not results.runs and len(results.files) > 1):
        return _cards_over_runs(results)
    if not results.runs:
        return _cards_of_one(results.files[0].evaluation.overall)
    (summary,) = results.runs.values()
    found = [
        Card(
            f"EER, {average.name}",
            f"{rounded('eer', average.value)} %",
            (f"mean of {', '.join(map(printable, average.sets))}",),
        )
        for average in sorted(summary.averages, key=lambda average: average.name, reverse=True)
        if average.figure == "eer"
    ]
    pooled = summary.pooled.overall
    return [*found, Card("EER, pooled", f"{rounded('eer', pooled.eer)} %", (*_interval_line(pooled), _trials(pooled)))]


def _cards_of_one(figures: Figures) -> list[Card]:
    names = ("eer", "min_dcf", *(("cllr",) if figures.cllr is not None else ()), "auc")
    return [
        Card(
            NAMES[name].removesuffix(" %"),
            rounded(name, getattr(figures, name)) + (" %" if name == "eer" else ""),
            (*_interval_line(figures, name), *((_trials(figures),) if name == "eer" else ())),
        )
        for name in names
    ]


def _cards_over_runs(results: Results) -> list[Card]:
    summaries = {name: summary for (name, figure), summary in results.over_runs().items() if figure == "eer"}
    averages = [name for name in ("macro_ood", "macro_all", "pooled") if name in summaries]
    return [
        Card(
            f"EER, {printable(name)}",
            f"{rounded('eer', summaries[name].mean)} ± {rounded('eer', summaries[name].std)} %",
            (
                f"mean ± standard deviation of {summaries[name].num} runs",
                f"best {rounded('eer', summaries[name].best)} %, worst {rounded('eer', summaries[name].worst)} %",
            ),
        )
        for name in averages or list(summaries)[:4]
    ]


def _interval_line(figures: Figures, name: str = "eer") -> tuple[str, ...]:
    return (_between(figures.intervals[name], name),) if name in figures.intervals else ()


def _between(interval: Any, name: str = "eer") -> str:
    unit = " %" if name == "eer" else ""
    return f"95 % interval {rounded(name, interval.low)} to {rounded(name, interval.high)}{unit}"


def _trials(figures: Figures) -> str:
    return f"{figures.num_bona_fide:,} bona fide, {figures.num_spoof:,} spoof trials"


def _title(results: Results) -> str:
    if not results.files:
        return f"{printable(results.systems[0])} against {printable(results.systems[1])}"
    sets = list(dict.fromkeys(file.set_name for file in results.files))
    return f"Evaluation of {printable(sets[0])}" if len(sets) == 1 else f"Evaluation of {len(sets)} sets"


def _subtitle(results: Results) -> str:
    if not results.files:
        return f"Two systems on the same trials of {counted(len(results.comparisons), 'set')}"
    runs = {file.run for file in results.files}
    trials = sum(len(file.table) for file in results.files)
    words = counted(trials, "score") + (f" of {len(runs)} runs" if len(runs) > 1 else "")
    scale = "calibrated log-likelihood ratios" if results.options.get("calibrated") else "scores are not calibrated"
    return f"Audio deepfake detection; {words}; {scale}"


def _calibration_text(results: Results) -> str:
    fitted = results.calibration
    if fitted is None:
        return ""
    return (
        f"Scores were made log-likelihood ratios by {fitted.scale:.4g} · score {'+' if fitted.offset >= 0 else '-'} "
        f"{abs(fitted.offset):.4g}, a logistic regression fitted on {printable(fitted.fitted_on)} "
        f"({fitted.num_bona_fide:,} bona fide, {fitted.num_spoof:,} spoof), which is not one of the sets reported. "
        "EER, minDCF, AUC and minCllr are the same before and after."
    )


def _cost_text(results: Results) -> str:
    costs = {"spoof_prior": 0.05, "miss": 1.0, "false_alarm": 10.0} | dict(results.options.get("costs", {}))
    return (
        f"{100 * costs['spoof_prior']:g} % of trials are taken to be spoof, a miss costs {costs['miss']:g} "
        f"and a false alarm {costs['false_alarm']:g}"
    )


def _interval_text(results: Results) -> str:
    resamples = results.options.get("resamples", 0)
    if not resamples:
        return "None were requested."
    return (
        f"95 % intervals come from a bootstrap of {counted(resamples, 'resample')} "
        f"(seed {results.options.get('seed')}). "
        "Trials of one speaker and one attack are much alike, so whole clusters of them are drawn, not single trials. "
        "An interval shows what other speakers and trials of the same kind would do to a figure. "
        "It does not cover attacks, codecs or languages that are not in the set. "
        "Two systems are compared on the same resamples; a difference whose interval has 0 inside is not shown."
    )


def _files(results: Results) -> TextTable:
    rows = [(printable(file.title), printable(str(file.path or "")), f"{len(file.table):,}") for file in results.files]
    for comparison in results.comparisons:
        for system, table in zip(results.systems, comparison.tables, strict=True):
            rows.append((printable(comparison.set_name), printable(system), f"{len(table):,}"))
    return TextTable("Score files", ("set", "file", "trials"), rows, 2)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {number:g}" for name, number in value.items())
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else printable(str(value))


def _charts(drawn: Iterable[NamedPlot], kind: str) -> list[_Chart]:
    return [_Chart(printable(one.title), inline_svg(one.plot.svg, one.stem)) for one in drawn if one.kind == kind]

"""The report of an analysis of an ensemble: tables, rows, JSON and a figure."""

from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moelora_ad.analysis.ensemble import SCORES, STATIC, WEIGHTS, EnsembleAnalysis
from moelora_ad.analysis.reports.differences import as_row, bootstrap_note, interval, is_beyond_chance, points
from moelora_ad.analysis.reports.report import Report
from moelora_ad.evaluation.metrics.intervals import Difference
from moelora_ad.evaluation.reports.plots import BLUE, INK, short_name
from moelora_ad.evaluation.reports.text_table import TextTable
from moelora_ad.runs.record import DEV


def ensemble_report(analysis: EnsembleAnalysis) -> Report:
    """Return the report of an analysis: the EER of every variant, and how far it is from the reference's."""
    rows: list[dict[str, Any]] = []
    tables, sentences, reference = [], [], analysis.reference
    for name, differences in analysis.differences.items():
        lines = []
        for variant, difference in differences.items():
            passes = analysis.forward_passes(variant)
            rows.append({"set": name, "variant": variant, "forward_passes": passes, **as_row(difference)})
            away = ("", "") if variant == reference else (points(difference), interval(difference))
            lines.append((variant, str(passes), f"{100 * difference.first:.2f}", *away))
            if variant in (SCORES, WEIGHTS, STATIC) and variant != reference:
                sentences.append(_sentence(name, variant, reference, difference))
        columns = ("variant", "forward passes", "EER %", f"to {reference}", "95 %")
        tables.append(TextTable(f"EER % on {name}", columns, lines))
    has_constant = any(STATIC in differences for differences in analysis.differences.values())
    constant = [f"{STATIC}: the mean gates of {DEV} for every token"] if has_constant else []
    return Report(
        name="ensemble",
        finding="; ".join(sentences),
        tables=tables,
        rows=rows,
        data={"system": analysis.system, "members": list(analysis.members)},
        figures={"eer": partial(_figure, analysis)},
        notes=[
            "weights averaged: the mean of the updates, exactly, and of the classifiers, which were trained separately",
            *constant,
            bootstrap_note(analysis.resamples),
            *analysis.notes,
        ],
    )


def _sentence(name: str, variant: str, reference: str, difference: Difference) -> str:
    away = f"{points(difference)} points {interval(difference)} to {reference}"
    worse = "worse" if difference.difference > 0 else "better"
    verdict = worse if is_beyond_chance(difference) else "no difference is shown"
    return f"{variant} on {name}: {verdict} ({away})"


def _figure(analysis: EnsembleAnalysis) -> Figure:
    """Draw a panel for each set with a dot for each variant."""
    sets = analysis.differences
    variants = list(next(iter(sets.values())))
    figure = Figure(figsize=(2.2 + 2.6 * len(sets), 0.9 + 0.28 * len(variants)), layout="constrained")
    grid = figure.subplots(1, len(sets), squeeze=False, sharey=True)
    highest = max(100 * one.first for differences in sets.values() for one in differences.values())
    for axes, (name, differences) in zip(grid[0], sets.items(), strict=True):
        assert isinstance(axes, Axes)
        values = [100 * one.first for one in differences.values()]
        places = range(len(variants))
        axes.hlines(places, 0, values, color=BLUE, linewidth=1.2)
        axes.plot(values, places, "o", color=BLUE, markersize=5)
        for place, value in zip(places, values, strict=True):
            axes.annotate(f"{value:.1f}", (value, place), (5, 0), textcoords="offset points", va="center", color=INK)
        axes.set_yticks(places, [short_name(variant) for variant in variants])
        axes.set_ylim(len(variants) - 0.5, -0.5)
        axes.set_xlim(0, 1.2 * max(highest, 1.0))
        axes.set_xlabel("EER (%)")
        axes.set_title(short_name(name), fontsize=9)
        axes.grid(axis="y", visible=False)
    return figure

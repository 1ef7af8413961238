"""The report of an analysis of experts: tables, rows, JSON and figures."""

from functools import partial
from typing import Any

from matplotlib.figure import Figure

from moelora_ad.analysis.experts import BASE, ExpertAnalysis, ScoreChanges
from moelora_ad.analysis.reports.differences import as_row, bootstrap_note, interval, is_beyond_chance, points
from moelora_ad.analysis.reports.report import Report
from moelora_ad.errors import counted
from moelora_ad.evaluation.reports.heatmaps import heatmaps
from moelora_ad.evaluation.reports.text_table import TextTable


def experts_report(analysis: ExpertAnalysis) -> Report:
    """Return the report of an analysis: the EER without each expert."""
    rows: list[dict[str, Any]] = []
    tables, by_attack = [], analysis.eers_by_attack
    for name, differences in analysis.differences.items():
        lines = []
        for variant, difference in differences.items():
            rows.append({"set": name, "variant": variant, "attack": "", **as_row(difference)})
            rows += [
                {"set": name, "variant": variant, "attack": attack, "eer": eer}
                for attack, eer in by_attack[name][variant].items()
            ]
            change = ("", "") if variant == BASE else (points(difference), interval(difference))
            lines.append((variant, f"{100 * difference.first:.2f}", *change))
        tables.append(TextTable(f"EER % on {name}", ("experts", "EER %", "difference", "95 %"), lines))
    gates = "keep their weights" if analysis.keep_gates else "renormalise over the experts that remain"
    return Report(
        name="experts",
        finding=_finding(analysis),
        tables=tables,
        rows=rows,
        data={"system": analysis.system, "seed": analysis.seed, "checkpoint": analysis.checkpoint},
        figures={name: partial(_figure, name, changes) for name, changes in analysis.score_changes.items()},
        notes=[
            f"an expert is removed at all projections at once; gates {gates}",
            bootstrap_note(analysis.resamples),
            *analysis.notes,
        ],
    )


def _finding(analysis: ExpertAnalysis) -> str:
    removals = [
        (name, variant, difference)
        for name, differences in analysis.differences.items()
        for variant, difference in differences.items()
        if variant.startswith("without")
    ]
    shown = [one for one in removals if is_beyond_chance(one[2])]
    if not shown:
        name, variant, largest = max(removals, key=lambda one: abs(one[2].difference))
        return (
            f"removing no single expert of {analysis.system} changes an EER beyond chance (95 %); the largest change "
            f"is {points(largest)} points {interval(largest)} on {name} {variant}"
        )
    changes = [f"{points(difference)} points {interval(difference)} on {name} {v}" for name, v, difference in shown]
    rest = len(removals) - len(shown)
    return (
        f"removing experts of {analysis.system} changes the EER by {'; '.join(changes)}; "
        f"{counted(rest, 'other removal')} within chance"
    )


def _figure(name: str, changes: ScoreChanges) -> Figure:
    return heatmaps(
        {"": changes.means},
        changes.kinds,
        changes.variants,
        rows_are="trials",
        columns_are="experts",
        values_are="change of the mean score (log-odds)",
        diverging=True,
        title=f"Scores on {name} without experts",
    )

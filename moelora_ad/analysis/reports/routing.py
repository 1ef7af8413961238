"""The report of a routing analysis: tables, rows, JSON and figures."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from moelora_ad.analysis.gates import GateStatistics
from moelora_ad.analysis.reports.report import LEVEL, Report, decimals
from moelora_ad.analysis.routing import RoutingAnalysis
from moelora_ad.evaluation.reports.heatmaps import heatmaps
from moelora_ad.evaluation.reports.plots import MOST_BARS
from moelora_ad.evaluation.reports.text_table import TextTable


def routing_report(analysis: RoutingAnalysis) -> Report:
    """Return the report of an analysis: the use of the experts by class, and its dependence on the classes."""
    sites, dependence = analysis.sites, analysis.dependence
    constant = int((analysis.leading == analysis.leading[0]).all(0).sum())
    notes = [
        "dependence: mutual information between the expert that leads (the largest mean weight of an utterance) and "
        "the utterance's class, less its mean over permutations of the classes; attacks are compared among spoofs",
        "utterances are exchanged freely: effects of speakers or recordings of a class count as effects of the class",
        "apart: how much weight goes to other experts than over all utterances, mean over sites, from 0 to 1; "
        "classes of few utterances differ by chance",
    ]
    if analysis.untrained:
        draws = len(next(iter(analysis.untrained.values())))
        notes.append(
            f"untrained: gates as they are before training, {draws:,} draws, on the same inputs; p (trained) is how "
            "often they have as much information as the trained ones"
        )
    if constant:
        notes.append(f"at {constant} of {len(sites)} sites one expert leads for every utterance, which gives 0 bits")
    alone = [kind for kind, groups in analysis.by_class.items() if groups and kind not in dependence]
    notes += [f"no two classes to compare: {kind}" for kind in alone]
    tables = _use_table(analysis), _dependence_table(analysis), _layer_table(analysis)
    return Report(
        name="routing",
        finding="; ".join(_finding(kind, analysis) for kind in dependence)
        or f"{analysis.set} has no two attacks, labels or codecs to compare",
        tables=[table for table in tables if table.rows],
        rows=_rows(analysis),
        data={"system": analysis.system, "set": analysis.set, "dependence": _dependence_data(analysis)},
        figures=_figures(analysis),
        notes=[*notes, *analysis.notes],
    )


def _finding(kind: str, analysis: RoutingAnalysis) -> str:
    one = analysis.dependence[kind]
    most = int(one.excess.argmax())
    amount = f"{decimals(one.excess.mean(), 3)} bits above chance"
    if one.p_value > LEVEL:
        return f"no sign that experts depend on the {kind} ({amount}, p = {one.p_value:.2g})"
    limit = min(np.log2(analysis.num_experts), analysis.classes[kind].entropy)
    finding = (
        f"experts depend on the {kind}: mean mutual information {amount} of at most {limit:.2f} "
        f"(p = {one.p_value:.2g}), most at {analysis.sites[most]} ({decimals(one.excess[most], 3)})"
    )
    if kind not in analysis.untrained:
        return finding
    without = analysis.untrained[kind].mean() - one.by_chance.mean()
    p = analysis.p_untrained(kind)
    shown = "more than" if p <= LEVEL else "which is not shown to be more than"
    return f"{finding}, {shown} that of untrained gates ({decimals(without, 3)}, p = {p:.2g})"


def _use_table(analysis: RoutingAnalysis) -> TextTable:
    def row(kind: str, name: str, count: int, of_class: GateStatistics) -> tuple[str, ...]:
        apart = of_class.deviation(analysis.overall)
        most = analysis.sites[int(apart.argmax())] if kind else ""
        means = of_class.effective_experts.mean(), of_class.entropy.mean(), of_class.top1_share.max(1).mean()
        return (kind, name, most, f"{count:,}", *(f"{mean:.3f}" for mean in means), f"{apart.mean():.4f}")

    rows = [row("", "all", len(analysis.leading), analysis.overall)]
    for kind, groups in analysis.by_class.items():
        counts = dict(zip(analysis.classes[kind].names, analysis.classes[kind].counts, strict=True))
        rows += [row(kind, name, counts[name], of_class) for name, of_class in groups.items()]
    columns = ("by", "class", "most apart at", "utterances", "effective experts", "entropy", "top-1 share", "apart")
    return TextTable(f"Use of experts on {analysis.set}, mean over sites", columns, rows, 3)


def _dependence_table(analysis: RoutingAnalysis) -> TextTable:
    rows, by_kind, untrained = [], analysis.dependence, bool(analysis.untrained)
    for kind, one in by_kind.items():
        most = int(one.excess.argmax())
        means = one.information.mean(), one.excess.mean(), one.excess[most]
        classes = analysis.classes[kind]
        numbers = f"{classes.counts.sum():,}", str((classes.counts > 0).sum())
        control = [f"{analysis.untrained[kind].mean():.4f}", f"{analysis.p_untrained(kind):.2g}"] if untrained else []
        bits = (decimals(mean, 4) for mean in means)
        rows.append((kind, analysis.sites[most], *numbers, *bits, f"{one.p_value:.2g}", *control))
    names = ("by", "most at", "utterances", "classes", "information", "excess", "there", "p")
    columns = (*names, "untrained", "p (trained)") if untrained else names
    title = "Mutual information of expert and class, bits, mean over sites"
    notes = [f"p from {one.permutations:,} permutations" for one in list(by_kind.values())[:1]]
    return TextTable(title, columns, rows, 2, notes)


def _layer_table(analysis: RoutingAnalysis) -> TextTable:
    rows, grid, overall = [], analysis.grid, analysis.overall
    for number, layer in enumerate(grid.layers):
        at = grid.in_layer(layer)
        means = overall.effective_experts[at].mean(), overall.entropy[at].mean(), overall.top1_share[at].max(1).mean()
        tests = [
            text
            for one in analysis.dependence.values()
            for text in (decimals(one.excess[at].mean(), 4), f"{one.p_values[number]:.2g}")
        ]
        rows.append((layer, *(f"{mean:.3f}" for mean in means), *tests))
    tested = [text for kind in analysis.dependence for text in (f"{kind} bits", "p (Holm)")]
    return TextTable("By layer", ("layer", "effective experts", "entropy", "top-1 share", *tested), rows, 1)


def _rows(analysis: RoutingAnalysis) -> list[dict[str, Any]]:
    places = analysis.grid.of
    return [
        {
            "by": kind,
            "class": name,
            "site": site,
            **places[site]._asdict(),
            "expert": expert,
            "mean_gate": float(of_class.mean_gate[number, expert]),
            "top1_share": float(of_class.top1_share[number, expert]),
            "output_norm": float(of_class.output_norm[number, expert]),
        }
        for kind, groups in {"all": {"": analysis.overall}, **analysis.by_class}.items()
        for name, of_class in groups.items()
        for number, site in enumerate(analysis.sites)
        for expert in range(analysis.num_experts)
    ]


def _dependence_data(analysis: RoutingAnalysis) -> dict[str, Any]:
    layers, sites = analysis.grid.layers, analysis.sites
    return {
        kind: {
            "classes": dict(zip(analysis.classes[kind].names, analysis.classes[kind].counts.tolist(), strict=True)),
            "entropy": analysis.classes[kind].entropy,
            "excess": float(one.excess.mean()),
            "p": one.p_value,
            "permutations": one.permutations,
            "p_of_layers_holm": dict(zip(layers, one.p_values, strict=True)),
            "information": dict(zip(sites, one.information, strict=True)),
            "by_chance": dict(zip(sites, one.by_chance, strict=True)),
            **_untrained_data(kind, analysis),
        }
        for kind, one in analysis.dependence.items()
    }


def _untrained_data(kind: str, analysis: RoutingAnalysis) -> dict[str, Any]:
    if kind not in analysis.untrained:
        return {}
    bits = analysis.untrained[kind]
    of_sites = dict(zip(analysis.sites, bits.mean(0), strict=True))
    return {"untrained": of_sites, "draws": len(bits), "p_untrained": analysis.p_untrained(kind)}


def _figures(analysis: RoutingAnalysis) -> dict[str, Callable[[], Figure]]:
    figures: dict[str, Callable[[], Figure]] = {"gates": partial(_gates_figure, analysis)}
    for kind in analysis.dependence:
        if kind != "label":  # two classes: the table is enough
            figures[f"{kind}-apart"] = partial(_apart_figure, kind, analysis)
            figures[f"{kind}-experts"] = partial(_expert_figure, kind, analysis)
    return figures


def _gates_figure(analysis: RoutingAnalysis) -> Figure:
    return heatmaps(
        analysis.grid.panels(analysis.overall.mean_gate),
        analysis.grid.layers,
        [str(number) for number in range(analysis.num_experts)],
        rows_are="layer",
        columns_are="expert",
        values_are="mean gate",
        title=f"Mean gates on {analysis.set}",
    )


def _apart_figure(kind: str, analysis: RoutingAnalysis) -> Figure:
    """Draw how far the mean gates of each class are from those of all utterances, at every site."""
    apart = {name: of_class.deviation(analysis.overall) for name, of_class in _farthest(kind, analysis).items()}
    panels = analysis.grid.panels(np.stack(list(apart.values()), axis=1))  # (layers, classes) each
    return heatmaps(
        {name: panel.T for name, panel in panels.items()},
        list(apart),
        analysis.grid.layers,
        rows_are=kind,
        columns_are="layer",
        values_are="weight that goes elsewhere",
        title=f"Mean gates of each {kind} against all of {analysis.set}",
    )


def _expert_figure(kind: str, analysis: RoutingAnalysis) -> Figure:
    """Draw the mean gates of each class less those of all utterances, at the site that depends on the class most."""
    site = int(analysis.dependence[kind].excess.argmax())
    groups = _farthest(kind, analysis)
    values = [of_class.mean_gate[site] - analysis.overall.mean_gate[site] for of_class in groups.values()]
    return heatmaps(
        {analysis.sites[site]: np.array(values)},
        list(groups),
        [str(number) for number in range(analysis.num_experts)],
        rows_are=kind,
        columns_are="expert",
        values_are="mean gate, less that of all",
        diverging=True,
    )


def _farthest(kind: str, analysis: RoutingAnalysis) -> dict[str, GateStatistics]:
    """Return the classes in their order; of many, those whose gates are farthest from those of all utterances."""
    groups = analysis.by_class[kind]
    order = sorted(groups, key=lambda name: -groups[name].deviation(analysis.overall).mean())[:MOST_BARS]
    return {name: of_class for name, of_class in groups.items() if name in order}

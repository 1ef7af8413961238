"""The report of an analysis of stability: tables, rows, JSON and figures."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from moelora_ad.analysis.reports.report import LEVEL, Report, decimals
from moelora_ad.analysis.stability import RoutingStability, ScoreStability, StabilityAnalysis
from moelora_ad.evaluation.reports.heatmaps import heatmaps
from moelora_ad.evaluation.reports.plots import BLUE, INK, short_name
from moelora_ad.evaluation.reports.text_table import TextTable
from moelora_ad.runs.record import DEV


def stability_report(analysis: StabilityAnalysis) -> Report:
    """Return the report of an analysis: EERs, scores and, if there are gates, routing over seeds."""
    scores, routing = analysis.scores, analysis.routing
    rows: list[dict[str, Any]] = [
        {"what": "eer", "set": name, "seed": seed, "value": float(eer)}
        for name, one in scores.items()
        for seed, eer in zip(analysis.seeds, one.eers, strict=True)
    ]
    data: dict[str, Any] = {
        "system": analysis.system,
        "seeds": list(analysis.seeds),
        "sets": {name: one._asdict() | {"summary": one.summary._asdict()} for name, one in scores.items()},
    }
    tables = [_sets_table(scores)]
    figures = {"eer": partial(_eer_figure, scores, analysis.system)}
    notes = [
        *analysis.notes,
        "disagreement: share of the trials that two seeds decide differently, each at the threshold of its own EER",
    ]
    if routing is not None:
        data["routing"] = _routing_data(routing, analysis.set)
        for number, (site, place) in enumerate(routing.grid.of.items()):
            at = {"set": analysis.set, "site": site, **place._asdict()}
            for what, values in _by_site(routing).items():
                rows.append({"what": what, **at, "value": float(values[number])})
        tables.append(_routing_table(routing, analysis.set))
        figures["routing"] = partial(_routing_figure, routing, analysis.set, analysis.system)
        notes.append(
            "similarity: correlation over utterances between the mean weights of experts of two seeds, matched one to "
            "one at each site so that it is largest; by chance: the same with utterances in other orders"
        )
        if draws := len(routing.untrained):
            notes.append(
                f"untrained: gates as they are before training, {draws:,} draws, on the same inputs; they agree more "
                "than by chance, too, as what they see is alike. p (trained) is how often they agree as much as the "
                "trained ones"
            )
    return Report("stability", _finding(analysis), tables, rows, data, figures, notes)


def _by_site(routing: RoutingStability) -> dict[str, NDArray[np.float64]]:
    untrained = {"similarity_untrained": routing.untrained.mean(0)} if len(routing.untrained) else {}
    return {
        "similarity": routing.agreement.similarity.mean(0),
        "similarity_by_chance": routing.agreement.by_chance,
        **untrained,
        "spread_of_mean_gate": routing.spread,
        "spread_of_mean_gate_unmatched": routing.unmatched_spread,
    }


def _routing_data(routing: RoutingStability, set_name: str) -> dict[str, Any]:
    agreement = routing.agreement
    return {
        "set": set_name,
        "p": agreement.p_value,
        "permutations": agreement.permutations,
        **({"p_untrained": routing.p_untrained, "draws": len(routing.untrained)} if len(routing.untrained) else {}),
        **{name: float(values.mean()) for name, values in _by_site(routing).items()},
        "similarity_of_pairs": agreement.similarity.mean(1),
    }


def _finding(analysis: StabilityAnalysis) -> str:
    tests = {name: one for name, one in analysis.scores.items() if name != DEV} or dict(analysis.scores)
    widest = max(tests, key=lambda name: tests[name].summary.std or 0.0)
    one = tests[widest]
    assert one.summary.std is not None
    finding = (
        f"over {len(analysis.seeds)} seeds the EER of {widest} is {100 * one.summary.mean:.2f} % +- "
        f"{100 * one.summary.std:.2f} (std, the widest), and two seeds decide {100 * one.disagreement:.1f} % of its "
        "trials differently"
    )
    if analysis.routing is None:
        return finding
    agreement = analysis.routing.agreement
    similarity, by_chance = (decimals(one.mean(), 2) for one in (agreement.similarity, agreement.by_chance))
    sign = "agree" if agreement.p_value <= LEVEL else "do not agree more than by chance"
    finding += (
        f"; with experts matched, the gates of two seeds {sign}: r = {similarity} on "
        f"{analysis.set} ({by_chance} by chance, p = {agreement.p_value:.2g})"
    )
    if agreement.p_value > LEVEL or not len(analysis.routing.untrained):
        return finding
    p = analysis.routing.p_untrained
    compared = "more than" if p <= LEVEL else "which is not shown to be more than"
    untrained = decimals(analysis.routing.untrained.mean(), 2)
    return f"{finding}, {compared} untrained gates ({untrained}, p = {p:.2g})"


def _sets_table(scores: Mapping[str, ScoreStability]) -> TextTable:
    rows = []
    for name, one in scores.items():
        summary = one.summary
        assert summary.std is not None
        eers = (f"{100 * value:.2f}" for value in (summary.mean, summary.std, summary.best, summary.worst))
        rows.append(
            (name, f"{one.num_trials:,}", *eers, f"{one.rank_correlation:.3f}", f"{100 * one.disagreement:.1f}")
        )
    columns = ("set", "trials", "EER %", "std", "best", "worst", "Spearman", "disagreement %")
    return TextTable("EER and scores over seeds", columns, rows)


def _routing_table(routing: RoutingStability, set_name: str) -> TextTable:
    def row(name: str, at: NDArray[np.intp]) -> tuple[str, ...]:
        return (name, *(decimals(values[at].mean(), 3) for values in _by_site(routing).values()))

    grid = routing.grid
    rows = [row(layer, grid.in_layer(layer)) for layer in grid.layers]
    rows.append(row("all", np.arange(len(routing.sites))))
    names = {"similarity": "similarity", "similarity_by_chance": "by chance", "similarity_untrained": "untrained"}
    names |= {"spread_of_mean_gate": "std of mean gate", "spread_of_mean_gate_unmatched": "unmatched"}
    columns = ("layer", *(names[what] for what in _by_site(routing)))
    return TextTable(f"Routing over seeds on {set_name}, mean over sites", columns, rows)


def _eer_figure(scores: Mapping[str, ScoreStability], system: str) -> Figure:
    """Draw a dot for each seed, the mean, and one standard deviation to both sides."""
    figure = Figure(figsize=(5.2, 0.95 + 0.34 * len(scores)), layout="constrained")
    axes: Axes = figure.add_subplot()
    highest = 1.0
    for place, one in enumerate(scores.values()):
        mean, std = 100 * one.summary.mean, 100 * (one.summary.std or 0.0)
        beside = np.linspace(-0.2, 0.2, len(one.eers))
        axes.plot(100 * one.eers, place + beside, "o", color=BLUE, markersize=4, markeredgewidth=0, clip_on=False)
        axes.plot([max(mean - std, 0), mean + std], [place, place], color=INK, linewidth=1)
        axes.plot([mean, mean], [place - 0.3, place + 0.3], color=INK, linewidth=1.6)
        highest = max(highest, mean + std, 100 * one.eers.max())
    axes.set_yticks(range(len(scores)), [short_name(name) for name in scores])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_xlim(0, 1.05 * highest)
    axes.set_xlabel("EER (%): each seed, mean, one standard deviation")
    axes.set_title(short_name(system), fontsize=9, fontweight="bold")
    axes.grid(axis="y", visible=False)
    return figure


def _routing_figure(routing: RoutingStability, set_name: str, system: str) -> Figure:
    values = {"matched": routing.agreement.similarity.mean(0), "by chance": routing.agreement.by_chance}
    grid = routing.grid
    if len(routing.untrained):
        values["untrained"] = routing.untrained.mean(0)
    return heatmaps(
        {name: grid.grid(one) for name, one in values.items()},
        grid.layers,
        grid.projections,
        rows_are="layer",
        columns_are="",
        values_are="correlation",
        limits=(min(0.0, *(float(one.min()) for one in values.values())), 1.0),
        title=f"Gates of two seeds of {short_name(system)} on {set_name}",
    )

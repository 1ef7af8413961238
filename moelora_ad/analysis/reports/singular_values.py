"""The report of an analysis of singular values: tables, rows, JSON and a figure."""

from functools import partial

import numpy as np
from matplotlib.figure import Figure

from moelora_ad.analysis.reports.report import Report
from moelora_ad.analysis.singular_values import (
    FACTOR,
    LAST_LAYERS,
    NOWHERE,
    THROUGHOUT,
    SingularValueAnalysis,
    num_last,
)
from moelora_ad.evaluation.reports.heatmaps import heatmaps
from moelora_ad.evaluation.reports.text_table import TextTable

# The pattern that the paper reports (figure 2), by the names of projections in wav2vec 2.0 and Whisper.
PUBLISHED = {"q_proj": LAST_LAYERS, "k_proj": LAST_LAYERS, "v_proj": THROUGHOUT, "out_proj": THROUGHOUT}


def singular_values_report(analysis: SingularValueAnalysis) -> Report:
    """Return the report of an analysis: in which layers each projection's experts are active."""
    grid = analysis.grid
    num_layers = len(grid.layers)
    rows = [
        {
            "site": site,
            "layer": place.layer,
            "projection": place.projection,
            "expert": expert,
            "largest": float(values[expert, 0]),
            "sum": float(values[expert].sum()),
        }
        for (site, values), place in zip(analysis.values.items(), grid.of.values(), strict=True)
        for expert in range(len(values))
    ]
    return Report(
        name="singular-values",
        finding=_finding(analysis),
        tables=[_by_projection(analysis), _by_layer(analysis)],
        rows=rows,
        data={
            "system": analysis.system,
            "criterion": {"last_layers": num_last(num_layers), "factor": FACTOR},
            "active_in": analysis.active_in,
            "late_to_early": analysis.late_to_early,
            "singular_values": dict(analysis.values),
        },
        figures={"largest": partial(_figure, analysis)},
        notes=[
            "active in the last layers: the largest singular value, mean over layers and experts, is at least "
            f"{FACTOR:g} times as large in the last {num_last(num_layers)} of {num_layers} layers as "
            "in those before; in the first layers: the reverse; in all layers: neither",
            "an update is (alpha / r) B A of one expert, without the gate's weight",
        ],
    )


def _finding(analysis: SingularValueAnalysis) -> str:
    activity = analysis.active_in
    if set(activity.values()) == {NOWHERE}:
        return "every update is zero: this model was not trained"
    if None in activity.values():
        return f"with {len(analysis.grid.layers)} adapted layers there is no early and late part to compare"
    parts = [
        f"{name} in {activity[name]} (late to early: {ratio:.2f})"
        if activity[name] != NOWHERE
        else f"{name} in no layer"
        for name, ratio in analysis.late_to_early.items()
    ]
    finding = f"active: {', '.join(parts)}"
    if set(activity) == set(PUBLISHED):
        same = activity == PUBLISHED
        finding += f"; this is {'' if same else 'not '}the published pattern (q and k late, v and out throughout)"
    return finding


def _by_projection(analysis: SingularValueAnalysis) -> TextTable:
    rows, largest, activity, ratios = [], analysis.largest, analysis.active_in, analysis.late_to_early
    for at, name in enumerate(analysis.grid.projections):
        values = largest[:, at]
        layer, expert = np.unravel_index(np.nanargmax(values), values.shape)
        numbers = f"{np.nanmean(values):.4f}", f"{np.nanmax(values):.4f}"
        ratio = "" if np.isnan(ratios[name]) else f"{ratios[name]:.2f}"
        rows.append((name, activity[name] or "", *numbers, f"{analysis.grid.layers[layer]} / {expert}", ratio))
    columns = ("projection", "active in", "mean", "largest", "of layer / expert", "late to early")
    return TextTable("Largest singular values of the updates", columns, rows, 2)


def _by_layer(analysis: SingularValueAnalysis) -> TextTable:
    rows = []
    for layer, of_layer in zip(analysis.grid.layers, analysis.largest, strict=True):
        rows.append((layer, *(" ".join("" if np.isnan(v) else f"{v:.3f}" for v in experts) for experts in of_layer)))
    return TextTable("By layer, expert after expert", ("layer", *analysis.grid.projections), rows, 1)


def _figure(analysis: SingularValueAnalysis) -> Figure:
    largest = analysis.largest
    return heatmaps(
        {name: largest[:, at] for at, name in enumerate(analysis.grid.projections)},
        analysis.grid.layers,
        [str(number) for number in range(largest.shape[-1])],
        rows_are="layer",
        columns_are="expert",
        values_are="largest singular value",
        title=f"Updates of {analysis.system}",
    )

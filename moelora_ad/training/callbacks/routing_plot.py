"""A picture of the routing: what each expert of each layer does, projection by projection."""

import io
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from moelora_ad.adapters.injection import layer_of
from moelora_ad.evaluation.reports.plots import GRID, short_name, style
from moelora_ad.training.callbacks.routing_figures import PER_EXPERT, SiteFigures, projection_of

_LABELS = {
    "mean_gate": "mean gate\nweight",
    "top1_share": "share of\ntop-1",
    "output_norm": "norm of\nthe output",
    "largest_singular_value": "largest\nsingular value",
}
_SHARES = ("mean_gate", "top1_share")
_CELL = 0.15  # inches of a layer and of an expert, at least
_MOST_TICKS = 8  # of a panel


def routing_heatmaps(sites: Mapping[str, SiteFigures], title: str) -> bytes:
    """A PNG of heatmaps, experts by layers: a panel for each projection, a row of panels for each figure of experts.

    Weights and shares are white at 1 / N, where the experts are used alike, and have the same colours in every
    picture; norms and singular values go from 0 to the largest of the picture. What a layer has not is grey.

    Args:
        sites: figures by dotted path.
        title: above all panels.
    """
    layers = list(dict.fromkeys(layer_of(site) or "" for site in sites))
    projections = list(dict.fromkeys(projection_of(site) for site in sites))
    most = max(len(figures.mean_gate) for figures in sites.values())
    # A row of panels is one axes, and nothing is laid out: matplotlib takes its time for both, and a run waits.
    places = [number * (len(layers) + 1) for number in range(len(projections))]
    least = max(1.25, *(0.083 * len(short_name(projection)) for projection in projections))
    width = max(_CELL * (len(layers) + 1), least) * len(projections) + 1.6
    height = 1.05 + len(PER_EXPERT) * max(_CELL * most + 0.15, 0.9)
    with style():
        figure = Figure(figsize=(width, height))
        rows = figure.subplots(len(PER_EXPERT), 1, sharex=True)
        margins = {"left": 0.5 / width, "right": 1 - 1.1 / width, "bottom": 0.5 / height, "top": 1 - 0.55 / height}
        figure.subplots_adjust(**margins, hspace=0.14)
        for axes, name in zip(rows, PER_EXPERT, strict=True):
            grids = _grids(sites, name, layers, projections, most)
            scale = _scale(name, grids, most)
            colours = matplotlib.colormaps["RdBu_r" if name in _SHARES else "viridis"].with_extremes(bad=GRID)
            for place, grid in zip(places, grids, strict=True):
                extent = place - 0.5, place + len(layers) - 0.5, most - 0.5, -0.5
                image = axes.imshow(grid, cmap=colours, norm=scale, aspect="auto", extent=extent)
            axes.set(xlim=(-0.5, places[-1] + len(layers) - 0.5), ylim=(most - 0.5, -0.5), ylabel="expert")
            _dress(axes)
            axes.set_yticks(range(most))
            box = axes.get_position()
            bar = figure.colorbar(image, cax=figure.add_axes((1 - 0.95 / width, box.y0, 0.09 / width, box.height)))
            bar.outline.set_visible(False)
            if isinstance(scale, TwoSlopeNorm):
                bar.set_ticks([0, scale.vcenter, 1], labels=["0", f"1/{most}", "1"])
            bar.set_label(_LABELS[name], fontsize=8)
            bar.ax.tick_params(labelsize=7, length=2)
        for place, projection in zip(places, projections, strict=True):
            middle = place + (len(layers) - 1) / 2
            rows[0].annotate(
                short_name(projection), (middle, -0.5), (0, 4), textcoords="offset points", ha="center", fontsize=9
            )
        shown = range(0, len(layers), -(-len(layers) // _MOST_TICKS))
        names = [layer.rpartition(".")[2] for layer in layers]
        ticks = [(place + layer, names[layer]) for place in places for layer in shown]
        rows[-1].set_xticks([tick for tick, _ in ticks], [name for _, name in ticks])
        rows[-1].set_xlabel("layer")
        figure.suptitle(title, fontsize=9.5, fontweight="bold", y=1 - 0.08 / height, va="top")
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=120, metadata={"Software": None})
    return png.getvalue()


def _scale(name: str, grids: list[NDArray[np.float64]], most: int) -> Normalize:
    if name in _SHARES and most > 1:
        return TwoSlopeNorm(1 / most, 0, 1)
    values = np.concatenate([grid.ravel() for grid in grids])
    largest = values[np.isfinite(values)].max(initial=0.0)
    return Normalize(0, largest or 1.0)


def _grids(
    sites: Mapping[str, SiteFigures], name: str, layers: list[str], projections: list[str], most: int
) -> list[NDArray[np.float64]]:
    """(experts, layers) of each projection; NaN where a layer has no such expert."""
    grids = [np.full((most, len(layers)), np.nan) for _ in projections]
    for site, figures in sites.items():
        values = getattr(figures, name)
        grid = grids[projections.index(projection_of(site))]
        grid[: len(values), layers.index(layer_of(site) or "")] = values
    return grids


def _dress(axes: Axes) -> None:
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8)

"""Heatmaps of the routing: figures of each expert in each layer, projection by projection."""

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.colors import Normalize, TwoSlopeNorm

from moelora_ad.adapters.sites import SiteGrid
from moelora_ad.evaluation.reports.heatmaps import Band, banded_heatmaps, largest_of
from moelora_ad.evaluation.reports.plots import style
from moelora_ad.training.callbacks.routing_figures import PER_EXPERT, SiteFigures

_SHARES = ("mean_gate", "top1_share")


def routing_heatmaps(sites: Mapping[str, SiteFigures], title: str) -> bytes:
    """A PNG of heatmaps, experts by layers: a panel for each projection, a row of panels for each figure of experts.

    Weights and shares are white at 1 / N, where the experts are used equally, and have the same colours in every
    picture; the colours of norms and singular values go from 0 to the largest in the picture. Projections and experts
    that a layer lacks are grey.

    Args:
        sites: figures by dotted path.
        title: above all panels.
    """
    grid = SiteGrid(list(sites))
    most = max(len(figures.mean_gate) for figures in sites.values())
    with style():
        figure = banded_heatmaps(
            [_band(name, grid, sites, most) for name in PER_EXPERT],
            [str(expert) for expert in range(most)],
            grid.layers,
            rows_are="expert",
            columns_are="layer",
            title=title,
            most_columns=8,
        )
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=120, metadata={"Software": None})
    return png.getvalue()


def _band(name: str, grid: SiteGrid, sites: Mapping[str, SiteFigures], most: int) -> Band:
    values = np.full((len(sites), most), np.nan)  # NaN where a layer has no such expert
    for row, figures in zip(values, sites.values(), strict=True):
        of_experts = getattr(figures, name)
        row[: len(of_experts)] = of_experts
    panels = {projection: panel.T for projection, panel in grid.panels(values).items()}
    label = name.replace("_", " ").replace("top1", "top-1")
    if name in _SHARES and most > 1:
        ticks = {0: "0", 1 / most: f"1/{most}", 1: "1"}
        return Band(panels, label, TwoSlopeNorm(1 / most, 0, 1), "RdBu_r", ticks)
    return Band(panels, label, Normalize(0, largest_of(values)))

"""Heatmaps of the analyses."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from moelora_ad.evaluation.reports.plots import GRID, short_name

_CELL = 0.2  # inches of a row
_WIDEST = 13.0  # inches of all panels of a line
_MOST_TICKS = 30


def heatmaps(
    panels: Mapping[str, NDArray[np.float64]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    rows_are: str,
    columns_are: str,
    values_are: str,
    limits: tuple[float, float] | None = None,
    diverging: bool = False,
    title: str = "",
) -> Figure:
    """Panels with one scale of colours, side by side while there is room.

    Args:
        panels: (rows, columns) each, by title; NaN stays grey.
        rows: names.
        columns: names.
        rows_are: label of the vertical axis.
        columns_are: label of each horizontal axis.
        values_are: label of the colours.
        limits: of the colours; None for 0 (or minus the largest, if diverging) to the largest value.
        diverging: whether the middle of the colours means something, as 0 of a difference does.
        title: above all panels.
    """
    values = np.concatenate([panel.ravel() for panel in panels.values()])
    found = values[np.isfinite(values)]
    largest = float(np.abs(found).max()) if len(found) and np.abs(found).max() > 0 else 1.0
    low, high = limits or (-largest if diverging else 0.0, largest)
    words = 0.075 * max(len(short_name(name)) for name in rows)
    width = max(min(0.055 * max(map(len, columns)) + 0.14, 0.6) * len(columns), 0.75) + 0.12
    across = min(len(panels), max(1, int((_WIDEST - words) / width)))
    down = -(-len(panels) // across)
    height = (_CELL * len(rows) + 0.65) * down + (0.35 if title else 0.1)
    figure = Figure(figsize=(max(3.6, width * across + words + 1.4), max(1.9, height)), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for number, one in enumerate(grid.flat):
        if number >= len(panels):
            one.remove()
    used = list(grid.flat)[: len(panels)]
    for number, (one, (name, panel)) in enumerate(zip(used, panels.items(), strict=True)):
        image = one.imshow(panel, cmap="RdBu_r" if diverging else "viridis", vmin=low, vmax=high, aspect="auto")
        _dress(one, name, rows, columns)
        if number + across >= len(panels):
            one.set_xlabel(columns_are)
        if number % across == 0:
            one.set_ylabel(rows_are)
    bar = figure.colorbar(image, ax=used, label=values_are, pad=0.02, fraction=0.05, aspect=25)
    bar.outline.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=9.5, fontweight="bold")
    return figure


def _dress(axes: Axes, name: str, rows: Sequence[str], columns: Sequence[str]) -> None:
    axes.set_title(short_name(name), fontsize=9)
    axes.set_facecolor(GRID)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    step = -(-len(columns) // _MOST_TICKS)
    axes.set_xticks(range(0, len(columns), step), columns[::step])
    step = -(-len(rows) // 50)
    axes.set_yticks(range(0, len(rows), step), [short_name(row) for row in rows[::step]])

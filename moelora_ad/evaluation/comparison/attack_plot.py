"""The matrix of systems and held-out attacks as a heatmap with its figures."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from moelora_ad.evaluation.comparison.attacks import AttackMatrix
from moelora_ad.evaluation.reports.plots import GRID, PAPER, Plot, drawn, short_name, style

_CELL = 0.62, 0.34  # inches
_LETTER = 0.075
_DARK, _LIGHT = "#10151b", "#fefefe"  # not those of the page, which change with it
_MEAN_APART = 0.25  # of a cell


def attack_plot(matrix: AttackMatrix) -> Plot:
    """A cell for each system and held-out attack, and one for the mean over attacks, set off; EER in percent, by colour
    and in figures. A cell without runs is grey."""
    values = np.array(
        [[_percent(matrix.cell(system, attack)) for attack in matrix.attacks] for system in matrix.systems]
    )
    means = np.array([[_percent(matrix.mean(system))] for system in matrix.systems])
    names = [short_name(system) for system in matrix.systems]
    columns = [short_name(attack) for attack in matrix.attacks]
    slanted = max(map(len, columns)) > 7
    rows, across = values.shape
    left = _LETTER * max(map(len, names)) + 0.25
    below = (_LETTER * max(map(len, columns)) if slanted else 0.2) + 0.35
    width, height = across * _CELL[0] + (1 + _MEAN_APART) * _CELL[0], rows * _CELL[1]
    whole = left + width + 0.9, height + below + 0.12
    with style():
        figure = Figure(figsize=whole)
        axes = figure.add_axes((left / whole[0], below / whole[1], width / whole[0], height / whole[1]))
        scale = Normalize(0.0, max(float(np.nanmax(values)), 1.0))
        start = across + _MEAN_APART
        for first, block in ((0.0, values), (start, means)):
            _draw(axes, block, first, scale)
        axes.set(xlim=(0, start + 1), ylim=(rows, 0), xlabel="attack held out of training and selection")
        axes.set_xticks([*np.arange(across) + 0.5, start + 0.5], [*columns, "mean"], rotation=90 if slanted else 0)
        axes.set_yticks(np.arange(rows) + 0.5, names)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        box = ((left + width + 0.15) / whole[0], below / whole[1], 0.1 / whole[0], height / whole[1])
        bar = figure.colorbar(axes.collections[0], cax=figure.add_axes(box))
        bar.outline.set_visible(False)
        bar.set_label("EER (%)")
        bar.ax.tick_params(labelsize=7, length=2)
        return drawn(figure)


def _draw(axes: Axes, block: np.ndarray, first: float, scale: Normalize) -> None:
    """Cells from the column at ``first`` on."""
    rows, across = block.shape
    colours = matplotlib.colormaps["viridis"].with_extremes(bad=GRID)
    shown = np.ma.masked_invalid(block)
    axes.pcolormesh(
        first + np.arange(across + 1),
        np.arange(rows + 1),
        shown,
        cmap=colours,
        norm=scale,
        edgecolor=PAPER,
        linewidth=1,
    )
    for (row, column), value in np.ndenumerate(block):
        if np.isfinite(value):
            red, green, blue, _ = colours(scale(value))
            bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
            place = first + column + 0.5, row + 0.5
            axes.text(*place, f"{value:.2f}", ha="center", va="center", fontsize=8, color=_DARK if bright else _LIGHT)


def _percent(figure: object) -> float:
    mean = getattr(figure, "mean", None)
    return float("nan") if mean is None else 100 * mean

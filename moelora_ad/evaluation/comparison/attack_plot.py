"""A matrix of systems and attacks as a heatmap with numbers."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from moelora_ad.evaluation.comparison.attacks import AttackMatrix
from moelora_ad.evaluation.reports.plots import GRID, PAPER, Plot, drawn, short_name, style

_CELL = 0.62, 0.34  # inches
_LETTER = 0.075
_DARK, _LIGHT = "#10151b", "#fefefe"  # of numbers in cells; the page's own colours change with its theme
_MEAN_APART = 0.25  # gap before the mean, as a share of a cell
_ACROSS = 14  # most cells in a band


def attack_plot(matrix: AttackMatrix) -> Plot:
    """Draw a cell for each system and attack, in several bands if there are many attacks, and one for the mean over
    attacks, set apart; the EER in percent is shown by colour and as a number. A cell without runs is grey."""
    values = np.array(
        [[_percent(matrix.cell(system, attack)) for attack in matrix.attacks] for system in matrix.systems]
    )
    means = np.array([[_percent(matrix.mean(system))] for system in matrix.systems])
    names = [short_name(system) for system in matrix.systems]
    columns = [short_name(attack) for attack in matrix.attacks]
    slanted = max(map(len, columns)) > 7
    rows, num = values.shape
    across = -(-num // -(-num // _ACROSS))  # in bands that are as even as possible
    starts = range(0, num, across)
    left = _LETTER * max(map(len, names)) + 0.25
    below = (_LETTER * max(map(len, columns)) if slanted else 0.2) + 0.12  # room for the labels below each band
    width, height = (across + _MEAN_APART + 1) * _CELL[0], rows * _CELL[1]
    whole = left + width + 0.9, 0.12 + len(starts) * (height + below) + 0.23
    scale = Normalize(0.0, max(float(np.nanmax(values)), 1.0))
    with style():
        figure = Figure(figsize=whole)
        for number, start in enumerate(starts):
            bottom = (whole[1] - 0.12 - height - number * (height + below)) / whole[1]
            axes = figure.add_axes((left / whole[0], bottom, width / whole[0], height / whole[1]))
            axes.set(xlim=(0, across + _MEAN_APART + 1), ylim=(rows, 0))
            band = values[:, start : start + across]
            _draw(axes, band, 0.0, scale)
            ticks = dict(zip(np.arange(band.shape[1]) + 0.5, columns[start : start + across], strict=True))
            if start == starts[-1]:
                end = band.shape[1] + _MEAN_APART
                _draw(axes, means, end, scale)
                ticks[end + 0.5] = "mean"
                axes.set_xlabel(_attacks_are(matrix))
            axes.set_xticks(list(ticks), list(ticks.values()), rotation=90 if slanted else 0)
            axes.set_yticks(np.arange(rows) + 0.5, names)
            axes.grid(False)
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0)
            if not number:
                box = ((left + width + 0.15) / whole[0], bottom, 0.1 / whole[0], height / whole[1])
                bar = figure.colorbar(axes.collections[0], cax=figure.add_axes(box))
                bar.outline.set_visible(False)
                bar.set_label("EER (%)")
                bar.ax.tick_params(labelsize=7, length=2)
        return drawn(figure)


def _attacks_are(matrix: AttackMatrix) -> str:
    if matrix.held_out:
        return "attack held out of training and selection"
    return f"attack of {short_name(matrix.set_name)}"


def _draw(axes: Axes, block: np.ndarray, first: float, scale: Normalize) -> None:
    """Draw a block of cells, from column ``first`` on."""
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

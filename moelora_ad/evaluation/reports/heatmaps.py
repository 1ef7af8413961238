"""Heatmaps: panels of cells side by side, which share a scale of colours.

Panels side by side are drawn in one pair of axes and placed without matplotlib's layout engine: many axes and
automatic layouts are slow, and a training run waits for its heatmaps.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from moelora_ad.evaluation.reports.plots import GRID, short_name

Panels = Mapping[str, NDArray[np.float64]]

# Inches.
_CELL = 0.15, 0.2  # least width and height of a cell
_LOWEST = 0.9  # least height of a band
_WIDEST = 13.0  # largest width of all panels of a band
_LETTER, _TITLE_LETTER = 0.075, 0.083
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.45, 1.15, 0.5, 0.3
_BETWEEN, _BETWEEN_TITLED = 0.13, 0.75

_MOST_ROWS = 50  # rows that are named, at most


@dataclass(frozen=True)
class Band:
    """Panels side by side.

    Args:
        panels: (rows, columns) each, by title; NaN stays grey.
        values_are: label of the colours.
        scale: scale of the colours.
        colours: name of a colour map of matplotlib.
        ticks: marks of the scale and their labels; if empty, those of matplotlib.
    """

    panels: Panels
    values_are: str
    scale: Normalize
    colours: str = "viridis"
    ticks: Mapping[float, str] = field(default_factory=dict)


def heatmaps(
    panels: Panels,
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
    """Draw panels with one scale of colours, side by side as far as there is room.

    Args:
        panels: (rows, columns) each, by title; NaN stays grey.
        rows: names of the rows.
        columns: names of the columns.
        rows_are: label of the vertical axis.
        columns_are: label of each horizontal axis.
        values_are: label of the colours.
        limits: limits of the colours; None for 0 (or minus the largest, if diverging) to the largest value.
        diverging: whether the middle of the colours has a meaning, as 0 has for a difference.
        title: title above all panels.
    """
    largest = largest_of(*(np.abs(panel) for panel in panels.values()))
    scale = Normalize(*(limits or (-largest if diverging else 0.0, largest)))
    panel_width = _panel_width(panels, columns, 30)
    across = max(1, int((_WIDEST - _left(rows) + panel_width / (len(columns) + 1)) / panel_width))
    named = list(panels.items())
    bands = [
        Band(dict(named[start : start + across]), values_are, scale, "RdBu_r" if diverging else "viridis")
        for start in range(0, len(named), across)
    ]
    return banded_heatmaps(bands, rows, columns, rows_are=rows_are, columns_are=columns_are, title=title)


def largest_of(*panels: NDArray[np.float64]) -> float:
    """Return the largest finite value, to scale colours by; 1 if none is above 0."""
    values = np.concatenate([panel.ravel() for panel in panels])
    return float(values[np.isfinite(values)].max(initial=0.0)) or 1.0


def banded_heatmaps(
    bands: Sequence[Band],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    rows_are: str,
    columns_are: str,
    title: str = "",
    most_columns: int = 30,
) -> Figure:
    """Draw bands of panels, one below the other, each with a scale of its own.

    Args:
        bands: the bands; one with the same panels as the band above does not name them again.
        rows: names of the rows of all panels.
        columns: names of the columns of all panels.
        rows_are: label of the vertical axes.
        columns_are: label of the horizontal axes.
        title: title above all panels.
        most_columns: how many columns of a panel are named, at most.
    """
    every = {name: panel for band in bands for name, panel in band.panels.items()}
    panel_width, band_height = _panel_width(every, columns, most_columns), max(_CELL[1] * len(rows), _LOWEST)
    left, top = _left(rows), _TOP + (0.2 if title else 0.0)
    same = (above.panels.keys() == below.panels.keys() for above, below in pairwise(bands))
    gaps = [_BETWEEN if one else _BETWEEN_TITLED for one in same]
    panels_end = left + panel_width * (max(len(band.panels) for band in bands) - 1 / (len(columns) + 1))
    width = max(panels_end + _RIGHT, _TITLE_LETTER * len(title) + 0.3)
    height = top + band_height * len(bands) + sum(gaps) + _BOTTOM
    figure = Figure(figsize=(width, height))
    bottom = height - top
    for number, band in enumerate(bands):
        bottom -= band_height + (gaps[number - 1] if number else 0.0)
        box = left / width, bottom / height, panel_width * len(band.panels) / width, band_height / height
        axes = figure.add_axes(box)
        _draw(axes, band, rows, len(columns))
        axes.set_ylabel(rows_are)
        if not number or gaps[number - 1] == _BETWEEN_TITLED:
            _name_panels(axes, band, len(columns))
        if number == len(bands) - 1 or gaps[number] == _BETWEEN_TITLED:
            _name_columns(axes, band, columns, most_columns)
            axes.set_xlabel(columns_are)
        bar_box = (panels_end + 0.15) / width, box[1], 0.09 / width, box[3]
        bar = figure.colorbar(axes.images[0], cax=figure.add_axes(bar_box))
        bar.outline.set_visible(False)
        if band.ticks:
            bar.set_ticks(list(band.ticks), labels=list(band.ticks.values()))
        bar.set_label(textwrap.fill(band.values_are, int(band_height / _LETTER), break_on_hyphens=False), fontsize=8)
        bar.ax.tick_params(labelsize=7, length=2)
    if title:
        figure.suptitle(title, fontsize=9.5, fontweight="bold", y=1 - 0.08 / height, va="top")
    return figure


def _left(rows: Sequence[str]) -> float:
    return _LEFT + _LETTER * max(len(short_name(name)) for name in rows)


def _panel_width(panels: Panels, columns: Sequence[str], most_columns: int) -> float:
    """Return the width of every panel, so that all titles fit, with a gap of one column behind it."""
    named = min(len(columns), most_columns) / len(columns)
    cell = max(_CELL[0], named * min(0.055 * max(map(len, columns)) + 0.14, 0.6))
    return max(cell * (len(columns) + 1), 1.0, *(_TITLE_LETTER * len(short_name(name)) for name in panels))


def _draw(axes: Axes, band: Band, rows: Sequence[str], num_columns: int) -> None:
    colours = matplotlib.colormaps[band.colours].with_extremes(bad=GRID)
    for start, panel in zip(_starts(band, num_columns), band.panels.values(), strict=True):
        extent = start - 0.5, start + num_columns - 0.5, len(rows) - 0.5, -0.5
        axes.imshow(panel, cmap=colours, norm=band.scale, aspect="auto", extent=extent)
    axes.set(xlim=(-0.5, len(band.panels) * (num_columns + 1) - 0.5), ylim=(len(rows) - 0.5, -0.5), xticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8)
    step = -(-len(rows) // _MOST_ROWS)
    axes.set_yticks(range(0, len(rows), step), [short_name(row) for row in rows[::step]])


def _starts(band: Band, num_columns: int) -> range:
    """Return the column at which each panel begins; between two panels there is an empty column."""
    return range(0, len(band.panels) * (num_columns + 1), num_columns + 1)


def _name_panels(axes: Axes, band: Band, num_columns: int) -> None:
    for start, name in zip(_starts(band, num_columns), band.panels, strict=True):
        middle = start + (num_columns - 1) / 2, -0.5
        axes.annotate(short_name(name), middle, (0, 4), textcoords="offset points", ha="center", fontsize=9)


def _name_columns(axes: Axes, band: Band, columns: Sequence[str], most: int) -> None:
    shown = range(0, len(columns), -(-len(columns) // most))
    ticks = [(start + at, columns[at]) for start in _starts(band, len(columns)) for at in shown]
    axes.set_xticks([tick for tick, _ in ticks], [name for _, name in ticks])

"""Plots of scores and figures. The same input gives the same bytes."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from moelora_ad.errors import printable
from moelora_ad.evaluation.metrics.curve import ScoreCurve
from moelora_ad.evaluation.metrics.set_evaluation import Figures
from moelora_ad.evaluation.reports.tables import by_eer, rounded
from moelora_ad.files import written_whole

INK, GRID, PAPER = "#1d232b", "#dfe3e8", "#ffffff"
BLUE, ORANGE = "#0a63a8", "#d55e00"
LINES = (BLUE, ORANGE, "#009e73", "#aa3377", "#7a6a00", "#117a99", "#555f6b")
"""Distinguishable for colour-blind readers too; more lines than these differ by their dashes."""
MOST_BARS = 40

_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_TICKS = (0.0001, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
_WIDTH = 5.2  # inches; small, so that the words of an SVG stay readable on a phone
_LONGEST = 34  # characters of a name beside a plot
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "moelora_ad",
    "text.color": INK,
    "text.parse_math": False,  # names may have dollar signs
    "xtick.color": INK,
    "ytick.color": INK,
}


class Plot(NamedTuple):
    """A drawing as PNG and as SVG; words in the SVG are text."""

    png: bytes
    svg: str

    def write(self, stem: Path) -> list[Path]:
        """Write ``stem`` with .png and with .svg, each whole or not at all; return both paths."""
        paths = [stem.with_name(stem.name + ending) for ending in (".png", ".svg")]
        for path, content in zip(paths, (self.png, self.svg.encode()), strict=True):
            with written_whole(path) as unfinished:
                unfinished.write_bytes(content)
        return paths


def det_plot(curves: Mapping[str, ScoreCurve]) -> Plot:
    """Draw detection error trade-off (DET) curves: miss against false alarm rate on probit axes, with marks at the EER.

    Martin et al., "The DET curve in assessment of detection task performance", Eurospeech 1997. The axes go down to
    half of what one trial of the rarer class is worth in the largest set, at least to 10 % and at most to 0.005 %.

    Args:
        curves: The curves by the name in the legend.
    """
    rates = {name: curve.equal_error_rate().eer for name, curve in curves.items()}
    largest = max(min(curve.num_bona_fide, curve.num_spoof) for curve in curves.values())
    low = min(0.1, max(0.00005, 0.5 / largest))
    high = min(0.9995, max(0.5, 1.5 * max(rates.values())))
    with style():
        rows = -(-len(curves) // 2)
        figure = Figure(figsize=(_WIDTH, _WIDTH * 0.92 + 0.17 * rows), layout="constrained")
        axes: Axes = figure.add_subplot()
        for number, (name, curve) in enumerate(curves.items()):
            points = curve.operating_points()
            x, y = _staircase(points.false_alarm, points.miss, low / 2, max(1 - low / 2, (1 + high) / 2))
            colour, dash = LINES[number % len(LINES)], _DASHES[number // len(LINES) % len(_DASHES)]
            label = f"{short_name(name)} ({rounded('eer', rates[name])} %)"
            axes.plot(x, y, color=colour, linestyle=dash, linewidth=1.6, label=label)
            mark = ndtri(np.clip(rates[name], low, high))  # an EER of 0 is marked in the corner
            axes.plot([mark], [mark], "o", color=colour, markersize=6.5, markeredgecolor=PAPER, zorder=3, clip_on=False)
        limits = ndtri(low), ndtri(high)
        axes.plot(limits, limits, color=GRID, linewidth=1, zorder=0)
        axes.set(xlim=limits, ylim=limits, xlabel="false alarms: spoof accepted (%)", aspect="equal")
        axes.set_ylabel("misses: bona fide rejected (%)")
        ticks = [tick for tick in _TICKS if low <= tick <= high]
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(FixedLocator([float(ndtri(tick)) for tick in _spread(ticks)]))
            axis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * _nearest_tick(x):g}"))
        figure.legend(loc="outside lower center", ncols=min(2, len(curves)), fontsize=8, handlelength=2.4)
        return drawn(figure)


def histogram_plot(scores: ArrayLike, labels: ArrayLike, thresholds: Mapping[str, float]) -> Plot:
    """Draw histograms of the scores of bona fide and of spoof trials, with thresholds.

    Each bin has a share of the trials of its class, so that a rare class is seen as well. Scores outside the middle
    99.8 % of all count in the outermost bins.

    Args:
        scores: (n,) finite.
        labels: (n,) 1 for bona fide, 0 for spoof.
        thresholds: Thresholds to mark, by name.
    """
    scores = np.clip(np.asarray(scores, np.float64), -1e300, 1e300)  # differences of larger numbers overflow
    labels = np.asarray(labels)
    low, high = np.quantile(scores, (0.001, 0.999))
    if not high - low > 1e-9 * max(abs(low), abs(high)):
        margin = max(0.5, 1e-6 * abs(low))
        low, high = low - margin, high + margin
    edges = np.linspace(low, high, 1 + int(np.clip(np.sqrt(len(scores)), 12, 48)))
    with style():
        figure = Figure(figsize=(_WIDTH, 2.9), layout="constrained")
        axes: Axes = figure.add_subplot()
        for class_label, name, colour in ((0, "spoof", ORANGE), (1, "bona fide", BLUE)):
            chosen = np.clip(scores[labels == class_label], low, high)
            share = 100 * np.histogram(chosen, edges)[0] / max(len(chosen), 1)
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.3, linewidth=0)
            axes.stairs(share, edges, color=colour, linewidth=1.5, label=f"{name} ({len(chosen):,})")
        for number, (name, threshold) in enumerate(thresholds.items()):
            if low <= threshold <= high:
                label = f"{name}: {threshold:.3g}"
                axes.axvline(threshold, color=INK, linewidth=1.2, linestyle=_DASHES[1 + number % 3], label=label)
        axes.grid(axis="x", visible=False)
        axes.set(xlabel="score (higher is more bona fide)", ylabel="share of the class (%)", xlim=(low, high))
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        figure.legend(loc="outside lower center", ncols=2 if len(thresholds) > 1 else 3, fontsize=8, handlelength=1.8)
        return drawn(figure)


def bars_plot(groups: Mapping[str, Figures], overall: float | None = None) -> Plot:
    """Draw the EER of each group with its 95 % interval, the highest on top; at most the ``MOST_BARS`` highest.

    Args:
        groups: Figures of the groups by name.
        overall: The EER of all trials, drawn as a line.
    """
    ordered = by_eer(groups)
    names = list(ordered)[:MOST_BARS]
    values = np.array([100 * ordered[name].eer for name in names])
    intervals = [ordered[name].intervals.get("eer") for name in names]
    with style():
        figure = Figure(figsize=(_WIDTH, 0.75 + 0.2 * len(names)), layout="constrained")
        axes: Axes = figure.add_subplot()
        axes.barh(range(len(names)), values, height=0.66, color=BLUE, alpha=0.85)
        for place, interval in enumerate(intervals):
            if interval is not None:
                axes.plot([100 * interval.low, 100 * interval.high], [place, place], color=INK, linewidth=1.2)
        if overall is not None:
            axes.axvline(100 * overall, color=ORANGE, linewidth=1.4, linestyle=_DASHES[1])
        axes.set_yticks(range(len(names)), [short_name(name) for name in names])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(names) - 0.4, -0.6)
        ends = [100 * interval.high for interval in intervals if interval is not None]
        axes.set_xlim(0, max(1.04 * max([*values, *ends, 100 * (overall or 0)]), 1.0))
        axes.set_xlabel("EER (%)" if overall is None else f"EER (%); dashed: all together, {rounded('eer', overall)} %")
        axes.grid(axis="y", visible=False)
        return drawn(figure)


def _staircase(x: NDArray[np.float64], y: NDArray[np.float64], least: float, most: float) -> tuple[NDArray, NDArray]:
    """Return a curve on probit axes from ``least`` to ``most``, without points that are too close to distinguish."""
    x, y = (ndtri(np.clip(rates, least, most)) for rates in (x, y))
    cells = np.stack([np.round(x * 150), np.round(y * 150)])
    keep = np.append(True, (cells[:, 1:] != cells[:, :-1]).any(axis=0))
    keep[-1] = True
    return x[keep], y[keep]


def _spread(ticks: list[float]) -> list[float]:
    """Return ticks whose labels do not touch."""
    kept: list[float] = []
    room = (ndtri(ticks[-1]) - ndtri(ticks[0])) / 12
    for tick in ticks:
        if not kept or ndtri(tick) - ndtri(kept[-1]) >= room:
            kept.append(tick)
    return kept


def _nearest_tick(x: float) -> float:
    return min(_TICKS, key=lambda tick: abs(float(ndtri(tick)) - x))


def short_name(name: str) -> str:
    """Return a name, shortened if it is too long to stand beside a plot."""
    name = printable(name)
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


@contextmanager
def style() -> Iterator[None]:
    """Set the style of all plots, whatever the user's own style is; figures are made and drawn within the block."""
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")  # boxes in the PNG; the SVG has the text
        yield


def drawn(figure: Figure) -> Plot:
    """Return a figure as PNG and SVG, without anything that changes from one time to the next."""
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    # Remove trailing spaces in the data of paths.
    return Plot(png.getvalue(), re.sub(r"[ \t]+\n", "\n", svg.getvalue()))

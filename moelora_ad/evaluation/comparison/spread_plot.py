"""The spread over seeds of every set, as in figure 3 of arXiv 2509.13878."""

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from moelora_ad.evaluation.comparison.published import SOURCE
from moelora_ad.evaluation.comparison.systems import MACRO_OOD, Comparison
from moelora_ad.evaluation.comparison.table_one import published_eer, published_rows
from moelora_ad.evaluation.reports.plots import BLUE, INK, ORANGE, Plot, drawn, short_name, style
from moelora_ad.runs.record import DEV

_WIDTH = 7.2  # inches, a page's text
_HEIGHT = 1.7  # inches, of a panel
_COLUMN = 0.19  # inches that a system needs at least
_DOTS = 0.5  # width of a system's dots, as a share of the distance between two systems


def spread_plot(comparison: Comparison) -> Plot:
    """Draw a panel for each test set, and for ``macro_ood`` if it is over several. For each system it has a dot for
    each seed, the mean and the standard deviation, and the paper's figure where there is one. Every panel has its own
    axis, which begins at 0.

    Args:
        comparison: The runs; if they have no other set, the development set is shown.
    """
    macro_ood = [MACRO_OOD] if len(comparison.averages.get(MACRO_OOD, ())) > 1 else []
    columns = [*(name for name in comparison.sets if name != DEV), *macro_ood] or [DEV]
    systems = list(comparison.systems)
    across = min(len(columns), max(1, int(_WIDTH / (0.55 + _COLUMN * max(len(systems), 6)))))
    down = -(-len(columns) // across)
    names = [short_name(system) for system in systems]
    with style():
        room = 0.35 + 0.062 * max(map(len, names))  # for the names, which are upright
        figure = Figure(figsize=(_WIDTH, _HEIGHT * down + room + 0.3), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False, sharex=True)
        for place, axes in enumerate(grid.flat):
            if place >= len(columns):
                axes.remove()
                continue
            _panel(axes, comparison, columns[place])
            axes.set_xticks(range(len(systems)), names, rotation=90, fontsize=8)
            axes.tick_params(axis="x", length=0, labelbottom=place + across >= len(columns))
            if place < across * (down - 1):  # above a missing panel, which leaves room for names
                for label in axes.get_xticklabels():
                    label.set_in_layout(False)
            if place % across == 0:
                axes.set_ylabel("EER (%)")
        _legend(figure, any(len(runs) > 1 for runs in comparison.systems.values()))
        return drawn(figure)


def _panel(axes: Axes, comparison: Comparison, column: str) -> None:
    published = published_rows(comparison)
    highest = 0.0
    for at, system in enumerate(comparison.systems):
        values = 100 * np.array(list(comparison.eers(system, column).values()))
        summary = comparison.summary(system, column)
        if summary is not None:
            beside = np.linspace(-_DOTS / 2, _DOTS / 2, len(values)) if len(values) > 1 else np.zeros(1)
            axes.plot(
                at + beside, values, "o", color=BLUE, markersize=3.6, markeredgewidth=0, clip_on=False, label="one seed"
            )
            mean, std = 100 * summary.mean, 100 * (summary.std or 0.0)
            axes.plot([at - 0.36, at + 0.36], [mean, mean], color=INK, linewidth=1.6, label="mean")
            if summary.std is not None:
                axes.plot([at, at], [max(mean - std, 0), mean + std], color=INK, linewidth=1)
            highest = max(highest, mean + std, values.max())
        row = published.get(system)
        known = None if row is None else published_eer(comparison, row, column)
        if known is not None:
            label = f"published ({SOURCE})"
            axes.plot([at], [100 * known], "D", color=ORANGE, fillstyle="none", markersize=5.5, zorder=3, label=label)
            highest = max(highest, 100 * known)
    axes.set_title(short_name(column), fontsize=9, loc="left", fontweight="bold")
    axes.set_xlim(-0.6, len(comparison.systems) - 0.4)
    axes.set_ylim(0, max(1.06 * highest, 1.0))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="x", visible=False)


def _legend(figure: Figure, several_seeds: bool) -> None:
    found: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(str(label), handle)
    if several_seeds:
        found["± std over seeds"] = Line2D([], [], color=INK, linestyle="none", marker="|", markersize=10)
    figure.legend(list(found.values()), list(found), loc="outside upper center", ncols=4, fontsize=8, handlelength=1.4)

"""The plot of the spread over seeds: every seed is a dot at its value, and axes begin at 0."""

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from moelora_ad.evaluation.comparison.scored_runs import read_runs
from moelora_ad.evaluation.comparison.spread_plot import spread_plot
from moelora_ad.evaluation.comparison.systems import Comparison
from moelora_ad.evaluation.reports.plots import BLUE, INK, Plot
from moelora_ad.runs.record import find_records

MakeRun = Callable[..., Path]
_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}href"


def words(plot: Plot) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.fromstring(plot.svg).iter(f"{_SVG}text")]


def comparison_of(path: Path) -> Comparison:
    return Comparison(read_runs(find_records([path]))[0])


@pytest.fixture
def comparison(make_run: MakeRun, tmp_path: Path) -> Comparison:
    for system in ("lora", "moe_$x_1$"):
        for seed in (1, 2, 3):
            make_run(system, seed)
    return comparison_of(tmp_path)


def test_panels_are_the_test_sets_and_no_average_of_one(comparison: Comparison) -> None:
    told = words(spread_plot(comparison))
    assert {"in_domain", "out_of_domain", "EER (%)", "one seed", "mean", "± std over seeds"} <= set(told)
    assert not {"dev", "macro_ood", "macro_all"} & set(told)
    assert told.count("lora") == told.count("moe_$x_1$") == 2
    assert not any("published" in word for word in told)


def test_dots_and_bars_are_at_their_figures(comparison: Comparison) -> None:
    root = ElementTree.fromstring(spread_plot(comparison).svg)
    panel = next(group for group in root.iter(f"{_SVG}g") if group.get("id") == "axes_1")
    ticks = {
        float("".join(text.itertext())): float(text.get("y", "nan")) - 3.4
        for text in panel.iter(f"{_SVG}text")
        if re.fullmatch(r"[\d.]+", "".join(text.itertext()))
    }
    (low, y_low), (high, y_high) = min(ticks.items()), max(ticks.items())
    assert low == 0
    scale = (high - low) / (y_high - y_low)
    dots = [
        scale * (float(use.get("y", "nan")) - y_low)
        for use in panel.iter(f"{_SVG}use")
        if BLUE in use.get("style", "") and _XLINK in use.attrib
    ]
    expected = [100 * eer for system in comparison.systems for eer in comparison.eers(system, "in_domain").values()]
    assert dots == pytest.approx(expected, abs=0.3)
    bars = []
    for path in panel.iter(f"{_SVG}path"):
        if f"stroke: {INK}; stroke-width: 1.6" in path.get("style", ""):
            numbers = np.array(re.findall(r"-?[\d.]+", path.get("d", "")), float).reshape(-1, 2)
            bars.append(scale * (numbers[0, 1] - y_low))
    means = [100 * np.mean(list(comparison.eers(system, "in_domain").values())) for system in comparison.systems]
    assert bars == pytest.approx(means, abs=0.3)


def test_the_development_set_is_shown_if_there_is_nothing_else(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("lora", 1, sets={"dev": "MiniLA"})
    told = words(spread_plot(comparison_of(tmp_path)))
    assert "dev" in told
    assert "± std over seeds" not in told  # one seed has no spread


def test_a_free_place_changes_no_panel_and_the_bytes_are_the_same_again(make_run: MakeRun, tmp_path: Path) -> None:
    sets = {f"set{number}": "MiniOOD" for number in range(4)}
    for number in range(7):
        make_run(f"a_system_with_a_long_name_that_is_cut_{number:02}", 1, sets=sets)
    comparison = comparison_of(tmp_path)
    plot = spread_plot(comparison)
    assert plot == spread_plot(comparison)
    assert {*sets, "macro_ood"} <= set(words(plot))
    rectangles = ElementTree.fromstring(plot.svg).iter(f"{_SVG}rect")
    boxes = [[float(one.get(name, "nan")) for name in ("width", "height", "y")] for one in rectangles]
    panels = [box[:2] for box in boxes]
    tops = sorted({box[2] for box in boxes})
    assert len(tops) == 2
    assert tops[1] - tops[0] < 1.5 * boxes[0][1]  # the names use the free cell, so the rows stay close
    assert len(panels) == 5
    for panel in panels:
        assert panel == pytest.approx(panels[0], rel=1e-3)

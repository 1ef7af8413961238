"""Plots: their content as read from the SVG, and the same bytes each time."""

import io
import re
from collections.abc import Mapping
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
from scipy.special import ndtri

from moelora_ad.evaluation.metrics.curve import ScoreCurve
from moelora_ad.evaluation.metrics.intervals import Interval
from moelora_ad.evaluation.metrics.set_evaluation import Figures
from moelora_ad.evaluation.reports.plots import LINES, Plot, bars_plot, det_plot, histogram_plot

_SVG = "{http://www.w3.org/2000/svg}"


def words(plot: Plot) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.fromstring(plot.svg).iter(f"{_SVG}text")]


def lines(plot: Plot, colour: str) -> list[np.ndarray]:
    """The points (n, 2) of every line of a colour, in the drawing's units, with y upwards."""
    found = []
    for path in ElementTree.fromstring(plot.svg).iter(f"{_SVG}path"):
        if f"stroke: {colour}" in path.get("style", "") and "clip-path" in path.attrib:
            numbers = np.array(re.findall(r"-?[\d.]+", path.get("d", "")), float).reshape(-1, 2)
            found.append(numbers * (1, -1))
    return found


def curve(seed: int, num: int = 400, shift: float = 2.0) -> ScoreCurve:
    draw = np.random.default_rng(seed)
    labels = np.arange(num) % 4 == 0
    return ScoreCurve(draw.normal(shift * labels), labels.astype(int))


def figures(eer: float, interval: Interval | None = None) -> Figures:
    return Figures(
        num_bona_fide=10,
        num_spoof=20,
        eer=eer,
        eer_threshold=0.0,
        min_dcf=0.5,
        auc=0.9,
        min_cllr=0.4,
        act_dcf=None,
        cllr=None,
        threshold=None,
        accuracy=None,
        min_tdcf=None,
        intervals={} if interval is None else {"eer": interval},
    )


def test_det_names_every_curve_with_its_eer() -> None:
    curves = {f"set {seed} $x_1$ <b>&": curve(seed, shift=seed) for seed in (1, 2, 3)}
    plot = det_plot(curves)
    for name, one in curves.items():
        assert f"{name} ({100 * one.equal_error_rate().eer:.2f} %)" in words(plot)


def test_det_curve_has_the_error_rates_on_probit_axes() -> None:
    one = curve(1, num=4000, shift=1.5)
    plot = det_plot({"one": one})
    drawn = max(lines(plot, LINES[0]), key=len)
    diagonal = np.ptp(max((line for line in lines(plot, "#dfe3e8") if np.ptp(line, 0).min() > 0), key=len), 0)
    assert diagonal[0] == pytest.approx(diagonal[1], rel=1e-3)  # both axes have the same scale
    # Convert a quantile of the drawn curve from the drawing's units to rates, by two ticks of the axis.
    ticks = {}
    for text in ElementTree.fromstring(plot.svg).iter(f"{_SVG}text"):
        if "middle" in text.get("style", "") and re.fullmatch(r"[\d.]+", text.text or ""):
            ticks[float(text.text or "")] = float(text.get("x", "nan"))
    (low, x_low), (high, x_high) = min(ticks.items()), max(ticks.items())
    slope = (ndtri(high / 100) - ndtri(low / 100)) / (x_high - x_low)
    false_alarm = ndtri(low / 100) + slope * (drawn[:, 0] - x_low)
    points = one.operating_points()
    known = ndtri(np.clip(np.asarray(points.false_alarm), 1e-6, 1 - 1e-6))
    distance = np.abs(false_alarm[:, None] - known[None, :]).min(axis=1)
    inside = (false_alarm > ndtri(low / 100)) & (false_alarm < ndtri(high / 100))
    assert inside.sum() > 50
    assert distance[inside].max() < 0.02


@pytest.mark.parametrize("sign", [1, -1])
def test_det_of_scores_that_separate_the_classes_is_a_mark_in_a_corner(sign: int) -> None:
    labels = np.arange(30) % 2
    plot = det_plot({"one": ScoreCurve(sign * (10.0 * labels + 0.01 * np.arange(30)), labels)})
    diagonal = max((line for line in lines(plot, "#dfe3e8") if np.ptp(line, 0).min() > 0), key=len)
    low, high = diagonal.min(0) + 0.1, diagonal.max(0) - 0.1
    points = np.concatenate(lines(plot, LINES[0]))
    assert not ((points > low) & (points < high)).all(1).any()  # all rates are 0 or 1


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        ([0.0, 0.0, 0.0, 0.0], [1, 0, 1, 0]),
        ([3.0, -3.0], [1, 0]),
        ([-3.0, 3.0], [1, 0]),
        ([1e6, -1e6, 1e300, 0.0], [1, 0, 1, 0]),
        ([1.7e308, -1.7e308, 1e308], [1, 0, 0]),
        ([1e-300, 2e-300, 0.0], [1, 0, 0]),
    ],
)
def test_odd_scores_are_drawn(scores: list[float], labels: list[int]) -> None:
    one = ScoreCurve(scores, labels)
    det = det_plot({"odd": one})
    assert any(word.startswith("odd (") for word in words(det))
    histogram = histogram_plot(scores, labels, {"EER threshold": one.equal_error_rate().threshold})
    assert f"bona fide ({sum(labels)})" in words(histogram)


def test_many_curves_have_different_looks() -> None:
    plot = det_plot({f"set {number:02}": curve(number) for number in range(20)})
    drawn = re.findall(r'style="(fill: none; stroke(?:-dasharray|: #)[^"]*stroke-width: 1.6[^"]*)"', plot.svg)
    assert len(set(drawn)) == 20


def test_large_sets_stay_small() -> None:
    assert len(det_plot({"large": curve(1, num=100_000)}).svg) < 60_000


def test_histogram_shares_add_up_to_the_class() -> None:
    labels = np.arange(1000) % 5 == 0
    scores = np.random.default_rng(1).normal(2.0 * labels)
    plot = histogram_plot(scores, labels.astype(int), {"EER threshold": 1.25, "threshold": 99.0})
    told = words(plot)
    assert {"bona fide (200)", "spoof (800)", "EER threshold: 1.25"} <= set(told)
    assert not any("99" in word for word in told)  # 99 lies outside the range of scores
    # The area under a class's line, in the units of an axis, is 100 % times the width of a bin.
    for colour in ("#0a63a8", "#d55e00"):
        line = max(lines(plot, colour), key=len)
        x, y = line[:, 0], line[:, 1] - line[:, 1].min()
        area = np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2)
        width = np.diff(np.unique(x)).min()
        axis = [
            (float(text.text or ""), -float(text.get("y", "nan")))
            for text in ElementTree.fromstring(plot.svg).iter(f"{_SVG}text")
            if "end" in text.get("style", "") and re.fullmatch(r"[\d.]+", text.text or "")
        ]
        unit = (axis[-1][1] - axis[0][1]) / (axis[-1][0] - axis[0][0])
        assert area / width / unit == pytest.approx(100, rel=0.01)


def test_bars_are_sorted_and_cut() -> None:
    groups: Mapping[str, Figures] = {f"A{number:03}": figures(number / 200) for number in range(60)}
    told = [word for word in words(bars_plot(groups, 0.25)) if word.startswith("A")]
    assert told == [f"A{number:03}" for number in range(59, 19, -1)]


def test_bars_and_intervals_have_their_lengths() -> None:
    plot = bars_plot({"long": figures(0.4, Interval(0.3, 0.5)), "short": figures(0.1, Interval(0.05, 0.2))}, 0.2)
    intervals = sorted((np.ptp(line[:, 0]) for line in lines(plot, "#1d232b") if np.ptp(line[:, 1]) == 0), reverse=True)
    assert intervals[0] / intervals[1] == pytest.approx(0.2 / 0.15, rel=1e-3)
    assert "EER (%); dashed: all together, 20.00 %" in words(plot)


def test_bars_without_errors_are_drawn() -> None:
    assert "none" in words(bars_plot({"none": figures(0.0)}, 0.0))


def test_same_bytes_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [det_plot({"a": curve(1)}), histogram_plot([0.0, 1.0], [0, 1], {}), bars_plot({"x": figures(0.2)})]
    matplotlib.rcParams["font.size"] = 30.0  # a user's own style must change nothing
    try:
        again = [det_plot({"a": curve(1)}), histogram_plot([0.0, 1.0], [0, 1], {}), bars_plot({"x": figures(0.2)})]
    finally:
        matplotlib.rcdefaults()
    assert first == again
    for plot in first:
        image = matplotlib.image.imread(io.BytesIO(plot.png))
        assert image.shape[1] == 1040
        assert (image[0, 0, :3] == 1).all()

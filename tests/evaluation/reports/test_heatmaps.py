"""Heatmaps: the colour of every cell against the scale, and the labels beside the cells."""

import numpy as np
import pytest
from matplotlib.colors import Normalize, to_rgb

from moelora_ad.evaluation.reports.heatmaps import Band, banded_heatmaps, heatmaps
from moelora_ad.evaluation.reports.plots import GRID, drawn, style

NAMES = {"rows_are": "layer", "columns_are": "expert", "values_are": "mean gate"}


def cells(figure) -> list[np.ndarray]:
    """The RGB of every cell of every panel, in the order of drawing."""
    images = [image for axes in figure.axes for image in axes.images]
    return [image.cmap(image.norm(image.get_array()))[..., :3] for image in images]


def words(figure) -> str:
    with style():
        return drawn(figure).svg


def test_panels_share_one_scale_and_what_is_missing_is_grey():
    first = np.array([[0.0, 1.0], [np.nan, 0.5]])
    figure = heatmaps({"q": first, "v": 2 * first}, ["3", "7"], ["a", "b"], **NAMES, title="All")
    q, v = cells(figure)
    np.testing.assert_allclose(q[1, 0], to_rgb(GRID))
    np.testing.assert_allclose(q[0, 1], v[1, 1])  # both values are 1
    assert not np.allclose(q[0, 1], v[0, 1])
    text = words(figure)
    for name in ("q", "v", "3", "7", "a", "b", "layer", "expert", "mean gate", "All"):
        assert f">{name}</text>" in text


def test_the_middle_of_a_difference_is_white():
    (panel,) = cells(heatmaps({"": np.array([[-2.0, 0.0, 1.0]])}, ["x"], ["a", "b", "c"], **NAMES, diverging=True))
    np.testing.assert_allclose(panel[0, 1], 0.96, atol=0.02)
    assert panel[0, 0, 2] > panel[0, 0, 0]  # blue below zero, red above
    assert panel[0, 2, 0] > panel[0, 2, 2]


def test_many_panels_stand_in_several_bands():
    panels = {f"p{number}": np.full((3, 24), number) for number in range(5)}
    figure = heatmaps(panels, ["x", "y", "z"], [str(number) for number in range(24)], **NAMES)
    assert len(cells(figure)) == 5
    assert figure.get_size_inches()[0] < 15
    text = words(figure)
    assert all(text.count(f">p{number}</text>") == 1 for number in range(5))


@pytest.mark.parametrize("values", [0.0, np.nan])
def test_nothing_to_see(values):
    (panel,) = cells(heatmaps({"": np.full((1, 1), values)}, ["x"], ["a"], **NAMES))
    assert panel.shape == (1, 1, 3)


def test_bands_have_scales_of_their_own_and_name_their_panels_once():
    panels = {"q": np.array([[1.0]]), "v": np.array([[2.0]])}
    bands = [
        Band(panels, "share", Normalize(0, 2), ticks={0.0: "none", 2.0: "whole"}),
        Band(panels, "norm", Normalize(0, 4)),
    ]
    figure = banded_heatmaps(bands, ["0"], ["5"], rows_are="expert", columns_are="layer")
    above, below = cells(figure)[1], cells(figure)[3]
    assert not np.allclose(above, below)
    text = words(figure)
    assert text.count(">q</text>") == text.count(">layer</text>") == text.count(">whole</text>") == 1
    assert text.count(">expert</text>") == 2

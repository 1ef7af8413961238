"""Dotted paths of adapted projections, split into layer and projection."""

import numpy as np
import pytest

from moelora_ad.adapters.sites import SiteGrid, layer_of, projection_of


@pytest.mark.parametrize(
    ("site", "layer", "projection"),
    [
        ("layers.3.self_attn.q_proj", "layers.3", "self_attn.q_proj"),
        ("encoder.layers.11.attention.output.dense", "encoder.layers.11", "attention.output.dense"),
        ("layers.0.feed_forward.1", "layers.0", "feed_forward.1"),  # the layer ends at the first number
        ("0.q_proj", "0", "q_proj"),
        ("blocks.3", "blocks.3", "blocks"),  # a stack of plain projections
        ("2", "2", "2"),
        ("conv1d.q_proj", None, "conv1d.q_proj"),  # a number inside a name does not make a layer
        ("head", None, "head"),
    ],
)
def test_layer_and_projection_of_a_site(site, layer, projection):
    assert layer_of(site) == layer
    assert projection_of(site) == projection


def test_a_grid_of_layers_and_projections():
    grid = SiteGrid(["layers.0.q_proj", "layers.0.fc.0", "layers.1.q_proj", "head"])
    assert grid.of["layers.1.q_proj"] == ("1", "q_proj")
    assert grid.of["head"] == ("", "head")
    assert grid.layers == ("0", "1", "")
    values = grid.grid([1.0, 2.0, 3.0, 4.0])
    assert values[1, grid.projections.index("q_proj")] == 3.0
    assert np.isnan(values[1, grid.projections.index("head")])
    assert grid.in_layer("0").tolist() == [0, 1]
    two = SiteGrid(["text.layers.0.q", "audio.layers.0.q"])
    assert two.layers == ("text.layers.0", "audio.layers.0")


def test_a_stack_of_plain_projections_is_one_column():
    grid = SiteGrid(["blocks.0", "blocks.1", "blocks.2"])
    assert (grid.layers, grid.projections) == (("0", "1", "2"), ("blocks",))
    assert grid.panels([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])["blocks"].tolist() == [[1, 2], [3, 4], [5, 6]]

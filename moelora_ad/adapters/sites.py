"""Where adapted projections are in a model, read from their dotted paths."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


def layer_of(site: str) -> str | None:
    """The dotted path of the layer that a site belongs to, up to the first number; None if there is no number."""
    layer = re.match(r"(?:.*?\.)??\d+(?=\.|$)", site)
    return layer[0] if layer else None


def projection_of(site: str) -> str:
    """The path of a site within its layer: ``self_attn.q_proj`` of ``layers.3.self_attn.q_proj``. A projection that is
    the layer itself is named after its stack: ``blocks`` of ``blocks.3``."""
    layer = layer_of(site)
    if layer is None:
        return site
    return site[len(layer) + 1 :] or layer.rpartition(".")[0] or site


ROLES = "qkv"
"""Query, key and value, in the order in which models usually call them."""


def role_of(name: str) -> str | None:
    """The role of a projection in an attention, see `ROLES`, by its own name (``q_proj``, ``key``, ``linear_v``); None
    if that tells none."""
    found = re.fullmatch(r"(?:.*_)?(q|k|v|query|key|value)(?:_.*)?", name)
    return found[1][0] if found else None


class Place(NamedTuple):
    """A site's layer and its projection in it, by short names: ``3`` and ``q_proj`` of ``layers.3.self_attn.q_proj``;
    see `SiteGrid`."""

    layer: str
    projection: str


class SiteGrid:
    """The sites of a model as a grid of layers and projections: rows and columns of tables and plots.

    Args:
        sites: dotted paths, in the model's order.

    Attributes:
        of: the place of each site.
        layers: numbers of the layers, in the model's order, empty for sites outside numbered layers; paths up to the
            numbers if two stacks of layers share numbers.
        projections: names of the projections, in the model's order; their paths in the layer if two share a name.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        layers = _shortest([layer_of(site) or "" for site in sites])
        projections = _shortest([projection_of(site) for site in sites])
        self.of = {site: Place(layers[layer_of(site) or ""], projections[projection_of(site)]) for site in sites}
        self.layers = tuple(dict.fromkeys(place.layer for place in self.of.values()))
        self.projections = tuple(dict.fromkeys(place.projection for place in self.of.values()))

    def grid(self, values: ArrayLike) -> NDArray[np.float64]:
        """Arrange values (sites, ...) as (layers, projections, ...), NaN where there is no site."""
        given = np.asarray(values, np.float64)
        grid = np.full((len(self.layers), len(self.projections), *given.shape[1:]), np.nan)
        for value, place in zip(given, self.of.values(), strict=True):
            grid[self.layers.index(place.layer), self.projections.index(place.projection)] = value
        return grid

    def panels(self, values: ArrayLike) -> dict[str, NDArray[np.float64]]:
        """Arrange values (sites, ...) by projection, each (layers, ...), NaN where there is no site."""
        grid = self.grid(values)
        return {name: grid[:, at] for at, name in enumerate(self.projections)}

    def in_layer(self, layer: str) -> NDArray[np.intp]:
        """The indices of the sites in a layer."""
        return np.array([number for number, place in enumerate(self.of.values()) if place.layer == layer])


def _shortest(paths: Sequence[str]) -> dict[str, str]:
    """The short name of each path: its last part; the full path for all of them if two would have the same name."""
    names = {path: path.rpartition(".")[2] for path in paths}
    return names if len(set(names.values())) == len(names) else {path: path for path in names}

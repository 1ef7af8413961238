"""Where adapted projections stand: rows and columns of the plots and tables."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Place(NamedTuple):
    """A site's layer and its projection in it: ``3`` and ``q_proj`` of ``layers.3.self_attn.q_proj``."""

    layer: str
    projection: str


class Places:
    """The sites of a model as a grid of layers and projections.

    Args:
        sites: dotted paths, in the model's order.

    Attributes:
        of: the place of each site.
        layers: numbers of the layers, in the model's order; the path up to the number where two stacks of layers share
            numbers, and empty for sites that stand in no numbered layer.
        projections: their names, in the model's order; with the path before where two share a name.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        split = [re.fullmatch(r"(?:((?:.*?\.)??\d+)\.)?(.+)", site) for site in sites]
        paths = [((found[1] or ""), found[2]) for found in split if found]
        layers = _shortest([layer for layer, _ in paths])
        projections = _shortest([inside for _, inside in paths])
        self.of = {
            site: Place(layers[layer], projections[inside]) for site, (layer, inside) in zip(sites, paths, strict=True)
        }
        self.layers = tuple(dict.fromkeys(place.layer for place in self.of.values()))
        self.projections = tuple(dict.fromkeys(place.projection for place in self.of.values()))

    def grid(self, values: ArrayLike) -> NDArray[np.float64]:
        """Values (sites, ...) at their places: (layers, projections, ...), NaN where no site is."""
        given = np.asarray(values, np.float64)
        grid = np.full((len(self.layers), len(self.projections), *given.shape[1:]), np.nan)
        for value, place in zip(given, self.of.values(), strict=True):
            grid[self.layers.index(place.layer), self.projections.index(place.projection)] = value
        return grid

    def in_layer(self, layer: str) -> NDArray[np.intp]:
        """Which of the sites stand in a layer."""
        return np.array([number for number, place in enumerate(self.of.values()) if place.layer == layer])


def _shortest(paths: Sequence[str]) -> dict[str, str]:
    """Each path by its last part; whole where two would be called alike."""
    names = {path: path.rpartition(".")[2] for path in paths}
    return names if len(set(names.values())) == len(names) else {path: path for path in names}

"""Where experts are active: the largest singular values of their updates, figure 2 of arXiv 2509.13878."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moelora_ad.adapters import adapted_sites, singular_values
from moelora_ad.adapters.sites import SiteGrid
from moelora_ad.analysis.trained import RequestError, load_trained

FACTOR = 2.0
"""Least ratio between late and early layers that counts as a difference."""
LAST_LAYERS, FIRST_LAYERS, THROUGHOUT, NOWHERE = "the last layers", "the first layers", "all layers", "no layer"


@dataclass(frozen=True, eq=False)
class SingularValueAnalysis:
    """Singular values of the updates (alpha / r) B_i A_i of a LoRA or a mixture of N experts of rank r.

    Attributes:
        system: name of the run's system.
        values: (N, r) float64 by site, largest first.
    """

    system: str
    values: Mapping[str, NDArray[np.float64]]

    @property
    def grid(self) -> SiteGrid:
        """Layers and projections of the sites."""
        return SiteGrid(list(self.values))

    @property
    def largest(self) -> NDArray[np.float64]:
        """(layers, projections, N) the largest value of each expert; NaN where there is no site."""
        return self.grid.grid([values[:, 0] for values in self.values.values()])

    @property
    def late_to_early(self) -> dict[str, float]:
        """The ratio of late to early layers, see the function of this name; by projection."""
        return dict(zip(self.grid.projections, late_to_early(self.largest), strict=True))

    @property
    def active_in(self) -> dict[str, str | None]:
        """In which layers each projection is active, see `where_active`; by projection."""
        largest = self.largest
        return {name: where_active(largest[:, at]) for at, name in enumerate(self.grid.projections)}


def analyze_singular_values(
    run: str | Path, *, backbone: str | None = None, allow: Collection[str] = ()
) -> SingularValueAnalysis:
    """Return the singular values of every expert's update; no audio is read.

    Args:
        run: folder of a run, or a checkpoint in it.
        backbone: where the encoder is, if not where the run found it.
        allow: packages besides ours whose classes the run's configuration may name.

    Raises:
        RequestError: there is no such run, or its model has no low-rank adapters.
    """
    trained = load_trained(run, backbone, allow)
    values = {site: singular_values(layer).numpy() for site, layer in adapted_sites(trained.detector.backbone.encoder)}
    if not values:
        raise RequestError(f"{run}: the model has no LoRA and no experts, so there are no updates to analyse")
    return SingularValueAnalysis(trained.name, values)


def num_last(num_layers: int) -> int:
    """Return how many layers are in the last third; 0 if there is only one layer."""
    return max(1, round(num_layers / 3)) if num_layers > 1 else 0


def late_to_early(largest: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the last third of the layers divided by that over the others, for each projection.

    Args:
        largest: (layers, projections, N), NaN where there is no site.

    Returns:
        (projections,); NaN where a part has no site or both are zero, infinity where only the early layers are zero.
    """
    return np.array([_ratio(largest[:, at]) for at in range(largest.shape[1])])


def _ratio(largest: NDArray[np.float64]) -> float:
    last = num_last(len(largest))
    late, early = largest[len(largest) - last :], largest[: len(largest) - last]
    late, early = late[np.isfinite(late)], early[np.isfinite(early)]
    if not len(late) or not len(early) or not (late.any() or early.any()):
        return float("nan")
    return float(late.mean() / early.mean()) if early.any() else float("inf")


def where_active(largest: NDArray[np.float64]) -> str | None:
    """Return in which layers a projection is active, by its largest singular values (layers, N); None if this is not
    determined."""
    if not np.nan_to_num(largest).any():
        return NOWHERE
    ratio = _ratio(largest)
    if np.isnan(ratio):
        return None
    if ratio >= FACTOR:
        return LAST_LAYERS
    return FIRST_LAYERS if ratio <= 1 / FACTOR else THROUGHOUT

"""Where experts are active: the largest singular values of their updates, figure 2 of arXiv 2509.13878."""

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from moelora_ad.adapters import adapted_sites, singular_values
from moelora_ad.analysis.analysis import Analysis
from moelora_ad.analysis.heatmaps import heatmaps
from moelora_ad.analysis.models import load_trained
from moelora_ad.analysis.places import Places
from moelora_ad.errors import InputError
from moelora_ad.evaluation.reports.text_table import TextTable

NAME = "singular-values"
FACTOR = 2.0
"""From here on a ratio between late and early layers is a difference."""
LAST_LAYERS, FIRST_LAYERS, THROUGHOUT, NOWHERE = "the last layers", "the first layers", "all layers", "no layer"
# The pattern that the paper reports (figure 2), by how wav2vec 2.0 and Whisper call their projections.
PUBLISHED = {"q_proj": LAST_LAYERS, "k_proj": LAST_LAYERS, "v_proj": THROUGHOUT, "out_proj": THROUGHOUT}


def analyse(run: str, *, backbone: str | None = None, allow: Collection[str] = ()) -> Analysis:
    """Singular values of every expert's update (alpha / r) B_i A_i; no audio is read.

    Args:
        run: folder of a run, or a checkpoint in it.
        backbone: where the encoder is, if not where the run found it.
        allow: packages besides ours whose classes the run's configuration may name.

    Raises:
        InputError: there is no such run, or its model has no low-rank adapters.
    """
    trained = load_trained(run, backbone, allow)
    found = {site: singular_values(layer).numpy() for site, layer in adapted_sites(trained.detector.backbone.encoder)}
    if not found:
        raise InputError(f"{run}: the model has no LoRA and no experts, so there are no updates to look at")
    return analysis_of(found, trained.name)


def analysis_of(found: Mapping[str, NDArray[np.float64]], system: str) -> Analysis:
    """The analysis of singular values (N, r) by site."""
    places = Places(list(found))
    largest = places.grid([values[:, 0] for values in found.values()])  # (layers, projections, N)
    ratios = late_to_early(largest)
    activity = {name: where_active(largest[:, at]) for at, name in enumerate(places.projections)}
    experts = [str(number) for number in range(largest.shape[-1])]
    rows = [
        {
            "site": site,
            "layer": place.layer,
            "projection": place.projection,
            "expert": expert,
            "largest": float(values[expert, 0]),
            "sum": float(values[expert].sum()),
        }
        for (site, values), place in zip(found.items(), places.of.values(), strict=True)
        for expert in range(len(values))
    ]
    panels = {name: largest[:, at] for at, name in enumerate(places.projections)}
    return Analysis(
        name=NAME,
        finding=_finding(activity, ratios, len(places.layers)),
        tables=[_by_projection(places, largest, ratios, activity), _by_layer(places, largest)],
        rows=rows,
        data={
            "system": system,
            "criterion": {"last_layers": num_last(len(places.layers)), "factor": FACTOR},
            "active_in": activity,
            "late_to_early": dict(zip(places.projections, ratios, strict=True)),
            "singular_values": dict(found),
        },
        figures={
            "largest": lambda: heatmaps(
                panels,
                [f"{layer}" for layer in places.layers],
                experts,
                rows_are="layer",
                columns_are="expert",
                values_are="largest singular value",
                title=f"Updates of {system}",
            )
        },
        notes=[
            "active in the last layers: the largest singular value, mean over layers and experts, is at least "
            f"{FACTOR:g} times as large in the last {num_last(len(places.layers))} of {len(places.layers)} layers as "
            "in those before; in the first layers: the reverse; in all layers: neither",
            "an update is (alpha / r) B A of one expert, without the gate's weight",
        ],
    )


def num_last(num_layers: int) -> int:
    """How many layers are the last third; 0 if there is but one layer."""
    return max(1, round(num_layers / 3)) if num_layers > 1 else 0


def late_to_early(largest: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last third of the layers by that over the others, for each projection.

    Args:
        largest: (layers, projections, N), NaN where no site is.

    Returns:
        (projections,); NaN where a part has no site or is all zero.
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
    """In which layers a projection is active, by its largest singular values (layers, N); None if none can tell."""
    if not np.nan_to_num(largest).any():
        return NOWHERE
    ratio = _ratio(largest)
    if np.isnan(ratio):
        return None
    if ratio >= FACTOR:
        return LAST_LAYERS
    return FIRST_LAYERS if ratio <= 1 / FACTOR else THROUGHOUT


def _finding(activity: Mapping[str, str | None], ratios: NDArray[np.float64], num_layers: int) -> str:
    if set(activity.values()) == {NOWHERE}:
        return "every update is zero: this model was not trained"
    if None in activity.values():
        return f"with {num_layers} adapted layers there is no early and late part to compare"
    parts = [
        f"{name} in {where} (late to early: {ratio:.2f})" if where != NOWHERE else f"{name} in no layer"
        for (name, where), ratio in zip(activity.items(), ratios, strict=True)
    ]
    finding = f"active: {', '.join(parts)}"
    if set(activity) == set(PUBLISHED):
        same = dict(activity) == PUBLISHED
        finding += f"; this is {'' if same else 'not '}the published pattern (q and k late, v and out throughout)"
    return finding


def _by_projection(
    places: Places, largest: NDArray[np.float64], ratios: NDArray[np.float64], activity: Mapping[str, str | None]
) -> TextTable:
    rows = []
    for at, name in enumerate(places.projections):
        values = largest[:, at]
        where = np.unravel_index(np.nanargmax(values), values.shape)
        numbers = f"{np.nanmean(values):.4f}", f"{np.nanmax(values):.4f}"
        ratio = "" if np.isnan(ratios[at]) else f"{ratios[at]:.2f}"
        rows.append((name, activity[name] or "", *numbers, f"{places.layers[where[0]]} / {where[1]}", ratio))
    columns = ("projection", "active in", "mean", "largest", "of layer / expert", "late to early")
    return TextTable("Largest singular values of the updates", columns, rows, 2)


def _by_layer(places: Places, largest: NDArray[np.float64]) -> TextTable:
    rows = []
    for at, layer in enumerate(places.layers):
        cells = [" ".join("" if np.isnan(v) else f"{v:.3f}" for v in experts) for experts in largest[at]]
        rows.append((layer, *cells))
    return TextTable("By layer, expert after expert", ("layer", *places.projections), rows, 1)

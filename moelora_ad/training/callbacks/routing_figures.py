"""The figures of a mixture's routing that a training run logs, and their file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from moelora_ad.adapters import SiteRouting
from moelora_ad.adapters.sites import projection_of
from moelora_ad.files import written_whole

PER_EXPERT = ("mean_gate", "top1_share", "output_norm", "largest_singular_value")
PER_SITE = ("entropy", "effective_experts", "load_balance")
COLLAPSED = 0.95
"""Top-1 share of an expert above which its gate may have collapsed, see `SiteFigures.collapsed_to`."""

_FORMAT = 1


class SiteFigures(NamedTuple):
    """What the gate and the experts of an adapted projection did on a set.

    Attributes:
        mean_gate: mean weight of each expert over decisions.
        top1_share: for each expert, share of the decisions whose largest weight is its own.
        output_norm: for each expert, mean of (alpha / r) ||B_i A_i x||.
        largest_singular_value: for each expert, that of (alpha / r) B_i A_i.
        entropy: mean entropy of the weights of a decision, in nats.
        effective_experts: exp of the entropy of the mean weights, from 1 to N.
        load_balance: see `SiteRouting.load_balance`, from 1 (balanced) to N.
    """

    mean_gate: list[float]
    top1_share: list[float]
    output_norm: list[float]
    largest_singular_value: list[float]
    entropy: float
    effective_experts: float
    load_balance: float

    @classmethod
    def of(cls, routing: SiteRouting, largest_singular_value: Tensor) -> "SiteFigures":
        """The figures of a recorded routing, with the largest singular value of each expert (N,)."""
        return cls(
            routing.mean_gate.tolist(),
            routing.top1_share.tolist(),
            routing.output_norm.tolist(),
            largest_singular_value.tolist(),
            routing.entropy,
            routing.effective_experts,
            routing.load_balance,
        )

    @property
    def collapsed_to(self) -> int | None:
        """The expert that the gate has collapsed to, if any: it has the largest weight in more than ``COLLAPSED`` of
        the decisions, and a share of all weight that is nearer to 1 than to 1 / N. (A dense gate may give almost equal
        weights, of which one is always slightly larger; that is no collapse.)"""
        leader = int(np.argmax(self.top1_share))
        weight = self.mean_gate[leader] / sum(self.mean_gate)
        takes_most = weight > (1 + 1 / len(self.mean_gate)) / 2
        return leader if self.top1_share[leader] > COLLAPSED and takes_most else None


def overview(sites: Mapping[str, SiteFigures]) -> dict[str, float]:
    """A few figures to look at first: means over all projections, and over the layers for each kind of projection.

    Args:
        sites: figures by dotted path.

    Returns:
        ``routing/NAME`` and ``routing/NAME/PROJECTION``, where ``top1_share`` is that of the leading expert, and norms
        and singular values are means over experts; and ``routing/collapsed_sites``, the number of collapsed gates.
    """
    kinds: dict[str, list[SiteFigures]] = {}
    for site, figures in sites.items():
        kinds.setdefault(projection_of(site), []).append(figures)
    groups = {"": list(sites.values())} | {f"/{kind}": members for kind, members in kinds.items()}
    found: dict[str, float] = {}
    for name in PER_SITE:
        found |= {f"routing/{name}{end}": _mean(getattr(f, name) for f in group) for end, group in groups.items()}
    for end, group in groups.items():
        found[f"routing/top1_share{end}"] = _mean(max(f.top1_share) for f in group)
    for name in ("output_norm", "largest_singular_value"):
        found |= {f"routing/{name}{end}": _mean(_mean(getattr(f, name)) for f in g) for end, g in groups.items()}
    found["routing/collapsed_sites"] = float(sum(f.collapsed_to is not None for f in sites.values()))
    return found


def by_figure(sites: Mapping[str, SiteFigures]) -> dict[str, dict[str, float]]:
    """Every figure of every projection and expert.

    Returns:
        for each figure's name, scalars ``routing_by_site/NAME/SITE/expert_I``, with experts counted from 0, or
        ``routing_by_site/NAME/SITE``.
    """
    found: dict[str, dict[str, float]] = {name: {} for name in (*PER_EXPERT, *PER_SITE)}
    for site, figures in sites.items():
        for name in PER_EXPERT:
            for expert, value in enumerate(getattr(figures, name)):
                found[name][f"routing_by_site/{name}/{site}/expert_{expert}"] = value
        for name in PER_SITE:
            found[name][f"routing_by_site/{name}/{site}"] = getattr(figures, name)
    return found


def write_figures(
    path: Path, sites: Mapping[str, SiteFigures], epoch: int, step: int, num_trials: int, num_decisions: int
) -> None:
    """Write all figures as JSON, completely or not at all.

    Args:
        path: path of the file.
        sites: figures by dotted path.
        epoch: the epoch that was validated, from 0.
        step: optimiser steps done.
        num_trials: development trials that were watched.
        num_decisions: number of decisions of each gate, over tokens or whole utterances.
    """
    content = {
        "format": _FORMAT,
        "epoch": epoch,
        "step": step,
        "num_trials": num_trials,
        "num_decisions": num_decisions,
        "overview": overview(sites),
        "sites": {site: figures._asdict() for site, figures in sites.items()},
    }
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _mean(values: object) -> float:
    return float(np.mean(list(values)))  # type: ignore[call-overload]

"""Which parameters of a detector are trained, and which projections are adapted."""

from collections import Counter
from dataclasses import dataclass

from torch import nn

from moelora_ad.models.detector import Detector


@dataclass(frozen=True)
class Sites:
    """The adapted projections.

    Attributes:
        wrapped: how many are in the model.
        expected: how many the adaptation method reported.
        by_name: how many have the same last part of their dotted path, by that part.
        layers: how many numbered layers they are in.
        shapes: the different (in_features, out_features); modules without these are left out.
        gates: how many gates there are; fewer than projections if they are shared.
    """

    wrapped: int
    expected: int
    by_name: dict[str, int]
    layers: int
    shapes: list[tuple[int, int]]
    gates: int


def parameters_of(detector: Detector) -> dict[str, int]:
    """The number of parameters by part, see `Account.parameters`."""
    parts, layer_weights = detector.parameters_by_part(), detector.backbone.layer_weights
    backbone, classifier = parts.pop("backbone"), parts.pop("classifier")
    for name, members in detector.adaptation.apart(detector.backbone.encoder).items():
        chosen = {id(parameter) for parameter in members if parameter.requires_grad}
        listed = [parameter for part in parts.values() for parameter in part if id(parameter) in chosen]
        parts = {part: [p for p in those if id(p) not in chosen] for part, those in parts.items()} | {name: listed}
    parts |= {
        "classifier": [parameter for parameter in classifier if parameter is not layer_weights],
        "layer_weights": [parameter for parameter in classifier if parameter is layer_weights],
        "backbone_trained": backbone,
    }
    trained = {name: sum(parameter.numel() for parameter in members) for name, members in parts.items()}
    total = sum(parameter.numel() for parameter in detector.parameters())
    return trained | {"backbone_frozen": total - sum(trained.values()), "total": total}


def sites_of(detector: Detector) -> Sites:
    """The adapted projections of a detector."""
    encoder, own = detector.backbone.encoder, dict(detector.ownership.own_modules())
    found = {site: own[site] for site in detector.sites if site in own}
    numbers = {next((part for part in site.split(".") if part.isdigit()), "") for site in found}
    widths = [(getattr(m, "in_features", None), getattr(m, "out_features", None)) for m in found.values()]
    gates = [part for part in detector.adaptation.parts(encoder).get("gates", ()) if isinstance(part, nn.Module)]
    return Sites(
        wrapped=len(found),
        expected=len(detector.sites),
        by_name=dict(Counter(site.rpartition(".")[2] for site in found)),
        layers=len(numbers - {""}),
        shapes=sorted({(inner, outer) for inner, outer in widths if isinstance(inner, int) and isinstance(outer, int)}),
        gates=len(gates),
    )

"""The detector: backbone, adaptation and classifier as one module."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from moelora_ad.adapters import AdaptationMethod, Gate, adapted_sites, adapter_modules
from moelora_ad.models.backbones.base import Backbone
from moelora_ad.models.heads.pooling import Classifier
from moelora_ad.models.saving.model_folder import KeptModule

ENCODER = "backbone.encoder."


class Detector(KeptModule):
    """Waveforms to two logits, index 0 spoof, index 1 bona fide.

    Args:
        backbone: the pretrained speech encoder.
        adaptation: what of it is trained; changes ``backbone.encoder`` in place.
        classifier: makes the classifier for a frame width, for example the class ``AASIST``.

    Attributes:
        sites: dotted paths of the adapted projections inside ``backbone.encoder``.
    """

    def __init__(
        self, backbone: Backbone, adaptation: AdaptationMethod, classifier: Callable[[int], Classifier]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.adaptation = adaptation
        self.sites = adaptation.adapt(backbone.encoder)
        backbone.after_adaptation()
        self.classifier = classifier(backbone.width)
        self.train(self.training)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits (B, 2), of the type of the classifier's weights, float32: autocast is for the encoder.

        Args:
            waveforms: (B, samples) float, 16 kHz mono.
            lengths: (B,) valid samples of each row, None when all rows are full.
        """
        features, frames = self.backbone(waveforms, lengths)
        dtype = next((parameter.dtype for parameter in self.classifier.parameters()), torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            return self.classifier(features.to(dtype), frames)

    def train(self, mode: bool = True) -> "Detector":
        """Training mode for what is trained. A frozen encoder stays in evaluation mode, so that its own dropout, layer
        drop, masking and batch statistics are off, unless the backbone was asked for them."""
        super().train(mode)
        encoder = self.backbone.encoder
        if self.backbone.stochastic or self.parameters_by_part()["backbone"]:
            return self
        encoder.eval()
        for _, adapter in adapter_modules(encoder):
            adapter.train(mode)
        for _, site in adapted_sites(encoder):
            site.training = mode
        return self

    def parameters_by_part(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by part: ``experts``, ``gates``, ``classifier`` (with the backbone's layer weights) and
        ``backbone`` (the encoder's own)."""
        parts: dict[str, list[nn.Parameter]] = {"experts": [], "gates": [], "classifier": [], "backbone": []}
        owners = self._owners()
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                parts[_part(name, owners)].append(parameter)
        return parts

    def parameter_counts(self) -> dict[str, int]:
        """Number of all parameters (``total``), and of the trainable ones of each part."""
        trained = {part: sum(p.numel() for p in members) for part, members in self.parameters_by_part().items()}
        return trained | {"total": sum(p.numel() for p in self.parameters())}

    def kept_names(self) -> set[str]:
        """Names of ``state_dict()`` that a checkpoint must hold: all but the encoder's own frozen tensors, and these if
        they are nowhere else (`Backbone.is_elsewhere`)."""
        if not self.backbone.is_elsewhere:
            return set(self.state_dict())
        owners = self._owners()
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        encoder = {f"{ENCODER}{name}" for name, _ in self.backbone.encoder.named_parameters()}
        never_called = {f"{ENCODER}{name}" for name in self.backbone.never_called}
        if encoder - trained == never_called:  # an encoder that is trained whole is kept whole
            trained |= never_called
        # A buffer (batch statistics) is kept when its module is trained.
        modules = {_module(name) for name in trained}
        return {
            name
            for name in self.state_dict()
            if _part(name, owners) != "backbone" or name in trained or _module(name) in modules
        }

    def _owners(self) -> dict[str, str]:
        """The part that each expert and gate belongs to, by its dotted path."""
        return {
            f"{ENCODER}{name}": "gates" if isinstance(module, Gate) else "experts"
            for name, module in adapter_modules(self.backbone.encoder)
        }


def _part(name: str, owners: dict[str, str]) -> str:
    return owners.get(_module(name), "backbone") if name.startswith(ENCODER) else "classifier"


def _module(name: str) -> str:
    return name.rpartition(".")[0]

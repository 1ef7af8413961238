"""The detector: backbone, adaptation and classifier as one module."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from moelora_ad.adapters import AdaptationMethod, Ownership
from moelora_ad.models.backbones.base import Backbone
from moelora_ad.models.heads.pooling import Classifier
from moelora_ad.models.saving.model_folder import KeptModule

ENCODER = "backbone.encoder."
HALF = (torch.bfloat16, torch.float16)


class Detector(KeptModule):
    """Waveforms to two logits, index 0 spoof, index 1 bona fide.

    Args:
        backbone: the pretrained speech encoder.
        adaptation: what of it is trained; changes ``backbone.encoder`` in place.
        classifier: makes the classifier for a frame width, for example the class ``AASIST``.

    Attributes:
        ownership: what in ``backbone.encoder`` is the adaptation's.
        sites: dotted paths inside ``backbone.encoder`` of the modules that the adaptation put in the place of others.

    Raises:
        AdapterError: the adaptation does not fit the encoder.
    """

    def __init__(
        self, backbone: Backbone, adaptation: AdaptationMethod, classifier: Callable[[int], Classifier]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.adaptation = adaptation
        never_called = [backbone.encoder.get_parameter(name) for name in backbone.never_called]
        frozen = [parameter for parameter in never_called if not parameter.requires_grad]
        self.ownership = Ownership(adaptation, backbone.encoder)
        self.sites = self.ownership.sites
        for parameter in frozen:  # whatever the adaptation made of it
            parameter.requires_grad_(False)
        backbone.after_adaptation()
        self.classifier = classifier(backbone.width)
        self.train(self.training)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits (B, 2), of the type of the classifier's weights, float32: autocast is for the encoder.

        Args:
            waveforms: (B, samples) float, 16 kHz mono.
            lengths: (B,) valid samples of each row, None when all rows are full.
        """
        with self._products(waveforms.device.type):
            features, frames = self.backbone(waveforms, lengths)
        dtype = next((parameter.dtype for parameter in self.classifier.parameters()), torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            return self.classifier(features.to(dtype), frames)

    def _products(self, device: str) -> AbstractContextManager:
        """Autocast where the encoder is in half precision and the adaptation's float32 tensors are not made for it."""
        if self.adaptation.casts_inputs or torch.is_autocast_enabled(device):
            return nullcontext()
        dtype = next((p.dtype for p in self.backbone.encoder.parameters() if p.dtype in HALF), None)
        return nullcontext() if dtype is None else torch.autocast(device, dtype)

    def train(self, mode: bool = True) -> "Detector":
        """Training mode for what is trained. A frozen encoder stays in evaluation mode, so that its own dropout, layer
        drop, masking and batch statistics are off, unless the backbone was asked for them."""
        super().train(mode)
        if self.backbone.stochastic:
            return self
        self.backbone.encoder.eval()
        self.ownership.train(self.adaptation, mode)
        return self

    def parameters_by_part(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by part: those of the adaptation (``experts`` and ``gates`` of a mixture of LoRAs),
        ``classifier`` (with the backbone's layer weights) and ``backbone`` (what of the encoder is trained as a
        whole)."""
        parts = self.ownership.trained(self.adaptation)
        backbone = parts.pop("backbone")
        others = [p for name, p in self.named_parameters() if p.requires_grad and not name.startswith(ENCODER)]
        return parts | {"classifier": others, "backbone": backbone}

    def parameter_counts(self) -> dict[str, int]:
        """Number of all parameters (``total``), and of the trainable ones of each part."""
        trained = {part: sum(p.numel() for p in members) for part, members in self.parameters_by_part().items()}
        return trained | {"total": sum(p.numel() for p in self.parameters())}

    def kept_names(self) -> set[str]:
        """Names of ``state_dict()`` that a checkpoint must hold: all but the encoder's own frozen tensors, and these if
        they are nowhere else (`Backbone.is_elsewhere`)."""
        if not self.backbone.is_elsewhere:
            return set(self.state_dict())
        kept = self.ownership.kept_names(self.adaptation, all_in_training=self.backbone.stochastic)
        not_kept = {name for name, _ in self.backbone.encoder.named_parameters()} - kept
        if not_kept == set(self.backbone.never_called):  # an encoder that is trained whole is kept whole
            kept |= not_kept
        others = {name for name in self.state_dict() if not name.startswith(ENCODER)}
        return others | {f"{ENCODER}{name}" for name in kept}

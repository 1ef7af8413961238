"""The detector: backbone, adaptation and classifier as one module."""

import inspect
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from moelora_ad.adapters import AdaptationMethod, FrozenBackbone, Ownership
from moelora_ad.errors import InputError
from moelora_ad.files import UNFINISHED
from moelora_ad.models.backbones.base import Backbone
from moelora_ad.models.heads.pooling import Classifier
from moelora_ad.models.saving.model_folder import KeptModule, samples_of
from moelora_ad.models.saving.public.contents import PublicModel

ENCODER = "backbone.encoder."
HALF = (torch.bfloat16, torch.float16)


class Detector(KeptModule):
    """A detector: from waveforms to two logits, index 0 spoof, index 1 bona fide.

    Args:
        backbone: the pretrained speech encoder.
        adaptation: what of the encoder is trained; changes ``backbone.encoder`` in place.
        classifier: makes the classifier for a frame width, for example the class ``AASIST``.

    Attributes:
        ownership: what in ``backbone.encoder`` belongs to the adaptation.
        sites: dotted paths inside ``backbone.encoder`` of the modules that replaced others in the adaptation.

    Raises:
        AdapterError: the adaptation does not fit the encoder.
        InputError: the backbone or the classifier cannot be called as it must be.
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
        for parameter in frozen:  # whatever the adaptation did to it
            parameter.requires_grad_(False)
        backbone.after_adaptation()
        self.classifier = classifier(backbone.width)
        _check_takes(backbone.encode, "waveforms", "lengths")
        _check_takes(self.classifier.forward, "features", "lengths")
        self._classifier_is_frozen = False
        self.train(self.training)
        self.frozen_at_first = samples_of(self.frozen_tensors())

    @classmethod
    def from_public(
        cls,
        source: str | Path,
        to: str | Path | None = None,
        *,
        bona_fide: str | None = None,
        normalize: bool | None = None,
        attention_heads: int | None = None,
        window: int | None = None,
        revision: str | None = None,
    ) -> "Detector":
        """Load a detector that others have published, in evaluation mode. Nothing in its files is executed.

        Args:
            source: a file, a folder or a hub id of a layout that `read_public` knows.
            to: folder to save it in as a model of this package, with its encoder; None not to save it.
            bona_fide: which of a classifier's two labels is bona fide, where their names leave it open.
            normalize: whether waveforms get zero mean and unit variance, where that is not known.
            attention_heads: their number, for an encoder that has none of the published sizes.
            window: samples of the clips that the detector scores; None for those of its publisher's evaluation.
            revision: commit, tag or branch of a hub repository.

        Raises:
            InputError: a file is missing, damaged or of another layout, or has only an encoder.
        """
        from moelora_ad.models.saving.public.importing import read_public  # rarely needed

        public = read_public(
            source, revision=revision, bona_fide=bona_fide, normalize=normalize, attention_heads=attention_heads
        )
        if public.classifier is None:
            raise InputError(
                f"{source} is an encoder without a classifier: moelora-ad import {source} --to FOLDER makes a "
                "backbone's folder of it, for model.backbone.init_args.source"
            )
        return cls.of_public_model(public, to, window)

    @classmethod
    def of_public_model(
        cls, public: PublicModel, to: str | Path | None = None, window: int | None = None
    ) -> "Detector":
        """Build the detector of a published checkpoint that was read; see `from_public`.

        Args:
            public: content of the checkpoint, with a classifier.
            to: folder to save the detector in; None not to save it.
            window: samples of the clips that the detector scores; None for ``public.window``.

        Raises:
            InputError: its weights are not finite, or the window is too short or too long.
            OSError: a file cannot be written.
        """
        assert public.classifier is not None
        classifier = public.classifier
        with ExitStack() as stack:
            parent = None if to is None else Path(to).absolute().parent
            if parent is not None:
                parent.mkdir(parents=True, exist_ok=True)
            folder = Path(stack.enter_context(TemporaryDirectory(prefix=UNFINISHED, dir=parent)))
            detector = cls(public.backbone(folder), FrozenBackbone(), lambda width: classifier)
            detector.window = public.window if window is None else window
            detector.about = {"data": {"published as": public.layout, "training": "see its publisher"}}
            if to is None:
                weakref.finalize(detector, stack.pop_all().close)
                return detector.eval()
            detector.save_pretrained(to, with_backbone=True)
        return cls.from_pretrained(to)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits (B, 2) of the type of the classifier's weights, float32: autocast is for the encoder only.

        Args:
            waveforms: (B, samples) float, 16 kHz mono.
            lengths: (B,) valid samples of each row, None when all rows are full.

        Raises:
            InputError: the classifier returns something else than a tensor.
        """
        with self._products(waveforms.device.type):
            features, frames = self.backbone(waveforms, lengths)
        dtype = next((parameter.dtype for parameter in self.classifier.parameters()), torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            logits = self.classifier(features.to(dtype), frames)
        if not isinstance(logits, Tensor):
            raise InputError(
                f"{type(self.classifier).__name__}.forward returns a {type(logits).__name__}, not logits (batch, 2)"
            )
        return logits

    def _products(self, device: str) -> AbstractContextManager:
        """Autocast where the encoder is in half precision and the adaptation's float32 tensors are not made for it."""
        if self.adaptation.casts_inputs or torch.is_autocast_enabled(device):
            return nullcontext()
        dtype = next((p.dtype for p in self.backbone.encoder.parameters() if p.dtype in HALF), None)
        return nullcontext() if dtype is None else torch.autocast(device, dtype)

    def train(self, mode: bool = True) -> "Detector":
        """Set training mode for what is trained. A frozen encoder stays in evaluation mode, so that its own dropout,
        layer drop, masking and batch statistics are off, unless the backbone requests them."""
        super().train(mode)
        if self._classifier_is_frozen:
            self.classifier.eval()
        if self.backbone.stochastic:
            return self
        self.backbone.encoder.eval()
        self.ownership.train(self.adaptation, mode)
        return self

    def freeze_classifier(self) -> None:
        """Train the adaptation alone: the classifier, in evaluation mode from now on, and the backbone's layer weights
        stay as they are."""
        self._classifier_is_frozen = True
        for parameter in self._beside_the_encoder().values():
            parameter.requires_grad_(False)
        self.train(self.training)

    def continued_names(self) -> set[str]:
        """Names of the parameters that an earlier training must have made: those that the adaptation continues, and a
        frozen classifier's."""
        ids = {id(parameter) for parameter in self.adaptation.continued(self.backbone.encoder)}
        names = {name for name, parameter in self.named_parameters() if id(parameter) in ids}
        return names | (self._beside_the_encoder().keys() if self._classifier_is_frozen else set())

    def _beside_the_encoder(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if not name.startswith(ENCODER)}

    def parameters_by_part(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by part: those of the adaptation (``experts`` and ``gates`` of a mixture of LoRAs),
        ``classifier`` (with the backbone's layer weights) and ``backbone`` (what of the encoder is trained as a
        whole)."""
        parts = self.ownership.trained(self.adaptation)
        backbone = parts.pop("backbone")
        others = [parameter for parameter in self._beside_the_encoder().values() if parameter.requires_grad]
        return parts | {"classifier": others, "backbone": backbone}

    def parameter_counts(self) -> dict[str, int]:
        """Number of all parameters (``total``), and of the trainable ones of each part."""
        trained = {part: sum(p.numel() for p in members) for part, members in self.parameters_by_part().items()}
        return trained | {"total": sum(p.numel() for p in self.parameters())}

    def kept_names(self) -> set[str]:
        """Names of ``state_dict()`` that a checkpoint must hold: all but the encoder's own frozen tensors, and these
        too if they cannot be loaded from elsewhere (`Backbone.is_elsewhere`)."""
        if not self.backbone.is_elsewhere:
            return set(self.state_dict())
        kept = self.ownership.kept_names(self.adaptation, all_in_training=self.backbone.stochastic)
        not_kept = {name for name, _ in self.backbone.encoder.named_parameters()} - kept
        if not_kept == set(self.backbone.never_called):  # an encoder that is trained as a whole is saved as a whole
            kept |= not_kept
        others = {name for name in self.state_dict() if not name.startswith(ENCODER)}
        return others | {f"{ENCODER}{name}" for name in kept}


def _check_takes(method: Callable[..., object], *names: str) -> None:
    """Check that a method can be called with so many arguments.

    Raises:
        InputError: it cannot.
    """
    signature = inspect.signature(method)
    try:
        signature.bind(*names)
    except TypeError:
        name = getattr(method, "__qualname__", str(method))
        raise InputError(f"{name} takes {signature}, and is called with ({', '.join(names)})") from None

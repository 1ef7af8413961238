"""Loading detectors from a folder or a repository of the Hugging Face hub; nothing in their files is executed."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from moelora_ad.adapters import AdaptationMethod, Ownership
from moelora_ad.audio import TRAINING_SAMPLES
from moelora_ad.errors import InputError, counted
from moelora_ad.models.backbones.base import Backbone
from moelora_ad.models.backbones.pretrained import is_hub_id
from moelora_ad.models.devices import on_device
from moelora_ad.models.dry_build import MOST_OF_ENCODER, dry_build, most_for
from moelora_ad.models.heads.pooling import Classifier
from moelora_ad.models.saving.files import (
    CONFIG,
    ENCODER_FOLDER,
    WEIGHTS,
    check_finite,
    check_hash,
    downloaded,
    read_config,
    read_tensors,
    short,
    tensors_hash,
)
from moelora_ad.models.saving.packaged import found_model
from moelora_ad.models.saving.packing import check_encoder_files
from moelora_ad.models.saving.specification import maker, resolve, without_source

Loaded = TypeVar("Loaded", bound="LoadedModule")
_ENCODER = "backbone.encoder."


class LoadedModule(nn.Module):
    """The base of a detector that can be loaded.

    Attributes:
        adaptation: the method that changed the encoder.
        ownership: what in ``backbone.encoder`` belongs to the adaptation.
        sites: dotted paths of the adapted projections inside ``backbone.encoder``.
        window: samples (16 kHz) of the clips that the detector was evaluated on.
        fill: samples that a shorter clip is repeated to fill, at most ``window``; None for a whole window. A clip
            between the two goes through the detector as it is.
        precision: the precision that the detector was evaluated in, by Lightning's name; None if it is not known.
        calibration: what makes its scores log-likelihood ratios, as ``evaluation.Calibration.as_dict`` gives it; None
            for log-odds as they are.
        about: statements for the model card, see `model_card`; None for none.
        configuration: that of the run or the model that the detector was loaded from; None if it was not loaded.
        encoder_named: the encoder's ``source`` and ``revision`` as named by the model that the detector was loaded
            from, wherever the encoder's files were; None if it was not loaded from a model.
    """

    backbone: Backbone
    adaptation: AdaptationMethod
    ownership: Ownership
    classifier: Classifier
    sites: tuple[str, ...]
    window: int = TRAINING_SAMPLES
    fill: int | None = None
    precision: str | None = None
    calibration: dict[str, Any] | None = None
    about: dict[str, Any] | None = None
    configuration: Mapping[str, Any] | None = None
    encoder_named: Mapping[str, Any] | None = None

    def kept_names(self) -> set[str]:
        """Names of ``state_dict()`` that must be saved."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls: type[Loaded],
        source: str | Path,
        *,
        revision: str | None = None,
        backbone: str | Path | None = None,
        device: str | torch.device | None = None,
        allow: Collection[str] = (),
    ) -> Loaded:
        """Load a saved detector, in evaluation mode.

        Nothing in the files is executed; an untrusted file can build classes of this package only.

        Args:
            source: a folder that `save_pretrained` wrote, the name of a packaged model (see `found_model`), or the id
                of a repository on the hub.
            revision: commit, tag or branch of that repository.
            backbone: folder or hub id of the frozen encoder, if it is not where the detector was saved with it. Its
                tensors must be the same.
            device: where to put it; None for the CPU.
            allow: packages besides this one whose classes the detector may be built of.

        Raises:
            InputError: a file is missing, damaged or of a newer format; the encoder is missing or another one; a class
                is not trusted.
        """
        folder = folder_of(source, revision)
        config = read_config(folder)
        tensors = read_tensors(folder / WEIGHTS)
        detector = cls._built(folder, config, tensors, backbone, allow)
        detector._load(folder, config, tensors)
        detector.window, detector.fill = config["window"], config["fill"]
        detector.precision = config["precision"]
        detector.calibration = config["calibration"]
        detector.about = config["about"]
        detector.configuration = config
        arguments = config["backbone"]["init_args"]
        detector.encoder_named = {name: arguments[name] for name in ("source", "revision") if name in arguments}
        return on_device(detector, device).eval()

    def frozen_tensors(self) -> dict[str, Tensor]:
        """The encoder's tensors that are not saved, by the names that they have in the pretrained encoder."""
        kept = {name.removeprefix(_ENCODER) for name in self.kept_names() if name.startswith(_ENCODER)}
        return self.ownership.frozen(kept)

    def frozen_hash(self) -> str | None:
        """SHA-256 over `frozen_tensors`: name, type, shape and values of each, by name. None if all are saved."""
        frozen = self.frozen_tensors()
        return tensors_hash(frozen) if frozen else None

    @classmethod
    def _built(
        cls: type[Loaded],
        folder: Path,
        config: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        backbone: str | Path | None,
        allow: Collection[str],
    ) -> Loaded:
        """Build the described detector, once a build without memory has shown that the saved tensors fit it."""
        path = folder / CONFIG
        described, digest = config["backbone"], config["backbone_sha256"]
        try:
            make_adaptation = maker(config["adaptation"], AdaptationMethod, allow)
            make_classifier = maker(config["classifier"], Classifier, allow, given=1)
            make_backbone = maker(described, Backbone, allow)
            if backbone is not None and described["init_args"].get("source") is None:
                raise InputError(f"a {described['class_path']} is built from no source: backbone= has no effect")
            place = backbone
            if backbone is None and config["backbone_files"]:
                place = folder / ENCODER_FOLDER
            changes: dict[str, Any] = {} if place is None else {"source": str(place), "revision": None}
            changes = {name: value for name, value in changes.items() if name in described["init_args"]}
            if digest is None:  # every weight is in the detector's own file
                changes |= without_source(resolve(described, Backbone, allow))
            elif place is None:
                check_named(described["init_args"], digest)
        except InputError as error:
            raise InputError.at(path, str(error)) from None
        if place is not backbone:
            check_encoder_files(folder, config["backbone_files"])

        def encoder() -> Backbone:
            try:
                return make_backbone(**changes)
            except (ValueError, TypeError, RuntimeError, AttributeError, ArithmeticError) as error:
                reason = " ".join(str(error).split())
                raise InputError(
                    f"{path}: its frozen encoder (SHA-256 {short(digest)}) cannot be loaded: {reason}; if you have it "
                    "elsewhere, give the folder or hub id with backbone= (--backbone)"
                ) from None

        def detector(encoder: Backbone) -> Loaded:
            try:
                return cls(encoder, make_adaptation(), make_classifier)
            except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
                raise InputError.at(path, " ".join(str(error).split())) from None

        with dry_build(MOST_OF_ENCODER):
            dry_encoder = encoder()
        with dry_build(most_for(tensors)):
            dry = detector(dry_encoder)
        dry._check_tensors(folder, config, tensors)
        return detector(encoder())

    def _check_tensors(self, folder: Path, config: Mapping[str, Any], given: Mapping[str, Tensor]) -> None:
        """Check that the saved tensors fit this detector, whose own tensors may be on the meta device."""
        path = folder / WEIGHTS
        if list(self.sites) != config["sites"]:
            raise InputError.at(
                folder / CONFIG,
                f"adapted {counted(len(config['sites']), 'projection')}, here there are {len(self.sites)}",
            )
        own = self.state_dict()
        kept = set(own) if config["backbone_sha256"] is None else self.kept_names()
        for names, what in ((kept - given.keys(), "lacks"), (given.keys() - kept, "has besides the model's own")):
            if names:
                raise InputError.at(path, f"{what} {counted(len(names), 'tensor')}, first {min(names)}")
        for name, tensor in given.items():
            if (tensor.shape, tensor.dtype) != (own[name].shape, own[name].dtype):
                raise InputError.at(
                    path,
                    f"{name} is {tensor.dtype} {tuple(tensor.shape)}, "
                    f"the model has {own[name].dtype} {tuple(own[name].shape)}",
                )

    def _load(self, folder: Path, config: Mapping[str, Any], given: Mapping[str, Tensor]) -> None:
        """Load the saved tensors, and check that the encoder is the one that they were trained on."""
        check_weights(folder, config, given)
        wanted, found = config["backbone_sha256"], self.frozen_hash()
        if wanted is not None and found != wanted:
            raise InputError.at(
                folder / CONFIG,
                f"the encoder at {self.backbone.init_args.get('source')} is not the one that the detector was trained "
                f"on: SHA-256 of its tensors is {short(found)}, not {short(wanted)}; give the right one with "
                "backbone= (--backbone)",
            )
        self.load_state_dict(given, strict=False)


def folder_of(source: str | Path, revision: str | None = None) -> Path:
    """The folder of a saved detector: a path as given, that of a packaged one, or that of the local hub cache.

    Raises:
        InputError: there is none, or a revision of a local folder is requested.
    """
    folder = Path(found_model(source))
    if not folder.is_dir():
        return downloaded(str(source), revision)
    if revision is not None:
        raise InputError(f"model {source} is a folder: revision {revision!r} is for the hub")
    return folder


def check_weights(folder: Path, config: Mapping[str, Any], given: Mapping[str, Tensor]) -> None:
    """Check that the saved tensors of a folder are finite, and match their recorded hash.

    Raises:
        InputError: they are not finite, or the file is another one.
    """
    path = folder / WEIGHTS
    check_finite(without_silence(given), str(path))
    check_hash(path, config["weights_sha256"])


def without_silence(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with 0 for the logit offsets of silenced experts, -inf: the only number that may be infinite."""
    return {
        name: tensor.masked_fill(tensor == -torch.inf, 0.0) if name.endswith(".logit_offset") else tensor
        for name, tensor in tensors.items()
    }


def check_named(arguments: Mapping[str, Any], digest: str) -> None:
    """Check that an encoder that a model names is on the hub or on this machine: the name of a folder elsewhere is
    not looked up on the network, where it may belong to something else.

    Args:
        arguments: the backbone's ``init_args`` in the model's ``config.json``.
        digest: the SHA-256 of the encoder's tensors.

    Raises:
        InputError: it is on neither.
    """
    source = arguments.get("source")
    if isinstance(source, str) and "revision" in arguments and not is_hub_id(source) and not Path(source).exists():
        raise InputError(
            f"its frozen encoder, the folder {source} (SHA-256 {short(digest)}), is not part of the model and not on "
            "this machine: give its place with --backbone FOLDER (in Python backbone=)"
        )

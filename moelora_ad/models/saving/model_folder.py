"""Detectors to keep: a folder, or a repository of the Hugging Face hub, that is small and executes nothing.

- ``config.json``: the classes and arguments of the three parts, the window, the precision, the calibration, and the
  frozen encoder by its source and the SHA-256 of its tensors;
- ``model.safetensors``: what a detector has beyond that encoder (`Detector.kept_names`);
- ``README.md``: the model card.
"""

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import HfApi
from torch import Tensor, nn

from moelora_ad import __version__
from moelora_ad.adapters import AdaptationMethod, AdapterError, Ownership
from moelora_ad.audio import SAMPLE_RATE, TRAINING_SAMPLES
from moelora_ad.errors import InputError
from moelora_ad.files import file_hash, written_whole
from moelora_ad.models.backbones.base import Backbone
from moelora_ad.models.backbones.pretrained import commit_of
from moelora_ad.models.devices import on_device
from moelora_ad.models.dry_build import MOST_OF_ENCODER, dry_build, most_for
from moelora_ad.models.heads.pooling import Classifier
from moelora_ad.models.saving.card import model_card
from moelora_ad.models.saving.files import (
    CARD,
    CONFIG,
    FORMAT,
    LABELS,
    WEIGHTS,
    check_finite,
    downloaded,
    is_window,
    read_config,
    read_tensors,
    save_tensors,
    short,
    tensors_hash,
    write_config,
)
from moelora_ad.models.saving.specification import describe, first_argument, maker, resolve, without_source

Kept = TypeVar("Kept", bound="KeptModule")
_ENCODER = "backbone.encoder."


class KeptModule(nn.Module):
    """What a detector needs to be saved and loaded.

    Attributes:
        adaptation: the method that changed the encoder.
        ownership: what in ``backbone.encoder`` is the adaptation's.
        sites: dotted paths of the adapted projections inside ``backbone.encoder``.
        window: samples (16 kHz) of the clips that the detector was evaluated on.
        precision: that the detector was evaluated in, by Lightning's name; None if that is not known.
        calibration: what makes its scores log-likelihood ratios, as ``evaluation.Calibration.as_dict`` gives it; None
            for log-odds as they are.
        about: for the model card, see `model_card`; None for nothing.
        configuration: that of the run or the model that it was loaded from; None for one that is not loaded.
    """

    backbone: Backbone
    adaptation: AdaptationMethod
    ownership: Ownership
    classifier: Classifier
    sites: tuple[str, ...]
    window: int = TRAINING_SAMPLES
    precision: str | None = None
    calibration: dict[str, Any] | None = None
    about: dict[str, Any] | None = None
    configuration: Mapping[str, Any] | None = None

    def kept_names(self) -> set[str]:
        """Names of ``state_dict()`` that must be kept."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json``, ``model.safetensors`` and ``README.md``; they appear whole, or none of them does.

        Args:
            folder: made if it is not there; files of these names in it are replaced.

        Raises:
            InputError: a part cannot be described, the experts are not those of ``adaptation`` any more, or the
                weights are not finite float32.
            OSError: a file cannot be written.
        """
        folder = Path(folder)
        kept, config = self._weights(), self._config()
        with (
            written_whole(folder / CONFIG) as config_file,
            written_whole(folder / CARD) as card,
            written_whole(folder / WEIGHTS) as weights,
        ):
            weights.touch()
            mode = weights.stat().st_mode
            save_tensors(kept, weights)
            weights.chmod(mode)  # safetensors lets nobody else read its files
            config["weights_sha256"] = file_hash(weights)
            card.write_text(model_card(config), encoding="utf-8")
            write_config(config_file, config)

    @classmethod
    def from_pretrained(
        cls: type[Kept],
        source: str | Path,
        *,
        revision: str | None = None,
        backbone: str | Path | None = None,
        device: str | torch.device | None = None,
        allow: Collection[str] = (),
    ) -> Kept:
        """A saved detector, in evaluation mode.

        Nothing in the files is executed; a file from a stranger can build classes of this package only.

        Args:
            source: a folder that `save_pretrained` wrote, or the id of a repository on the hub.
            revision: commit, tag or branch of that repository.
            backbone: folder or hub id of the frozen encoder, if it is not where the detector was saved with it. Its
                tensors must be the same.
            device: where to put it; None for the CPU.
            allow: packages besides this one whose classes the detector may be built of.

        Raises:
            InputError: a file is missing, damaged or of a newer format; the encoder is missing or another one; a class
                is not trusted.
        """
        folder = Path(source)
        if not folder.is_dir():
            folder = downloaded(str(source), revision)
        elif revision is not None:
            raise InputError(f"model {source} is a folder: revision {revision!r} is for the hub")
        config = read_config(folder)
        tensors = read_tensors(folder / WEIGHTS)
        detector = cls._built(folder, config, tensors, backbone, allow)
        detector._load(folder, config, tensors)
        detector.window = config["window"]
        detector.precision = config["precision"]
        detector.calibration = config["calibration"]
        detector.about = config["about"]
        detector.configuration = config
        return on_device(detector, device).eval()

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        commit_message: str = "Upload a detector",
    ) -> str:
        """Save to a repository of the hub, which is made if it is not there; returns the address of the commit.

        Log in first: ``hf auth login``, or the variable ``HF_TOKEN``.

        Args:
            repo_id: ``owner/name``.
            private: for a repository that is made.
            revision: branch to commit to.
            commit_message: of the commit.

        Raises:
            InputError: see `save_pretrained`.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api = HfApi()
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            return api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message
            ).commit_url

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters: ``total``, and those trained of each part."""
        raise NotImplementedError

    def frozen_hash(self) -> str | None:
        """SHA-256 over the encoder's tensors that are not kept: name (in the pretrained encoder), type, shape and
        values of each, by name. None if all are kept."""
        kept = {name.removeprefix(_ENCODER) for name in self.kept_names() if name.startswith(_ENCODER)}
        frozen = self.ownership.frozen(kept)
        return tensors_hash(frozen) if frozen else None

    def _weights(self) -> dict[str, Tensor]:
        state = self.state_dict()
        for name, tensor in state.items():
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                raise InputError(f"{name} is {tensor.dtype}, not float32: save the detector before you convert it")
        kept = {name: state[name].detach().cpu().contiguous().clone() for name in sorted(self.kept_names())}
        check_finite(_without_silence(kept), "the detector")
        return kept

    def _config(self) -> dict[str, Any]:
        try:
            self.adaptation.check(self.backbone.encoder)
        except AdapterError as error:
            raise InputError(f"{error}: set the detector's adaptation to a method that makes its experts") from None
        if not is_window(self.window):
            raise InputError(f"a detector of clips of {self.window:,} samples cannot be kept: 0.1 s to an hour can")
        backbone = describe(self.backbone)
        given = backbone["init_args"]
        if "revision" in given and (commit := commit_of(given["source"], given["revision"])):
            given["revision"] = commit
        classifier = describe(self.classifier, leave_out=[first_argument(type(self.classifier))])
        return {
            "format": FORMAT,
            "library": f"moelora_ad {__version__}",
            "labels": LABELS,
            "sample_rate": SAMPLE_RATE,
            "window": self.window,
            "precision": self.precision,
            "backbone": backbone,
            "backbone_sha256": self.frozen_hash(),
            "adaptation": describe(self.adaptation, leave_out=self.adaptation.initial_arguments),
            "sites": list(self.sites),
            "classifier": classifier,
            "weights_sha256": "",
            "calibration": self.calibration,
            "parameters": self.parameter_counts(),
            "about": self.about,
        }

    @classmethod
    def _built(
        cls: type[Kept],
        folder: Path,
        config: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        backbone: str | Path | None,
        allow: Collection[str],
    ) -> Kept:
        """The detector that is described, once one without memory has shown that the kept tensors are its own."""
        path = folder / CONFIG
        described, digest = config["backbone"], config["backbone_sha256"]
        try:
            make_adaptation = maker(config["adaptation"], AdaptationMethod, allow)
            make_classifier = maker(config["classifier"], Classifier, allow, given=1)
            make_backbone = maker(described, Backbone, allow)
            changes: dict[str, Any] = {} if backbone is None else {"source": backbone, "revision": None}
            changes = {name: value for name, value in changes.items() if name in described["init_args"]}
            if backbone is not None and "source" not in changes:
                raise InputError(f"a {described['class_path']} is built from no source: backbone= has no use")
            if digest is None:  # every weight is in the detector's own file
                changes |= without_source(resolve(described, Backbone, allow))
        except InputError as error:
            raise InputError.at(path, str(error)) from None

        def encoder() -> Backbone:
            try:
                return make_backbone(**changes)
            except (ValueError, TypeError, RuntimeError, AttributeError, ArithmeticError) as error:
                reason = " ".join(str(error).split())
                raise InputError(
                    f"{path}: its frozen encoder (SHA-256 {short(digest)}) cannot be loaded: {reason}; if you have it "
                    "elsewhere, give the folder or hub id with backbone= (--backbone)"
                ) from None

        def detector(encoder: Backbone) -> Kept:
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
        """See that the kept tensors are those of this detector; its own may be on the meta device."""
        path = folder / WEIGHTS
        if list(self.sites) != config["sites"]:
            raise InputError.at(
                folder / CONFIG, f"adapted {len(config['sites'])} projections, here there are {len(self.sites)}"
            )
        own = self.state_dict()
        kept = set(own) if config["backbone_sha256"] is None else self.kept_names()
        for names, what in ((kept - given.keys(), "lacks"), (given.keys() - kept, "holds besides the model's own")):
            if names:
                raise InputError.at(path, f"{what} {len(names)} tensors, first {min(names)}")
        for name, tensor in given.items():
            if (tensor.shape, tensor.dtype) != (own[name].shape, own[name].dtype):
                raise InputError.at(
                    path,
                    f"{name} is {tensor.dtype} {tuple(tensor.shape)}, "
                    f"the model has {own[name].dtype} {tuple(own[name].shape)}",
                )

    def _load(self, folder: Path, config: Mapping[str, Any], given: Mapping[str, Tensor]) -> None:
        """Load the kept tensors, and check that the encoder is the one that they were trained on."""
        path = folder / WEIGHTS
        check_finite(_without_silence(given), str(path))
        if file_hash(path) != config["weights_sha256"]:
            raise InputError.at(path, f"is not the file that {CONFIG} was written with: save or download it again")
        wanted, found = config["backbone_sha256"], self.frozen_hash()
        if wanted is not None and found != wanted:
            raise InputError.at(
                folder / CONFIG,
                f"the encoder at {self.backbone.init_args.get('source')} is not the one that the detector was trained "
                f"on: SHA-256 of its tensors is {short(found)}, not {short(wanted)}; give the right one with "
                "backbone= (--backbone)",
            )
        self.load_state_dict(given, strict=False)


def _without_silence(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gates silence an expert by a logit offset of -inf: the one number that may be infinite."""
    return {
        name: tensor.masked_fill(tensor == -torch.inf, 0.0) if name.endswith(".gate.logit_offset") else tensor
        for name, tensor in tensors.items()
    }

"""Saved detectors: a folder, or a repository of the Hugging Face hub, that executes nothing and can be moved.

- ``config.json``: the classes and arguments of the three parts, the window, the precision, the calibration, and the
  frozen encoder by its name and the SHA-256 of its tensors;
- ``model.safetensors``: what a detector has beyond that encoder (`Detector.kept_names`);
- ``backbone/``: that encoder, if it is small or was requested (`packing`);
- ``README.md``: the model card.
"""

import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from torch import Tensor

from moelora_ad import __version__
from moelora_ad.adapters import AdapterError
from moelora_ad.audio import SAMPLE_RATE
from moelora_ad.errors import InputError
from moelora_ad.files import file_hash, written_whole
from moelora_ad.models.backbones.pretrained import commit_of, is_hub_id
from moelora_ad.models.saving.card import model_card
from moelora_ad.models.saving.files import (
    CARD,
    CONFIG,
    ENCODER_FOLDER,
    FORMAT,
    LABELS,
    WEIGHTS,
    check_finite,
    is_window,
    save_tensors,
    write_config,
)
from moelora_ad.models.saving.loading import LoadedModule, without_silence
from moelora_ad.models.saving.packing import MOST_WEIGHTS, Writer, encoder_files, remove_other_files
from moelora_ad.models.saving.specification import describe, first_argument, without_source


class KeptModule(LoadedModule):
    """The base of a detector that can be saved and loaded.

    Attributes:
        frozen_at_first: `samples_of` `frozen_tensors` when the detector was built: those of any loaded one.
    """

    frozen_at_first: Mapping[str, Tensor]

    def save_pretrained(self, folder: str | Path, with_backbone: bool | None = None) -> None:
        """Write ``config.json``, ``model.safetensors``, ``README.md`` and the encoder; each file is written atomically,
        ``config.json`` last.

        Args:
            folder: created if missing; a model in it is replaced.
            with_backbone: whether the frozen encoder goes into the folder too; None if it has fewer than
                `packing.MOST_WEIGHTS` weights, or the detector was loaded with it from that folder. Without it, whoever
                loads the detector must have the encoder.

        Raises:
            InputError: a part cannot be described, the experts are no longer those of ``adaptation``, what is frozen
                is no longer what was or has other values, the weights are not finite float32, a requested encoder
                cannot be packed, or one that is not wanted is in the folder alone.
            OSError: a file cannot be written.
        """
        folder = Path(folder)
        files, whole = self._encoder_files(self._packs(folder, with_backbone))
        kept, config = self._weights(whole), self._config(whole)
        with ExitStack() as stack:

            def unfinished(name: str) -> Path:
                return stack.enter_context(written_whole(folder / name))

            config_file, card = unfinished(CONFIG), unfinished(CARD)
            for name, write in files.items():
                config["backbone_files"][name] = _written(unfinished(name), write)
            config["weights_sha256"] = _written(unfinished(WEIGHTS), lambda path: save_tensors(kept, path))
            card.write_text(model_card(config), encoding="utf-8")
            write_config(config_file, config)
        remove_other_files(folder, config["backbone_files"])

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        commit_message: str = "Upload a detector",
        with_backbone: bool | None = None,
    ) -> str:
        """Save to a repository of the hub, which is created if missing; returns the address of the commit.

        Log in first: ``hf auth login``, or the variable ``HF_TOKEN``.

        Args:
            repo_id: ``owner/name``.
            private: whether a repository that is created is private.
            revision: branch to commit to.
            commit_message: message of the commit.
            with_backbone: see `save_pretrained`.

        Raises:
            InputError: see `save_pretrained`.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, with_backbone)
            api = HfApi()
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            return api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message
            ).commit_url

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters: ``total``, and those trained of each part."""
        raise NotImplementedError

    def _packs(self, folder: Path, with_backbone: bool | None) -> bool | None:
        """``with_backbone``, unless the encoder was loaded from the folder, and would be deleted."""
        source, packed = self.backbone.init_args.get("source"), folder / ENCODER_FOLDER
        if source is None or not (os.path.exists(source) and packed.exists() and packed.samefile(source)):
            return with_backbone
        if with_backbone is False and self.frozen_tensors():
            raise InputError(
                f"{packed} may be the only copy of the encoder: to leave it out, save to another folder, or load it "
                "from another place"
            )
        return True

    def _encoder_files(self, with_backbone: bool | None) -> tuple[dict[str, Writer], bool]:
        """Functions that write the encoder's files, and whether its weights go into the detector's own file instead."""
        frozen = sum(tensor.numel() for tensor in self.frozen_tensors().values())
        if not frozen:  # the detector's own file has all weights, but no description of the architecture
            return encoder_files(self.backbone, weights=False) or {}, False
        if not (frozen < MOST_WEIGHTS if with_backbone is None else with_backbone):
            return {}, False
        architecture = encoder_files(self.backbone, weights=False)
        mostly_kept = 2 * frozen < sum(tensor.numel() for tensor in self.ownership.encoder_tensors())
        if without_source(type(self.backbone)) and (architecture is None or mostly_kept):
            return architecture or {}, True
        files = None if architecture is None else encoder_files(self.backbone, weights=True)
        if files is None and with_backbone:
            source, name = self.backbone.init_args.get("source"), type(self.backbone).__name__
            raise InputError(
                f"the backbone cannot be packed: {source} is not a folder with config.json, and {name} is not built "
                "without a source (let it be None by default, or add an argument pretrained)"
            )
        return files or {}, False

    def _weights(self, whole: bool) -> dict[str, Tensor]:
        state = self.state_dict()
        for name, tensor in state.items():
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                raise InputError(f"{name} is {tensor.dtype}, not float32: save the detector before you convert it")
        names = sorted(state) if whole else sorted(self.kept_names())
        kept = {name: state[name].detach().cpu().contiguous().clone() for name in names}
        check_finite(without_silence(kept), "the detector")
        return kept

    def _config(self, whole: bool) -> dict[str, Any]:
        try:
            self.adaptation.check(self.backbone.encoder)
        except AdapterError as error:
            raise InputError(f"{error}: set the detector's adaptation to a method that makes its experts") from None
        frozen, first = samples_of(self.frozen_tensors()), self.frozen_at_first
        if changed := first.keys() ^ frozen.keys():
            name = min(changed)
            raise InputError(
                f"the encoder's {name} was {'frozen' if name in first else 'trained'} when the detector "
                "was built, and is no longer: set its requires_grad back, or let the adaptation change it"
            )
        for name, values in frozen.items():
            if not whole and not first[name].is_meta and not torch.equal(first[name], values.to(first[name].device)):
                raise InputError(
                    f"the encoder's frozen {name} has other values than when the detector was built: they are not "
                    "saved; build a detector on an encoder that has them"
                )
        if not is_window(self.window):
            raise InputError(f"a detector of clips of {self.window:,} samples cannot be saved: give 0.1 s to an hour")
        return {
            "format": FORMAT,
            "library": f"moelora_ad {__version__}",
            "labels": LABELS,
            "sample_rate": SAMPLE_RATE,
            "window": self.window,
            "fill": self.fill,
            "precision": self.precision,
            "backbone": self._described_backbone(whole),
            "backbone_sha256": None if whole else self.frozen_hash(),
            "backbone_files": {},
            "adaptation": describe(self.adaptation, leave_out=self.adaptation.initial_arguments),
            "sites": list(self.sites),
            "classifier": describe(self.classifier, leave_out=[first_argument(type(self.classifier))]),
            "weights_sha256": "",
            "calibration": self.calibration,
            "parameters": self.parameter_counts(),
            "about": self.about,
        }

    def _described_backbone(self, whole: bool) -> dict[str, Any]:
        """The backbone's class and arguments; a hub id is pinned to its commit, and of a folder on this machine only
        the name is recorded."""
        described = describe(self.backbone)
        given = described["init_args"]
        source = given.get("source")
        if self.encoder_named is not None:
            given |= self.encoder_named
        elif source is not None and is_hub_id(source):
            if "revision" in given and (commit := commit_of(source, given["revision"])):
                given["revision"] = commit
        elif source is not None:
            given["source"] = os.path.basename(os.path.abspath(source))
            if "revision" in given:
                given["revision"] = None
        if whole:
            given |= without_source(type(self.backbone))
        return described


def samples_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A hundred or so values of each tensor, (n,): to see quickly that tensors were changed."""
    return {name: one.detach().reshape(-1)[:: max(1, one.numel() // 100)].clone() for name, one in tensors.items()}


def _written(path: Path, write: Writer) -> str:
    """Write a file that others can read; returns its SHA-256."""
    path.touch()
    mode = path.stat().st_mode
    write(path)
    path.chmod(mode)  # safetensors makes its files private
    return file_hash(path)

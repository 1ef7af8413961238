"""The content of a published checkpoint."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.feature_extraction_utils import FeatureExtractionMixin

from moelora_ad.files import UNFINISHED
from moelora_ad.models.backbones.base import Backbone
from moelora_ad.models.heads.pooling import Classifier
from moelora_ad.models.saving.files import WEIGHTS, save_tensors


@dataclass(frozen=True)
class Encoder:
    """An encoder that can be written to a folder, for a backbone's ``source``.

    Attributes:
        model: its class in transformers.
        config: configuration of that class.
        tensors: its tensors by transformers' names.
        extractor: transformers' feature extractor for its waveforms.
    """

    model: type[PreTrainedModel]
    config: PreTrainedConfig
    tensors: Mapping[str, Tensor]
    extractor: FeatureExtractionMixin

    def write(self, folder: Path) -> None:
        """Write ``config.json``, ``preprocessor_config.json`` and ``model.safetensors``.

        Args:
            folder: created if missing.

        Raises:
            OSError: a file cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.config.architectures = [self.model.__name__]
        self.config.save_pretrained(folder)
        self.extractor.save_pretrained(folder)
        save_tensors(self.tensors, folder / WEIGHTS)

    def write_whole(self, folder: Path) -> None:
        """Write the same files so that the folder appears with all of them or not at all.

        Args:
            folder: new or empty.

        Raises:
            OSError: a file cannot be written.
        """
        parent = folder.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=UNFINISHED, dir=parent) as unfinished:
            self.write(Path(unfinished) / folder.name)
            os.replace(Path(unfinished) / folder.name, folder)


@dataclass(frozen=True)
class PublicModel:
    """Content of a published checkpoint: a detector, or an encoder alone.

    Attributes:
        layout: the publisher's layout, in words.
        encoder: the pretrained encoder; None if the detector has none.
        classifier: with its weights; None for an encoder alone.
        build: makes the detector's backbone from the encoder's folder.
        window: samples of the clips that the detector was made for.
    """

    layout: str
    encoder: Encoder | None
    classifier: Classifier | None = None
    build: Callable[[Path], Backbone] | None = None
    window: int = 0

    def backbone(self, folder: Path) -> Backbone:
        """Build the detector's backbone.

        Args:
            folder: an empty folder for the encoder's files, from which the backbone is built.

        Raises:
            OSError: a file cannot be written.
        """
        assert self.build is not None
        if self.encoder is not None:
            self.encoder.write(folder)
        return self.build(folder)

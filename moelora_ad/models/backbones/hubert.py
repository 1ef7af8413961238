"""HuBERT encoders."""

from pathlib import Path
from typing import ClassVar

from transformers import HubertConfig, HubertModel

from moelora_ad.models.backbones.base import HiddenStates
from moelora_ad.models.backbones.waveform import LARGE, Normalization, WaveformBackbone

HUBERT_LARGE = "facebook/hubert-large-ll60k"


class HubertBackbone(WaveformBackbone):
    """A HuBERT encoder (Hsu et al., arXiv 2106.07447), 50 frames a second.

    Args:
        source: hub id, or a folder with ``config.json`` and ``model.safetensors``.
        revision: commit, tag or branch of the hub repository; pin it for reproducible runs.
        pretrained: False builds the architecture with random weights from the configuration alone.
        hidden_states: "last"; the number of a transformer layer, 1 to the last, without final normalisation;
            "weighted", a learned softmax-weighted sum over the input of the first layer and all layers; "all",
            these side by side; or a list of some of these by number, 0 for the input of the first layer.
        normalize: zero mean and unit variance for each utterance, as transformers makes it (true) or as "fairseq" does,
            which leaves very quiet ones quieter; None follows the checkpoint's preprocessor.
        dropout: dropout of the encoder (hidden, attention, activation, projection) while it trains; off by default.
        layer_drop: probability of skipping a layer in training; likewise off.
        spec_augment: time masking of the encoder's input in training; likewise off.

    Raises:
        InputError: the checkpoint cannot be found or does not fit.
    """

    encoder: HubertModel
    model_class = HubertModel
    config_class = HubertConfig
    published: ClassVar = {HUBERT_LARGE: {**LARGE, "conv_bias": True}}

    def __init__(
        self,
        source: str | Path = HUBERT_LARGE,
        revision: str | None = None,
        pretrained: bool = True,
        hidden_states: HiddenStates = "last",
        normalize: Normalization | None = None,
        dropout: float = 0.0,
        layer_drop: float = 0.0,
        spec_augment: bool = False,
    ) -> None:
        super().__init__(source, revision, pretrained, hidden_states, normalize, dropout, layer_drop, spec_augment)

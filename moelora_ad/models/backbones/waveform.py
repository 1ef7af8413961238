"""What Wav2Vec 2.0, HuBERT and WavLM have in common: a convolutional front end on the waveform, then a transformer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, Wav2Vec2FeatureExtractor

from moelora_ad.errors import InputError
from moelora_ad.models.backbones.base import Backbone, HiddenStates
from moelora_ad.models.backbones.pretrained import (
    check_json,
    check_rate,
    has_file,
    is_meta,
    load_config,
    load_encoder,
    random_encoder,
    settings,
    unused_mask,
)
from moelora_ad.models.transformers_internals import freeze_front_end

# What the published large models have in common, so that they can be built without their weights and without a network.
LARGE: Mapping[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}


Normalization = bool | Literal["fairseq"]
"""Whether each utterance gets zero mean and unit variance, as transformers or as fairseq makes it."""
_EPSILON: Mapping[Any, float] = {True: 1e-7, "fairseq": 1e-5}


class WaveformBackbone(Backbone):
    """An encoder like Wav2Vec 2.0, 50 frames a second; a subclass names its classes in transformers.

    A padded batch gives what its clips give alone, if the first convolution has layer normalisation; models with group
    normalisation there (the "base" sizes) depend on the padding, because its statistics include it. The convolutional
    adapter that some fine-tuned checkpoints put behind the layers is left out.

    Attributes:
        model_class: the encoder's class.
        config_class: the class of its configuration.
        published: configurations of some models by their hub ids; the preprocessors of all of them normalise.
    """

    encoder: PreTrainedModel
    model_class: ClassVar[type[PreTrainedModel]]
    config_class: ClassVar[type[PreTrainedConfig]]
    published: ClassVar[Mapping[str, Mapping[str, Any]]]

    def __init__(
        self,
        source: str | Path,
        revision: str | None,
        pretrained: bool,
        hidden_states: HiddenStates,
        normalize: Normalization | None,
        dropout: float,
        layer_drop: float,
        spec_augment: bool,
    ) -> None:
        pretrained = pretrained and not is_meta()
        if not pretrained and str(source) in self.published:
            config = self.config_class(**self.published[str(source)])
        else:
            config = load_config(source, revision, self.config_class.model_type)
        settings(
            config,
            hidden_dropout=dropout,
            attention_dropout=dropout,
            activation_dropout=dropout,
            feat_proj_dropout=dropout,
            layerdrop=layer_drop,
            apply_spec_augment=spec_augment,
        )
        if getattr(config, "add_adapter", False):
            config.add_adapter = False  # convolutions behind the layers would change the number of frames
        if pretrained:
            encoder = load_encoder(self.model_class, config, source, revision, may_miss=["masked_spec_embed"])
        else:
            encoder = random_encoder(self.model_class, config, source)
        super().__init__(encoder, config.hidden_size, hidden_states, unused_mask(encoder, spec_augment))
        if hidden_states != "last" and config.do_stable_layer_norm:  # else the norm is before the layers
            self.encoder.encoder.layer_norm = nn.Identity()  # it belongs to the last hidden state alone
        self.normalize: Normalization = (
            self._checkpoint_normalizes(source, revision) if normalize is None else normalize
        )
        if "normalize" in self.init_args:  # a saved model may meet the same weights beside another preprocessor
            self.init_args["normalize"] = self.normalize
        self.stochastic = dropout > 0 or layer_drop > 0 or spec_augment
        # Models with group normalisation in the first convolution were trained without attention masks.
        self.uses_mask = config.feat_extract_norm == "layer"

    def layers(self) -> nn.ModuleList:
        return self.encoder.encoder.layers

    def front_end_module(self) -> nn.Module:
        return self.encoder.feature_extractor

    def after_adaptation(self) -> None:
        super().after_adaptation()
        front_end = self.front_end_module()
        if not any(parameter.requires_grad for parameter in front_end.parameters()):
            freeze_front_end(front_end)  # no back-propagation through the CNN

    def frames(self, lengths: Tensor) -> Tensor:
        for kernel, stride in zip(self.encoder.config.conv_kernel, self.encoder.config.conv_stride, strict=True):
            lengths = (lengths - kernel) // stride + 1
        return lengths

    def encode(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        mask = None
        if lengths is not None:
            mask = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths.unsqueeze(1)
        if self.normalize:
            waveforms = _normalize(waveforms, mask, _EPSILON[self.normalize])
        heard = mask.long() if mask is not None and self.uses_mask else None
        return self.encoder(waveforms, attention_mask=heard).last_hidden_state

    def _checkpoint_normalizes(self, source: str | Path, revision: str | None) -> bool:
        if str(source) in self.published:
            return True
        if Path(source).is_dir() and not has_file(source, "preprocessor_config.json"):
            raise InputError(f"backbone {source} has no preprocessor_config.json: set normalize to true or false")
        try:
            check_json(source, revision, "preprocessor_config.json")
            extractor = Wav2Vec2FeatureExtractor.from_pretrained(source, revision=revision)
        except Exception:  # a faulty file makes transformers fail in many ways
            raise InputError(
                f"backbone {source} has no readable preprocessor: set normalize to true or false"
            ) from None
        check_rate(extractor, f"backbone {source}")
        return bool(extractor.do_normalize)


def _normalize(waveforms: Tensor, mask: Tensor | None, epsilon: float) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) over the valid samples of each row, with zeros as padding."""
    if mask is None:
        variance, mean = torch.var_mean(waveforms, dim=1, keepdim=True, correction=0)
        return (waveforms - mean) / (variance + epsilon).sqrt()
    count = mask.sum(dim=1, keepdim=True)
    mean = (waveforms * mask).sum(dim=1, keepdim=True) / count
    centred = (waveforms - mean) * mask
    return centred / (centred.square().sum(dim=1, keepdim=True) / count + epsilon).sqrt()

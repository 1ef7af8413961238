"""Wav2Vec 2.0 encoders: XLSR-53, XLS-R and every other checkpoint of that architecture."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from moelora_ad.adapters import valid_tokens
from moelora_ad.errors import InputError
from moelora_ad.models.backbone import Backbone, HiddenStates
from moelora_ad.models.pretrained import has_file, is_meta, load_config, load_encoder, settings

# The published architecture of both, so that they can be built without their weights and without a network.
LARGE_MULTILINGUAL = ("facebook/wav2vec2-large-xlsr-53", "facebook/wav2vec2-xls-r-300m")
LARGE_MULTILINGUAL_CONFIG = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "mask_time_prob": 0.075,
}


class Wav2Vec2Backbone(Backbone):
    """A Wav2Vec 2.0 encoder (Baevski et al., arXiv 2006.11477), 50 frames a second.

    Args:
        source: hub id, or a folder with ``config.json`` and ``model.safetensors``.
        revision: commit, tag or branch of the hub repository; pin it for reproducible runs.
        pretrained: False builds the architecture with random weights from the configuration alone.
        hidden_states: "last"; the number of a transformer layer, 1 to the last, without final normalisation; or
            "weighted", a learned softmax-weighted sum over the input of the first layer and all layers.
        normalize: zero mean and unit variance for each utterance; None does what the checkpoint's preprocessor says.
        dropout: of the encoder (hidden, attention, activation, projection) while it trains; checkpoints turn it on by
            default, here it is off.
        layer_drop: probability of skipping a layer in training; likewise off.
        spec_augment: time masking of the encoder's input in training; likewise off.

    Raises:
        InputError: the checkpoint cannot be found or does not fit.
    """

    encoder: Wav2Vec2Model

    def __init__(
        self,
        source: str | Path = LARGE_MULTILINGUAL[0],
        revision: str | None = None,
        pretrained: bool = True,
        hidden_states: HiddenStates = "last",
        normalize: bool | None = None,
        dropout: float = 0.0,
        layer_drop: float = 0.0,
        spec_augment: bool = False,
    ) -> None:
        pretrained = pretrained and not is_meta()
        if not pretrained and str(source) in LARGE_MULTILINGUAL:
            config = Wav2Vec2Config(**LARGE_MULTILINGUAL_CONFIG)
        else:
            config = load_config(source, revision, "wav2vec2")
        settings(
            config,
            hidden_dropout=dropout,
            attention_dropout=dropout,
            activation_dropout=dropout,
            feat_proj_dropout=dropout,
            layerdrop=layer_drop,
            apply_spec_augment=spec_augment,
        )
        if pretrained:
            encoder = load_encoder(Wav2Vec2Model, config, source, revision, may_miss=["masked_spec_embed"])
        else:
            encoder = Wav2Vec2Model(config)
        super().__init__(encoder, config.hidden_size, hidden_states)
        self.normalize = _checkpoint_normalizes(source, revision) if normalize is None else normalize
        self.stochastic = dropout > 0 or layer_drop > 0 or spec_augment
        # Models with group normalisation in the first convolution were trained without attention masks.
        self.uses_mask = config.feat_extract_norm == "layer"
        self._gates_hear_of_padding = False

    def layers(self) -> nn.ModuleList:
        return self.encoder.encoder.layers

    def drop_final_norm(self) -> None:
        if self.encoder.config.do_stable_layer_norm:  # else the norm stands before the layers
            self.encoder.encoder.layer_norm = nn.Identity()

    def after_adaptation(self) -> None:
        if not any(parameter.requires_grad for parameter in self.encoder.feature_extractor.parameters()):
            # Without it the encoder asks for gradients of its input in training and back-propagates through the CNN.
            self.encoder.freeze_feature_encoder()

    def encode(self, waveforms: Tensor, lengths: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        mask, frames, valid = None, None, None
        if lengths is not None:
            mask = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths.unsqueeze(1)
            frames = self.encoder._get_feat_extract_output_lengths(lengths)
            most = int(self.encoder._get_feat_extract_output_lengths(waveforms.shape[1]))
            valid = torch.arange(most, device=waveforms.device) < frames.unsqueeze(1)
        if lengths is not None or self._gates_hear_of_padding:
            valid_tokens(self.encoder, valid)
            self._gates_hear_of_padding = lengths is not None
        if self.normalize:
            waveforms = _normalize(waveforms, mask)
        output = self.encoder(
            waveforms,
            attention_mask=mask.long() if mask is not None and self.uses_mask else None,
            output_hidden_states=self.layer_weights is not None,
        )
        states = [output.last_hidden_state] if self.layer_weights is None else list(output.hidden_states)
        return states, frames


def _normalize(waveforms: Tensor, mask: Tensor | None) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-7) over the valid samples of each row, padding zero."""
    if mask is None:
        variance, mean = torch.var_mean(waveforms, dim=1, keepdim=True, correction=0)
        return (waveforms - mean) / (variance + 1e-7).sqrt()
    count = mask.sum(dim=1, keepdim=True)
    mean = (waveforms * mask).sum(dim=1, keepdim=True) / count
    centred = (waveforms - mean) * mask
    return centred / (centred.square().sum(dim=1, keepdim=True) / count + 1e-7).sqrt()


def _checkpoint_normalizes(source: str | Path, revision: str | None) -> bool:
    if str(source) in LARGE_MULTILINGUAL:
        return True
    if Path(source).is_dir() and not has_file(source, "preprocessor_config.json"):
        raise InputError(f"backbone {source} has no preprocessor_config.json: set normalize to true or false")
    try:
        return bool(Wav2Vec2FeatureExtractor.from_pretrained(source, revision=revision).do_normalize)
    except (OSError, ValueError):
        raise InputError(f"backbone {source} has no readable preprocessor: set normalize to true or false") from None

"""Wav2Vec2-BERT encoders, with their log-mel front end."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2BertModel

from moelora_ad.errors import InputError
from moelora_ad.float64 import in_float64
from moelora_ad.models.backbones.base import Backbone, HiddenStates
from moelora_ad.models.backbones.pretrained import (
    is_meta,
    load_config,
    load_encoder,
    random_encoder,
    settings,
    unused_mask,
)
from moelora_ad.torch_internals import Constant

W2V_BERT_2 = "facebook/w2v-bert-2.0"
WINDOW = 400  # samples of an analysis window, 25 ms
HOP = 160  # samples between windows, 10 ms
FFT = 512
BANDS = 80
STACKED = 2  # consecutive windows that make one frame of the encoder
POSITIONS = 5_000  # relative positions made at first, whatever a configuration says; the encoder adds more if needed
SHORTEST = WINDOW + HOP  # samples of the shortest clip, which has one frame


class Wav2Vec2BertBackbone(Backbone):
    """A Wav2Vec2-BERT 2.0 encoder (SeamlessM4T, arXiv 2312.05187, section 3.2.1), 50 frames a second.

    Conformer layers on stacked pairs of log-mel frames. The attention projections are called linear_q, linear_k,
    linear_v and linear_out, so an adaptation method needs ``targets: [linear_q, linear_k, linear_v, linear_out]``; the
    feed-forward ones are intermediate_dense and output_dense. The convolutional adapter that some fine-tuned
    checkpoints put behind the layers is left out.

    Args:
        source: hub id, or a folder with ``config.json`` and ``model.safetensors``.
        revision: commit, tag or branch of the hub repository; pin it for reproducible runs.
        pretrained: False builds the architecture with random weights from the configuration alone.
        hidden_states: "last"; the number of a layer, 1 to the last; "weighted", a learned softmax-weighted sum over
            the input of the first layer and all layers; "all", these side by side; or a list of some of these by
            number, 0 for the input of the first layer. (No normalisation follows the last layer.)
        dropout: dropout of the encoder (hidden, attention, activation, convolution, projection) while it trains.
        layer_drop: probability of skipping a layer in training; checkpoints turn it on by default, here it is off.
        spec_augment: time masking of the encoder's input in training; likewise off.

    Raises:
        InputError: the checkpoint cannot be found or does not fit.
    """

    encoder: Wav2Vec2BertModel

    def __init__(
        self,
        source: str | Path = W2V_BERT_2,
        revision: str | None = None,
        pretrained: bool = True,
        hidden_states: HiddenStates = "last",
        dropout: float = 0.0,
        layer_drop: float = 0.0,
        spec_augment: bool = False,
    ) -> None:
        pretrained = pretrained and not is_meta()
        if not pretrained and str(source) == W2V_BERT_2:
            config = Wav2Vec2BertConfig()  # the defaults are those of that checkpoint
        else:
            config = load_config(source, revision, Wav2Vec2BertConfig.model_type)
        if config.feature_projection_input_dim != STACKED * BANDS:
            width = config.feature_projection_input_dim
            raise InputError(f"backbone {source} takes {width} features a frame, the front end gives {STACKED * BANDS}")
        settings(
            config,
            hidden_dropout=dropout,
            attention_dropout=dropout,
            activation_dropout=dropout,
            conformer_conv_dropout=dropout,
            feat_proj_dropout=dropout,
            layerdrop=layer_drop,
            apply_spec_augment=spec_augment,
            max_source_positions=POSITIONS,
            add_adapter=False,
            use_intermediate_ffn_before_adapter=False,
        )
        if pretrained:
            encoder = load_encoder(Wav2Vec2BertModel, config, source, revision, may_miss=["masked_spec_embed"])
        else:
            encoder = random_encoder(Wav2Vec2BertModel, config, source)
        super().__init__(encoder, config.hidden_size, hidden_states, unused_mask(encoder, spec_augment))
        self.stochastic = dropout > 0 or layer_drop > 0 or spec_augment
        self.log_mel = LogMel()

    def layers(self) -> nn.ModuleList:
        return self.encoder.encoder.layers

    def frames(self, lengths: Tensor) -> Tensor:
        return _windows(lengths) // STACKED

    def encode(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        features, frames = self.log_mel(waveforms, lengths)
        mask = None
        if lengths is not None:
            mask = (torch.arange(features.shape[1], device=features.device) < frames.unsqueeze(1)).long()
        return self.encoder(features, attention_mask=mask).last_hidden_state


class LogMel(nn.Module):
    """Kaldi's log-mel filter banks, each band with zero mean and unit variance over the utterance, two to a frame.

    Gives what ``SeamlessM4TFeatureExtractor`` gives, except the half frame at the end of an odd number of windows,
    which the extractor masks. (torchaudio's ``kaldi.fbank`` is in single precision: its errors in the quiet parts of
    speech are 0.003 here, against 0.00001 of double precision.)
    """

    def __init__(self) -> None:
        super().__init__()
        extractor = SeamlessM4TFeatureExtractor(num_mel_bins=BANDS)
        self.spectrum = Constant(_spectrum(torch.tensor(extractor.window)))
        self.filters = Constant(torch.tensor(extractor.mel_filters))

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the features of a batch.

        Args:
            waveforms: (B, samples) float, 16 kHz mono.
            lengths: (B,) valid samples of each row, None when all rows are full.

        Returns:
            (B, frames, 160) float32, and the valid frames (B,).

        Raises:
            InputError: the batch is shorter than one frame.
        """
        rows, samples = waveforms.shape
        if samples < SHORTEST:
            raise InputError(
                f"a clip of {samples} samples is shorter than the {SHORTEST} of one frame of Wav2Vec2-BERT"
            )
        exact = in_float64(waveforms)
        if lengths is None:
            lengths = torch.full((rows,), samples, device=exact.device)
        spectra = (exact.unfold(1, WINDOW, HOP) @ self.spectrum(exact.device)).unflatten(-1, (2, -1))
        powers = spectra.square().sum(dim=-2)  # (B, windows, FFT // 2 + 1)
        bands = (powers @ self.filters(exact.device)).clamp(min=torch.finfo(torch.float32).eps).log()
        windows = _windows(lengths.to(exact.device))
        valid = (torch.arange(bands.shape[1], device=bands.device) < windows.unsqueeze(1)).unsqueeze(-1)
        count = windows[:, None, None].clamp(min=STACKED)  # fewer make no frame
        mean = bands.where(valid, 0.0).sum(dim=1, keepdim=True) / count
        centred = (bands - mean).where(valid, 0.0)
        variance = centred.square().sum(dim=1, keepdim=True) / (count - 1)
        normalised = (centred / (variance + 1e-7).sqrt()).to(waveforms.device, torch.float32)
        frames, valid_frames = bands.shape[1] // STACKED, (windows // STACKED).to(waveforms.device)
        return normalised[:, : frames * STACKED].reshape(rows, frames, STACKED * BANDS), valid_frames


def _windows(lengths: Tensor) -> Tensor:
    """The number of analysis windows in clips of so many samples: a window counts if it is entirely in the clip."""
    return ((lengths - WINDOW) // HOP + 1).clamp(min=0)


def _spectrum(window: Tensor) -> Tensor:
    """Matrix (WINDOW, 2 (FFT // 2 + 1)) from an analysis window to its spectrum, real parts before imaginary ones: all
    that Kaldi does before the power is linear. (A matrix product is exported to ONNX in double precision, a transform
    is not.)"""
    identity = torch.eye(WINDOW, dtype=torch.float64)
    frames = 2.0**15 * (identity - 1 / WINDOW)  # 16-bit integers, without their mean
    earlier = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    emphasised = frames - 0.97 * earlier
    spectrum = torch.fft.rfft(emphasised * window, FFT)
    return torch.cat([spectrum.real, spectrum.imag], dim=1)

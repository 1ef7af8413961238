"""The encoder of Whisper, on clips of any length up to 30 s."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from moelora_ad.errors import InputError
from moelora_ad.models.backbones.base import Backbone, HiddenStates
from moelora_ad.models.backbones.pretrained import is_meta, load_config, load_encoder, random_encoder, settings
from moelora_ad.torch_internals import Constant

FFT = 400  # samples of an analysis window, 25 ms
HOP = 160  # samples between windows, 10 ms
LONGEST = 480_000  # samples of the longest clip, 30 s


class WhisperBackbone(Backbone):
    """Whisper's encoder (Radford et al., arXiv 2212.04356), 50 frames a second, with its log-mel front end.

    The clip is not padded to 30 s, unless ``pad`` is set: the sinusoidal positions are cut to its frames.

    Args:
        source: hub id of a Whisper model, or a folder with ``config.json`` and ``model.safetensors`` of a whole model
            or of the encoder alone.
        revision: commit, tag or branch of the hub repository; pin it for reproducible runs.
        pretrained: False builds the architecture with random weights from the configuration alone.
        hidden_states: "last"; the number of a transformer layer, 1 to the last, without final normalisation;
            "weighted", a learned softmax-weighted sum over the input of the first layer and all layers; "all",
            these side by side; or a list of some of these by number, 0 for the input of the first layer.
        pad: pad the clip with silence to 30 s, as Whisper was trained, and return the frames of all 30 s.

    Raises:
        InputError: the checkpoint cannot be found or does not fit.
    """

    encoder: WhisperEncoder
    alone = ("encoder.", "WhisperEncoder")

    def __init__(
        self,
        source: str | Path = "openai/whisper-tiny.en",
        revision: str | None = None,
        pretrained: bool = True,
        hidden_states: HiddenStates = "last",
        pad: bool = False,
    ) -> None:
        config = load_config(source, revision, "whisper")
        settings(config, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, encoder_layerdrop=0.0)
        encoder = _encoder(config, source, revision, pretrained)
        encoder.embed_positions.requires_grad_(False)  # fixed sinusoids; loading a checkpoint undoes that
        super().__init__(encoder, config.d_model, hidden_states)
        if hidden_states != "last":
            encoder.layer_norm = nn.Identity()  # it belongs to the last hidden state alone
        self.pad = pad
        self.mel_filters = Constant(_mel_filters(config.num_mel_bins))

    def layers(self) -> nn.ModuleList:
        return self.encoder.layers

    def encode(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        encoder = self.encoder
        if self.pad:
            waveforms, lengths = functional.pad(waveforms, (0, max(0, LONGEST - waveforms.shape[1]))), None
        hidden = functional.gelu(encoder.conv1(self.log_mel(waveforms, lengths).to(encoder.conv1.weight.dtype)))
        if lengths is not None:  # the next convolution must find zeros behind the end of each clip
            hidden = hidden * _inside(lengths // HOP, hidden.shape[2]).unsqueeze(1)
        hidden = functional.gelu(encoder.conv2(hidden)).transpose(1, 2)  # (B, frames, width)
        if hidden.shape[1] > encoder.max_source_positions:
            seconds = waveforms.shape[1] / 16_000
            raise InputError(f"a clip of {seconds:.1f} s exceeds the 30 s that Whisper accepts: use shorter segments")
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        mask = None
        if lengths is not None:
            padding = ~_inside(self.frames(lengths), hidden.shape[1])[:, None, None, :]
            mask = torch.zeros_like(padding, dtype=hidden.dtype).masked_fill(padding, -torch.inf)
        for layer in encoder.layers:
            hidden = layer(hidden, mask)
        return encoder.layer_norm(hidden)

    def frames(self, lengths: Tensor) -> Tensor:
        """The number of frames, see `Backbone.frames`; the second convolution halves that of the windows."""
        return torch.full_like(lengths, LONGEST // HOP // 2) if self.pad else (lengths // HOP + 1) // 2

    def log_mel(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Whisper's log-mel spectrogram, (B, samples) -> (B, mel bands, samples // 160), with zeros behind the end of
        each clip if ``lengths`` (B,) are given."""
        windows = waveforms.shape[1] // HOP
        with torch.autocast(waveforms.device.type, enabled=False):  # powers overflow half precision
            powers = _exported_powers if torch.compiler.is_exporting() else _powers
            sound = waveforms.float() if lengths is None else _mirrored(waveforms.float(), lengths)
            log_mel = (self.mel_filters(waveforms.device) @ powers(sound)[..., :windows]).clamp(min=1e-10).log10()
            if lengths is None:
                return _scaled(log_mel)
            inside = _inside(lengths // HOP, windows).unsqueeze(1)
            return _scaled(log_mel.masked_fill(~inside, -torch.inf)) * inside


def _mel_filters(bands: int) -> Tensor:
    """Whisper's mel filters, (mel bands, FFT // 2 + 1)."""
    if is_meta():  # without memory, whatever number of bands the configuration asks for
        return torch.empty(bands, FFT // 2 + 1)
    filters = WhisperFeatureExtractor(feature_size=bands, n_fft=FFT, hop_length=HOP).mel_filters
    return torch.tensor(filters, dtype=torch.float32).T


def _inside(lengths: Tensor, most: int) -> Tensor:
    """(B, most) bool: whether a place is before the end of its row."""
    return torch.arange(most, device=lengths.device) < lengths.unsqueeze(1)


def _scaled(log_mel: Tensor) -> Tensor:
    return (torch.maximum(log_mel, log_mel.amax(dim=(1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


def _mirrored(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """Each row with half an analysis window of its own mirror image behind its end, as the transform pads a full row:
    (B, samples) -> (B, samples + FFT // 2)."""
    places = torch.arange(waveforms.shape[1] + FFT // 2, device=waveforms.device)
    last = lengths.unsqueeze(1) - 1
    return waveforms.gather(1, (last - (places - last).abs()).clamp(min=0))


def _powers(waveforms: Tensor) -> Tensor:
    """Power spectrogram, (B, samples) -> (B, FFT // 2 + 1, samples // HOP)."""
    window = torch.hann_window(FFT, device=waveforms.device, dtype=waveforms.dtype)
    return torch.stft(waveforms, FFT, HOP, window=window, return_complex=True)[..., :-1].abs().square()


def _exported_powers(waveforms: Tensor) -> Tensor:
    """The power spectrogram by matrix products in double precision. onnxruntime has an operator for the transform, but
    its errors are as large as the quiet parts of speech (0.002 in the log-mel spectrogram, against 0.00003 of PyTorch).
    """
    device = waveforms.device
    padded = functional.pad(waveforms.unsqueeze(1), (FFT // 2, FFT // 2), mode="reflect").squeeze(1)
    steps = np.arange(FFT)
    # Made outside the graph: onnxruntime up to 1.23 has no cosine in double precision.
    angles = 2 * np.pi / FFT * (steps[:, None] * steps[: FFT // 2 + 1] % FFT)
    cosine, sine = (torch.tensor(wave, device=device) for wave in (np.cos(angles), np.sin(angles)))
    starts = HOP * torch.arange(waveforms.shape[1] // HOP, device=device)
    window = torch.hann_window(FFT, device=device, dtype=torch.float64)
    frames = padded[:, starts.unsqueeze(1) + torch.arange(FFT, device=device)].double() * window  # (B, frames, FFT)
    return ((frames @ cosine).square() + (frames @ sine).square()).float().transpose(1, 2)


def _encoder(config: WhisperConfig, source: str | Path, revision: str | None, pretrained: bool) -> WhisperEncoder:
    if not pretrained or is_meta():
        return random_encoder(WhisperEncoder, config, source)
    if config.architectures == [WhisperBackbone.alone[1]]:
        return load_encoder(WhisperEncoder, config, source, revision)
    return load_encoder(WhisperModel, config, source, revision).encoder

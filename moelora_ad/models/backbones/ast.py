"""The Audio Spectrogram Transformer, on clips of one length."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.compliance.kaldi import get_mel_banks
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from moelora_ad.audio import SAMPLE_RATE
from moelora_ad.errors import InputError
from moelora_ad.float64 import in_float64
from moelora_ad.models.backbones.base import Backbone, HiddenStates
from moelora_ad.models.backbones.pretrained import (
    check_json,
    check_rate,
    is_meta,
    load_config,
    load_encoder,
    random_encoder,
    settings,
)
from moelora_ad.torch_internals import Constant

WINDOW = 400  # samples of an analysis window, 25 ms
HOP = 160  # samples between windows, 10 ms
FFT = 512
FLOOR = torch.finfo(torch.float32).eps  # least power of a band, before the logarithm


class ASTBackbone(Backbone):
    """An Audio Spectrogram Transformer (Gong et al., arXiv 2104.01778): two tokens for the whole clip, then those of
    its patches of 16 mel bands and 16 windows.

    The front end is Kaldi's: 128 log-mel bands of windows of 25 ms, each without its mean and pre-emphasised. Its
    windows are cut or padded to the number that the model was trained on, 1,024 for the published ones (10.26 s).

    Args:
        source: hub id, or a folder with ``config.json``, ``preprocessor_config.json`` and ``model.safetensors``.
        revision: commit, tag or branch of the hub repository; pin it for reproducible runs.
        pretrained: False builds the architecture with random weights from the configuration alone.
        hidden_states: "last"; the number of a transformer layer, 1 to the last, without final normalisation;
            "weighted", a learned softmax-weighted sum over the input of the first layer and all layers; "all", these
            side by side; or a list of some of these by number, 0 for the input of the first layer.

    Raises:
        InputError: the checkpoint cannot be found or does not fit.
    """

    encoder: ASTModel

    def __init__(
        self,
        source: str | Path = "MIT/ast-finetuned-audioset-10-10-0.4593",
        revision: str | None = None,
        pretrained: bool = True,
        hidden_states: HiddenStates = "last",
    ) -> None:
        config = load_config(source, revision, ASTConfig.model_type)
        settings(config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        if pretrained and not is_meta():
            encoder = load_encoder(ASTModel, config, source, revision)
        else:
            encoder = random_encoder(ASTModel, config, source)
        super().__init__(encoder, config.hidden_size, hidden_states)
        if hidden_states != "last":
            encoder.layernorm = nn.Identity()  # it is for the last hidden state alone
        self.windows = config.max_length
        self.mean, self.deviation = _statistics(source, revision)
        self.mel_filters = Constant(_mel_filters(config.num_mel_bins))
        self.transform = Constant(_transform())

    def layers(self) -> nn.ModuleList:
        return self.encoder.layers

    def encode(self, waveforms: Tensor, lengths: Tensor | None) -> Tensor:
        bands = self.log_mel(waveforms)[:, : self.windows]
        bands = functional.pad(bands, (0, 0, 0, self.windows - bands.shape[1]))
        return self.encoder((bands - self.mean) / (2 * self.deviation)).last_hidden_state

    def log_mel(self, waveforms: Tensor) -> Tensor:
        """Kaldi's log-mel spectrogram, (B, samples) -> (B, windows, mel bands).

        Raises:
            ValueError: a clip is shorter than a window.
        """
        if waveforms.shape[1] < WINDOW:
            raise ValueError(f"a clip of {waveforms.shape[1]} samples is shorter than a window of {WINDOW}")
        device = waveforms.device
        with torch.autocast(device.type, enabled=False):  # powers overflow half precision
            count = 1 + (waveforms.shape[1] - WINDOW) // HOP
            places = HOP * torch.arange(count, device=device).unsqueeze(1) + torch.arange(WINDOW, device=device)
            frames = waveforms.float()[:, places]  # (B, windows, WINDOW)
            frames = frames - frames.mean(dim=2, keepdim=True)
            frames = frames - 0.97 * torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
            frames = in_float64(frames)
            real, imaginary = (frames @ self.transform(frames.device)).chunk(2, dim=2)
            powers = (real.square() + imaginary.square()).float().to(device)
            return (powers @ self.mel_filters(device)).clamp(min=FLOOR).log()


def _transform() -> Tensor:
    """(WINDOW, 2 * (FFT // 2 + 1)) float64: the discrete Fourier transform of a frame in a Hann window, as a product;
    in single precision, PyTorch and onnxruntime differ where there is little power."""
    angles = 2 * np.pi / FFT * (np.arange(WINDOW)[:, None] * np.arange(FFT // 2 + 1))
    waves = np.concatenate([np.cos(angles), -np.sin(angles)], axis=1)
    return torch.tensor(np.hanning(WINDOW)[:, None] * waves)


def _mel_filters(bands: int) -> Tensor:
    """Kaldi's mel filters, (FFT // 2 + 1, bands)."""
    if is_meta():  # without memory, whatever number of bands the configuration asks for
        return torch.empty(FFT // 2 + 1, bands)
    filters, _ = get_mel_banks(bands, FFT, float(SAMPLE_RATE), 20.0, 0.0, 100.0, -500.0, 1.0)
    return functional.pad(filters, (0, 1)).T  # half the sample rate is in no band


def _statistics(source: str | Path, revision: str | None) -> tuple[float, float]:
    """Mean and standard deviation of the log-mel bands that the model was trained on."""
    if is_meta():
        return 0.0, 1.0
    try:
        check_json(source, revision, "preprocessor_config.json")
        extractor = ASTFeatureExtractor.from_pretrained(source, revision=revision)
        mean, deviation = float(extractor.mean), float(extractor.std)
    except Exception:  # a faulty file makes transformers fail in many ways
        raise InputError(f"backbone {source} has no readable preprocessor") from None
    check_rate(extractor, f"backbone {source}")
    if not deviation > 0:
        raise InputError(f"backbone {source}: the standard deviation in its preprocessor is {deviation}")
    return (mean, deviation) if extractor.do_normalize else (0.0, 0.5)

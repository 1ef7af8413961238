"""The ONNX file gives PyTorch's logits, in onnxruntime, on real speech."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from moelora_ad.adapters import LoRA, MoELoRA
from moelora_ad.audio import Segment
from moelora_ad.audio.segments import read_segment
from moelora_ad.errors import InputError
from moelora_ad.models import AASIST, Detector, MeanPooling, Wav2Vec2Backbone, WhisperBackbone
from moelora_ad.models.saving import onnx_export
from moelora_ad.models.saving.onnx_export import export_onnx

CORPUS = Path(__file__).parents[3] / "experiments" / "quickstart" / "corpus"


def speech(rows: int, samples: int) -> np.ndarray:
    files = sorted(CORPUS.rglob("*.flac"))
    step = len(files) // rows
    return np.stack([read_segment(path, Segment(samples)) for path in files[::step][:rows]])


def disturbed(detector: Detector) -> Detector:
    """The detector with experts, gates and layer weights that have an effect, as after training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in detector.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return detector


def largest_difference(detector: Detector, path: Path, clips: np.ndarray) -> float:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"waveforms": clips})
    with torch.inference_mode():
        wanted = detector.eval()(torch.from_numpy(clips)).numpy()
    assert len(clips) == 1 or np.ptp(wanted[:, 1]) > 1e-3  # the logits differ between clips
    return float(np.abs(found - wanted).max())


def test_a_small_detector_of_any_batch_and_length(tmp_path, small_wav2vec2):
    backbone = Wav2Vec2Backbone(small_wav2vec2, hidden_states=1)
    detector = disturbed(Detector(backbone, MoELoRA(3, 2, top_k=2), MeanPooling)).train()
    path = tmp_path / "model.onnx"
    detector.calibration = {"scale": 2.0, "offset": -1.0, "fitted_on": "dev", "num_bona_fide": 3, "num_spoof": 4}
    detector.about = {"notice": "a demonstration"}
    assert export_onnx(detector, path, samples=4_000, model_id="mine@1") is None
    assert detector.training
    for rows, samples in ((1, 4_000), (2, 4_000), (7, 1_999), (1, 1_600), (3, 32_001)):
        assert largest_difference(detector, path, speech(7, samples)[:rows]) < 1e-4
    model = onnx.load(path)
    onnx.checker.check_model(model)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts.pop("labels")) == ["spoof", "bonafide"]
    assert json.loads(facts.pop("calibration")) == detector.calibration
    assert facts == {
        "samples": "any",
        "window": "4000",
        "hop": "2000",
        "fill": "4000",
        "sample_rate": "16000",
        "precision": "32-true",
        "model": "mine@1",
        "notice": "a demonstration",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]  # the weights are in this file, too
    clips = torch.from_numpy(speech(2, 4_000))
    with torch.inference_mode():
        wanted = detector.eval()(clips)
    onnx_export._compare(path, [(clips, wanted)])
    for wrong in ([(clips, wanted + 0.001)], [(clips, wanted), (clips[:1], wanted[:1] + 0.001)]):
        with pytest.raises(RuntimeError, match="would be wrong"):
            onnx_export._compare(path, wrong)
    other = detector.calibration | {"scale": 3.0}
    onnx_export.store_calibration(path, other)
    entries = onnx.load(path).metadata_props
    assert {entry.key: entry.value for entry in entries} == facts | {
        "labels": '["spoof", "bonafide"]',
        "calibration": json.dumps(other),
    }
    assert largest_difference(detector, path, speech(2, 3_000)) < 1e-4


class OfOneLength(torch.nn.Module):
    """Stands in for a detector whose head accepts one number of samples only."""

    window, fill, calibration, about = 4_000, 1_600, None, None

    def __init__(self) -> None:
        super().__init__()
        self.output = torch.nn.Linear(4_000, 2)

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        return self.output(waveforms)


def test_a_detector_of_one_length_says_so(tmp_path):
    detector = OfOneLength()
    why = export_onnx(detector, tmp_path / "model.onnx")
    assert why
    assert "\n" not in why
    for rows in (1, 3):
        assert largest_difference(detector, tmp_path / "model.onnx", speech(3, 4_000)[:rows]) < 1e-4
    facts = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert (facts["samples"], facts["window"], facts["calibration"]) == ("4000", "4000", "null")
    assert facts["fill"] == "4000"  # a shorter clip would not fit
    assert len(facts["model"]) == 64


@pytest.mark.slow
def test_the_whole_detector_with_aasist(tmp_path, small_whisper):
    torch.manual_seed(0)  # with other weights, ties of experts or nodes might be broken otherwise
    detector = disturbed(Detector(WhisperBackbone(small_whisper, hidden_states=1), MoELoRA(3, 2, top_k=2), AASIST))
    assert export_onnx(detector, tmp_path / "model.onnx", samples=24_000) is None
    for rows, samples in ((8, 24_000), (1, 16_000), (6, 50_001)):
        assert largest_difference(detector, tmp_path / "model.onnx", speech(rows, samples)) < 1e-4


def test_the_exported_spectrogram_is_the_same(whisper_tiny):
    """The file's matrix products agree with the Fourier transform that they replace, on real speech."""
    backbone = WhisperBackbone(whisper_tiny)
    clips = torch.from_numpy(speech(6, 32_000))
    usual = backbone.log_mel(clips)
    traced = torch.export.export(_LogMel(backbone), (clips,)).module()(clips)
    assert (usual - traced).abs().max() < 1e-4
    exact = torch.stft(
        clips.double(), 400, 160, window=torch.hann_window(400, dtype=torch.float64), return_complex=True
    )[..., :-1]
    log_mel = (backbone.mel_filters.tensor.double() @ exact.abs().square()).clamp(min=1e-10).log10()
    log_mel = torch.maximum(log_mel, log_mel.amax(dim=(1, 2), keepdim=True) - 8.0)
    assert ((log_mel + 4) / 4 - traced).abs().max() < 1e-4


class _LogMel(torch.nn.Module):
    def __init__(self, backbone: WhisperBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        return self.backbone.log_mel(waveforms)


def test_what_cannot_be_exported(tmp_path, small_whisper, monkeypatch):
    detector = Detector(WhisperBackbone(small_whisper), LoRA(2), MeanPooling)
    with pytest.raises(InputError, match="exceeds the 30 s"):
        export_onnx(detector, tmp_path / "model.onnx", samples=16_000 * 31)
    monkeypatch.setattr(onnx_export, "MOST_BYTES", 1_000)
    with pytest.raises(InputError, match="GB"):
        export_onnx(detector, tmp_path / "model.onnx")
    monkeypatch.setattr(onnx_export.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(InputError, match="pip install"):
        export_onnx(detector, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())

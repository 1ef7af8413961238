"""The Audio Spectrogram Transformer against transformers' model and front end; in training, half precision, ONNX."""

import pytest
import torch
from torch import nn
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from moelora_ad.adapters import FullFineTuning, LoRA, MoELoRA, TopLayers
from moelora_ad.errors import InputError
from moelora_ad.models import ASTBackbone, Detector, LeadingTokens, MeanPooling
from moelora_ad.models.saving.onnx_export import export_onnx

ATTENTION = r".*\.(q|k|v|o)_proj"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ast")
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    model = ASTModel(ASTConfig(**sizes, max_length=64, num_mel_bins=64, attention_probs_dropout_prob=0.1))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    ASTFeatureExtractor(max_length=64, num_mel_bins=64, mean=-3.0, std=3.5).save_pretrained(folder)
    return folder


def waveforms(samples: int = 8_000) -> torch.Tensor:
    return torch.tensor([[0.3], [0.002]]) * torch.randn(2, samples, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("samples", [400, 8_000, 20_000])
def test_frames_are_those_of_transformers(samples, source):
    """Clips that are padded, and clips that are cut to the windows of the model's training (10,480 samples)."""
    extractor = ASTFeatureExtractor.from_pretrained(source)
    clips = waveforms(samples)
    bands = extractor([*clips.numpy()], sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        wanted = ASTModel.from_pretrained(source).eval()(bands, output_hidden_states=True)
        found, frames = ASTBackbone(source).eval()(clips)
        torch.testing.assert_close(found, wanted.last_hidden_state, rtol=1e-4, atol=1e-4)
        assert frames is None
        chosen, _ = ASTBackbone(source, hidden_states=2).eval()(clips)
        torch.testing.assert_close(chosen, wanted.hidden_states[2], rtol=1e-4, atol=1e-4)


def test_rows_of_a_padded_batch_are_what_they_are_alone(source):
    backbone, clips = ASTBackbone(source).eval(), waveforms()
    with torch.no_grad():
        together, _ = backbone(clips, torch.tensor([8_000, 5_000]))
        torch.testing.assert_close(together[1], backbone(clips[1:, :5_000])[0][0])


@torch.no_grad()
def test_frames_elsewhere_are_those_on_the_cpu(source, elsewhere):
    backbone = ASTBackbone(source).eval()
    wanted, _ = backbone(waveforms())
    found, _ = backbone.to(elsewhere)(waveforms().to(elsewhere))
    assert found.device.type == elsewhere.type
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "method", [FullFineTuning(), TopLayers(1), LoRA(2, targets=ATTENTION), MoELoRA(2, 2, targets=ATTENTION)]
)
def test_what_is_trained_gets_a_gradient(method, source):
    detector = Detector(ASTBackbone(source), method, LeadingTokens).train()
    detector(waveforms()).square().sum().backward()
    trained = {name for name, parameter in detector.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in detector.named_parameters() if parameter.grad is not None} == trained
    assert any(name.startswith("backbone.") for name in trained)


def test_half_precision_and_the_meta_device(source):
    detector = Detector(ASTBackbone(source), LoRA(2, targets=ATTENTION), MeanPooling).eval()
    heard = []
    detector.backbone.encoder.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    with torch.no_grad():
        wanted = detector(waveforms())
        detector.backbone.encoder.to(torch.bfloat16)
        found = detector(waveforms())
    assert torch.equal(heard[1], heard[0].bfloat16())  # the front end keeps its precision
    torch.testing.assert_close(found, wanted, rtol=0.1, atol=0.1)
    with torch.device("meta"):
        detector = Detector(ASTBackbone(source), LoRA(2, targets=ATTENTION), MeanPooling)
    assert detector.to_empty(device="cpu").eval()(waveforms()).shape == (2, 2)


def test_onnx_gives_the_same(source, tmp_path):
    detector = Detector(ASTBackbone(source, hidden_states=1), LoRA(2, targets=ATTENTION), LeadingTokens).eval()
    detector.window = 8_000
    export_onnx(detector, tmp_path / "model.onnx")  # compares the logits with PyTorch's
    assert (tmp_path / "model.onnx").is_file()


def test_a_clip_without_a_window_and_a_folder_without_a_preprocessor(source, tmp_path):
    with pytest.raises(ValueError, match="a clip of 399 samples is shorter than a window of 400"):
        ASTBackbone(source)(waveforms(399))
    ASTModel.from_pretrained(source).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no readable preprocessor"):
        ASTBackbone(tmp_path)

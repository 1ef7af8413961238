"""The bank of band-pass filters in front of the raw AASIST."""

import pytest
import torch

from moelora_ad.adapters import FrozenBackbone
from moelora_ad.models import Detector, MeanPooling, RawAASIST, SincBackbone
from moelora_ad.models.saving.onnx_export import export_onnx


def test_each_filter_passes_its_own_band():
    """A tone is loudest behind the filter whose band it lies in, counted on the mel scale."""
    backbone = SincBackbone()
    time = torch.arange(8_000) / 16_000
    for frequency in (300.0, 1_000.0, 3_000.0, 7_000.0):
        frames, _ = backbone(torch.sin(2 * torch.pi * frequency * time)[None])
        assert frames.shape == (1, 8_000 - 128, 70)
        band = 70 * torch.log10(torch.tensor(1 + frequency / 700)) / torch.log10(torch.tensor(1 + 8_000 / 700))
        assert abs(frames[0].square().mean(0).argmax().item() - int(band)) <= 1


def test_it_has_nothing_to_train_and_hears_no_padding():
    backbone, clips = SincBackbone(8, 65), torch.randn(2, 4_000)
    assert not list(backbone.parameters())
    assert not backbone.state_dict()
    frames, counts = backbone(clips, torch.tensor([4_000, 3_000]))
    assert counts.tolist() == [4_000 - 64, 3_000 - 64]
    torch.testing.assert_close(frames[1, : 3_000 - 64], backbone(clips[1:, :3_000])[0][0])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(backbone(clips, torch.tensor([4_000, 3_000]))[0], frames)
    with pytest.raises(ValueError, match="8 filters of 64 samples"):
        SincBackbone(8, 64)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_head_trains_on_it_and_every_weight_gets_a_gradient(batch):
    detector = Detector(SincBackbone(), FrozenBackbone(), RawAASIST).train()
    detector(0.1 * torch.randn(batch, 10_000)).square().sum().backward()
    without = [name for name, parameter in detector.named_parameters() if parameter.grad is None]
    assert not without
    assert detector.parameter_counts() == {
        "experts": 0,
        "gates": 0,
        "classifier": 297_866,
        "backbone": 0,
        "total": 297_866,
    }
    with pytest.raises(ValueError, match="at least 2,187 frames"):
        detector(torch.randn(1, 2_000))


def test_saving_and_onnx(tmp_path):
    torch.manual_seed(0)
    detector = Detector(
        SincBackbone(), FrozenBackbone(), lambda width: RawAASIST(width, 24, 24, 32, 0.4, 0.5, 0.7)
    ).eval()
    detector.window = 10_000
    detector.save_pretrained(tmp_path / "model")
    again = Detector.from_pretrained(tmp_path / "model")
    clips = 0.1 * torch.randn(2, 10_000)
    with torch.no_grad():
        assert torch.equal(again(clips), detector(clips))
    small = Detector(SincBackbone(), FrozenBackbone(), MeanPooling).eval()
    small.window = 4_000
    export_onnx(small, tmp_path / "model.onnx")  # compares the logits with PyTorch's

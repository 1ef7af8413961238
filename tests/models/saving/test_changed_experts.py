"""Detectors whose experts were changed after they were built, saved and loaded."""

import pytest
import torch

from moelora_ad.adapters import GatePolicy, MoELoRA, adapted_sites, add_expert, drop_expert, split_expert
from moelora_ad.errors import InputError
from moelora_ad.models import Detector, MeanPooling, WhisperBackbone

CHANGES = {
    "silent": (add_expert, 4),
    "split": (lambda model: split_expert(model, 0), 4),
    "dropped": (lambda model: drop_expert(model, 1), 2),
}


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_changed_experts_are_kept_with_a_method_that_makes_as_many(name, share, small_whisper, tmp_path):
    change, experts = CHANGES[name]
    detector = Detector(WhisperBackbone(small_whisper), MoELoRA(3, 2, share_gate=share), MeanPooling).eval()
    for _, site in adapted_sites(detector):
        for expert in site.experts:
            torch.nn.init.normal_(expert.lora_B)
    change(detector)
    with pytest.raises(InputError, match=f"has {experts} experts, the method makes 3: set the detector's adaptation"):
        detector.save_pretrained(tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    detector.adaptation = MoELoRA(experts, 2, share_gate=share)
    detector.save_pretrained(tmp_path / "kept")
    again = Detector.from_pretrained(tmp_path / "kept")
    waveforms = torch.randn(2, 8000)
    with torch.no_grad():
        assert torch.equal(again(waveforms), detector(waveforms))
    assert torch.equal(
        torch.stack([site.gate.logit_offset for _, site in adapted_sites(again)]),
        torch.stack([site.gate.logit_offset for _, site in adapted_sites(detector)]),
    )


def test_a_gate_of_another_policy_is_not_kept_silently(small_whisper, tmp_path):
    policy = GatePolicy(noise="fixed", noise_std=0.1, noise_mean=(1.0, 2.0, 3.0))
    detector = Detector(WhisperBackbone(small_whisper), MoELoRA(3, 2, gate=policy), MeanPooling)
    drop_expert(detector, 0)
    detector.adaptation = MoELoRA(2, 2)
    with pytest.raises(InputError, match=r"the gate of .* follows another policy than the method's: set the detector"):
        detector.save_pretrained(tmp_path)
    detector.adaptation = MoELoRA(2, 2, gate=GatePolicy(noise="fixed", noise_std=0.1, noise_mean=(2.0, 3.0)))
    detector.save_pretrained(tmp_path)
    assert len(Detector.from_pretrained(tmp_path).sites) == 8


@pytest.mark.parametrize("offset", [float("nan"), float("inf")])
def test_an_offset_that_is_no_silence_is_not_kept(offset, small_whisper, tmp_path):
    detector = Detector(WhisperBackbone(small_whisper), MoELoRA(3, 2), MeanPooling)
    next(adapted_sites(detector))[1].gate.logit_offset[1] = offset
    with pytest.raises(InputError, match="logit_offset has values that are not finite"):
        detector.save_pretrained(tmp_path)

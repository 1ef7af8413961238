"""Detectors whose experts were changed after they were built, saved and loaded."""

import pytest
import torch

from moelora_ad.adapters import (
    FrozenBackbone,
    GatePolicy,
    LayerRange,
    LoRA,
    LoRAUpdate,
    MoELoRA,
    adapted_sites,
    add_expert,
    drop_expert,
    lora_updates,
    merge,
    merge_static_mixture,
    put_loras,
    split_expert,
)
from moelora_ad.errors import InputError
from moelora_ad.inference import Scorer
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


def other_loras(encoder, rank, scaling):
    put_loras(
        encoder,
        {
            site: LoRAUpdate(u.lora_A[:rank], torch.randn_like(u.lora_B[:, :rank]), scaling)
            for site, u in lora_updates(encoder).items()
        },
    )


def static(encoder):
    merge_static_mixture(encoder, {site: torch.ones(3) / 3 for site, _ in adapted_sites(encoder)})


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        (LoRA(2), lambda e: other_loras(e, 2, 5.0), r"k_proj has rank 2 and scaling 5, the method makes 2 and 1"),
        (
            LoRA(2, alpha=4),
            lambda e: other_loras(e, 1, 2.0),
            r"k_proj has rank 1 and scaling 2, the method makes 2 and 2",
        ),
        (LoRA(2), merge, r"k_proj has no adapter, as after a merge"),
        (LoRA(2), lambda e: merge(e.layers[1]), r"layers\.1\.self_attn\..*k_proj has no adapter, as after a merge"),
        (MoELoRA(3, 2), static, r"k_proj has no adapter, as after a merge"),
    ],
)
def test_adapters_that_the_method_does_not_make_leave_an_earlier_model_alone(
    method, change, message, small_whisper, tmp_path
):
    detector = Detector(WhisperBackbone(small_whisper), method, MeanPooling).eval()
    detector.save_pretrained(tmp_path / "kept")
    before = {path: path.read_bytes() for path in (tmp_path / "kept").rglob("*") if path.is_file()}
    change(detector.backbone.encoder)
    with pytest.raises(InputError, match=message):
        detector.save_pretrained(tmp_path / "kept")
    assert {path: path.read_bytes() for path in (tmp_path / "kept").rglob("*") if path.is_file()} == before


def test_what_was_unfrozen_after_the_detector_was_built_is_told(small_whisper, tmp_path):
    detector = Detector(WhisperBackbone(small_whisper), LoRA(2), MeanPooling)
    detector.backbone.encoder.layers[0].fc1.bias.requires_grad_(True)
    with pytest.raises(InputError, match=r"layers\.0\.fc1\.bias was frozen when the detector was built"):
        detector.save_pretrained(tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def rounded(detector):
    """What a `Scorer` in bf16-true and one in 32-true after it do to a detector."""
    Scorer(detector, precision="bf16-true", device="cpu")
    Scorer(detector, precision="32-true", device="cpu")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (rounded, "conv1.weight"),
        (lambda detector: detector.backbone.encoder.layers[0].fc1.bias.data.add_(1e-6), "fc1.bias"),
    ],
)
def test_frozen_values_that_were_changed_are_told_before_they_are_lost(change, name, small_whisper, tmp_path):
    detector = Detector(WhisperBackbone(small_whisper), LoRA(2), MeanPooling)
    change(detector)
    told = f"the encoder's frozen .*{name} has other values than when the detector was built: they are not saved"
    with pytest.raises(InputError, match=told):
        detector.save_pretrained(tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("method", "other", "message"),
    [
        (LoRA(2), FrozenBackbone(), "k_proj is adapted, the method leaves it as it is"),
        (LoRA(2), LoRA(2, layers=LayerRange(first=1)), r"layers\.0\..* is adapted, the method leaves it as it is"),
        (LoRA(2), LoRA(2, targets=["q_proj", "fc1"]), "fc1 has no adapter"),
        (MoELoRA(3, 2), LoRA(2), "is a mixture of 3 experts, the method makes one LoRA"),
        (MoELoRA(3, 2), MoELoRA(3, 2, alpha=6), "has rank 2 and scaling 1, the method makes 2 and 3"),
        (MoELoRA(3, 2), MoELoRA(3, 2, share_gate=True), "share_gate is True, but gates are shared otherwise"),
        (MoELoRA(3, 2, share_gate=True), MoELoRA(3, 2), "share_gate is False, but gates are shared otherwise"),
    ],
)
def test_a_method_of_other_adapters_is_refused(method, other, message, small_whisper, tmp_path):
    detector = Detector(WhisperBackbone(small_whisper), method, MeanPooling)
    detector.adaptation = other
    with pytest.raises(InputError, match=message):
        detector.save_pretrained(tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_other_loras_are_kept_with_the_method_that_makes_them(small_whisper, tmp_path):
    detector = Detector(WhisperBackbone(small_whisper), LoRA(2), MeanPooling).eval()
    other_loras(detector.backbone.encoder, 1, 1 / 3)
    detector.adaptation = detector.adaptation.after_surgery(detector.backbone.encoder)
    detector.save_pretrained(tmp_path / "kept")
    waveforms = torch.randn(2, 8000)
    with torch.no_grad():
        assert torch.equal(Detector.from_pretrained(tmp_path / "kept")(waveforms), detector(waveforms))

"""Promises of every backbone that takes padded batches."""

import json
import shutil

import numpy as np
import pytest
import torch

from moelora_ad.adapters import FrozenBackbone, Gate, GatePolicy, LoRA, MoELoRA, adapted_sites
from moelora_ad.errors import InputError
from moelora_ad.models import (
    Detector,
    HubertBackbone,
    MeanPooling,
    Wav2Vec2Backbone,
    Wav2Vec2BertBackbone,
    WavLMBackbone,
)

CLASSES = {
    "wav2vec2": Wav2Vec2Backbone,
    "hubert": HubertBackbone,
    "wavlm": WavLMBackbone,
    "wav2vec2_bert": Wav2Vec2BertBackbone,
}
ATTENTION = r".*(q|k|v|out)_proj|.*linear_(q|k|v|out)"
LENGTHS = torch.tensor([16_000, 9_000])


def waveforms() -> torch.Tensor:
    return 0.1 * torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=CLASSES)
def small(request):
    """A backbone class, and a checkpoint for it."""
    return CLASSES[request.param], request.getfixturevalue(f"small_{request.param}")


def with_large_updates(encoder: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, site in adapted_sites(encoder):
            for expert in site.lora_experts():
                expert.lora_B.normal_(generator=generator)


def test_chosen_and_weighted_layers_are_those_of_transformers(small):
    backbone, source = small
    last = backbone(source).eval()
    inputs = []
    last.encoder.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    frames, _ = last(waveforms())
    output = type(last.encoder).from_pretrained(source).eval()(inputs[0], output_hidden_states=True)
    torch.testing.assert_close(frames, output.last_hidden_state, rtol=1e-4, atol=1e-4)
    states = output.hidden_states
    assert len(states) == 4
    for layer in (1, 2, 3):
        chosen = backbone(source, hidden_states=layer).eval()
        assert len(chosen.layers()) == layer
        torch.testing.assert_close(chosen(waveforms())[0], states[layer], rtol=1e-4, atol=1e-4)
    weighted = backbone(source, hidden_states="weighted").eval()
    weighted.layer_weights.data = torch.tensor([0.0, 1.0, 2.0, 3.0])
    wanted = torch.einsum("l,lbtd->btd", weighted.layer_weights.softmax(0), torch.stack(states))
    torch.testing.assert_close(weighted(waveforms())[0], wanted, rtol=1e-4, atol=1e-4)
    beside = backbone(source, hidden_states="all").eval()
    assert beside.width == 4 * last.width
    torch.testing.assert_close(beside(waveforms())[0], torch.cat(states, dim=2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", ["token", "utterance"])
def test_padding_is_not_heard_by_the_encoder_nor_by_gates(small, level):
    backbone, source = small
    backbone = backbone(source, hidden_states="weighted").eval()
    MoELoRA(3, 2, gate=GatePolicy(level=level, noise="none"), targets=ATTENTION).adapt(backbone.encoder)
    with_large_updates(backbone.encoder)
    clips = waveforms()
    alone, _ = backbone(clips[1:, :9_000])
    for padding in (0.0, 3.0):
        clips[1, 9_000:] = padding
        frames, counts = backbone(clips, LENGTHS)
        assert counts.tolist() == [frames.shape[1], alone.shape[1]]
        torch.testing.assert_close(frames[1:, : alone.shape[1]], alone, rtol=1e-3, atol=1e-3)
    again, counts = backbone(clips[1:, :9_000])  # a batch without padding after one with padding
    assert counts is None
    assert torch.equal(again, alone)
    assert all(gate.valid is None for gate in backbone.modules() if isinstance(gate, Gate))


def test_regularisation_is_off_unless_asked_for(small):
    backbone, source = small
    quiet = backbone(source).train()
    assert torch.equal(quiet(waveforms())[0], quiet(waveforms())[0])
    assert not quiet.stochastic
    for asked in ({"dropout": 0.1}, {"layer_drop": 0.9}, {"spec_augment": True}):
        noisy = backbone(source, **asked)
        assert noisy.stochastic
        torch.manual_seed(0)
        np.random.seed(0)  # transformers draws its masks from NumPy
        trained, used = noisy.train()(waveforms())[0], noisy.eval()(waveforms())[0]
        assert not torch.equal(trained, used), asked


def test_no_gradient_is_computed_below_the_first_adapter(small):
    backbone, source = small
    frozen = backbone(source)
    FrozenBackbone().adapt(frozen.encoder)
    frozen.after_adaptation()
    assert not frozen.train()(waveforms())[0].requires_grad
    adapted = backbone(source)
    LoRA(2, targets=rf"encoder\.layers\.[12]\.({ATTENTION})").adapt(adapted.encoder)
    adapted.after_adaptation()
    seen = []
    for layer in adapted.layers():
        layer.register_forward_hook(
            lambda _, args, output: seen.append((output[0] if isinstance(output, tuple) else output).requires_grad)
        )
    adapted.train()(waveforms())[0].sum().backward()
    assert seen == [False, True, True]
    assert all(p.grad is None for p in adapted.encoder.parameters() if not p.requires_grad)


def test_gradient_checkpointing_changes_no_gradient(small, device, assert_near):
    backbone, source = small
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        detector = Detector(backbone(source), MoELoRA(2, 2, targets=ATTENTION), MeanPooling)
        with_large_updates(detector.backbone.encoder)
        if checkpointing:
            detector.backbone.enable_gradient_checkpointing()
        detector.to(device).train()
        runs = []
        site = next(site for _, site in adapted_sites(detector.backbone.encoder))
        site.base.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        torch.manual_seed(4)
        detector(waveforms().to(device), LENGTHS.to(device)).square().sum().backward()
        assert len(runs) == 1 + checkpointing
        gradients.append({name: p.grad for name, p in detector.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    error = 1e-5 if device.type == "cpu" else 1e-4  # on a GPU, attention adds up in no fixed order
    for name, gradient in gradients[0].items():
        assert_near(gradients[1][name], gradient.cpu(), error, name)


@pytest.mark.parametrize("hidden_states", ["last", "weighted", "all", 2])
def test_detectors_are_saved_and_loaded(small, tmp_path, hidden_states):
    backbone, source = small
    detector = Detector(backbone(source, hidden_states=hidden_states), MoELoRA(2, 2, targets=ATTENTION), MeanPooling)
    with_large_updates(detector.backbone.encoder)
    detector.eval().save_pretrained(tmp_path)
    loaded = Detector.from_pretrained(tmp_path)
    assert type(loaded.backbone) is backbone
    assert loaded.sites == detector.sites
    with torch.inference_mode():
        assert torch.equal(loaded(waveforms(), LENGTHS), detector(waveforms(), LENGTHS))
    kept = json.loads((tmp_path / "config.json").read_text())["backbone"]
    assert kept["class_path"] == f"moelora_ad.models.{backbone.__name__}"


@pytest.mark.parametrize(
    ("backbone", "parameters"),
    [
        (HubertBackbone, 315_438_720),
        (WavLMBackbone, 315_453_120),
        (Wav2Vec2BertBackbone, 580_493_120),
    ],
)
def test_the_published_models_are_built_without_network_on_the_meta_device(backbone, parameters):
    with torch.device("meta"):
        built = backbone()
        sites = LoRA(8, targets=ATTENTION).adapt(built.encoder)
    assert (built.width, len(built.layers()), len(sites)) == (1024, 24, 96)
    added = 24 * 4 * 2 * 1024 * 8
    assert sum(p.numel() for p in built.encoder.parameters()) == parameters + added
    here = [name for name, p in built.named_parameters() if not p.is_meta]
    assert here in ([], ["encoder.masked_spec_embed"])  # transformers itself makes this vector of 1024 numbers


def test_missing_and_foreign_checkpoints_are_one_line(small, tmp_path, small_whisper, monkeypatch):
    backbone, source = small
    with pytest.raises(InputError, match="no such folder"):
        backbone(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a 'whisper' model, this class loads '"):
        backbone(small_whisper)
    shutil.copy(source / "config.json", tmp_path)
    with pytest.raises(InputError, match=r"the folder has no model\.safetensors"):
        backbone(tmp_path)
    with pytest.raises(InputError, match="the encoder has layers 1 to 3"):
        backbone(source, hidden_states=4)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="on a machine with network run: hf download") as caught:
        backbone("some/model")
    assert "\n" not in str(caught.value)

"""The detector: exact sizes, frozen parts that stay frozen, and what a checkpoint must hold."""

import resource

import pytest
import torch

from moelora_ad.adapters import (
    AdaptationMethod,
    FrozenBackbone,
    FullFineTuning,
    LoRA,
    MoELoRA,
    TopLayers,
    adapted_sites,
)
from moelora_ad.errors import InputError
from moelora_ad.models import AASIST, AttentiveStatistics, Detector, MeanPooling, Wav2Vec2Backbone, WhisperBackbone

PUBLISHED = {  # trainable parameters with AASIST on XLSR-53
    "LoRA r4": (LoRA(4), 1_233_674),
    "LoRA r8": (LoRA(8), 2_020_106),
    "LoRA r16": (LoRA(16), 3_592_970),
    "MoE-LoRA 3 x r4": (MoELoRA(3, 4), 3_396_362),
    "MoE-LoRA 3 x r8": (MoELoRA(3, 8), 5_755_658),
    "MoE-LoRA 5 x r4": (MoELoRA(5, 4), 5_362_442),
    "MoE-LoRA 5 x r8": (MoELoRA(5, 8), 9_294_602),
    "MoE-LoRA 7 x r4": (MoELoRA(7, 4), 7_328_522),
    "MoE-LoRA 7 x r8": (MoELoRA(7, 8), 12_833_546),
    "full fine-tuning": (FullFineTuning(), 315_438_720 - 1_024 + 447_242),  # without the vector of time masking
    "frozen": (FrozenBackbone(), 447_242),
}


def waveforms(rows: int = 4, samples: int = 8_000) -> torch.Tensor:
    return 0.1 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PUBLISHED)
def test_trainable_parameters_of_the_full_size_model(name):
    method, wanted = PUBLISHED[name]
    with torch.device("meta"):
        detector = Detector(Wav2Vec2Backbone(), method, AASIST)
    assert sum(p.numel() for p in detector.parameters() if p.requires_grad) == wanted
    assert sum(p.numel() for part in detector.parameters_by_part().values() for p in part) == wanted
    assert len(detector.sites) == (96 if "LoRA" in name else 0)


def train(detector: Detector, steps: int = 2) -> dict[str, torch.Tensor]:
    """Take optimiser steps on everything trainable, with weight decay; return the state from before."""
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        detector(waveforms()).square().sum().backward()
        optimizer.step()
    return before


@pytest.mark.parametrize("method", [FrozenBackbone(), LoRA(2), MoELoRA(3, 2)], ids=lambda m: type(m).__name__)
def test_frozen_weights_are_bit_identical_after_training_and_the_others_move(method, small_wav2vec2):
    detector = Detector(Wav2Vec2Backbone(small_wav2vec2), method, AASIST).train()
    before, after = train(detector), detector.state_dict()
    kept = detector.kept_names()
    for name in after.keys() - kept:
        assert torch.equal(before[name], after[name]), name
    still = {name for name in kept if torch.equal(before[name], after[name])}
    assert all(name.endswith("logit_offset") or "unused_norm" in name for name in still)
    assert all(p.grad is None for p in detector.parameters() if not p.requires_grad)


def test_a_checkpoint_holds_adapters_gates_and_head_and_nothing_frozen(small_whisper):
    detector = Detector(WhisperBackbone(small_whisper, hidden_states="weighted"), MoELoRA(3, 2, top_k=2), MeanPooling)
    site = "backbone.encoder.layers.0.self_attn.q_proj"
    kept = detector.kept_names()
    assert {"backbone.layer_weights", "classifier.output.weight", f"{site}.gate.logit_offset"} <= kept
    assert f"{site}.experts.2.lora_A" in kept
    assert not kept & {
        f"{site}.base.weight",
        "backbone.encoder.conv1.weight",
        "backbone.encoder.embed_positions.weight",
    }
    whole = Detector(WhisperBackbone(small_whisper), FullFineTuning(), MeanPooling)
    assert set(whole.state_dict()) - whole.kept_names() == {"backbone.encoder.embed_positions.weight"}


def test_a_frozen_encoder_stays_in_evaluation_mode_and_its_adapters_do_not(small_wav2vec2):
    detector = Detector(Wav2Vec2Backbone(small_wav2vec2), MoELoRA(2, 2), MeanPooling).train()
    encoder = detector.backbone.encoder
    assert not encoder.encoder.layers[0].training
    assert all(site.training and site.gate.training for _, site in adapted_sites(encoder))
    assert not any(site.training or site.gate.training for _, site in adapted_sites(detector.eval().backbone.encoder))
    regularised = Detector(Wav2Vec2Backbone(small_wav2vec2, dropout=0.1), LoRA(2), MeanPooling).train()
    assert regularised.backbone.encoder.encoder.layers[0].dropout.training
    assert Detector(Wav2Vec2Backbone(small_wav2vec2), FullFineTuning(), MeanPooling).train().backbone.encoder.training


def test_layers_below_the_trained_ones_stay_in_evaluation_mode(small_wav2vec2):
    encoder = Detector(Wav2Vec2Backbone(small_wav2vec2), TopLayers(1), MeanPooling).train().backbone.encoder
    modules = encoder.encoder.layers[2].modules()
    assert {id(module) for module in encoder.modules() if module.training} == {id(module) for module in modules}


class Everything(AdaptationMethod):
    """Asks to train everything, including the vector of masked frames, which is unused without masking."""

    def adapt(self, encoder):
        encoder.requires_grad_(True)


def test_what_is_never_called_stays_frozen_whatever_a_method_does(small_wav2vec2):
    detector = Detector(Wav2Vec2Backbone(small_wav2vec2), Everything(), MeanPooling)
    fixed = {name for name, parameter in detector.named_parameters() if not parameter.requires_grad}
    assert fixed == {"backbone.encoder.masked_spec_embed"}
    assert detector.kept_names() == set(detector.state_dict())  # an encoder that is trained whole is kept whole


class Unaware(MeanPooling):
    def forward(self, features):
        return super().forward(features)


class Pair(MeanPooling):
    """Returns what the public AASIST returns, hidden features too."""

    def forward(self, features, lengths=None):
        return features, super().forward(features, lengths)


class UnawareBackbone(WhisperBackbone):
    def encode(self, waveforms):
        return super().encode(waveforms, None)


def test_a_head_or_a_backbone_that_is_called_in_another_way_is_named(small_whisper):
    with pytest.raises(InputError, match=r"^Unaware.forward takes \(features\), and is called with \(features"):
        Detector(WhisperBackbone(small_whisper), LoRA(2), Unaware)
    with pytest.raises(InputError, match=r"^UnawareBackbone.encode takes \(waveforms\), and is called with \(wave"):
        Detector(UnawareBackbone(small_whisper), LoRA(2), MeanPooling)
    with pytest.raises(InputError, match=r"^Pair.forward returns a tuple, not logits \(batch, 2\)$"):
        Detector(WhisperBackbone(small_whisper), LoRA(2), Pair)(waveforms())


@pytest.mark.parametrize("backbone", [Wav2Vec2Backbone, WhisperBackbone])
def test_gradient_checkpointing_gives_the_same_gradients_and_saves_memory(backbone, small_wav2vec2, small_whisper):
    source = small_wav2vec2 if backbone is Wav2Vec2Backbone else small_whisper
    gradients, saved = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        detector = Detector(backbone(source), MoELoRA(2, 2), AttentiveStatistics)
        if checkpointing:
            detector.backbone.enable_gradient_checkpointing()
        detector.train()
        for _, site in adapted_sites(detector.backbone.encoder):
            torch.nn.init.ones_(site.experts[0].lora_B)
        size = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal size
            size += tensor.numel()
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = detector(waveforms()).square().sum()
        saved.append(size)
        loss.backward()
        gradients.append([p.grad for p in detector.parameters() if p.requires_grad])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert saved[1] < 0.5 * saved[0]


def test_nothing_below_the_first_adapter_is_differentiated(small_wav2vec2):
    detector = Detector(Wav2Vec2Backbone(small_wav2vec2), LoRA(2), MeanPooling).train()
    below = []
    detector.backbone.encoder.feature_projection.register_forward_hook(lambda _m, _i, out: below.append(out[0]))
    detector(waveforms())
    assert not below[0].requires_grad


@pytest.mark.slow
def test_the_full_size_model_takes_a_real_training_step():
    backbone = Wav2Vec2Backbone("facebook/wav2vec2-large-xlsr-53", pretrained=False)
    detector = Detector(backbone, MoELoRA(3, 8), AASIST).train()
    trainable = [p for p in detector.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trainable) == 5_755_658
    kept = detector.kept_names()
    before = {n: t.clone() for n, t in detector.state_dict().items()}
    optimizer = torch.optim.AdamW(trainable, lr=1e-4)
    loss = torch.nn.functional.cross_entropy(detector(waveforms(2, 64_600)), torch.tensor([0, 1]))
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    after = detector.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in after.keys() - kept)
    moved = {n for n in kept if not torch.equal(before[n], after[n])}
    assert {n for n in kept if n.endswith("lora_B")} <= moved
    assert "classifier.output.weight" in moved
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\nloss {loss.item():.4f}, peak memory {peak:.2f} GiB")
    assert peak < 12

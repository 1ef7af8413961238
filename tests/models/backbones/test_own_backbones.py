"""A user's own backbone, with two methods around any module: what the base class does for it."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from moelora_ad.adapters import (
    AdaptationMethod,
    FullFineTuning,
    Gate,
    GatePolicy,
    LoRA,
    MoELoRA,
    TopLayers,
    adapted_sites,
)
from moelora_ad.errors import InputError
from moelora_ad.models import AttentiveStatistics, Backbone, Detector, HiddenStates, MeanPooling
from moelora_ad.models.backbones import base

WIDTH = 16


class Encoder(nn.Module):
    """PyTorch's transformer layers on frames of 160 samples, with a final normalisation and no mask of padding."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv1d(1, WIDTH, 160, 160)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 2, 32, 0.0, batch_first=True) for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)
        self.decoder = nn.Linear(WIDTH, 7)  # never called

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        hidden = self.front(waveforms.unsqueeze(1)).mT
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden)


class Plain(Backbone):
    def __init__(self, hidden_states: HiddenStates = "last", seed: int | None = 0) -> None:
        if seed is not None:
            torch.manual_seed(seed)
        super().__init__(Encoder(), WIDTH, hidden_states)

    def layers(self) -> nn.ModuleList:
        return self.encoder.layers

    def encode(self, waveforms: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        assert lengths is None
        return self.encoder(waveforms)


class TimeFirst(Plain):
    """A backbone whose layers have the time axis before the batch axis."""

    def encode(self, waveforms: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        hidden = self.encoder.front(waveforms.unsqueeze(1)).mT.transpose(0, 1)
        for layer in self.encoder.layers:
            hidden = layer(hidden)
        return hidden.transpose(0, 1)


class Masking(Plain):
    """A backbone that masks padding itself, as its `frames` shows."""

    def frames(self, lengths: torch.Tensor) -> torch.Tensor:
        return lengths // 160

    def encode(self, waveforms: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        hidden = self.encoder.front(waveforms.unsqueeze(1)).mT
        padding = None
        if lengths is not None:
            padding = torch.arange(hidden.shape[1]) >= self.frames(lengths).unsqueeze(1)
        for layer in self.encoder.layers:
            hidden = layer(hidden, src_key_padding_mask=padding)
        return self.encoder.norm(hidden)


def waveforms(rows: int = 2, samples: int = 3_200) -> torch.Tensor:
    return 0.1 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(1))


def states(clips: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The first layer's input, each layer's output, and the last hidden state, by hand."""
    encoder = Plain().encoder
    found = [encoder.front(clips.unsqueeze(1)).mT]
    for layer in encoder.layers:
        found.append(layer(found[-1]))
    return found, encoder.norm(found[-1])


def test_hidden_states_are_those_of_the_layers():
    wanted, last = states(waveforms())
    torch.testing.assert_close(Plain()(waveforms())[0], last)
    for number in (1, 2, 3):
        backbone = Plain(number)
        torch.testing.assert_close(backbone(waveforms())[0], wanted[number])
        assert len(backbone.encoder.layers) == number
    for numbers in ([0], [2, 0]):
        torch.testing.assert_close(Plain(numbers)(waveforms())[0], torch.cat([wanted[n] for n in numbers], dim=-1))
    weighted = Plain("weighted")
    torch.testing.assert_close(weighted(waveforms())[0], torch.stack(wanted).mean(0))
    weighted.layer_weights.data = torch.tensor([0.0, 0.0, 50.0, 0.0])
    torch.testing.assert_close(copy.deepcopy(weighted)(waveforms())[0], wanted[2])
    with pytest.raises(InputError, match="the encoder has layers 1 to 3"):
        Plain(4)


class Added(nn.Module):
    """A layer with a trained vector behind it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.vector = nn.Parameter(torch.ones(WIDTH))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.layer(hidden) + self.vector


class Around(AdaptationMethod):
    """Vectors behind the layers, by modules around these."""

    def adapt(self, encoder: nn.Module) -> None:
        encoder.requires_grad_(False)
        for number, layer in enumerate(encoder.layers):
            encoder.layers[number] = Added(layer)


class Hooked(AdaptationMethod):
    """The same vectors, by hooks on the layers."""

    def adapt(self, encoder: nn.Module) -> None:
        encoder.requires_grad_(False)
        for layer in encoder.layers:
            layer.vector = nn.Parameter(torch.ones(WIDTH))
            layer.register_forward_hook(lambda layer, _, output: output + layer.vector)


@pytest.mark.parametrize("method", [Around(), Hooked()], ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("hidden_states", [3, "weighted", "all"])
def test_hidden_states_are_those_that_a_method_leaves(method, hidden_states):
    detector = Detector(Plain(hidden_states), method, MeanPooling).eval()
    encoder = Plain().encoder
    wanted = [encoder.front(waveforms().unsqueeze(1)).mT]
    for layer in encoder.layers:
        wanted.append(layer.eval()(wanted[-1]) + 1)
    given = {3: wanted[3], "weighted": torch.stack(wanted).mean(0), "all": torch.cat(wanted, dim=-1)}
    torch.testing.assert_close(detector.backbone(waveforms())[0], given[hidden_states])
    nn.init.ones_(detector.classifier.output.weight)
    detector.train()(waveforms()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in detector.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("given", ["weigthed", "mean", "", None, 2.0, (1, 2), True, [True], [1.0], ["1"], [], [4]])
def test_what_are_no_hidden_states_is_refused(given):
    with pytest.raises(
        InputError, match=r"^hidden_states is .*: (give 'last', 'weighted', 'all'|a list of numbers from)"
    ):
        Plain(given)


def test_layers_that_give_something_else_are_told():
    TimeFirst("last")(waveforms(3))
    with pytest.raises(InputError, match=r"layer 0 of TimeFirst gives \(20, 3, 16\), not .* = \(3, 20, 16\)"):
        TimeFirst(2)(waveforms(3))


class NewList(Plain):
    """A backbone whose list of layers is not the encoder's."""

    def layers(self) -> nn.ModuleList:
        return nn.ModuleList(self.encoder.layers)


class Miscounting(Plain):
    """A backbone that leaves padding out itself, and counts a frame too few."""

    def frames(self, lengths: torch.Tensor) -> torch.Tensor:
        return lengths // 160 - 1

    def encode(self, waveforms: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        return self.encoder(waveforms)


@pytest.mark.parametrize(
    ("made", "told"),
    [(lambda x: (x,), "tuple"), (lambda x: x.mean(1), r"\(2, 16\)"), (lambda x: x.mT, r"\(2, 16, 20\)")],
)
def test_an_encoder_that_gives_no_frames_is_told(made, told, monkeypatch):
    backbone, encode = Plain(), Plain().encode
    monkeypatch.setattr(backbone, "encode", lambda *given: made(encode(*given)))
    with pytest.raises(InputError, match=rf"^Plain: encode gives {told}, not a tensor \(batch, frames, width 16\)$"):
        backbone(waveforms())


def test_what_would_give_other_frames_than_asked_for_is_refused():
    with pytest.raises(InputError, match="NewList: layers gives a new list each time"):
        NewList(2)
    NewList("weighted")(waveforms())
    with pytest.raises(InputError, match="encode gives 20 frames of 3200 samples, and frames 19"):
        Miscounting()(waveforms(), torch.tensor([3_200, 1_600]))


@pytest.mark.parametrize("kind", [Plain, Masking])
@pytest.mark.parametrize("hidden_states", ["last", 2, "weighted", "all"])
def test_padding_is_not_heard(kind, hidden_states):
    backbone = kind(hidden_states).eval()
    MoELoRA(2, 2, gate=GatePolicy(level="utterance", noise="none"), targets=["linear1"]).adapt(backbone.encoder)
    with torch.no_grad():
        for _, site in adapted_sites(backbone.encoder):
            for expert in site.lora_experts():
                expert.lora_B.normal_()
    clips = waveforms()
    alone, _ = backbone(clips[1:, :1_600])
    clips[1, 1_600:] = 3.0
    frames, counts = backbone(clips, torch.tensor([3_200, 1_600]))
    assert counts.tolist() == [20, 10]
    torch.testing.assert_close(frames[1:, :10], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(frames[:1], backbone(clips[:1])[0], rtol=1e-4, atol=1e-5)
    assert all(gate.valid is None for gate in backbone.modules() if isinstance(gate, Gate))


@pytest.mark.parametrize(
    ("hidden_states", "method", "idle"),
    [
        ("last", FullFineTuning(), {"decoder"}),
        (2, FullFineTuning(), {"decoder", "norm"}),
        ("weighted", FullFineTuning(), {"decoder", "norm"}),
        ("all", FullFineTuning(), {"decoder", "norm"}),
        ("weighted", TopLayers(1), set()),
        (1, LoRA(2, targets=["linear1"]), set()),
    ],
)
def test_what_has_no_part_is_frozen(hidden_states, method, idle):
    detector = Detector(Plain(hidden_states), method, MeanPooling).train()
    assert {name.partition(".")[0] for name in detector.backbone.never_called} == idle
    detector(waveforms()).square().sum().backward()
    trained = {name for name, p in detector.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in detector.named_parameters() if p.grad is not None}
    assert any(name.startswith("backbone.encoder.layers") for name in trained)
    with torch.device("meta"):
        described = Detector(Plain(hidden_states, seed=None), method, MeanPooling)
    assert described.backbone.never_called == detector.backbone.never_called


class EncoderByName(Plain):
    """A backbone that passes its encoder the waveforms by keyword."""

    def encode(self, waveforms: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        return self.encoder(waveforms=waveforms)


@pytest.mark.parametrize("kind", [Plain, EncoderByName])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_encoder_gets_its_own_type_and_gives_at_least_single_precision(dtype, kind):
    backbone, seen = kind("weighted"), []
    backbone.encoder.front.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    wanted, _ = backbone(waveforms())
    backbone.encoder.to(dtype)
    found, _ = backbone(waveforms())
    assert seen == [torch.float32, dtype]
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.float(), wanted, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("hidden_states", ["last", "weighted"])
def test_gradient_checkpointing_runs_layers_again_and_changes_no_gradient(hidden_states):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        detector = Detector(Plain(hidden_states), LoRA(2, targets=["linear1"]), AttentiveStatistics)
        if checkpointing:
            detector.backbone.enable_gradient_checkpointing()
        for _, site in adapted_sites(detector.backbone.encoder):
            nn.init.ones_(site.experts[0].lora_B)
        runs = []
        detector.backbone.encoder.layers[1].linear2.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        copy.deepcopy(detector).train()(waveforms())
        runs.clear()
        detector.train()(waveforms()).square().sum().backward()
        assert len(runs) == 1 + checkpointing
        with torch.no_grad():
            detector(waveforms())
        assert len(runs) == 2 + checkpointing
        gradients.append([p.grad for p in detector.parameters() if p.requires_grad])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


class Normalised(AdaptationMethod):
    """Batch normalisation of what the layers give."""

    def adapt(self, encoder: nn.Module) -> None:
        encoder.requires_grad_(False)
        for number, layer in enumerate(encoder.layers):
            encoder.layers[number] = nn.Sequential(layer, nn.BatchNorm1d(20))


def test_gradient_checkpointing_counts_a_batch_once_in_statistics():
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        detector = Detector(Plain(), Normalised(), MeanPooling).train()
        if checkpointing:
            detector.backbone.enable_gradient_checkpointing()
        buffers = dict(detector.named_buffers())
        for _ in range(2):
            detector(waveforms()).square().sum().backward()
        assert all(buffer is buffers[name] for name, buffer in detector.named_buffers())
        found.append(buffers)
    assert any(name.endswith("running_mean") for name in buffers)
    for name, buffer in found[0].items():
        torch.testing.assert_close(found[1][name], buffer, msg=name)


class ByName(Plain):
    """A backbone that passes its layers their input by keyword."""

    def encode(self, waveforms: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        hidden = self.encoder.front(waveforms.unsqueeze(1)).mT
        for layer in self.encoder.layers:
            hidden = layer(src=hidden)
        return self.encoder.norm(hidden)


def test_layers_that_are_called_by_name_draw_the_same_noise_again(device, monkeypatch):
    """PyTorch restores the random state only of devices whose tensors are among the positional arguments."""
    seen, gradients = [], []

    def watched(function, *args, use_reentrant):
        seen.append([leaf.shape for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)])
        return checkpoint(function, *args, use_reentrant=use_reentrant)

    monkeypatch.setattr(base, "checkpoint", watched)
    for checkpointing in (False, True):
        torch.manual_seed(0)
        detector = Detector(ByName(), MoELoRA(2, 2, targets=["linear1"]), AttentiveStatistics).to(device).train()
        for _, site in adapted_sites(detector.backbone.encoder):
            nn.init.ones_(site.experts[0].lora_B)
        if checkpointing:
            detector.backbone.enable_gradient_checkpointing()
        torch.manual_seed(1)
        detector(waveforms().to(device)).square().sum().backward()
        gradients.append([p.grad for p in detector.parameters() if p.requires_grad])
    assert len(seen) == 3
    assert all(len(shapes) == 1 for shapes in seen)
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_an_encoder_that_is_nowhere_else_is_kept_whole(tmp_path):
    """An encoder with random weights would be another one in the next process."""
    detector = Detector(Plain(seed=None), LoRA(2, targets=["linear1"]), MeanPooling).eval()
    assert not detector.backbone.is_elsewhere
    assert detector.kept_names() == set(detector.state_dict())
    detector.save_pretrained(tmp_path)
    package = __name__.partition(".")[0]
    loaded = Detector.from_pretrained(tmp_path, allow=[package])
    assert torch.equal(loaded(waveforms()), detector(waveforms()))

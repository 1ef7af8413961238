"""Every method in every kind of encoder: what is adapted, what is trained, and that nothing else changes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WhisperConfig,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from moelora_ad.adapters import (
    ATTENTION_PROJECTIONS,
    AdaptationMethod,
    CallWatch,
    FrozenBackbone,
    FullFineTuning,
    GatePolicy,
    InjectionError,
    LayerRange,
    LoRA,
    MoELoRA,
    TopLayers,
    adapted_sites,
)
from moelora_ad.models import WavLMBackbone

WIDTH = 16
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
QUIET = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}
CONVOLUTIONS = {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}


class Plain(nn.Module):
    """An encoder that comes from no library: two layers of gated products."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"left": nn.Linear(WIDTH, 24), "right": nn.Linear(WIDTH, 24), "down": nn.Linear(24, WIDTH)})
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block["down"](torch.sigmoid(block["left"](x)) * block["right"](x))
        return x


class Case(NamedTuple):
    build: Callable[[Path], nn.Module]
    inputs: Callable[[], Tensor]
    targets: tuple[str, ...]
    layers: str  # dotted path of the list of layers
    attention: str  # dotted path of the attention inside a layer
    stack: str = "layers"
    names: tuple[str, ...] = ()  # names of the projections inside the attention, where they differ from the targets


def wavlm(folder: Path) -> nn.Module:
    WavLMConfig(**SIZES, **QUIET, **CONVOLUTIONS, **STABLE).save_pretrained(folder)
    return WavLMBackbone(folder, pretrained=False, normalize=True).encoder


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def audio() -> Tensor:
    return noise(2, 4_000)


SPEECH = (audio, ATTENTION_PROJECTIONS, "encoder.layers", "attention")
CASES = {
    "wav2vec2": Case(lambda _: Wav2Vec2Model(Wav2Vec2Config(**SIZES, **QUIET, **CONVOLUTIONS)), *SPEECH),
    "xls-r": Case(lambda _: Wav2Vec2Model(Wav2Vec2Config(**SIZES, **QUIET, **CONVOLUTIONS, **STABLE)), *SPEECH),
    "hubert": Case(lambda _: HubertModel(HubertConfig(**SIZES, **QUIET, **CONVOLUTIONS, **STABLE)), *SPEECH),
    "wavlm": Case(wavlm, *SPEECH),
    "wav2vec2-bert": Case(
        lambda _: Wav2Vec2BertModel(Wav2Vec2BertConfig(**SIZES, **QUIET, conformer_conv_dropout=0.0)),
        lambda: noise(2, 9, 160),
        ("linear_q", "linear_k", "linear_v", "linear_out"),
        "encoder.layers",
        "self_attn",
    ),
    "whisper": Case(
        lambda _: WhisperEncoder(
            WhisperConfig(
                d_model=WIDTH,
                encoder_layers=2,
                encoder_attention_heads=2,
                encoder_ffn_dim=24,
                max_source_positions=20,
                dropout=0.0,
            )
        ),
        lambda: noise(2, 80, 40),
        ATTENTION_PROJECTIONS,
        "layers",
        "self_attn",
    ),
    "bert, text": Case(
        lambda _: BertModel(
            BertConfig(**SIZES, vocab_size=30, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        ),
        lambda: torch.arange(14).reshape(2, 7),
        ("query", "key", "value", "attention.output.dense"),
        "encoder.layer",
        "attention",
        "layer",
        ("self.query", "self.key", "self.value", "output.dense"),
    ),
    "a module of one's own": Case(
        lambda _: Plain(), lambda: noise(2, 7, WIDTH), ("left", "right", "down"), "blocks", "", "blocks"
    ),
}


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture
def encoder(case: Case, tmp_path: Path) -> nn.Module:
    torch.manual_seed(0)
    return case.build(tmp_path)


def output(encoder: nn.Module, case: Case) -> Tensor:
    given = encoder(case.inputs())
    return given if isinstance(given, Tensor) else given.last_hidden_state


def low_rank(case: Case) -> dict[str, AdaptationMethod]:
    return {
        "lora": LoRA(2, alpha=3, targets=case.targets),
        "mixture": MoELoRA(2, 2, targets=case.targets),
        "top layer": MoELoRA(3, 2, top_k=2, targets=case.targets, layers=LayerRange(first=-1)),
        "utterance": MoELoRA(2, 2, gate=GatePolicy(level="utterance"), targets=case.targets),
    }


METHODS = ["lora", "mixture", "top layer", "utterance"]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_adapted_is_what_was_asked_for_and_changes_nothing_yet(encoder, case, method):
    encoder.eval()
    with torch.no_grad():  # with gradients, attention would use another implementation, which rounds differently
        before = output(encoder, case)
        sites = low_rank(case)[method].adapt(encoder)
        assert torch.equal(output(encoder, case), before)
    numbers = [1] if method == "top layer" else [0, 1]
    inside = f"{case.attention}." if case.attention else ""
    assert sorted(sites) == sorted(
        f"{case.layers}.{number}.{inside}{name}" for number in numbers for name in case.names or case.targets
    )


def step(encoder: nn.Module, case: Case) -> tuple[set[str], set[str]]:
    """Names of the parameters that one step of AdamW changed, and of those that got a gradient other than zero."""
    before = {name: parameter.detach().clone() for name, parameter in encoder.named_parameters()}
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    watch = CallWatch(encoder)
    with watch:
        frames = output(encoder.train(), case)
    if trained:
        (frames * noise(*frames.shape)).sum().backward()
        torch.optim.AdamW(trained, lr=0.01, weight_decay=0.1).step()
    watch.check()
    named = dict(encoder.named_parameters())
    moved = {name for name, parameter in named.items() if not torch.equal(parameter, before[name])}
    return moved, {name for name, p in named.items() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize("method", METHODS)
def test_one_step_changes_the_adapters_and_nothing_else(encoder, case, method):
    low_rank(case)[method].adapt(encoder)
    with torch.no_grad():  # as after the first step, in which lora_B = 0 keeps gates and lora_A still
        for _, site in adapted_sites(encoder):
            for expert in site.lora_experts():
                expert.lora_B.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    adapters = {name for name, _ in encoder.named_parameters() if re.search(r"\.(experts\.\d+|gate)\.\w+$", name)}
    assert {name for name, p in encoder.named_parameters() if p.requires_grad} == adapters
    moved, reached = step(encoder, case)
    assert moved == reached == adapters


# Parameters without effect on the output. A bias of keys adds the same to all scores of a row: only rounding changes.
IDLE = re.compile(r"(.*\.)?(masked_spec_embed|pooler\..*|(k_proj|linear_k|key)\.bias)")


@pytest.mark.parametrize("method", [FrozenBackbone(), FullFineTuning(), "top layer"], ids=["frozen", "full", "top"])
def test_one_step_changes_the_layers_that_are_trained_and_nothing_else(encoder, case, method):
    names = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    if method == "top layer":
        method = TopLayers(1, stack=case.stack)
        wanted = {name for name in names if name.startswith(f"{case.layers}.1.")}
    else:
        wanted = names if isinstance(method, FullFineTuning) else set()
    assert method.adapt(encoder) == ()
    assert {name for name, parameter in encoder.named_parameters() if parameter.requires_grad} == wanted
    moved, _ = step(encoder, case)
    assert moved <= wanted
    assert all(IDLE.fullmatch(name) for name in wanted - moved), wanted - moved


def test_targets_of_another_model_are_refused_with_the_names_of_this_one(encoder, case):
    with pytest.raises(InjectionError, match=r"'wq' matches no linear layer; the model has .*"):
        LoRA(2, targets=["wq"]).adapt(encoder)

"""Injection into any model, and what each method trains."""

import pytest
import torch
from torch import nn
from transformers import WavLMConfig, WavLMModel

from moelora_ad.adapters import (
    ATTENTION_PROJECTIONS,
    CallWatch,
    FrozenBackbone,
    FullFineTuning,
    GatePolicy,
    InjectionError,
    LoRA,
    MoELoRA,
    MoELoRALinear,
    adapted_sites,
    adapter_modules,
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(8, 8)
        self.k_proj = nn.Linear(8, 8, bias=False)
        self.mlp = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.q_proj(x) * self.k_proj(x))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block())


def test_names_match_the_end_of_the_path_and_keep_the_models_order():
    adapted = model()
    assert LoRA(rank=2, targets=["k_proj", "q_proj"]).adapt(adapted) == (
        *("0.q_proj", "0.k_proj"),
        *("1.q_proj", "1.k_proj"),
    )
    assert isinstance(adapted[0].q_proj, MoELoRALinear)
    assert isinstance(adapted[0].mlp, nn.Linear)


def test_a_regular_expression_must_match_the_whole_path():
    assert LoRA(rank=2, targets=r"1\..*_proj").adapt(model()) == ("1.q_proj", "1.k_proj")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "v_prj"], "'v_prj' matches no linear layer"),
        (["k_porj"], "did you mean 'k_proj'"),
        (["zzz"], "the model has k_proj, mlp, q_proj"),
        ("nothing", "'nothing' matches no linear layer; the model has k_proj, mlp, q_proj"),
        ("(", "'\\(' is not a regular expression"),
    ],
)
def test_targets_that_match_nothing_are_refused_by_name(targets, message):
    with pytest.raises(InjectionError, match=message):
        LoRA(rank=2, targets=targets).adapt(model())


def test_a_model_is_adapted_once():
    adapted = model()
    LoRA(rank=2, targets=["q_proj"]).adapt(adapted)
    with pytest.raises(InjectionError, match=r"adapted already, first at 0\.q_proj"):
        LoRA(rank=2, targets=["mlp"]).adapt(adapted)


def test_what_each_method_trains():
    trained = {}
    for method in (FrozenBackbone(), FullFineTuning(), LoRA(2, targets=["mlp"]), MoELoRA(3, 2, targets=["mlp"])):
        adapted = model()
        method.adapt(adapted)
        trained[type(method).__name__] = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert trained["FrozenBackbone"] == set()
    assert trained["FullFineTuning"] == {n for n, _ in model().named_parameters()}
    assert trained["LoRA"] == {f"{i}.mlp.experts.0.lora_{m}" for i in (0, 1) for m in "AB"}
    mixture = {f"{i}.mlp.experts.{e}.lora_{m}" for i in (0, 1) for e in range(3) for m in "AB"}
    gates = {f"{i}.mlp.gate.{w}" for i in (0, 1) for w in ("weight", "noise_weight")}
    assert trained["MoELoRA"] == mixture | gates


def test_adapters_are_made_where_the_projection_lies():
    with torch.device("meta"):
        adapted = model()
    MoELoRA(3, 2, targets=["mlp"]).adapt(adapted)
    assert {p.device.type for p in adapted.parameters()} == {"meta"}
    assert len(list(adapter_modules(adapted))) == 2 * (3 + 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_experts": 1}, "at least 2"),
        ({"num_experts": 3, "top_k": 4}, "top_k is 4, but there are 3 experts"),
        ({"num_experts": 3, "top_k": 2, "gate": GatePolicy(top_k=3)}, "give one of the two"),
    ],
)
def test_mixtures_that_contradict_themselves_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MoELoRA(**arguments)


def test_top_k_reaches_every_gate():
    adapted = model()
    MoELoRA(3, 2, top_k=2, gate=GatePolicy(noise="none"), targets=["mlp"]).adapt(adapted)
    for _, site in adapted_sites(adapted):
        assert site.gate.policy == GatePolicy(top_k=2, noise="none")


def test_projections_that_are_not_called_are_named():
    config = WavLMConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(8,) * 7
    )
    wavlm = WavLMModel(config).train()
    sites = LoRA(rank=2, targets=ATTENTION_PROJECTIONS).adapt(wavlm)
    assert len(sites) == 8
    watch = CallWatch(wavlm)
    wavlm(torch.randn(1, 4000)).last_hidden_state.sum().backward()
    with pytest.raises(InjectionError, match=r"8 adapted projections were never called.*encoder.layers.0.attention"):
        watch.finish()


def test_a_model_that_calls_all_its_projections_passes_the_watch():
    adapted = model()
    MoELoRA(2, 2, targets=["q_proj", "mlp"]).adapt(adapted)
    watch = CallWatch(adapted)
    adapted(torch.randn(3, 8)).sum().backward()
    watch.finish()
    assert not any(site._forward_pre_hooks for _, site in adapted_sites(adapted))

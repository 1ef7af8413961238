"""Injection into any model, and what each method trains."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2Model, WavLMConfig, WavLMModel

from moelora_ad.adapters import (
    ATTENTION_PROJECTIONS,
    CallWatch,
    FrozenBackbone,
    FullFineTuning,
    GatePolicy,
    InjectionError,
    LayerRange,
    LoRA,
    LoRAExpert,
    MoELoRA,
    MoELoRALinear,
    TopLayers,
    adapted_sites,
    adapter_modules,
    inject,
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
        ("q_proj", r"one string is a regular expression for the whole path; give a list of names: \[q_proj\]"),
        ([], "targets is empty: name projections; the model has k_proj, mlp, q_proj"),
    ],
)
def test_targets_that_match_nothing_are_refused_by_name(targets, message):
    with pytest.raises(InjectionError, match=message):
        LoRA(rank=2, targets=targets).adapt(model())


@pytest.mark.parametrize("method", [LoRA(4, targets=["wide", "narrow"]), MoELoRA(2, 4, targets=["wide", "narrow"])])
def test_after_a_failure_the_model_is_as_it_was(method):
    adapted = nn.ModuleDict({"wide": nn.Linear(8, 8), "narrow": nn.Linear(8, 2)})
    modules = dict(adapted.named_modules())
    with pytest.raises(InjectionError, match=r"^narrow: rank is 4: a 8 -> 2 projection takes 1 to 2$"):
        method.adapt(adapted)
    assert dict(adapted.named_modules()) == modules
    assert all(parameter.requires_grad for parameter in adapted.parameters())
    assert LoRA(2, targets=["wide", "narrow"]).adapt(adapted) == ("wide", "narrow")


def test_a_model_that_is_itself_a_projection_is_refused():
    with pytest.raises(InjectionError, match="the model is itself a projection"):
        LoRA(2, targets=".*").adapt(nn.Linear(4, 4))


def test_a_model_is_adapted_once():
    adapted = model()
    LoRA(rank=2, targets=["q_proj"]).adapt(adapted)
    with pytest.raises(InjectionError, match=r"already adapted, first at 0\.q_proj"):
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
    with watch:
        wavlm(torch.randn(1, 4000)).last_hidden_state.sum().backward()
    with pytest.raises(InjectionError, match=r"8 adapted projections were never called.*encoder.layers.0.attention"):
        watch.check()


def test_a_model_that_calls_all_its_projections_passes_the_watch():
    adapted = model()
    MoELoRA(2, 2, targets=["q_proj", "mlp"]).adapt(adapted)
    watch = CallWatch(adapted)
    with watch:
        adapted(torch.randn(3, 8)).sum().backward()
    watch.check()
    assert not any(site._forward_pre_hooks for _, site in adapted_sites(adapted))


# Layers


def stack(layers: int = 4) -> nn.ModuleDict:
    torch.manual_seed(0)
    blocks = nn.ModuleList(Block() for _ in range(layers))
    return nn.ModuleDict({"head": nn.ModuleDict({"q_proj": nn.Linear(8, 8)}), "layers": blocks})


@pytest.mark.parametrize(
    ("layers", "numbers"),
    [
        (LayerRange(2), [2, 3]),
        (LayerRange(last=1), [0, 1]),
        (LayerRange(1, 2), [1, 2]),
        (LayerRange(-1), [3]),
        (LayerRange(-3, -2), [1, 2]),
        (LayerRange(3, 99), [3]),
    ],
)
def test_a_range_of_layers(layers, numbers):
    sites = LoRA(2, targets=["q_proj"], layers=layers).adapt(stack())
    assert sites == tuple(f"layers.{number}.q_proj" for number in numbers)


def test_without_a_range_sites_outside_of_layers_are_adapted_too():
    assert LoRA(2, targets=["q_proj"]).adapt(stack(1)) == ("head.q_proj", "layers.0.q_proj")


@pytest.mark.parametrize("layers", [LayerRange(4), LayerRange(2, 1)])
def test_an_empty_range_is_refused(layers):
    with pytest.raises(InjectionError, match=r"no target is in LayerRange.*layers 0 to 3"):
        MoELoRA(2, 2, targets=["q_proj"], layers=layers).adapt(stack())


def test_the_top_layers_are_trained_whole_and_nothing_else():
    model = stack()
    model.layers[3].mlp.weight.requires_grad = False  # a parameter that the model itself keeps fixed
    assert TopLayers(2).adapt(model) == ()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    wanted = {name for name, _ in model.named_parameters() if name.startswith(("layers.2", "layers.3"))}
    assert trained == wanted - {"layers.3.mlp.weight"}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (TopLayers(5), "num_layers is 5: layers has 4 layers"),
        (TopLayers(1, stack="blocks"), "there are none; the model has layers"),
    ],
)
def test_top_layers_that_are_not_there(method, message):
    with pytest.raises(InjectionError, match=message):
        method.adapt(stack())
    with pytest.raises(ValueError, match="use FrozenBackbone"):
        TopLayers(0)


# Shared gates


def shared() -> nn.Module:
    model = stack(2).layers
    MoELoRA(3, 2, targets=["q_proj", "k_proj"], share_gate=True, gate=GatePolicy(noise="none")).adapt(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def test_a_shared_gate_is_one_gate_for_each_layer():
    model = shared()
    first, second = model
    assert first.q_proj.gate is first.k_proj.gate
    assert first.q_proj.gate is not second.q_proj.gate
    gates = [name for name in model.state_dict() if ".gate.weight" in name]
    assert gates == ["0.q_proj.gate.weight", "1.q_proj.gate.weight"]
    assert sum("gate" in name for name, _ in model.named_parameters()) == 2


def test_a_shared_gate_decides_on_each_projections_own_input_and_learns_from_all():
    model, x = shared(), torch.randn(5, 8)
    block = model[0]
    gate = block.q_proj.gate
    for site, value in ((block.q_proj, x), (block.k_proj, 2 * x)):
        weights = torch.softmax(value @ gate.weight.T, -1)
        updates = torch.stack([value @ e.lora_A.T @ e.lora_B.T for e in site.experts], -1)
        wanted = site.base(value) + (updates * weights.unsqueeze(1)).sum(-1)
        torch.testing.assert_close(site(value), wanted)
    (block.q_proj(x).sum() + block.k_proj(2 * x).sum()).backward()
    both = gate.weight.grad.clone()
    gate.weight.grad = None
    block.q_proj(x).sum().backward()
    assert not torch.allclose(gate.weight.grad, both)


def test_a_copy_shares_its_own_gate():
    model = shared()
    twin = copy.deepcopy(model)
    assert twin[0].q_proj.gate is twin[0].k_proj.gate
    assert twin[0].q_proj.gate is not model[0].q_proj.gate
    twin.load_state_dict(model.state_dict())
    assert twin.double()[0].k_proj.gate.weight.dtype == torch.float64


def test_gates_cannot_be_shared_between_inputs_of_different_width():
    model = nn.ModuleList([nn.ModuleDict({"up": nn.Linear(8, 16), "down": nn.Linear(16, 8)})])
    with pytest.raises(InjectionError, match=r"input of 0\.down is 16 wide, that of 0\.up 8"):
        MoELoRA(2, 2, targets=["up", "down"], share_gate=True).adapt(model)
    with pytest.raises(InjectionError, match="is not in a numbered layer"):
        MoELoRA(2, 2, targets=["q_proj"], share_gate=True).adapt(stack().head)


# Projections whose forward method is bypassed, or that are not plain linear layers


def trained_b(model: nn.Module) -> nn.Module:
    for _, site in adapted_sites(model):
        for expert in site.experts:
            nn.init.normal_(expert.lora_B)
    return model


def test_the_fused_path_of_inference_does_not_pass_an_adapter_by():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2).eval()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        plain = encoder(x)
        MoELoRA(2, 2, targets=["linear1", "linear2"]).adapt(encoder)
        torch.testing.assert_close(encoder(x), plain)
        fused_off = trained_b(encoder)(x)
    assert not torch.allclose(fused_off, plain, atol=1e-2)
    torch.testing.assert_close(fused_off, encoder(x).detach())  # with gradients, PyTorch does not take the fused path


@pytest.mark.parametrize("layers", [None, LayerRange(first=1)])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("make", [LoRA, partial(MoELoRA, 2)])
def test_padded_rows_of_pytorchs_encoder_are_as_without_padding(make, grad, layers):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2).eval()
    make(2, targets=["linear1"], layers=layers).adapt(encoder)
    trained_b(encoder)
    x, padding = torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = True
    with torch.set_grad_enabled(grad):
        together = encoder(x, src_key_padding_mask=padding)
        torch.testing.assert_close(together[0, :3], encoder(x[:1, :3])[0])
        torch.testing.assert_close(together[1], encoder(x[1:])[0])


def test_a_projection_that_pytorchs_attention_only_reads_is_refused_by_name():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    with pytest.raises(InjectionError, match=r"layers\.0\.self_attn\.out_proj: nn\.MultiheadAttention reads"):
        LoRA(2, targets=["out_proj"]).adapt(encoder)
    assert not list(adapted_sites(encoder))


def test_a_projection_in_several_places_stays_one():
    first, second = nn.ModuleDict({"proj": nn.Linear(8, 8)}), nn.ModuleDict()
    second["proj"] = first["proj"]
    model = nn.ModuleList([first, second])
    assert LoRA(2, targets=["proj"]).adapt(model) == ("0.proj",)
    assert model[0].proj is model[1].proj
    assert isinstance(model[1].proj, MoELoRALinear)


def test_a_layer_of_another_kind_is_told():
    gpt = GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11))
    with pytest.raises(InjectionError, match="'c_attn' matches no linear layer, it is Conv1D"):
        LoRA(2, targets=["c_attn"]).adapt(gpt)


def test_a_builder_of_ones_own_gets_the_projection_and_its_path():
    model, seen = stack(2), []

    def build(linear: nn.Linear, site: str) -> MoELoRALinear:
        seen.append((linear.in_features, site))
        return MoELoRALinear(linear, [LoRAExpert(8, 8, 1 + int(site.split(".")[1]))])

    sites = inject(model, ["mlp"], build)
    assert seen == [(8, site) for site in sites]
    assert [site.rank for _, site in adapted_sites(model)] == [1, 2]

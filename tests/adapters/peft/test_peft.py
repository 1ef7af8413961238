"""Adapters exported to peft and read from it, with the real peft; merging."""

import copy
import json
import os

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertModel, Wav2Vec2Config, Wav2Vec2Model

from moelora_ad.adapters import (
    AdapterError,
    GatePolicy,
    LayerRange,
    LoRA,
    MoELoRA,
    MoELoRALinear,
    adapt_from_peft,
    adapted_sites,
    load_lora,
    lora_updates,
    merge,
    merge_static_mixture,
    read_lora,
    record_routing,
    save_peft,
    static_mixture,
    static_mixture_error,
    valid_tokens,
)
from moelora_ad.models import Detector, MeanPooling, WhisperBackbone


def bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=3, intermediate_size=32, vocab_size=50)
    return BertModel(config).eval()


def wav2vec2() -> Wav2Vec2Model:
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(8,) * 7
    )
    return Wav2Vec2Model(config).eval()


CASES = [
    (bert, LoRA(3, alpha=7, targets=["query", "value", "dense"]), torch.arange(8).reshape(2, 4)),
    (bert, LoRA(2, targets=["query"], layers=LayerRange(1, 1)), torch.arange(8).reshape(2, 4)),
    (wav2vec2, LoRA(4, alpha=2), torch.linspace(-1, 1, 4_000).repeat(2, 1)),
]


def trained(model: nn.Module, method) -> nn.Module:
    method.adapt(model)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "gate" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def output(model, inputs):
    with torch.no_grad():
        return model(inputs).last_hidden_state


@pytest.mark.parametrize(("build", "method", "inputs"), CASES)
def test_a_lora_loads_in_peft_with_equal_outputs_and_comes_back(build, method, inputs, tmp_path):
    ours = trained(build(), method)
    save_peft(lora_updates(ours), tmp_path, base_model="a/base")
    theirs = peft.PeftModel.from_pretrained(build(), tmp_path)
    torch.testing.assert_close(output(theirs, inputs), output(ours, inputs), rtol=1e-6, atol=1e-6)
    adapted = [n for n, m in theirs.base_model.model.named_modules() if isinstance(m, peft.tuners.lora.Linear)]
    assert adapted == [site for site, _ in adapted_sites(ours)]
    assert peft.PeftConfig.from_pretrained(tmp_path).base_model_name_or_path == "a/base"
    again = build()
    assert adapt_from_peft(again, tmp_path) == tuple(adapted)
    assert torch.equal(output(again, inputs), output(ours, inputs))
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in ours.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize(
    "arguments", [{}, {"use_rslora": True}, {"rank_pattern": {"value": 5}, "alpha_pattern": {r"1\..*query": 9}}]
)
def test_an_adapter_of_peft_is_read(arguments, tmp_path):
    config = peft.LoraConfig(r=3, lora_alpha=8, target_modules=["query", "value"], **arguments)
    theirs = peft.get_peft_model(bert(), config)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    theirs.save_pretrained(tmp_path)
    updates = read_lora(tmp_path)
    assert len(updates) == 6
    for site, update in updates.items():
        layer = theirs.base_model.model.get_submodule(site)
        delta = update.scaling * update.lora_B @ update.lora_A
        torch.testing.assert_close(delta, layer.get_delta_weight("default"))


def test_a_scaling_that_differs_is_taken_into_lora_b():
    model, inputs = trained(bert(), LoRA(2, alpha=6, targets=["query"])), torch.arange(6).reshape(2, 3)
    other = bert()
    LoRA(2, targets=["query"]).adapt(other)
    load_lora(other, lora_updates(model))
    torch.testing.assert_close(output(other, inputs), output(model, inputs))


def test_a_kept_detector_is_read(small_whisper, tmp_path):
    detector = Detector(WhisperBackbone(small_whisper), LoRA(2, alpha=5), MeanPooling)
    for _, site in adapted_sites(detector):
        nn.init.normal_(site.experts[0].lora_B)
    detector.save_pretrained(tmp_path)
    updates, wanted = read_lora(tmp_path), lora_updates(detector.backbone.encoder)
    assert updates.keys() == wanted.keys() == set(detector.sites)
    for site, update in wanted.items():
        assert torch.equal(updates[site].lora_A, update.lora_A)
        assert torch.equal(updates[site].lora_B, update.lora_B)
        assert updates[site].scaling == 2.5
    Detector(WhisperBackbone(small_whisper), MoELoRA(2, 2), MeanPooling).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="MoELoRA, not with one LoRA"):
        read_lora(tmp_path)


@pytest.fixture
def folder(tmp_path):
    save_peft(lora_updates(trained(bert(), LoRA(3, targets=["query"]))), tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"use_dora": True}, "use_dora is set"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["pooler"]}, "modules_to_save is set"),
        ({"r": 5}, r"the rank of encoder\.layer\.0.* is 5, but its lora_A has 3 rows"),
        ({"lora_alpha": "x"}, "lora_alpha of .* is 'x'"),
        ({"lora_alpha": None}, "lora_alpha of .* is None"),
        ({"rank_pattern": {"(": 3}}, "rank_pattern is not readable"),
    ],
)
def test_what_is_no_plain_lora_is_refused(folder, changes, message):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(AdapterError, match=message):
        read_lora(folder)


def test_damaged_weights_are_refused(folder):
    path = folder / "adapter_model.safetensors"
    tensors, whole = load_file(path), path.read_bytes()
    first = next(iter(tensors))
    for changed, message in (
        ({n: t for n, t in tensors.items() if n != first}, "only"),
        (tensors | {first: tensors[first] * torch.nan}, "finite"),
        (tensors | {first: tensors[first][0]}, "not a matrix"),
        (tensors | {first: torch.zeros(2, 16)}, "ranks of lora_A and lora_B"),
        (tensors | {"base_model.model.head.weight": torch.zeros(2)}, "not one half of a LoRA"),
        ({}, "has no LoRA"),
    ):
        save_file(changed, path)
        with pytest.raises(AdapterError, match=message):
            read_lora(folder)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdapterError, match="cannot be read"):
        read_lora(folder)
    path.unlink()
    with pytest.raises(AdapterError, match="save the adapter with safetensors"):
        read_lora(folder)
    (folder / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(AdapterError, match="is not JSON"):
        read_lora(folder)
    with pytest.raises(AdapterError, match="no such folder"):
        read_lora(folder / "nothing")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match="has no adapter_config"):
        read_lora(folder)


def test_updates_of_other_projections_are_refused_and_nothing_changes(folder):
    model = bert()
    LoRA(3, targets=["query", "value"]).adapt(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(AdapterError, match=r"3 projections are adapted in the model.*0\.attention\.self\.value"):
        load_lora(model, read_lora(folder))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    other = bert()
    LoRA(2, targets=["query"]).adapt(other)
    with pytest.raises(AdapterError, match=r"of the update are .* of the model"):
        load_lora(other, read_lora(folder))


# Merging


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merge_is_exact_and_is_undone_bit_for_bit(dtype, everywhere):
    inputs = torch.arange(8, device=everywhere).reshape(2, 4)
    model = trained(bert(), LoRA(3, alpha=4, targets=["query", "dense"])).to(everywhere, dtype)
    before, state = output(model, inputs), copy.deepcopy(model.state_dict())
    merged = merge(model)
    assert not list(adapted_sites(model))
    assert list(model.state_dict()) == list(bert().state_dict())
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.1}
    torch.testing.assert_close(output(model, inputs), before, **tolerance)
    for site in merged.sites:
        assert type(model.get_submodule(site)) is nn.Linear
    merged.undo()
    assert torch.equal(output(model, inputs), before)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(AdapterError, match="already been undone"):
        merged.undo()


def test_merged_weights_are_those_of_peft(folder):
    model = trained(bert(), LoRA(3, targets=["query"]))
    theirs = peft.PeftModel.from_pretrained(bert(), folder).merge_and_unload()
    merge(model)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor)


def mixture(policy: GatePolicy | None = None) -> BertModel:
    return trained(bert(), MoELoRA(3, 2, alpha=3, targets=["query", "value"], gate=policy, share_gate=True))


def test_a_static_mixture_is_the_mixture_with_constant_gates_and_loads_in_peft(tmp_path):
    inputs, model = torch.arange(8).reshape(2, 4), mixture()
    gates = {site: torch.rand(3) for site, _ in adapted_sites(model)}
    constant = copy.deepcopy(model)
    for site, layer in adapted_sites(constant):
        layer.gate = None
        layer.forward = lambda x, layer=layer, g=gates[site]: (
            layer.base(x) + layer.scaling * sum(w * expert(x) for w, expert in zip(g, layer.experts, strict=True))
        )
    wanted = output(constant, inputs)
    save_peft(static_mixture(model, gates), tmp_path)
    theirs = peft.PeftModel.from_pretrained(bert(), tmp_path)
    torch.testing.assert_close(output(theirs, inputs), wanted, rtol=1e-5, atol=1e-6)
    merge_static_mixture(model, gates)
    torch.testing.assert_close(output(model, inputs), wanted, rtol=1e-5, atol=1e-6)


def test_the_error_of_a_static_mixture_is_that_of_its_definition():
    inputs, model = torch.arange(20).reshape(4, 5), mixture(GatePolicy(top_k=2))
    with record_routing(model) as routing:
        model(inputs)
    gates = routing.mean_gates()
    seen = {}
    for site, layer in adapted_sites(model):
        layer.register_forward_pre_hook(lambda layer, x, site=site: seen.__setitem__(site, x[0].detach()))
    with static_mixture_error(model, gates) as error:
        model(inputs[:3])
        first = dict(seen)
        model(inputs[3:])
    total = torch.zeros(2, dtype=torch.float64)
    for site, layer in adapted_sites(model):
        x = torch.cat([first[site], seen[site]]).flatten(0, 1)
        weights = layer.gate(x @ layer.gate.weight.T)
        updates = torch.stack([layer.scaling * expert(x) for expert in layer.experts], -1).double()
        dynamic, static = ((updates * w).sum(-1) for w in (weights.unsqueeze(1), gates[site]))
        sums = torch.stack([(dynamic - static).square().sum(), dynamic.square().sum()])
        assert error.sites[site] == pytest.approx(float((sums[0] / sums[1]).detach().sqrt()), rel=1e-4)
        total += sums.detach()
    assert error.overall == pytest.approx(float((total[0] / total[1]).sqrt()), rel=1e-4)
    assert 0.01 < error.overall < 1


def test_constant_gates_lose_nothing():
    model = mixture(GatePolicy(noise="none"))
    for _, layer in adapted_sites(model):
        nn.init.zeros_(layer.gate.weight)
    with static_mixture_error(model, {site: torch.full((3,), 1 / 3) for site, _ in adapted_sites(model)}) as error:
        model(torch.arange(8).reshape(2, 4))
    assert error.overall < 1e-6


def test_padding_has_no_part_in_the_error():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(6, 6))
    trained(layer, MoELoRA(2, 2, targets=["0"], gate=GatePolicy(noise="none")))
    x, gates = torch.randn(2, 4, 6), {"0": torch.tensor([0.5, 0.5])}
    with static_mixture_error(layer, gates) as alone:
        layer(x[:1]), layer(x[1:, :2])
    x[1, 2:] = torch.nan
    valid_tokens(layer, torch.tensor([[True] * 4, [True] * 2 + [False] * 2]))
    with static_mixture_error(layer, gates) as padded:
        layer(x)
    assert padded.overall == pytest.approx(alone.overall, rel=1e-6)


def test_mixtures_are_not_merged_as_loras_and_gates_must_be_given():
    model = mixture()
    with pytest.raises(AdapterError, match="mixture of 3 experts"):
        merge(model)
    with pytest.raises(AdapterError, match="the update lacks"):
        merge_static_mixture(model, {})
    with pytest.raises(AdapterError, match=r"has 3 experts, the mean gates are \(2,\)"):
        merge_static_mixture(model, {site: torch.ones(2) for site, _ in adapted_sites(model)})
    assert all(isinstance(layer, MoELoRALinear) for _, layer in adapted_sites(model))


def test_what_is_no_plain_projection_is_not_merged():
    class Halved(nn.Linear):
        def forward(self, x):
            return super().forward(x) / 2

    class Named(nn.Linear):  # the same computation
        pass

    model = trained(nn.Sequential(nn.Linear(4, 4), Halved(4, 4)), LoRA(2, targets=["0", "1"]))
    before = dict(model.named_modules())
    with pytest.raises(AdapterError, match=r"^1 is a Halved of torch\.float32, no plain nn\.Linear: it cannot"):
        merge(model)
    assert dict(model.named_modules()) == before
    model = trained(nn.Sequential(Named(4, 4)), LoRA(2, targets=["0"]))
    inputs, wanted = torch.eye(4), model(torch.eye(4))
    merge(model)
    torch.testing.assert_close(model(inputs), wanted)


def test_a_projection_in_two_places_is_merged_in_both():
    shared = nn.ModuleDict({"proj": nn.Linear(4, 4)})
    model = nn.ModuleList([shared, nn.ModuleDict({"proj": shared["proj"]})])
    trained(model, LoRA(2, targets=["proj"]))
    adapted = model[0].proj
    merged = merge(model)
    assert type(model[1].proj) is nn.Linear
    assert model[0].proj is model[1].proj
    merged.undo()
    assert model[0].proj is model[1].proj is adapted


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"a": ' * 200 + "1" + "}" * 200, "nested more than"),
        ('{"peft_type": "LORA", "r": 2, "r": 4}', "the key 'r' occurs twice"),
        (f'{{"r": {"9" * 400}}}', "a whole number of 400 digits"),
        ('{"a": "' + "a" * 2**22 + '"}', "larger than 4,194,304 bytes"),
    ],
)
def test_configurations_beyond_all_bounds_are_refused(content, told, tmp_path):
    for name in ("config.json", "adapter_config.json"):
        (tmp_path / name).write_text(content)
        with pytest.raises(AdapterError, match=f"{name}: is not used: .*{told}"):
            read_lora(tmp_path)


def test_nothing_waits_for_weights_that_are_a_pipe(tmp_path):
    (tmp_path / "config.json").write_text('{"adaptation": {"init_args": {}}}')
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(AdapterError, match="is not a regular file"):
        read_lora(tmp_path)

"""Changes of experts, checked against the model's function before the change and against formulas."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from moelora_ad.adapters import (
    AdapterError,
    Extension,
    GatePolicy,
    LoRA,
    LoRAUpdate,
    MoELoRA,
    adapted_sites,
    add_expert,
    drop_expert,
    freeze_experts,
    knocked_out,
    lora_updates,
    mixture_of_loras,
    put_loras,
    set_logit_offset,
    split_expert,
    warm_start,
)

WIDTH, RANK, EXPERTS = 8, 2, 3
SITES = ("0.up", "0.down", "1.up", "1.down")
LEARNED, NONE = GatePolicy(), GatePolicy(noise="none")
FIXED = GatePolicy(noise="fixed", noise_std=0.1, noise_mean=(0.5, 0.0, -0.5), temperature=0.5)
TOP_2 = GatePolicy(noise="none", top_k=2)
UTTERANCE = GatePolicy(level="utterance")
POLICIES = [LEARNED, NONE, FIXED, TOP_2, UTTERANCE, GatePolicy(noise="none", top_k=2, order="top_k_first")]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).tanh())


def base() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block()).eval()


def trained(method, dtype: torch.dtype = torch.float32, seed: int = 1) -> nn.Sequential:
    model = base()
    method.adapt(model)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "gate" in name:
            nn.init.normal_(parameter, std=0.5)
    return model.to(dtype)


def mixture(policy: GatePolicy = NONE, dtype: torch.dtype = torch.float32, **arguments) -> nn.Sequential:
    return trained(MoELoRA(EXPERTS, RANK, gate=policy, alpha=3, targets=["up", "down"], **arguments), dtype)


def lora(seed: int = 1, alpha: float | None = 5) -> nn.Sequential:
    return trained(LoRA(RANK, alpha=alpha, targets=["up", "down"]), seed=seed)


def x(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(2)).to(dtype)


def output(model: nn.Module, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    with torch.no_grad():
        return model(x(dtype))


def assert_whole(model: nn.Module, experts: int) -> None:
    """All parts fit together, and the state has the same names as that of a model built with this many experts."""
    for _, layer in adapted_sites(model):
        layer._check(layer.lora_experts())
        assert len(layer.experts) == experts
        if layer.gate is not None:
            layer.gate.policy.check_experts(experts)
            assert layer.gate.logit_offset.shape == (experts,)
    policy = next(layer.gate.policy for _, layer in adapted_sites(model))
    fresh = base()
    MoELoRA(experts, RANK, gate=policy, targets=["up", "down"]).adapt(fresh)
    assert set(model.state_dict()) == set(fresh.state_dict())
    assert torch.isfinite(model.train()(x())).all()
    model.eval()


# Starting from trained LoRAs


@pytest.mark.parametrize(
    "policy", [LEARNED, FIXED, UTTERANCE, GatePolicy(noise="none", top_k=2, renormalise=True)], ids=str
)
def test_a_warm_start_without_perturbation_keeps_the_function(policy):
    start, model = lora(), mixture(policy)
    warm_start(model, lora_updates(start), perturbation=0.0)
    torch.testing.assert_close(output(model), output(start))


def test_a_warm_start_breaks_the_symmetry_as_stated():
    start, model = lora(), mixture()
    warm_start(model, lora_updates(start), perturbation=0.1, generator=torch.Generator().manual_seed(5))
    again = mixture()
    warm_start(again, lora_updates(start), perturbation=0.1, generator=torch.Generator().manual_seed(5))
    assert torch.equal(output(model), output(again))
    for (_, layer), (_, single) in zip(adapted_sites(model), adapted_sites(start), strict=True):
        trained_a = single.experts[0].lora_A
        changes = torch.stack([expert.lora_A - trained_a for expert in layer.experts])
        torch.testing.assert_close(changes.sum(0), torch.zeros_like(trained_a), atol=1e-6, rtol=0)
        size = changes.square().mean().sqrt() / trained_a.square().mean().sqrt()
        assert 0.04 < size < 0.16  # 0.1 times sqrt(2 / 3), because the changes sum to zero
        for expert in layer.experts:
            torch.testing.assert_close(expert.lora_B, single.experts[0].lora_B * (5 / RANK) / (3 / RANK))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_warm_start_in_other_types(dtype):
    start, model = lora(), mixture(NONE, dtype)
    warm_start(model, lora_updates(start), perturbation=0.0)
    assert {p.dtype for p in model.parameters()} == {dtype}
    tolerance = 1e-6 if dtype == torch.float64 else 0.1
    torch.testing.assert_close(output(model, dtype), output(start.to(dtype), dtype), rtol=tolerance, atol=tolerance)


def test_some_mixtures_alone_start_from_loras():
    update, before, model = lora_updates(lora()), mixture().state_dict(), mixture()
    warm_start(model, update, sites=["0.up"])
    mixture_of_loras(model, [update] * EXPERTS, sites=["1.down"])
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.partition(".experts")[0] for name in moved} == {"0.up", "1.down"}
    frozen = {name.partition(".experts")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert "1.down" in frozen
    assert "0.up" not in frozen
    with pytest.raises(AdapterError, match=r"the update lacks 0\.down"):
        warm_start(model, {"0.up": update["0.up"]}, sites=["0.up", "0.down"])


@pytest.mark.parametrize("perturbation", [-1.0, float("nan"), float("inf")])
def test_a_perturbation_that_is_none_is_refused(perturbation):
    model = mixture()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(AdapterError, match=f"perturbation is {perturbation}: give 0 or more"):
        warm_start(model, lora_updates(lora()), perturbation)
    with pytest.raises(AdapterError, match=f"perturbation is {perturbation}: give 0 or more"):
        split_expert(model, 0, perturbation)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_warm_start_under_weights_that_do_not_sum_to_one_is_refused():
    model = mixture(TOP_2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(AdapterError, match="sum to less than 1"):
        warm_start(model, lora_updates(lora()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_warm_start_of_an_extended_mixture_is_refused():
    model = base()
    MoELoRA(2, RANK, targets=["up", "down"], extend=Extension()).adapt(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(AdapterError, match=r"0\.up has been extended: the weights of its experts sum to more than 1"):
        warm_start(model, lora_updates(lora()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_mixture_of_loras_is_the_gated_sum_of_their_updates_and_trains_its_gates_alone():
    starts = [lora(seed, alpha) for seed, alpha in ((1, 4), (2, None), (3, 1))]
    model = mixture()
    mixture_of_loras(model, [lora_updates(start) for start in starts])
    wanted, hidden = output(base()), x()
    for number in (0, 1):
        block = model[number]
        value = hidden
        for name in ("up", "down"):
            layer = getattr(block, name)
            gates = torch.softmax(value @ layer.gate.weight.T, -1)
            singles = [getattr(start[number], name) for start in starts]
            updates = [s.scaling * value @ s.experts[0].lora_A.T @ s.experts[0].lora_B.T for s in singles]
            value = layer.base(value) + sum(gates[..., i : i + 1] * update for i, update in enumerate(updates))
            value = value.tanh() if name == "up" else value
        hidden = hidden + value
    assert not torch.allclose(hidden, wanted)
    torch.testing.assert_close(output(model), hidden.detach())
    assert {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad} == {"weight"}
    assert all("gate" in name for name, p in model.named_parameters() if p.requires_grad)


def test_loras_that_do_not_fit_are_refused():
    updates = lora_updates(lora())
    with pytest.raises(AdapterError, match="has 3 experts, there are 2 LoRAs"):
        mixture_of_loras(mixture(), [updates] * 2)
    larger = {s: LoRAUpdate(torch.ones(4, WIDTH), torch.ones(WIDTH, 4), 1.0) for s in updates}
    with pytest.raises(
        AdapterError, match=r"0\.up: the LoRA is \(4, 8\), \(8, 4\), the experts are \(2, 8\), \(8, 2\)"
    ):
        warm_start(mixture(), larger)
    with pytest.raises(AdapterError, match=r"the update lacks 1\.down"):
        warm_start(mixture(), {site: update for site, update in updates.items() if site != "1.down"})
    with pytest.raises(AdapterError, match="no mixtures: adapt it with MoELoRA"):
        warm_start(lora(), updates)


# Adding, splitting, dropping


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_silent_expert_changes_nothing_until_it_is_woken(policy, share):
    model = mixture(policy, share_gate=share)
    before = output(model)
    add_expert(model)
    assert_whole(model, EXPERTS + 1) if not share else None
    torch.testing.assert_close(output(model), before, rtol=1e-4, atol=1e-5)
    model(x()).sum().backward()
    assert not any(layer.experts[EXPERTS].lora_B.grad.any() for _, layer in adapted_sites(model))
    set_logit_offset(model, EXPERTS, 0.0)
    if policy.top_k is None:
        assert not torch.allclose(output(model), before)  # the new expert takes weight, but adds nothing yet
    model.zero_grad()
    for _, layer in adapted_sites(model):
        layer.gate.logit_offset[EXPERTS] = 50.0
    model(x()).sum().backward()
    assert all(layer.experts[EXPERTS].lora_B.grad.any() for _, layer in adapted_sites(model))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_what_a_silent_expert_holds_has_no_part_in_the_output(policy):
    model = mixture(policy)
    add_expert(model)
    before = output(model)
    for _, layer in adapted_sites(model):
        for tensor in (*layer.experts[EXPERTS].parameters(), layer.gate.weight[EXPERTS]):
            tensor.data.normal_(std=3.0)
    assert torch.equal(output(model), before)


@pytest.mark.parametrize("policy", [NONE, TOP_2], ids=str)
def test_a_silent_expert_does_not_disturb_the_training_of_the_others(policy):
    grown, plain = mixture(policy, torch.float64), mixture(policy, torch.float64)
    add_expert(grown)
    for model in (grown, plain):
        trained_parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained_parameters, lr=0.01, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model.train()(x(torch.float64)).square().sum().backward()
            optimizer.step()
    for (_, layer), (_, other) in zip(adapted_sites(grown), adapted_sites(plain), strict=True):
        assert not layer.experts[EXPERTS].lora_B.any()
        for expert, wanted in zip(list(layer.experts)[:EXPERTS], other.experts, strict=True):
            torch.testing.assert_close(expert.lora_A, wanted.lora_A, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(expert.lora_B, wanted.lora_B, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.gate.weight[:EXPERTS], other.gate.weight, rtol=1e-4, atol=1e-5)


def test_some_expert_must_be_left_to_choose():
    model = mixture()
    add_expert(model)
    for number in (0, 1):
        set_logit_offset(model, number, -torch.inf)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(AdapterError, match=r"0\.up: no expert would be left"):
        set_logit_offset(model, 2, -torch.inf)
    with pytest.raises(AdapterError, match=r"0\.up: no expert would be left"):
        drop_expert(model, 2)
    with pytest.raises(AdapterError, match=r"0\.up: no expert would be left"), knocked_out(model, [2]):
        pass
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_silent_expert_is_not_left_alone():
    model = mixture()
    drop_expert(model, 2)
    set_logit_offset(model, 1, -torch.inf)
    before = output(model)
    with pytest.raises(AdapterError, match=r"0\.up: no expert would be left"):
        drop_expert(model, 0)
    assert torch.equal(output(model), before)
    drop_expert(model, 1)
    torch.testing.assert_close(output(model), before)


@pytest.mark.parametrize("offset", [float("nan"), float("inf")])
def test_an_offset_that_is_none_is_refused(offset):
    model = mixture()
    with pytest.raises(AdapterError, match=f"the logit offset is {offset}: give a number, or -inf"):
        set_logit_offset(model, 0, offset)
    with pytest.raises(AdapterError, match=f"the logit offset is {offset}: give a number, or -inf"):
        add_expert(model, offset)
    assert len(model[0].up.experts) == EXPERTS
    assert not model[0].up.gate.logit_offset.any()


def test_a_new_expert_starts_like_any_other():
    model = mixture(LEARNED)
    add_expert(model)
    for _, layer in adapted_sites(model):
        expert = layer.experts[EXPERTS]
        assert not expert.lora_B.any()
        assert 0 < expert.lora_A.abs().max() <= WIDTH**-0.5
        assert 0 < layer.gate.weight[EXPERTS].abs().max() <= WIDTH**-0.5
        assert not layer.gate.noise_weight[EXPERTS].any()
        assert expert.lora_A.requires_grad


DENSE = [LEARNED, FIXED, UTTERANCE, GatePolicy(noise="none", top_k=EXPERTS, order="top_k_first")]


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("perturbation", [0.0, 0.3])
@pytest.mark.parametrize("policy", DENSE, ids=str)
def test_a_split_keeps_the_function(policy, perturbation, share):
    model = mixture(policy, share_gate=share)
    before = output(model)
    split_expert(model, 1, perturbation=perturbation)
    torch.testing.assert_close(output(model), before, rtol=1e-5, atol=1e-5)
    if not share:
        assert_whole(model, EXPERTS + 1)
    for _, layer in adapted_sites(model):
        halves = layer.experts[1], layer.experts[EXPERTS]
        assert torch.equal(halves[0].lora_A, halves[1].lora_A) == (perturbation == 0)
    split_expert(model, EXPERTS, perturbation=perturbation)
    torch.testing.assert_close(output(model), before, rtol=1e-5, atol=1e-5)


def test_an_expert_of_a_sparse_gate_is_not_split():
    model = mixture(TOP_2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(AdapterError, match="top-2 gate would keep both halves"):
        split_expert(model, 0)
    assert list(model.state_dict()) == list(before)


@pytest.mark.parametrize("policy", [LEARNED, FIXED, TOP_2], ids=str)
def test_what_is_left_after_a_drop_is_a_mixture_without_that_expert(policy):
    model, silenced = mixture(policy), mixture(policy)
    drop_expert(model, 1)
    assert_whole(model, EXPERTS - 1)
    set_logit_offset(silenced, 1, -torch.inf)
    torch.testing.assert_close(output(model), output(silenced))


def test_a_dropped_silent_expert_is_not_missed():
    model = mixture()
    before = output(model)
    add_expert(model)
    drop_expert(model, EXPERTS)
    assert torch.equal(output(model), before)


@pytest.mark.parametrize("share", [False, True])
def test_the_last_expert_is_a_plain_lora(share):
    model = mixture(share_gate=share)
    drop_expert(model, 0)
    drop_expert(model, 1)
    single = base()
    LoRA(RANK, alpha=3, targets=["up", "down"]).adapt(single)
    assert set(model.state_dict()) == set(single.state_dict())
    single.load_state_dict(model.state_dict())
    assert torch.equal(output(model), output(single))


@pytest.mark.parametrize(
    ("order", "renormalise"), [("softmax_first", False), ("softmax_first", True), ("top_k_first", False)]
)
def test_a_gate_that_keeps_all_experts_keeps_all_that_are_left(order, renormalise):
    """The weights are a softmax of the remaining logits, whatever the policy was; a single expert has weight 1."""
    policy = GatePolicy(noise="none", top_k=2, order=order, renormalise=renormalise)
    three, two = mixture(replace(policy, top_k=3)), mixture(policy)
    drop_expert(three, 1)
    drop_expert(two, 1)
    layer, value = three[0].up, x()
    weights = torch.softmax(value @ layer.gate.weight.T, -1)
    each = [layer.scaling * expert(value) for expert in layer.experts]
    wanted = layer.base(value) + sum(weights[..., n : n + 1] * update for n, update in enumerate(each))
    torch.testing.assert_close(layer(value), wanted)
    assert two[0].up.gate.policy.top_k == 2  # both of the experts that are left
    drop_expert(two, 0)
    layer = two[0].up
    torch.testing.assert_close(layer(value), layer.base(value) + layer.scaling * layer.experts[0](value))
    assert layer.gate is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_types_and_what_is_trained_stay(dtype):
    model = mixture(NONE, dtype)
    freeze_experts(model, [1])
    before = output(model, dtype)
    split_expert(model, 1)
    add_expert(model)
    drop_expert(model, 4)
    assert {p.dtype for p in model.parameters()} == {dtype}
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float64 else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(output(model, dtype), before, **tolerance)
    for _, layer in adapted_sites(model):
        assert [expert.lora_A.requires_grad for expert in layer.experts] == [True, False, True, False]


@pytest.mark.parametrize("share", [False, True])
def test_a_copy_is_not_changed(share):
    model = mixture(share_gate=share)
    twin = copy.deepcopy(model)
    add_expert(twin)
    split_expert(twin, 0)
    assert {len(layer.experts) for _, layer in adapted_sites(model)} == {EXPERTS}
    assert {layer.gate.num_experts for _, layer in adapted_sites(model)} == {EXPERTS}
    assert {(len(layer.experts), layer.gate.num_experts) for _, layer in adapted_sites(twin)} == {(5, 5)}
    assert set(model.state_dict()) < set(twin.state_dict())


# Freezing and knocking out


def test_frozen_experts_stay_bit_for_bit_under_weight_decay():
    model = mixture(LEARNED).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    model(x()).square().sum().backward()
    optimizer.step()  # fills the optimiser's moments before the experts are frozen
    freeze_experts(model, [0, 2])
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        model(x()).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    same = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    for site in SITES:
        for number in range(EXPERTS):
            for half in "AB":
                assert (f"{site}.experts.{number}.lora_{half}" in same) == (number in (0, 2))
    freeze_experts(model, [0], frozen=False)
    assert [e.lora_A.requires_grad for e in model[0].up.experts] == [True, True, False]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_an_expert_that_is_knocked_out_leaves_its_weight_to_the_others_and_comes_back(policy):
    model, dropped = mixture(policy), mixture(policy)
    before = output(model)
    state = copy.deepcopy(model.state_dict())
    drop_expert(dropped, 1)
    with knocked_out(model, [1]):
        torch.testing.assert_close(output(model), output(dropped))
    assert torch.equal(output(model), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_method_after_surgery_makes_the_adapters_that_are_there(policy, share):
    method = MoELoRA(EXPERTS, RANK, gate=policy, alpha=3, targets=["up", "down"], share_gate=share, freeze_experts=[2])
    model = trained(method)
    for left in (2, 1):
        drop_expert(model, 0)
        after, fresh = method.after_surgery(model), base()
        assert type(after) is (MoELoRA if left == 2 else LoRA)
        after.adapt(fresh)
        after.check(fresh)
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(output(fresh), output(model))
        if left == 2:
            assert [e.lora_A.requires_grad for e in fresh[0].up.experts] == [True, False]


def test_loras_in_the_place_of_mixtures_are_the_adapters_from_then_on():
    model, wide = mixture(), trained(LoRA(6, alpha=4, targets=["up", "down"]))
    put_loras(model, lora_updates(wide))
    assert torch.equal(output(model), output(wide))
    after = MoELoRA(EXPERTS, RANK, targets=["up", "down"]).after_surgery(model)
    assert (type(after), after.rank, after.alpha) == (LoRA, 6, 4)
    assert all(p.requires_grad for name, p in model.named_parameters() if "lora_" in name)
    large = {site: LoRAUpdate(torch.ones(9, WIDTH), torch.ones(WIDTH, 9), 1.0) for site in SITES}
    with pytest.raises(AdapterError, match="no LoRA: rank is 9: a 8 -> 8 projection takes 1 to 8"):
        put_loras(model, large)
    assert torch.equal(output(model), output(wide))


def test_one_expert_alone():
    model = mixture()
    with knocked_out(model, [0, 2]):
        given = output(model)
    drop_expert(model, 2)
    drop_expert(model, 0)
    torch.testing.assert_close(given, output(model))


def test_without_its_update_the_weights_of_the_others_stay():
    model = mixture()
    layer, value = model[0].up, x()
    weights = torch.softmax(value @ layer.gate.weight.T, -1)
    wanted = layer.base(value) + sum(
        weights[..., i : i + 1] * layer.scaling * layer.experts[i](value) for i in range(EXPERTS) if i != 1
    )
    with knocked_out(model, [1], redistribute=False):
        torch.testing.assert_close(layer(value), wanted)
    with knocked_out(model, range(EXPERTS), redistribute=False):
        torch.testing.assert_close(output(model), output(base()))
    single = lora()
    with knocked_out(single, [0], redistribute=False):
        torch.testing.assert_close(output(single), output(base()))


def test_what_is_knocked_out_comes_back_after_an_error():
    model = mixture()
    before = output(model)
    for redistribute in (True, False):
        with pytest.raises(RuntimeError, match="no"), knocked_out(model, [0], redistribute=redistribute):
            raise RuntimeError("no")
        assert torch.equal(output(model), before)


@pytest.mark.parametrize("redistribute", [True, False])
def test_what_is_knocked_out_comes_back_where_the_model_was_moved_to(redistribute):
    model = mixture()
    before = copy.deepcopy(model.state_dict())
    with knocked_out(model, [0], redistribute=redistribute):
        model.double()
    assert all(torch.equal(tensor, before[name].double()) for name, tensor in model.state_dict().items())


def test_some_sites_alone():
    model = mixture()
    with knocked_out(model, [0], sites=["0.up"]):
        offsets = {site: float(layer.gate.logit_offset[0]) for site, layer in adapted_sites(model)}
    assert offsets == {"0.up": -torch.inf, "0.down": 0, "1.up": 0, "1.down": 0}
    split_expert(model, 0, sites=["1.down"])
    assert [len(layer.experts) for _, layer in adapted_sites(model)] == [3, 3, 3, 4]


def test_experts_and_sites_that_are_not_there_are_named():
    with pytest.raises(AdapterError, match=r"0\.up has experts 0 to 2, there is no 3"):
        drop_expert(mixture(), 3)
    with pytest.raises(AdapterError, match=r"2\.up is not a mixture of the model"):
        add_expert(mixture(), sites=["2.up"])
    with pytest.raises(AdapterError, match=r"0\.up shares its gate with 0\.down: choose both or neither"):
        split_expert(mixture(share_gate=True), 0, sites=["0.up"])
    with pytest.raises(AdapterError, match=r"0\.up: no expert would be left"), knocked_out(mixture(), range(EXPERTS)):
        pass
    with pytest.raises(AdapterError, match="no mixtures"), knocked_out(lora(), [0]):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init_from": ["a", "b"]}, "init_from names 2 LoRAs: give one, or one for each of 3 experts"),
        ({"perturbation": -1.0}, "perturbation is -1"),
        ({"alpha": 0}, "alpha is 0: give a number above 0"),
        ({"freeze_experts": [3]}, "there is no expert 3, they are 0 to 2"),
    ],
)
def test_methods_that_cannot_start_so_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MoELoRA(EXPERTS, RANK, **arguments)


def test_a_method_freezes_experts_as_it_adapts():
    model = base()
    MoELoRA(EXPERTS, RANK, targets=["up"], freeze_experts=[0, 1]).adapt(model)
    assert [e.lora_A.requires_grad for e in model[0].up.experts] == [False, False, True]


def changes(model: nn.Module, generator: torch.Generator) -> None:
    """Every kind of change, one after the other, with all random numbers drawn on the CPU."""
    warm_start(model, lora_updates(lora()), perturbation=0.1, generator=generator)
    split_expert(model, 1, generator=generator)
    drop_expert(model, 0)
    set_logit_offset(model, 0, 0.5)
    add_expert(model)
    freeze_experts(model, [0])


@pytest.mark.parametrize("policy", [LEARNED, NONE, FIXED, UTTERANCE], ids=str)
def test_changes_elsewhere_are_those_on_the_cpu(policy, elsewhere):
    outputs = []
    for device in (torch.device("cpu"), elsewhere):
        model = mixture(policy).to(device)
        changes(model, torch.Generator().manual_seed(3))
        assert {tensor.device.type for tensor in model.state_dict().values()} == {device.type}
        inputs = x().to(device)
        model(inputs).square().sum().backward()
        with torch.no_grad(), knocked_out(model, [1]):
            without = model(inputs).cpu()
        outputs.append((model(inputs).detach().cpu(), without))
    for given, wanted in zip(*reversed(outputs), strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)

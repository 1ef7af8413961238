"""An expert added to a trained mixture: it changes nothing until it has learned, and it never changes old weights."""

import copy

import pytest
import torch
from torch import nn

from moelora_ad.adapters import (
    AdapterError,
    AuxiliaryWeights,
    Extension,
    GatePolicy,
    LoRA,
    MoELoRA,
    adapted_sites,
    add_expert,
    drop_expert,
    knocked_out,
    record_routing,
    set_logit_offset,
    split_expert,
    valid_tokens,
)

WIDTH, RANK, EXPERTS = 8, 2, 3
CLOSE = {"rtol": 1e-6, "atol": 1e-6}  # matrix products of other widths round differently
POLICIES = [
    GatePolicy(),
    GatePolicy(noise="none", temperature=0.5),
    GatePolicy(noise="fixed", noise_std=0.1, noise_mean=(0.5, 0.0, -0.5)),
    GatePolicy(noise="none", top_k=2),
    GatePolicy(top_k=2, renormalise=True),
    GatePolicy(noise="none", top_k=2, order="top_k_first"),
    GatePolicy(noise="none", level="utterance"),
]
SINGLE = GatePolicy(noise="none")


def base() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)) for _ in range(2))
    return nn.Sequential(*layers).eval()


def mixture(policy: GatePolicy = SINGLE, **arguments) -> MoELoRA:
    given = {"num_experts": EXPERTS, "rank": RANK, "alpha": 3.0, "gate": policy, "targets": ["0", "2"]}
    return MoELoRA(**(given | arguments))


def adapted(method, state: dict[str, torch.Tensor] | None = None) -> nn.Sequential:
    """A model with random adapters, or with all tensors of ``state`` and the adapters beyond it as they start."""
    model = base()
    method.adapt(model)
    if state is not None:
        missing = model.load_state_dict(state, strict=False)
        assert not missing.unexpected_keys
        return model
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "gate" in name:
            nn.init.normal_(parameter, std=0.5)
    return model


def extended(model: nn.Module, policy: GatePolicy = SINGLE, experts: int = 1, **arguments) -> nn.Sequential:
    chosen = {name: arguments.pop(name) for name in ("start", "train_gates") if name in arguments}
    return adapted(mixture(policy, extend=Extension(experts, **chosen), **arguments), model.state_dict())


def inputs() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(3, 5, WIDTH)


@torch.no_grad()
def wake(model: nn.Module, expert: int = -1) -> None:
    torch.manual_seed(3)
    for _, layer in adapted_sites(model):
        nn.init.normal_(layer.lora_experts()[expert].lora_B, std=0.5)
        nn.init.normal_(layer.gate.added_rows()[-1].weight, std=0.5)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("share_gate", [False, True])
def test_at_first_nothing_changes_in_training_neither_and_at_the_end_nothing_that_was_there(policy, share_gate):
    old = adapted(mixture(policy, share_gate=share_gate))
    model = extended(old, policy, share_gate=share_gate)
    wanted, x = old(inputs()), inputs()
    torch.testing.assert_close(model(x), wanted, **CLOSE)
    torch.testing.assert_close(model.train()(x), wanted, **CLOSE)  # frozen gates have no noise
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(f"experts.{EXPERTS}." in name or ".gate.added.0.weight" in name for name in trained)
    assert len(trained) == 4 * 2 + (2 if share_gate else 4)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    target = torch.randn(3, 5, WIDTH)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != (name in trained), name
    model.eval()
    assert (model(x) - wanted).abs().max() > 0.1
    with knocked_out(model, [EXPERTS]):
        torch.testing.assert_close(model(x), wanted, **CLOSE)


def test_the_first_step_has_the_gradient_of_an_expert_of_the_starting_weight():
    old = adapted(mixture())
    gradients = []
    for start in (0.1, 0.4):
        model = extended(old, start=start)
        model(inputs()).square().sum().backward()
        expert = model[1][2].lora_experts()[-1]
        assert not expert.lora_A.grad.any()
        gradients.append(expert.lora_B.grad / expert.lora_A.norm())
        assert gradients[-1].abs().max() > 1e-3
        # All tokens give the added expert the starting weight, so that it acts as one more LoRA of that strength.
        with record_routing(model) as record:
            model(inputs())
        torch.testing.assert_close(record.mean_gates()["1.2"][-1], torch.tensor(start))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_formula(policy):
    """y = old(x) + (alpha / r) sigmoid((w x + b) / temperature) B A x; a gate of whole utterances takes the mean of w x
    over the valid tokens."""
    method = mixture(policy, extend=Extension(start=0.3))
    model = base()
    method.adapt(model)
    model.double()
    wake(model)
    layer, x = model[0][0], inputs().double()
    valid = torch.ones(3, 5, dtype=torch.bool)
    valid[1, 3:] = False
    valid_tokens(model, valid)
    expert, row = layer.lora_experts()[-1], layer.gate.added_rows()[-1]
    logits = x @ row.weight[0]
    if policy.level == "utterance":
        logits = (logits * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True)
    bias = policy.temperature * torch.log(torch.tensor(0.3 / 0.7)).double()
    weight = 1 / (1 + torch.exp(-(logits + bias) / policy.temperature))
    update = 1.5 * weight.unsqueeze(-1) * (x @ expert.lora_A.T @ expert.lora_B.T)
    with knocked_out(model, [EXPERTS]):
        before = layer(x)
    torch.testing.assert_close(layer(x), before + update, **CLOSE)


@pytest.mark.parametrize("alpha", [None, 3.0])
def test_a_single_lora_keeps_its_full_strength(alpha):
    old = adapted(LoRA(RANK, alpha, ["0", "2"]))
    model = extended(old, num_experts=1, alpha=alpha, train_gates=True)
    wanted = old(inputs())
    torch.testing.assert_close(model(inputs()), wanted, **CLOSE)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("experts.1." in name or "added" in name for name in trained)  # a gate of one expert has nothing to learn
    wake(model)
    assert (model(inputs()) - wanted).abs().max() > 0.1
    drop_expert(model, 1)
    assert model[0][0].gate is None
    torch.testing.assert_close(model(inputs()), wanted, **CLOSE)


def test_a_mixture_is_extended_again():
    once = extended(adapted(mixture()))
    wake(once)
    twice = extended(once, experts=2)
    torch.testing.assert_close(twice(inputs()), once(inputs()), **CLOSE)
    trained = {name for name, parameter in twice.named_parameters() if parameter.requires_grad}
    assert all("experts.4." in name or "added.1." in name for name in trained)
    wake(twice)
    with knocked_out(twice, [4]):
        torch.testing.assert_close(twice(inputs()), once(inputs()), **CLOSE)
    drop_expert(twice, 3)  # expert 3 was added first; the one added second stays, with its own row of the gate
    assert [layer.gate.policy.added for _, layer in adapted_sites(twice)] == [1] * 4
    with knocked_out(twice, [3]):
        torch.testing.assert_close(twice(inputs()), adapted(mixture())(inputs()), **CLOSE)


def test_the_old_gate_rows_by_option():
    model = extended(adapted(mixture(GatePolicy())), GatePolicy(), train_gates=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"0.0.gate.weight", "0.0.gate.noise_weight", "0.0.gate.added.0.weight"} <= trained
    assert not any("experts.0." in name for name in trained)
    x = inputs()
    assert not torch.equal(model.train()(x), model(x))  # trained gates keep the noise of their policy


def test_surgery_of_what_was_extended():
    old = adapted(mixture())
    model = extended(old)
    wake(model)
    whole = model(inputs())
    set_logit_offset(model, EXPERTS, -torch.inf)
    torch.testing.assert_close(model(inputs()), old(inputs()), **CLOSE)
    set_logit_offset(model, EXPERTS, 0.0)
    torch.testing.assert_close(model(inputs()), whole)
    dropped = copy.deepcopy(model)
    drop_expert(dropped, 0)
    with knocked_out(model, [0]):
        torch.testing.assert_close(dropped(inputs()), model(inputs()), **CLOSE)
    for refused in (lambda: add_expert(model), lambda: split_expert(model, 0)):
        with pytest.raises(AdapterError, match="has been extended: experts that share its softmax"):
            refused()
    drop_expert(dropped, 0)  # one of the three old experts is left, and the added one
    with pytest.raises(AdapterError, match="expert 0 cannot be dropped"):
        drop_expert(dropped, 0)
    with pytest.raises(AdapterError, match="no expert would be left"), knocked_out(dropped, [0]):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"extend": Extension(), "gate": GatePolicy(added=1)}, "gate.added is set by extend.experts"),
        ({"extend": Extension(), "init_from": "lora"}, "the model that is extended is given by model.init_weights"),
        ({"extend": Extension(), "auxiliary": AuxiliaryWeights(z=1.0)}, "auxiliary.z is of experts that share one"),
        ({"extend": Extension(), "top_k": 4}, "top_k is 4, but there are 3 experts"),
        ({"gate": GatePolicy(added=3)}, "added is 3, of 3 experts: at least one must be older"),
    ],
)
def test_contradictions(arguments, message):
    with pytest.raises(ValueError, match=message):
        MoELoRA(**{"num_experts": EXPERTS, "rank": RANK} | arguments)


def test_arguments_out_of_their_range():
    for arguments in ({"experts": 0}, {"start": 0.0}, {"start": 1.0}, {"start": float("nan")}):
        with pytest.raises(ValueError, match=f"extend: {next(iter(arguments))} is"):
            Extension(**arguments)
    with pytest.raises(ValueError, match="added is -1"):
        GatePolicy(added=-1)


@pytest.mark.parametrize(("dropped", "added"), [(EXPERTS, 0), (0, 1)])
def test_the_method_after_an_expert_of_an_extended_mixture_is_dropped(dropped, added):
    model = extended(adapted(mixture()))
    wake(model)
    drop_expert(model, dropped)
    method = mixture(extend=Extension()).after_surgery(model)
    method.check(model)
    assert (method.num_experts, method.policy.added, method.extend) == (EXPERTS, added, None)
    rebuilt = adapted(type(method)(**method.init_args), model.state_dict())
    torch.testing.assert_close(rebuilt(inputs()), model(inputs()), rtol=0, atol=0)

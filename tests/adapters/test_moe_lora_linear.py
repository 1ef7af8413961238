"""The invariants of the adapted projection, each against an explicit loop, peft, or itself."""

import copy
from collections.abc import Iterator
from itertools import pairwise, product

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from moelora_ad.adapters import Gate, GatePolicy, LoRAExpert, MoELoRA, MoELoRALinear, record_routing

IN, OUT, RANK = 12, 20, 4


def build(experts: int, policy: GatePolicy | None = None, alpha: float | None = None, seed: int = 0) -> MoELoRALinear:
    """A layer whose matrices are all random, lora_B and W_noise included."""
    torch.manual_seed(seed)
    base = nn.Linear(IN, OUT).requires_grad_(False)
    gate = Gate(IN, experts, policy) if policy or experts > 1 else None
    layer = MoELoRALinear(base, [LoRAExpert(IN, OUT, RANK) for _ in range(experts)], gate, alpha)
    for expert in layer.experts:
        nn.init.normal_(expert.lora_B)
    if gate is not None and gate.noise_weight is not None:
        nn.init.normal_(gate.noise_weight)
    return layer


def loop_over_experts(layer: MoELoRALinear, x: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """y = W_0 x + (alpha / r) sum over the kept experts of G_i(x) B_i A_i x, token by token, expert by expert."""
    gate, policy = layer.gate, layer.gate.policy
    rows = []
    for i, token in enumerate(x.reshape(-1, IN)):
        logits = gate.weight @ token
        if noise is not None:
            logits = logits + noise.reshape(-1, len(layer.experts))[i] * functional.softplus(gate.noise_weight @ token)
        weights = logits.exp() / logits.exp().sum()
        kept = sorted(range(len(weights)), key=lambda j: -weights[j].item())[: policy.top_k or len(weights)]
        total = sum(weights[j] for j in kept) if policy.renormalise else 1.0
        y = layer.base.weight @ token + layer.base.bias
        for j in kept:
            expert = layer.experts[j]
            y = y + layer.scaling * weights[j] / total * (expert.lora_B @ (expert.lora_A @ token))
        rows.append(y)
    return torch.stack(rows).reshape(*x.shape[:-1], OUT)


POLICIES = [
    GatePolicy(),
    GatePolicy(noise="none"),
    GatePolicy(top_k=2),
    GatePolicy(top_k=2, renormalise=True),
    GatePolicy(top_k=1, noise="none"),
]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_output_and_all_gradients_equal_a_loop_over_experts(policy, training, monkeypatch):
    layer = build(3, policy, alpha=2 * RANK).double().train(training)
    x = torch.randn(2, 5, IN, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(2, 5, 3, dtype=torch.float32)
    monkeypatch.setattr(torch, "randn_like", lambda _: noise)
    wanted = loop_over_experts(layer, x, noise.double() if training and policy.noise == "learned" else None)
    given = layer(x)
    # The gate computes in float32 whatever the layer's precision.
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)
    sources = [x, *(p for p in layer.parameters() if p.requires_grad)]
    seed = torch.linspace(-1, 1, given.numel(), dtype=torch.float64).reshape(given.shape)
    wanted_gradients = torch.autograd.grad(wanted, sources, seed, allow_unused=True, retain_graph=True)
    given_gradients = torch.autograd.grad(given, sources, seed, allow_unused=True)
    for mine, theirs in zip(given_gradients, wanted_gradients, strict=True):
        if theirs is None:
            assert mine is None or not mine.any()
        else:
            torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-5)


def test_a_model_may_call_a_projection_by_keyword():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.projection = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.projection(input=x)

    model, x = Model().eval(), torch.randn(2, 3, 8)
    before = model(x)
    MoELoRA(2, 2, targets=["projection"]).adapt(model)
    with record_routing(model) as routing:
        assert torch.equal(model(x), before)
    assert routing.sites()["projection"].num_decisions == 6


def test_untrained_layer_is_the_base_bit_for_bit():
    base = nn.Linear(IN, OUT)
    layer = MoELoRALinear(base, [LoRAExpert(IN, OUT, RANK) for _ in range(3)], Gate(IN, 3)).train()
    x = torch.randn(7, 3, IN)
    assert torch.equal(layer(x), base(x))


def test_one_expert_without_gate_equals_peft():
    peft = pytest.importorskip("peft")
    layer = build(1, alpha=16)
    model = nn.Sequential()
    model.add_module("projection", copy.deepcopy(layer.base))
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=16, target_modules=["projection"]))
    twin = theirs.base_model.model.projection
    twin.lora_A["default"].weight.data.copy_(layer.experts[0].lora_A)
    twin.lora_B["default"].weight.data.copy_(layer.experts[0].lora_B)
    x = torch.randn(3, 9, IN)
    torch.testing.assert_close(layer(x), theirs(x))


def test_identical_experts_under_a_dense_gate_are_one_lora():
    layer, single = build(3, GatePolicy()), build(1)
    for expert in layer.experts:
        expert.load_state_dict(single.experts[0].state_dict())
    layer.base.load_state_dict(single.base.state_dict())
    x = torch.randn(4, 6, IN)
    torch.testing.assert_close(layer.train()(x), single(x))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_row_does_not_depend_on_its_neighbours_or_on_padding(policy):
    layer = build(3, policy).eval()
    x = torch.randn(3, 6, IN)
    alone = layer(x[1:2, :4])
    padded = x.clone()
    padded[1, 4:] = 1e4
    padded[[0, 2]] *= -100
    torch.testing.assert_close(layer(padded)[1:2, :4], alone, rtol=1e-4, atol=1e-5)


def test_noise_is_drawn_in_training_only():
    layer, x = build(3, GatePolicy()), torch.randn(5, IN)
    assert not torch.equal(layer.train()(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_gate_and_down_matrices_get_gradients_after_the_first_step_only():
    torch.manual_seed(0)
    layer = MoELoRALinear(
        nn.Linear(IN, OUT).requires_grad_(False), [LoRAExpert(IN, OUT, RANK) for _ in range(3)], Gate(IN, 3)
    )
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.1)
    late = [layer.gate.weight, layer.gate.noise_weight, *(expert.lora_A for expert in layer.experts)]
    for step in range(2):
        optimizer.zero_grad()
        layer(torch.randn(8, IN)).square().sum().backward()
        assert all(expert.lora_B.grad.any() for expert in layer.experts)
        assert [bool(p.grad.any()) for p in late] == [step > 0] * len(late)
        optimizer.step()


@pytest.mark.parametrize(
    ("training", "policy", "gate_numbers"),
    [
        (False, GatePolicy(), 2 * 3),  # logits and softmax
        (True, GatePolicy(), 4 * 3),  # also the noise and its scale
        (True, GatePolicy(top_k=2), 6 * 3 + 2 * 2),  # also the mask, the kept weights and the indices (int64)
    ],
)
def test_saved_activations_are_the_input_and_a_few_numbers_per_expert(training, policy, gate_numbers):
    """x + T (2 N r + a few N) numbers are saved: the low-rank activations before weighting (for the gate's gradient)
    and after it (for lora_B's), but nothing of size (T, N, out)."""
    experts, tokens = 3, 4096
    layer = build(experts, policy, alpha=8).train(training)
    x = torch.randn(tokens, IN, requires_grad=True)
    storages = {}

    def keep(tensor):
        if tensor.numel() >= tokens:  # smaller tensors are weights, not activations
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = layer(x)
    assert output.grad_fn is not None
    assert sum(storages.values()) <= 4 * tokens * (IN + 2 * experts * RANK + gate_numbers)


def test_autocast_runs_in_half_precision_close_to_full():
    layer, x = build(3, GatePolicy(top_k=2)).eval(), torch.randn(5, IN)
    full = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0.05, atol=0.2)


def test_gradient_checkpointing_changes_nothing(device):
    layer, x = build(3, GatePolicy()).train().to(device), torch.randn(5, IN, device=device, requires_grad=True)
    gradients = []
    for run in (layer, lambda inputs: checkpoint(layer, inputs, use_reentrant=False)):
        torch.manual_seed(3)
        gradients.append(torch.autograd.grad(run(x).square().sum(), [x, *layer.experts.parameters()]))
    for mine, theirs in zip(*gradients, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("policy", [POLICIES[0], POLICIES[3]], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_compiles_without_graph_breaks(policy, training):
    layer, x = build(3, policy).train(training), torch.randn(4, IN)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.manual_seed(5)
    wanted = layer(x)
    torch.manual_seed(5)
    torch.testing.assert_close(compiled(x), wanted)


def test_a_deep_copy_is_independent():
    layer = build(3, GatePolicy()).eval()
    twin, x = copy.deepcopy(layer), torch.randn(2, IN)
    nn.init.zeros_(twin.experts[0].lora_B)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert not torch.equal(twin(x), layer(x))


def test_double_backward():
    layer = build(2, GatePolicy(noise="none")).double().eval()
    x = torch.randn(3, IN, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert layer.experts[0].lora_A.grad.any()


def test_weights_of_the_gate_sum_to_one_or_keep_the_largest():
    logits = torch.tensor([[2.0, 1.0, 0.0, 1.0]])
    dense = Gate(IN, 4, GatePolicy(noise="none"))(logits)
    torch.testing.assert_close(dense, logits.softmax(-1))
    kept = Gate(IN, 4, GatePolicy(top_k=2, noise="none"))(logits)
    assert (kept != 0).sum() == 2, "ties do not let a third expert in"
    assert kept[0, 0] == dense[0, 0]
    whole = Gate(IN, 4, GatePolicy(top_k=2, noise="none", renormalise=True))(logits)
    torch.testing.assert_close(whole.sum(), torch.tensor(1.0))


def test_an_offset_of_minus_infinity_silences_an_expert():
    gate = Gate(IN, 3, GatePolicy(noise="none"))
    gate.logit_offset[1] = -torch.inf
    weights = gate(torch.zeros(1, 3))
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.0, 0.5]]))


def test_keys_are_those_of_a_plain_lora_plus_the_gate():
    assert set(build(1).state_dict()) == {"base.weight", "base.bias", "experts.0.lora_A", "experts.0.lora_B"}
    more = set(build(2, GatePolicy()).state_dict()) - set(build(1).state_dict())
    assert more == {
        *("experts.1.lora_A", "experts.1.lora_B"),
        *("gate.weight", "gate.noise_weight", "gate.logit_offset"),
    }


@pytest.mark.parametrize("rank", [0, IN + 1])
def test_a_rank_that_does_not_fit_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank is {rank}: a 12 -> 20 projection takes 1 to 12"):
        LoRAExpert(IN, OUT, rank)


def test_parts_that_do_not_fit_are_refused():
    base, expert = nn.Linear(IN, OUT), LoRAExpert(IN, OUT, RANK)
    with pytest.raises(ValueError, match="at least one expert"):
        MoELoRALinear(base, [])
    with pytest.raises(ValueError, match="2 experts need a gate"):
        MoELoRALinear(base, [expert, LoRAExpert(IN, OUT, RANK)])
    with pytest.raises(ValueError, match="does not fit 1 experts"):
        MoELoRALinear(base, [expert], Gate(IN, 3))
    with pytest.raises(ValueError, match=r"\(20, 12, 4\).* do not fit a 12 -> 20 base"):
        MoELoRALinear(base, [LoRAExpert(OUT, IN, RANK)])
    with pytest.raises(ValueError, match="do not fit"):
        MoELoRALinear(base, [expert, LoRAExpert(IN, OUT, 2)], Gate(IN, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 1, "renormalise": True}, "the gate gets no gradient"),
        ({"top_k": 0}, "keep at least one expert"),
        ({"noise": "gaussian"}, "choose 'learned', 'fixed' or 'none'"),
        ({"noise": "fixed"}, "needs a noise_std"),
        ({"noise": "none", "noise_std": 1.0}, "belong to noise 'fixed'"),
        ({"order": "top_k_first"}, "needs top_k"),
        ({"order": "top_k_first", "top_k": 2, "renormalise": True}, "sum to 1 already"),
        ({"order": "top_k_first", "top_k": 1}, "the gate gets no gradient"),
        ({"order": "first"}, "choose 'softmax_first' or 'top_k_first'"),
        ({"level": "clip"}, "choose 'token' or 'utterance'"),
        ({"temperature": 0.0}, "give a positive number"),
    ],
)
def test_gate_policies_that_cannot_train_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GatePolicy(**arguments)


def test_experts_start_different_and_with_kaiming_bounds():
    torch.manual_seed(0)
    experts = [LoRAExpert(1024, 64, 8) for _ in range(3)]
    assert all(not torch.equal(a.lora_A, b.lora_A) for a, b in pairwise(experts))
    bound = 1024**-0.5  # Kaiming-uniform with a = sqrt(5) is U(-1/sqrt(d), 1/sqrt(d))
    assert 0.98 * bound < experts[0].lora_A.abs().max() <= bound


# On a GPU


def every_policy(experts: int) -> Iterator[GatePolicy]:
    """Every combination of options that GatePolicy accepts."""
    noises = [{"noise": "none"}, {"noise": "learned"}, {"noise": "fixed", "noise_std": 0.3}]
    noises.append({"noise": "fixed", "noise_std": 0.3, "noise_mean": (1.0, 0.0, -1.0)})
    names = ("top_k", "renormalise", "order", "level", "temperature")
    orders, levels = ("softmax_first", "top_k_first"), ("token", "utterance")
    for noise, chosen in product(noises, product((None, 1, 2, experts), (False, True), orders, levels, (1.0, 0.5))):
        try:
            yield GatePolicy(**noise, **dict(zip(names, chosen, strict=True)))
        except ValueError:  # the options contradict each other
            continue


def decided(layer: MoELoRALinear) -> torch.Tensor:
    """An input (2, 5, IN) on which the experts' logits are at least 2 apart, in the same order for all tokens of an
    utterance: neither rounding nor noise of 0.3 changes which experts are kept."""
    with torch.no_grad():
        layer.gate.weight[:] = 0.05 * layer.gate.weight
        layer.gate.weight[:, :3] = torch.eye(3)
        if layer.gate.noise_weight is not None:
            layer.gate.noise_weight.mul_(0.01)
    x = torch.randn(2, 5, IN)
    x[:, :, :3] = torch.tensor([[[3.0, 0.0, -3.0]], [[-2.5, 0.5, 3.5]]])
    return x


@pytest.mark.parametrize("training", [True, False])
def test_another_device_gives_the_cpus_output_and_gradients_for_every_policy(
    training, elsewhere, same_noise, assert_near
):
    policies = [None, *every_policy(3)]  # None: a plain LoRA
    assert len(policies) > 100
    for policy in policies:
        layer = build(1 if policy is None else 3, policy, alpha=2 * RANK).train(training)
        x, found = torch.randn(2, 5, IN), []
        for device in (torch.device("cpu"), elsewhere):
            twin, inputs = copy.deepcopy(layer).to(device), x.to(device, copy=True).requires_grad_()
            with same_noise():
                output = twin(inputs)
            output.square().sum().backward()
            gradients = {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}
            found.append({"output": output, "input's": inputs.grad} | gradients)
        assert found[0].keys() == found[1].keys()
        for name, wanted in found[0].items():
            assert found[1][name].device.type == elsewhere.type
            assert_near(found[1][name], wanted, 1e-5, f"{name} of {policy}")


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precision_on_a_gpu_is_close_to_the_cpus_float32(dtype, error, gpu, same_noise, assert_near):
    """The error allows for four roundings (of x, of the matrices, of both products) of 2^-9 or 2^-12 of the largest
    number, and for twice as many in the gates, whose softmax is in float32; gradients may be off by twice the error."""
    for policy in every_policy(3):
        layer = build(3, policy, alpha=2 * RANK).train()
        x = decided(layer)
        with same_noise():
            wanted = layer(x)
        gradients = torch.autograd.grad(wanted.square().sum(), list(layer.experts.parameters()))
        twin = copy.deepcopy(layer).to(gpu)
        with same_noise(), torch.autocast(gpu.type, dtype):
            given = twin(x.to(gpu))
        assert given.dtype == dtype
        assert_near(given, wanted, error, str(policy))
        found = torch.autograd.grad(given.float().square().sum(), list(twin.experts.parameters()))
        for mine, theirs in zip(found, gradients, strict=True):
            assert mine.dtype == torch.float32
            assert_near(mine, theirs, 2 * error, str(policy))


def test_noise_elsewhere_is_that_of_the_seed(elsewhere):
    layer, x = build(3, GatePolicy()).train().to(elsewhere), torch.randn(5, IN, device=elsewhere)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(layer(x))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])

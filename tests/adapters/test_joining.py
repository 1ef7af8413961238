"""Matrices that all projections join at once give what each projection's own give, with fewer operations."""

import copy
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from moelora_ad.adapters import (
    Gate,
    GatePolicy,
    LoRAExpert,
    MoELoRALinear,
    adapted_sites,
    joined_matrices,
    record_routing,
)

WIDTHS = (12, 20)


def site(given: int, out: int, experts: int = 3, rank: int = 4, gate: Gate | None = None, **policy) -> MoELoRALinear:
    own = gate or (Gate(given, experts, GatePolicy(**policy)) if experts > 1 else None)
    made = [LoRAExpert(given, out, rank) for _ in range(experts)]
    layer = MoELoRALinear(nn.Linear(given, out).requires_grad_(False), made, own, owns_gate=gate is None)
    for name, parameter in layer.named_parameters():
        if "base" not in name:
            nn.init.normal_(parameter)
    return layer


def different_sites() -> nn.Sequential:
    torch.manual_seed(0)
    first, second = WIDTHS
    dense = site(first, first)
    shares_its_gate = site(first, first, gate=dense.gate)
    frozen = site(first, second, top_k=2)
    frozen.experts[0].requires_grad_(False)
    return nn.Sequential(
        dense,
        shares_its_gate,
        frozen,
        site(second, second, experts=1, rank=2),
        site(second, first, experts=2, noise="none", level="utterance"),
    )


def output_and_gradients(
    model: nn.Module, forward, join: bool, dtype: torch.dtype | None, device: torch.device
) -> list[torch.Tensor]:
    model = copy.deepcopy(model).to(device)
    torch.manual_seed(1)
    x = torch.randn(2, 7, WIDTHS[0], device=device, requires_grad=True)
    joined = joined_matrices(model) if join else nullcontext()
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None), joined:
        y = forward(model, x)
    y.float().square().sum().backward()
    assert all(one.joined is None for _, one in adapted_sites(model))
    assert [p.grad is None for p in model.parameters()] == [not p.requires_grad for p in model.parameters()]
    return [y, x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


def recomputed(model: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    for layer in model:
        x = checkpoint(layer, x, use_reentrant=False)
    return x


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("forward", [lambda model, x: model(x), recomputed])
def test_outputs_and_gradients_are_those_of_projections_on_their_own(forward, dtype, device):
    model = different_sites()
    found = output_and_gradients(model, forward, True, dtype, device)
    wanted = output_and_gradients(model, lambda model, x: model(x), False, dtype, device)
    for one, other in zip(found, wanted, strict=True):
        # The shared gate's gradients are added before their cast to float32, and not after it.
        torch.testing.assert_close(one, other, rtol=0.02 if dtype else 1e-5, atol=0.02 if dtype else 1e-6)


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counted = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counted[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def test_a_step_casts_and_copies_no_matrix_of_a_projection_on_its_own():
    def counts(sites: int) -> Counter:
        model = nn.Sequential(*(site(WIDTHS[0], WIDTHS[0]) for _ in range(sites)))
        x = torch.randn(2, 7, WIDTHS[0])
        with Operations() as operations:
            with torch.autocast("cpu", torch.bfloat16), joined_matrices(model):
                y = model(x)
            y.float().sum().backward()
        return operations.counted

    few, many = counts(2), counts(6)
    added = {name: (many[name] - few[name]) / 4 for name in ("cat", "_to_copy", "copy_", "clone", "mm")}
    # Casts of the base's weight and bias, and, forth and back, of the gate's logits and weights. Concatenations of the
    # gradients of the logits' two halves, and of experts and gate.
    assert added == {"cat": 2, "_to_copy": 6, "copy_": 0, "clone": 0, "mm": 6}


def test_matrices_that_are_not_whole_here_stay_where_they_are(monkeypatch):
    model = different_sites()
    sharded = nn.Parameter(torch.zeros(0))  # what a sharding strategy leaves outside of a layer's own forward pass
    monkeypatch.setitem(model[1].experts[0]._parameters, "lora_A", sharded)
    with joined_matrices(model):
        assert all(layer.joined is None for layer in model)


def test_a_failure_leaves_nothing_joined():
    model = different_sites()
    with pytest.raises(RuntimeError, match="shape"), joined_matrices(model):
        model(torch.randn(2, 3))
    assert all(layer.joined is None for layer in model)


class Attention(nn.Module):
    """Three projections of one input, and one of another."""

    def __init__(self, **arguments):
        super().__init__()
        # As in transformers, not in the order of the calls.
        self.k, self.v, self.q, self.out = (site(12, out, **arguments) for out in (12, 20, 12, 12))
        self.out = site(20, 12, **arguments)

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        q, context = self.q(x), x if other is None else other
        return self.out(functional.scaled_dot_product_attention(q, self.k(context), self.v(context)))


def attentions(**arguments) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(Attention(**arguments), Attention(**arguments))
    for parameter in model.parameters():
        parameter.data *= 0.3
    return model


def step(model, *, together=True, share_inputs=True, forward=None, dtype=None, device="cpu") -> list[torch.Tensor]:
    """Output and gradients of a training step."""
    torch.manual_seed(1)
    x = torch.randn(2, 7, 12, device=device, requires_grad=True)
    joined = joined_matrices(model, share_inputs) if together else nullcontext()
    with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None), joined:
        y = (forward or model)(x)
    y.float().square().sum().backward()
    found = [y.detach(), x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]
    model.zero_grad()
    return found


def counted(model, **arguments) -> tuple[list[torch.Tensor], int]:
    """`step`, and its number of products."""
    with Operations() as operations:
        found = step(model, **arguments)
    return found, operations.counted["mm"]


def assert_close(found, wanted, error=1e-5):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=error, atol=error * other.abs().max().item())


POLICIES = [
    {},
    {"experts": 1},
    {"top_k": 2},
    {"top_k": 2, "order": "top_k_first", "temperature": 0.5},
    {"top_k": 2, "renormalise": True, "noise": "none"},
    {"noise": "fixed", "noise_std": 0.5, "noise_mean": (0.0, 1.0, -1.0)},
    {"level": "utterance"},
]


@pytest.mark.parametrize("arguments", POLICIES, ids=str)
def test_query_key_and_value_meet_their_input_in_one_product_and_give_what_each_gives(arguments, device):
    model = attentions(**arguments).to(device)
    for _, one in adapted_sites(model):
        if one.gate is not None:
            one.gate.logit_offset.normal_()
    wanted, apart = counted(model, together=False, device=device.type)
    for _ in range(2):
        found, products = counted(model, device=device.type)
        assert_close(found, wanted)
        # In each of two layers, two products less forward, and four backward.
        assert apart - products == (0 if arguments.get("level") else 2 * 6)
    for dtype, error in ((None, 1e-5), (torch.bfloat16, 0.03)):
        model.train(dtype is not None)
        found, wanted = (step(model, together=one, dtype=dtype, device=device.type) for one in (True, False))
        assert_close(found, wanted, error)


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
def test_a_projection_with_another_input_is_on_its_own(mode):
    model = attentions(noise="none")[0]  # no noise, as it was drawn for key and value already
    x, other = torch.randn(2, 7, 12), torch.randn(2, 5, 12)
    with mode():
        wanted = model(x, other)
        for _ in range(2):
            with joined_matrices(model):
                torch.testing.assert_close(model(x, other), wanted)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_input_that_was_changed_in_place_is_another_one(mode):
    def run() -> torch.Tensor:
        x = torch.ones(2, 7, 12)
        q = model.q(x)
        return q + model.k(x.mul_(2))

    model = attentions(noise="none")[0]
    with mode():
        wanted = run()
        with joined_matrices(model):
            torch.testing.assert_close(run(), wanted)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("share", [True, False])
def test_a_pass_that_is_recomputed_draws_the_same_noise_and_keeps_the_same_tensors(reentrant, share):
    model = attentions()

    def forward(x: torch.Tensor) -> torch.Tensor:
        for layer in model:
            x = checkpoint(layer, x, use_reentrant=reentrant)
        return x

    wanted = step(model, together=False)
    assert_close(step(model, forward=forward, share_inputs=share), wanted)


def test_watched_gates_decide_each_on_its_own_with_the_same_draws():
    model = attentions()
    wanted = step(model)
    with record_routing(model) as record:
        assert_close(step(model), wanted)
    assert record.sites().keys() == {name for name, _ in adapted_sites(model)}
    seen = []
    handle = model[0].k.gate.register_forward_hook(lambda gate, arguments, weights: seen.append(weights.shape))
    assert_close(step(model), wanted)
    assert seen == [(2, 7, 3)]
    handle.remove()
    assert_close(step(model), wanted)
    assert len(seen) == 1


def test_only_projections_of_one_kind_share_a_product():
    model = attentions()
    model[0].k = site(12, 12, experts=2)
    model[1].v.gate.weight.requires_grad_(False)  # adds no noise, and has no rows for it
    wanted, apart = counted(model, together=False)
    found, products = counted(model)
    assert_close(found, wanted)
    assert products == apart


@pytest.mark.parametrize(
    ("names", "together"),
    [
        ("q_proj k_proj v_proj out_proj", 3),
        ("query key value dense", 3),
        ("linear_q linear_k linear_v linear_out", 3),
        ("to_q to_k to_v to_out", 3),
        ("v k q o", 3),
        ("q_a_proj q_b_proj kv_proj o_proj", 1),
        ("gate_proj up_proj down_proj query_key_value", 1),
        ("keyed valued vision quality", 1),
    ],
)
def test_which_names_belong_together(names, together):
    torch.manual_seed(0)
    model = nn.ModuleDict({"attention": nn.ModuleDict({name: site(12, 12, noise="none") for name in names.split()})})
    x = torch.randn(2, 12)

    def run() -> int:
        with Operations() as operations:
            sum(one(x) for one in model["attention"].values()).sum().backward()
        return operations.counted["mm"]

    apart = run()
    with joined_matrices(model):
        assert apart - run() == 2 * (together - 1)  # the input needs no gradient


@pytest.mark.parametrize("origin", [nullcontext, torch.inference_mode])
def test_inference_does_not_share_as_changes_in_place_are_not_counted_there(origin):
    model = attentions(noise="none")
    with origin():
        x = torch.randn(2, 7, 12)
    for mode, products in ((torch.no_grad, 6), (torch.inference_mode, 8)):
        with mode(), Operations() as operations, joined_matrices(model):
            model(x)
        assert operations.counted["linear"] + operations.counted["mm"] + operations.counted["addmm"] == 2 * products


def test_compiled_layers_share_without_being_compiled_again():
    torch._dynamo.reset()
    model, graphs = attentions(noise="none"), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    wanted = step(model)
    for layer in model:
        layer.compile(backend=backend, fullgraph=True)
    for _ in range(3):
        assert_close(step(model), wanted)
    assert len(graphs) == 1
    products = [node for node in graphs[0].graph.nodes if node.target is functional.linear]
    assert len(products) == 4 + 2  # of four bases, of the group and of the last projection


def test_a_block_within_a_block_leaves_the_rest_of_the_pass_right():
    model = attentions(noise="none")
    wanted = step(model)

    def another_pass(*_) -> None:
        with joined_matrices(model):
            pass

    model[0].q.register_forward_hook(another_pass)
    assert_close(step(model), wanted)


def test_passes_in_several_threads_do_not_mix():
    model = attentions(noise="none")[0].eval()
    inputs = [torch.full((2, 7, 12), float(number)) for number in range(8)]
    with torch.no_grad():
        wanted = [model(x) for x in inputs]

    def run(number: int) -> list[torch.Tensor]:
        found = []
        for _ in range(40):
            with torch.no_grad(), joined_matrices(model):
                found.append(model(inputs[number]))
        return found

    with ThreadPoolExecutor(len(inputs)) as threads:
        for number, found in enumerate(threads.map(run, range(len(inputs)))):
            for one in found:
                torch.testing.assert_close(one, wanted[number])


class Twice(nn.Module):
    """A query that is used before a key and after it, with the same input."""

    def __init__(self):
        super().__init__()
        self.q, self.k = site(12, 12), site(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q(x) + self.k(x) * self.q(x) + self.k(x.sin())


def test_projections_that_run_several_times_in_a_pass():
    torch.manual_seed(0)
    model = Twice().eval()
    assert_close(step(model), step(model, together=False))

"""Matrices that all projections join at once give what each projection's own give, with fewer operations."""

import copy
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from moelora_ad.adapters import Gate, GatePolicy, LoRAExpert, MoELoRALinear, adapted_sites, joined_matrices

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

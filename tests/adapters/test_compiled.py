"""Observers attached to a model after ``torch.compile`` has compiled it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from moelora_ad.adapters import CallWatch, GatePolicy, InjectionError, MoELoRA, adapted_sites, record_routing

BACKEND = "eager"  # a backend of torch.compile that traces the model but generates no code


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(8, 8)
        self.v_proj = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.q_proj(x)) + nn.functional.linear(x, self.v_proj.weight)  # bypasses v_proj's adapter


def stack(targets: list[str]) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(Layer(), Layer())
    MoELoRA(num_experts=3, rank=2, targets=targets, gate=GatePolicy(top_k=2)).adapt(model)
    return model.eval()


def whole(model: nn.Sequential) -> nn.Module:
    return torch.compile(model, backend=BACKEND)


def by_layers(model: nn.Sequential) -> nn.Module:
    for layer in model:
        layer.compile(backend=BACKEND)
    return model


@pytest.fixture(params=[whole, by_layers])
def compiled(request) -> Callable[[nn.Sequential], nn.Module]:
    """A function that compiles a model and runs it once, so that hooks added later come too late."""
    torch._dynamo.reset()

    def make(model: nn.Sequential) -> nn.Module:
        made = request.param(model)
        frames = torch._dynamo.utils.counters["frames"]["ok"]
        made(torch.randn(2, 5, 8))
        assert torch._dynamo.utils.counters["frames"]["ok"] > frames
        return made

    return make


def test_routing_is_that_of_the_model_as_it_stands(compiled):
    model = stack(["q_proj"])
    x = torch.randn(2, 5, 8)
    with record_routing(model) as record:
        wanted = model(x)
    made = compiled(model)
    with record_routing(made) as seen:
        assert torch.equal(made(x), wanted)
    assert [*seen.sites()] == [*record.sites()] == ["0.q_proj", "1.q_proj"]
    for site, routing in record.sites().items():
        assert torch.equal(seen.sites()[site].mean_gate, routing.mean_gate)
        assert torch.equal(seen.sites()[site].output_norm, routing.output_norm)
        assert seen.sites()[site].num_decisions == 10
    assert not any(site.gate._forward_hooks for _, site in adapted_sites(model))
    frames = torch._dynamo.utils.counters["frames"]["total"]
    assert torch.allclose(made(x), wanted)
    assert torch._dynamo.utils.counters["frames"]["total"] == frames  # nothing is compiled again


def test_the_watch_of_calls_accuses_those_alone_that_are_not_called(compiled):
    right = compiled(stack(["q_proj"]))
    watch = CallWatch(right)
    with watch:
        right(torch.randn(2, 5, 8))
    assert watch.is_complete
    watch.check()

    wrong = compiled(stack(["q_proj", "v_proj"]))
    watch = CallWatch(wrong)
    with watch:
        wrong(torch.randn(2, 5, 8))
    with pytest.raises(InjectionError, match=r"^2 adapted projections were never called.*: 0.v_proj, 1.v_proj; choose"):
        watch.check()

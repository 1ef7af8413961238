"""What an adapted projection asks of a device: nothing as large as its input or its output is written twice."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from moelora_ad.adapters import Gate, LoRAExpert, MoELoRALinear

IN, OUT, RANK, TOKENS = 32, 48, 2, 7


def build(experts: int) -> MoELoRALinear:
    torch.manual_seed(0)
    base = nn.Linear(IN, OUT).requires_grad_(False)
    layer = MoELoRALinear(
        base, [LoRAExpert(IN, OUT, RANK) for _ in range(experts)], Gate(IN, experts) if experts > 1 else None
    )
    for expert in layer.experts:
        nn.init.normal_(expert.lora_B)
    return layer


class Written(TorchDispatchMode):
    """Counts the operations whose result has as many numbers as the tokens' inputs or outputs; views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.of = {TOKENS * IN: Counter(), TOKENS * OUT: Counter()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        is_view = func.is_view or name in ("_unsafe_view", "detach")
        if isinstance(result, torch.Tensor) and result.numel() in self.of and not is_view:
            self.of[result.numel()][name] += 1
        return result


@pytest.mark.parametrize("experts", [1, 3])
def test_large_tensors_are_written_once_under_autocast(experts):
    layer, x = build(experts).train(), torch.randn(1, TOKENS, IN, requires_grad=True)
    with Written() as written, torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    assert written.of == {TOKENS * IN: {"_to_copy": 1}, TOKENS * OUT: {"addmm": 1, "addmm_": 1}}
    loss = output.float().sum()
    with Written() as written:
        loss.backward()
    # The input's gradient: by the base, by the experts, their sum, and the sum in float32.
    assert written.of[TOKENS * IN] == {"mm": 2, "add": 1, "_to_copy": 1}


@pytest.mark.parametrize("shape", [(IN,), (0, IN), (2, 0, IN), (2, 3, 4, IN)], ids=str)
def test_an_input_of_any_shape(shape):
    layer = build(3).eval()
    x = torch.randn(shape)
    rows = [layer(row) for row in x.reshape(-1, IN)]
    wanted = torch.stack(rows).reshape(*shape[:-1], OUT) if rows else torch.empty(*shape[:-1], OUT)
    torch.testing.assert_close(layer(x), wanted)


def test_a_base_of_lower_precision_gets_the_sum_in_that_of_the_adapters():
    layer, x = build(3).eval(), torch.randn(5, IN).bfloat16()
    layer.base.bfloat16()
    given = layer(x)
    update = sum(
        weight * expert(x.float())
        for expert, weight in zip(layer.experts, layer.gate(x.float() @ layer.gate.weight.T).split(1, -1), strict=True)
    )
    assert given.dtype == torch.bfloat16
    # Half a unit in the last place: one rounding, at the end.
    torch.testing.assert_close(given.float(), layer.base(x).float() + update, rtol=1.02 * 2**-8, atol=1e-6)

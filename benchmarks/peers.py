"""What the adapters are compared with: a loop over experts, and the LoRA of peft, on the same projections."""

import re
from collections.abc import Callable

import peft
import torch
from torch import Tensor, nn
from torch.nn import functional

from moelora_ad.adapters import Gate, LoRAExpert

PROJECTIONS = r"(.*\.)?(q|k|v|out)_proj"


class LoopOverExperts(nn.Module):
    """The usual code: a noisy softmax gate, then one expert after the other."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.experts = nn.ModuleList(LoRAExpert(base.in_features, base.out_features, 8) for _ in range(3))
        self.gate = Gate(base.in_features, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits = functional.linear(x, self.gate.weight)
        spread = functional.softplus(functional.linear(x, self.gate.noise_weight))
        weights = (logits + torch.randn_like(logits) * spread).softmax(-1)
        y = self.base(x)
        for number, expert in enumerate(self.experts):
            y = y + weights[..., number : number + 1] * expert(x)
        return y


def loop(model: nn.Module) -> None:
    """Freeze a model, and replace every projection by a `LoopOverExperts`."""
    model.requires_grad_(False)
    for name, linear in list(model.named_modules()):
        if re.fullmatch(PROJECTIONS, name):
            model.set_submodule(name, LoopOverExperts(linear))


def lora_of_peft(rank: int) -> Callable[[nn.Module], object]:
    """Return a function that puts a LoRA of peft, without dropout, on every projection of a frozen model."""
    config = peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=PROJECTIONS)
    return lambda model: peft.inject_adapter_in_model(config, model)

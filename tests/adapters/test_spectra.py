"""Spectra computed through small cores against those of the whole matrices."""

import pytest
import scipy.linalg
import torch
from torch import nn

from moelora_ad.adapters import LoRAExpert, MoELoRALinear, principal_angles, singular_values
from moelora_ad.adapters.gate import Gate

IN, OUT, RANK, EXPERTS = 14, 20, 3, 4


@pytest.fixture
def layer():
    torch.manual_seed(0)
    experts = [LoRAExpert(IN, OUT, RANK) for _ in range(EXPERTS)]
    layer = MoELoRALinear(nn.Linear(IN, OUT), experts, Gate(IN, EXPERTS), alpha=5)
    for expert in layer.experts:
        nn.init.normal_(expert.lora_B)
    return layer


def test_singular_values_are_those_of_the_whole_update(layer, everywhere):
    whole = torch.stack([5 / RANK * e.lora_B.double() @ e.lora_A.double() for e in layer.experts])
    torch.testing.assert_close(singular_values(layer.to(everywhere)).cpu(), torch.linalg.svdvals(whole)[:, :RANK])


def test_a_new_expert_has_none():
    layer = MoELoRALinear(nn.Linear(IN, OUT), [LoRAExpert(IN, OUT, RANK)])
    assert torch.equal(singular_values(layer), torch.zeros(1, RANK, dtype=torch.float64))


@pytest.mark.parametrize("side", ["input", "output"])
def test_angles_are_those_of_scipy(layer, side, everywhere):
    given = principal_angles(layer.to(everywhere), side).cpu()
    layer.cpu()
    assert given.shape == (EXPERTS, EXPERTS, RANK)
    for i, one in enumerate(layer.experts):
        for j, other in enumerate(layer.experts):
            bases = [(e.lora_A.T if side == "input" else e.lora_B).detach().double().numpy() for e in (one, other)]
            wanted = torch.from_numpy(scipy.linalg.subspace_angles(*bases)).flip(0)
            torch.testing.assert_close(given[i, j], wanted, rtol=1e-9, atol=1e-12)


def test_small_angles_are_exact(layer):
    one, other = layer.experts[0], layer.experts[1]
    directions = torch.linalg.qr(torch.randn(OUT, 2 * RANK, dtype=torch.float64)).Q
    layer.double()
    one.lora_B.data = directions[:, :RANK].clone()
    tilted = directions[:, 0] * torch.cos(torch.tensor(1e-9)).double() + directions[:, RANK] * 1e-9
    other.lora_B.data = torch.stack([tilted, directions[:, 1], directions[:, RANK + 2]], 1)
    wanted = torch.tensor([0.0, 1e-9, torch.pi / 2], dtype=torch.float64)
    torch.testing.assert_close(principal_angles(layer)[0, 1], wanted, rtol=1e-5, atol=1e-15)

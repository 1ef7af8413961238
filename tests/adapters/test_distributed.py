"""Adapted layers under DDP and FSDP: two CPU processes get the gradients of one process with the whole batch."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from moelora_ad.adapters import GatePolicy, MoELoRA, joined_matrices


def adapted() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    MoELoRA(3, 2, top_k=2, gate=GatePolicy(noise="none"), targets=["0", "2"]).adapt(model)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter)
    return model


def inputs() -> torch.Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with joined_matrices(model):
        return model(x).square().mean()


def one_step(rank: int, meeting: str, wrap: str, path: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    model = adapted()
    wrapped = DistributedDataParallel(model) if wrap == "ddp" else fully_shard(model, mesh=_mesh())
    loss(wrapped, inputs()[rank * 3 : rank * 3 + 3]).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    whole = {n: g.full_tensor() if wrap == "fsdp" else g for n, g in gradients.items()}
    if rank == 0:
        torch.save(whole, path)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _mesh() -> torch.distributed.DeviceMesh:
    return torch.distributed.init_device_mesh("cpu", (2,))


@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
def test_two_processes_have_the_gradients_of_one(wrap, tmp_path):
    path = str(tmp_path / "gradients.pt")
    step = partial(one_step, meeting=str(tmp_path / "meeting"), wrap=wrap, path=path)
    torch.multiprocessing.spawn(step, nprocs=2)
    model = adapted()
    loss(model, inputs()).backward()
    given = torch.load(path, weights_only=True)
    wanted = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert given.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(given[name], gradient, msg=name)

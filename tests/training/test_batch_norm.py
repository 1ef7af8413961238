"""Batch normalisation over two processes, against PyTorch's own on both batches in one."""

from functools import partial

import pytest
import torch
from torch import nn

from moelora_ad.models import StatisticsPooling
from moelora_ad.models.heads.graph_attention import GraphAttention
from moelora_ad.training.batch_norm import SyncedBatchNorm

SIZES = (5, 2)  # clips in each of the two processes
LAYERS = {
    "plain": (partial(nn.BatchNorm2d, 3), (3, 4, 2)),
    "of vectors": (partial(nn.BatchNorm1d, 3), (3,)),
    "with the mean of all batches": (partial(nn.BatchNorm2d, 3, momentum=None), (3, 4, 2)),
    "without weights and memory": (partial(nn.BatchNorm1d, 3, affine=False, track_running_stats=False), (3, 2)),
    "in a graph layer, with a forward of its own": (partial(GraphAttention, 3, 4, temperature=2.0), (6, 3)),
    "frozen": (lambda: nn.BatchNorm2d(3).eval(), (3, 4, 2)),
}


def made(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A layer with tensors moved away from their initial values, and the clips of both processes, far from zero."""
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make().double()
    for part in layer.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
        if getattr(layer, "running_mean", None) is not None:
            layer.running_mean.add_(1.0)
    return layer, 5.0 + 2.0 * torch.randn(sum(SIZES), *shape, dtype=torch.float64)


def results(layer: nn.Module, x: torch.Tensor, share: float) -> dict[str, torch.Tensor]:
    """The output, gradients, curvature and state of a layer after two passes.

    The mean of the loss over processes is the mean over all clips. Gradients are those of the clips (0) and of each
    parameter; the curvature is the Hessian times a vector.
    """
    clips = x.clone().requires_grad_()
    of = [clips, *layer.parameters()]
    layer(clips - 1.0)
    output = layer(clips)
    loss = share * torch.sin(output).flatten(1).sum(1).mean()
    gradients = torch.autograd.grad(loss, of, create_graph=True)
    vector = [x.cos(), *(torch.linspace(-1, 1, p.numel(), dtype=p.dtype).view_as(p) for p in of[1:])]
    product = torch.stack([(g * v).sum() for g, v in zip(gradients, vector, strict=True)]).sum()
    curvature = torch.autograd.grad(product, of)
    found = {"output": output} | {f"{n}": g for n, g in enumerate(gradients)}
    found |= {f"curvature {n}": g for n, g in enumerate(curvature)} | layer.state_dict()
    return {name: tensor.detach() for name, tensor in found.items()}


def one_process(rank: int, meeting: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    found = {}
    for name in LAYERS:
        layer, x = made(name)
        classes = [type(part) for part in layer.modules()]
        SyncedBatchNorm().apply(layer)
        share = 2 * SIZES[rank] / sum(SIZES)
        found[name] = results(layer, x.split(SIZES)[rank], share)
        SyncedBatchNorm().revert(layer)
        assert [type(part) for part in layer.modules()] == classes
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    run = partial(one_process, meeting=str(folder / "meeting"), folder=str(folder))
    torch.multiprocessing.start_processes(run, nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.forks
@pytest.mark.parametrize("name", LAYERS)
def test_two_processes_normalise_as_one_does(of_both, name):
    layer, x = made(name)
    wanted = results(layer, x, 1.0)
    first, second = (found[name] for found in of_both)
    assert first.keys() == second.keys() == wanted.keys()
    for what, tensor in wanted.items():
        both = first[what], second[what]
        if what == "output":
            found = torch.cat(both)
        elif what in ("0", "curvature 0"):  # clips: each process has the gradient of both losses' sum
            found = torch.cat(both) / 2
        elif what not in layer.state_dict():  # parameters
            found = sum(both) / 2
        else:
            assert torch.equal(*both), what
            found = both[0]
        torch.testing.assert_close(found, tensor, rtol=1e-10, atol=1e-10, msg=what)


def test_one_process_alone_still_takes_a_batch_of_one_utterance():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        head = StatisticsPooling(4)
        SyncedBatchNorm().apply(head)
        assert head(torch.randn(1, 5, 4)).shape == (1, 2)
    finally:
        torch.distributed.destroy_process_group()

"""The private names of PyTorch that the package uses: what they must do."""

import gc
import os
import signal
import time

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset

from moelora_ad.torch_internals import (
    BatchNorm,
    CompilerError,
    Constant,
    FakeTensorMode,
    WatchedLoader,
    check_dimensions,
    forget_compilation,
    is_within_backward,
    uncompiled,
    undoes_scaling,
    without_scaling,
)


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_a_checkpoint_repeats_is_within_the_backward_pass(reentrant):
    seen = []

    def layer(x: torch.Tensor) -> torch.Tensor:
        seen.append(is_within_backward())
        return x.sin()

    x = torch.ones(3, requires_grad=True)
    y = checkpoint(layer, x, use_reentrant=reentrant).sum()
    assert seen == [False]
    y.backward()
    assert seen == [False, True]
    assert not is_within_backward()


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimiser_that_undoes_scaling_steps_with_a_scaled_gradient(fused):
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(3.0 * weight.sum()).backward()
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(weight.grad.tolist()))
    scaler.step(optimizer)
    assert undoes_scaling(optimizer) == fused
    assert seen == [[24.0 if fused else 3.0] * 2]
    without_scaling(optimizer)
    assert not undoes_scaling(optimizer)


@pytest.mark.parametrize(
    ("kind", "dimensions"), [(nn.BatchNorm1d, (2, 3)), (nn.BatchNorm2d, (4,)), (nn.BatchNorm3d, (5,))]
)
def test_batch_normalisation_has_one_forward_and_checks_dimensions(kind, dimensions):
    class Watched(BatchNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1.0

    class Own(kind, Watched):
        """Calls the forward of ``Watched`` before PyTorch's."""

    values = torch.randn(4, 3, *[2] * (dimensions[0] - 2))
    torch.testing.assert_close(Own(3)(values), kind(3)(values) + 1.0)
    for number in range(1, 6):
        x = torch.zeros([2] * number)
        if number in dimensions:
            check_dimensions(kind(3), x)
        else:
            with pytest.raises(ValueError, match="expected"):
                check_dimensions(kind(3), x)


def test_fake_tensors_compute_shapes_and_have_a_device():
    layer = nn.Linear(3, 4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        many = torch.zeros(10**9, 3)  # 12 GB, if it were real
        assert layer(many).shape == (10**9, 4)
        assert many.device.type == "cpu"


def test_a_constant_goes_with_the_model_and_keeps_its_precision():
    values = torch.arange(3, dtype=torch.float64) / 3
    model = nn.Sequential(nn.Linear(3, 3))
    model.append(Constant(values))
    model.half()
    assert model[0].weight.dtype == torch.float16
    assert torch.equal(model[1](torch.device("cpu")), values)
    assert not model[1].state_dict()
    model.to("meta")
    assert model[1].tensor.is_meta
    model.to_empty(device="cpu")
    assert model[1].tensor.shape == (3,)
    assert model[1].tensor.device.type == "cpu"
    assert model[1].tensor.dtype == torch.float64


class Layer(nn.Linear):
    """A class of our own, as PyTorch 2.11 does not compile its own modules on their own."""

    def forward(self, x):
        return super().forward(x)


def test_compilation_is_seen_and_forgotten():
    calls = []

    def backend(graph, inputs):
        calls.append(len(inputs))
        return graph.forward

    layer = Layer(2, 2)
    assert uncompiled(torch.compile(layer, backend="eager")) is layer
    assert uncompiled(layer) is layer
    layer.compile(backend=backend)
    layer(torch.zeros(1, 2))
    assert calls
    calls.clear()
    forget_compilation(layer)
    layer(torch.zeros(3, 2))
    assert not calls


def test_what_the_compiler_raises():
    def backend(graph, inputs):
        raise ZeroDivisionError

    layer = Layer(2, 2)
    layer.compile(backend=backend)
    with pytest.raises(CompilerError, match="ZeroDivisionError"):
        layer(torch.zeros(1, 2))


class Slow(Dataset):
    """Row 0 names the process that reads; the next one comes late."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __len__(self):
        return 2

    def __getitem__(self, index):
        time.sleep(index * self.seconds)
        return os.getpid()


@pytest.mark.parametrize("pinned", [False, pytest.param(True, marks=pytest.mark.gpu)])
def test_a_worker_whose_end_is_not_told_is_missed_before_the_timeout(pinned):
    rows = iter(WatchedLoader(Slow(3_600), batch_size=None, num_workers=1, timeout=3_600, pin_memory=pinned))
    worker = next(rows)
    told = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # as if the signal had been lost
    try:
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"DataLoader worker .*exited unexpectedly"):
            next(rows)
    finally:
        signal.signal(signal.SIGCHLD, told)


class Cycle:
    """Garbage that names, in a file, each process that finalises it."""

    def __init__(self, file):
        self.file, self.own = file, self

    def __del__(self):
        with self.file.open("a") as file:
            file.write(f"{os.getpid()} ")


class Collecting(Dataset):
    """Collects garbage in the process that reads, and names it."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        gc.collect()
        return os.getpid()


@pytest.mark.parametrize("timeout", [0, 60])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_worker_finalises_nothing_of_the_process_that_started_it(is_frozen, timeout, tmp_path):
    """Objects that the caller has frozen stay so."""
    early, late, own = tmp_path / "early", tmp_path / "late", f"{os.getpid()} "
    gc.disable()
    try:
        Cycle(early)
        if is_frozen:
            gc.freeze()
        Cycle(late)
        options = {"num_workers": 2, "timeout": timeout, "multiprocessing_context": "fork"}
        workers = set(WatchedLoader(Collecting(), batch_size=None, **options))
        assert len(workers - {os.getpid()}) == 2
        gc.collect()
        assert late.read_text() == own
        assert early.exists() != is_frozen
        assert bool(gc.get_freeze_count()) == is_frozen
    finally:
        gc.unfreeze()
        gc.enable()
    gc.collect()
    assert early.read_text() == own


def test_rows_that_do_not_come_end_a_loader_after_its_timeout():
    rows = iter(WatchedLoader(Slow(2), batch_size=None, num_workers=1, timeout=0.5))
    with pytest.raises(RuntimeError, match=r"DataLoader timed out after 0\.5 seconds"):
        list(rows)

"""Lightning's strategies train the same model as one process does."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

# FSDP without a GPU, for which Lightning asks by the strategy's name, and PyTorch if it gets no device. And AASIST
# without dropout, whose draws differ between processes.
ON_CPU = '''
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer
from moelora_ad.models import AASIST

class OnCPU(FSDPStrategy):
    def _setup_model(self, model):
        return FullyShardedDataParallel(
            model,
            device_id=torch.device("cpu"),
            sharding_strategy=self.sharding_strategy,
            mixed_precision=self.mixed_precision_config,
            auto_wrap_policy=ModuleWrapPolicy({WhisperEncoderLayer}),
            **self.kwargs,
        )

class Undropped(AASIST):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        for layer in self.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0

class Collectives(Callback):
    """Writes which collective calls each training batch makes from Python; DDP reduces gradients without such calls."""

    def on_train_start(self, trainer, pl_module):
        self.calls = []
        for name in ("all_reduce", "all_gather", "all_gather_object", "barrier", "broadcast", "reduce"):
            setattr(torch.distributed, name, self.counted(name, getattr(torch.distributed, name)))

    def counted(self, name, call):
        def noted(*arguments, **named):
            self.calls.append(name)
            return call(*arguments, **named)
        return noted

    def on_train_batch_start(self, trainer, *_):
        self.calls.clear()

    def on_train_batch_end(self, trainer, *_):
        if trainer.is_global_zero:
            print("collectives:", *self.calls)
'''


@pytest.fixture
def trained(experiment, write_config, tmp_path, lightning, forked, monkeypatch):
    """Trains by a strategy over two processes, or in this process with twice the batch.

    Returns what was printed, the training losses of the steps, and the last checkpoint's weights.
    """
    (tmp_path / "on_cpu.py").write_text(ON_CPU)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "on_cpu", raising=False)
    experiment["data"]["train_segment"] = {"samples": 8_000, "position": "first"}
    experiment["data"]["eval_segment"]["samples"] = 8_000
    experiment["model"]["class_weights"] = [0.1, 0.9]  # matters where the two processes have unequal classes
    adaptation = experiment["model"]["adaptation"]["init_args"]
    adaptation |= {"share_gate": True, "auxiliary": {"importance": 0.1}, "gate": {"noise": "none"}}

    def run(strategy: str | None, **chosen: object) -> tuple[str, list[dict[str, float]], dict[str, torch.Tensor]]:
        name = str(strategy).rpartition(".")[2]
        if strategy:
            chosen |= {"devices": 2, "strategy": {"class_path": strategy}}
        overlay = {
            "data": {"batch_size": 2 if strategy else 4},
            "trainer": chosen | {"logger": {"init_args": {"name": name}}},
            "test_after_fit": False,
        }
        paths = [write_config(experiment), tmp_path / f"{name}.yaml"]
        paths[1].write_text(yaml.safe_dump(overlay))
        arguments = ["fit", *(f"--config={path}" for path in paths)]
        if strategy and chosen.get("accelerator") != "cuda":
            code, out, err = forked(*arguments, processes=2)
        elif strategy:  # a fork cannot use a GPU that its parent has used
            command = [sys.executable, "-m", "moelora_ad", *arguments]
            environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
            code, out, err = done.returncode, done.stdout, done.stderr
        else:
            code, out, err = lightning(*arguments)
        assert code == 0, out + err
        folder = tmp_path / "runs" / name / "version_0"
        with (folder / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["train/loss_step"]]
        names = ("train/loss_step", "train/auxiliary/importance_step")
        state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        return out, [{name: float(row[name]) for name in names} for row in rows], state

    return run


def dev_losses(run: Path) -> list[float]:
    with (run / "version_0" / "metrics.csv").open() as file:
        return [float(row["dev/loss"]) for row in csv.DictReader(file) if row["dev/loss"]]


@pytest.fixture(params=[pytest.param("cpu", marks=pytest.mark.forks), pytest.param("gpus", marks=pytest.mark.gpu(2))])
def accelerator(request) -> str:
    """The CPU, or two GPUs."""
    return request.getfixturevalue("gpu").type if request.param == "gpus" else "cpu"


def test_two_processes_train_as_one_with_the_doubled_batch(trained, experiment, accelerator, tmp_path):
    """DDP with AASIST's batch statistics, one gate for each layer, an auxiliary loss and unequal class weights."""
    experiment["model"]["classifier"] = "on_cpu.Undropped"
    # A bias before batch normalisation has only rounding errors as its gradient; Adam would make full steps of it.
    experiment["model"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}}
    # In float32, rounding differs, and the choices of pooling layers magnify that with every step.
    chosen = {"precision": "64-true", "accelerator": accelerator}
    _, losses, weights = trained(None, **chosen, devices=1)
    printed, of_two, weights_of_two = trained("lightning.pytorch.strategies.DDPStrategy", **chosen)
    assert len(losses) == 6
    error = 1e-10 if accelerator == "cpu" else 1e-5  # the gates' float32 softmax sums in another order
    for one, two in zip(losses, of_two, strict=True):
        assert two == pytest.approx(one, rel=error)
    of_dev = dev_losses(tmp_path / "runs" / "None")
    assert of_dev
    assert dev_losses(tmp_path / "runs" / "DDPStrategy") == pytest.approx(of_dev, rel=error)
    assert weights_of_two.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(weights_of_two[name].cpu(), tensor.cpu(), rtol=error, atol=error, msg=name)
    # 2 layers, 4 projections, 2 experts of rank 2; a gate for each layer, without noise; AASIST on 32 features.
    assert f"experts 2,048, gates 128, classifier {447_242 - (1024 - 32) * 128:,}" in printed


@pytest.mark.forks
def test_processes_talk_once_in_a_step_besides_the_gradients(trained):
    """One all-reduce is for the loss, which is shared, logged and checked, and one for sums of auxiliary losses."""
    printed, losses, _ = trained(
        "lightning.pytorch.strategies.DDPStrategy", callbacks=[{"class_path": "on_cpu.Collectives"}]
    )
    told = [line for line in printed.splitlines() if line.startswith("collectives:")]
    assert told == ["collectives: all_reduce all_reduce"] * len(losses)


def test_two_processes_with_shards_train_as_one_with_the_doubled_batch(trained, experiment, accelerator):
    """Gradients are clipped by the norm of all of them."""
    experiment["model"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0}}
    experiment["trainer"]["gradient_clip_val"] = 0.05
    _, losses, weights = trained(None, accelerator=accelerator, devices=1)
    # FSDP casts no waveforms, weights or buffers here, and without CUDA nothing else is cast.
    on_cpu = accelerator == "cpu"
    strategy = "on_cpu.OnCPU" if on_cpu else "lightning.pytorch.strategies.FSDPStrategy"
    precision = "bf16-mixed" if on_cpu else "32-true"
    _, of_two, weights_of_two = trained(strategy, precision=precision, accelerator=accelerator)
    for one, two in zip(losses, of_two, strict=True):
        assert two == pytest.approx(one, rel=1e-5 if on_cpu else 1e-3)
    assert weights_of_two.keys() == weights.keys()
    for name, tensor in weights.items():
        error = {"rtol": 1e-4, "atol": 1e-6} if on_cpu else {"rtol": 1e-2, "atol": 1e-3}
        torch.testing.assert_close(weights_of_two[name].cpu(), tensor.cpu(), **error, msg=name)

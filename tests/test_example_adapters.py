"""Adaptation methods from outside the package work everywhere.

One has modules of its own, one scales what projections give, and one has no modules.
"""

import json
import os
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file

from moelora_ad.adapters import FrozenBackbone
from moelora_ad.audio import Segment, read_segment
from moelora_ad.corpora import Manifest
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable
from moelora_ad.inference.scorer import Scorer
from moelora_ad.models import Detector, MeanPooling, WhisperBackbone
from moelora_ad.training import DetectionModule
from moelora_ad.training.precision import FrozenHalfPrecision

PROJECT = Path(__file__).parents[1]

# IA3 (Liu et al., arXiv 2205.05638) scales keys, values and the feed-forward's inner activations. It is written as by a
# user: it does not describe its modules, and these do nothing about half precision.
IA3 = """
import torch
from torch import nn
from moelora_ad.adapters import AdaptationMethod


class Scaled(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base
        self.scale = nn.Parameter(torch.ones(base.out_features))

    def forward(self, x):
        return self.base(x) * self.scale


class IA3(AdaptationMethod):
    def adapt(self, encoder):
        encoder.requires_grad_(False)
        for layer in encoder.layers:
            layer.self_attn.k_proj = Scaled(layer.self_attn.k_proj)
            layer.self_attn.v_proj = Scaled(layer.self_attn.v_proj)
            layer.fc1 = Scaled(layer.fc1)
"""

LAYERS, WIDTH, INNER, BOTTLENECK, HEAD = 2, 32, 64, 4, 32 * 2 + 2  # the encoder of `small_whisper`, and mean pooling

# For each method: its class, its arguments, the name of its part in counts, the number of encoder parameters trained,
# and the names of the kept tensors in each layer and in the rest of the encoder.
PROJECTIONS = ("self_attn.out_proj", "fc2")
METHODS = {
    "bottleneck": (
        "examples.bottleneck_adapter.BottleneckAdapter",
        {"width": BOTTLENECK},
        "adapters",
        LAYERS * 2 * (2 * WIDTH * BOTTLENECK + BOTTLENECK + WIDTH),
        {f"{site}.{name}" for site in PROJECTIONS for name in ("down.weight", "down.bias", "up.weight", "up.bias")},
        set(),
    ),
    "ia3": (
        "ia3_of_a_user.IA3",
        {},
        "adapters",
        LAYERS * (2 * WIDTH + INNER),
        {f"{site}.scale" for site in ("self_attn.k_proj", "self_attn.v_proj", "fc1")},
        set(),
    ),
    "bitfit": (
        "examples.bitfit.BitFit",
        {},
        "biases",  # keys have no bias
        LAYERS * (6 * WIDTH + INNER) + 3 * WIDTH,
        {
            f"{name}.bias"
            for name in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.out_proj", "self_attn_layer_norm")
        }
        | {f"{name}.bias" for name in ("fc1", "fc2", "final_layer_norm")},
        {"conv1.bias", "conv2.bias", "layer_norm.bias"},
    ),
}
SITES = {"bottleneck": {"out_proj": 2, "fc2": 2}, "ia3": {"k_proj": 2, "v_proj": 2, "fc1": 2}, "bitfit": {}}
OWN = {  # the method's modules in a layer
    "bottleneck": {f"{site}{inner}" for site in PROJECTIONS for inner in ("", ".down", ".up")},
    "ia3": {"self_attn.k_proj", "self_attn.v_proj", "fc1"},
    "bitfit": set(),
}


@pytest.fixture(params=METHODS)
def name(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _importable(tmp_path, monkeypatch):
    (tmp_path / "ia3_of_a_user.py").write_text(IA3)
    for folder in (tmp_path, PROJECT):
        monkeypatch.syspath_prepend(folder)


def kept(name: str) -> set[str]:
    """The names of the tensors in a checkpoint, with those of the head."""
    *_, layer, rest = METHODS[name]
    encoder = rest | {f"layers.{number}.{one}" for number in range(LAYERS) for one in layer}
    return {f"backbone.encoder.{one}" for one in encoder} | {"classifier.output.weight", "classifier.output.bias"}


def method(name: str):
    path, arguments, *_ = METHODS[name]
    module, _, kind = path.rpartition(".")
    return getattr(__import__(module, fromlist=[kind]), kind)(**arguments)


@pytest.fixture
def config(experiment, write_config, name):
    path, arguments, *_ = METHODS[name]
    experiment["model"]["adaptation"] = {"class_path": path, "init_args": arguments}
    experiment["model"]["adapter_lr"] = 0.01
    experiment["trainer"]["max_epochs"] = 1
    return write_config(experiment)


def package(name: str) -> str:
    return METHODS[name][0].partition(".")[0]


@pytest.fixture
def run(config, lightning, tmp_path) -> tuple[Path, Path, str]:
    """The folder of a finished fit, its best checkpoint, and its output."""
    code, out, err = lightning("fit", "--config", config)
    assert code == 0, err
    folder = tmp_path / "runs" / "tiny" / "version_0"
    return folder, next((folder / "checkpoints").glob("epoch*.ckpt")), out


class Watch(Callback):
    """Keeps the encoder's modules in training mode in a step, and the learning rates."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        modules = pl_module.detector.backbone.encoder.named_modules()
        self.in_training = {name for name, module in modules if module.training}
        self.rates = {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_what_is_frozen_stays_and_what_is_trained_moves(name, precision, small_whisper, data, trainer, tmp_path):
    torch.manual_seed(0)
    module = DetectionModule(WhisperBackbone(small_whisper), method(name), MeanPooling, adapter_lr=0.01)
    before = {one: tensor.clone() for one, tensor in module.detector.state_dict().items()}
    watch = Watch()
    arguments = {"precision": precision} if precision != "bf16-true" else {"plugins": [FrozenHalfPrecision(precision)]}
    trainer(tmp_path, callbacks=[watch], limit_val_batches=0, **arguments).fit(module, datamodule=data())
    assert watch.rates == {METHODS[name][2]: 0.01, "classifier": 0.001}
    assert watch.in_training == {f"layers.{number}.{one}" for number in range(LAYERS) for one in OWN[name]}
    after = module.detector.state_dict()
    assert {one for one in after if after[one].dtype == torch.float32} >= kept(name)
    for one, tensor in after.items():
        if one in kept(name):
            assert not torch.equal(tensor, before[one]), one
        else:
            assert torch.equal(tensor, before[one].to(tensor.dtype)), one
    matrices = {one for one in after if one not in kept(name) and after[one].dim() > 1}
    assert {after[one].dtype for one in matrices} == {torch.bfloat16 if precision == "bf16-true" else torch.float32}


def test_the_encoder_is_known_again_whatever_stands_in_it(name, small_whisper):
    """A model folder has the hash of what is frozen: the pretrained encoder's hash, if the whole encoder is frozen."""
    frozen = Detector(WhisperBackbone(small_whisper), FrozenBackbone(), MeanPooling)
    adapted = Detector(WhisperBackbone(small_whisper), method(name), MeanPooling)
    assert (adapted.frozen_hash() == frozen.frozen_hash()) == (name != "bitfit")
    before = adapted.frozen_hash()
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter += parameter.requires_grad
    assert adapted.frozen_hash() == before


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """The detector's tensors in a checkpoint."""
    state = torch.load(path, weights_only=True)["state_dict"]
    return {one.removeprefix("detector."): tensor for one, tensor in state.items()}


def test_fit_test_and_export(name, run, lightning, experiment, tmp_path):
    folder, checkpoint, printed = run
    _, _, part, count, *_ = METHODS[name]
    assert f"{part} {count:,}, classifier {HEAD}" in printed
    record = json.loads((folder / "run.json").read_text())["parameters"]
    assert {one: number for one, number in record.items() if number and one != "total"} == {
        part: count,
        "classifier": HEAD,
    }
    state = tensors_of(checkpoint)
    assert state.keys() == kept(name)
    assert sum(tensor.numel() for tensor in state.values()) == count + HEAD

    config, again, model = folder / "config.yaml", tmp_path / "again", tmp_path / "model"
    assert lightning("test", "--config", config, "--ckpt_path", checkpoint, "--score_folder", again)[0] == 0
    (scores,) = (folder / "scores").glob("*/in_domain.csv")
    assert (again / "in_domain.csv").read_text() == scores.read_text()

    code, _, err = lightning("export", "--checkpoint", checkpoint, "--to", model)
    assert (code, err.count("\n")) == (2, 1)
    assert f"--allow {package(name)}" in err
    assert lightning("export", "--checkpoint", checkpoint, "--to", model, "--allow", package(name))[0] == 0
    exported = load_file(model / "model.safetensors")
    assert exported.keys() == kept(name)
    assert all(torch.equal(tensor, state[one]) for one, tensor in exported.items())
    header = struct.unpack("<Q", (model / "model.safetensors").read_bytes()[:8])[0]
    assert (model / "model.safetensors").stat().st_size == 8 + header + 4 * (count + HEAD)
    assert f"| {part} | {count:,} |" in (model / "README.md").read_text()

    # The exported model scores as the run did.
    eval_list = experiment["data"]["test"]["in_domain"]["init_args"]["path"]
    detector = Detector.from_pretrained(model, allow=[package(name)])
    table = ScoreTable.read(scores)
    clips = [read_segment(trial.audio, Segment(detector.window)) for trial in Manifest(eval_list).trials()]
    assert [Scorer(detector, window=detector.window)(clip).score for clip in clips] == pytest.approx(
        table.scores, abs=1e-6
    )
    # In half precision, scores agree within its 8 bits, with or without rounded weights.
    for precision in ("bf16-mixed", "bf16-true"):
        rounded = Scorer(detector, window=detector.window, precision=precision)
        assert [rounded(clip).score for clip in clips] == pytest.approx(table.scores, abs=0.02)


def test_inspect_counts_it(name, config, lightning):
    options = ("--allow", package(name), "--format", "json", "--trainer.precision", "bf16-true")
    code, out, err = lightning("inspect", "--config", config, *options)
    assert (code, err) == (0, "")
    given = json.loads(out)
    _, _, part, count, *_ = METHODS[name]
    counts = {one: number for one, number in given["parameters"].items() if number}
    assert counts.keys() == {part, "classifier", "backbone_frozen", "total"}
    assert (counts[part], counts["classifier"]) == (count, HEAD)
    assert given["kept_bytes"] == 4 * (count + HEAD)
    assert given["sites"]["by_name"] == SITES[name]
    assert given["sites"]["wrapped"] == given["sites"]["expected"] == sum(SITES[name].values())
    # 50 frames a second, and a multiplication and an addition for each weight of a bottleneck's two projections.
    products = LAYERS * 2 * 2 * WIDTH * BOTTLENECK if name == "bottleneck" else 0
    assert given["forward"]["adapters"] == pytest.approx(50 * 2 * products)


def test_plan_measures_it(name, config, lightning):
    code, out, err = lightning("plan", "--config", config, "--allow", package(name), "--format", "json", "--steps", 2)
    assert code == 0, err
    _, _, _, count, *_ = METHODS[name]
    # A checkpoint has the trained tensors, and Adam's two moments and step count for each of them.
    assert json.loads(out)["checkpoint_bytes"] == 4 * (3 * (count + HEAD) + len(kept(name)))


class Small:
    """A user's own auxiliary loss: the squares of what the bottlenecks add in a pass."""

    def __init__(self) -> None:
        self.watched = 0

    @contextmanager
    def watch(self, model):
        self.added = []
        ups = [module.up for module in model.modules() if hasattr(module, "up")]
        handles = [up.register_forward_hook(lambda *arguments: self.added.append(arguments[2])) for up in ups]
        yield
        self.watched += len(self.added)
        for handle in handles:
            handle.remove()

    def terms(self):
        return {"small": 0.5 * torch.stack([added.square().mean() for added in self.added]).sum()}


def test_a_method_gives_losses_of_its_own(small_whisper, data, trainer, tmp_path):
    adaptation = method("bottleneck")
    adaptation.auxiliary_losses = Small
    module = DetectionModule(WhisperBackbone(small_whisper), adaptation, MeanPooling, adapter_lr=0.01)
    run = trainer(tmp_path, limit_val_batches=0)
    run.fit(module, datamodule=data())
    assert module.auxiliary.watched == 3 * 2 * LAYERS  # 3 batches, 2 projections in each layer
    logged = {one: float(value) for one, value in run.logged_metrics.items()}
    assert logged["train/auxiliary/small_step"] > 0
    total = logged["train/loss_step"] + logged["train/auxiliary/small_step"]
    assert logged["train/total_loss_step"] == pytest.approx(total)


@pytest.mark.parametrize(
    ("term", "what"), [(torch.ones(2), r"of shape \(2,\)"), (0.5, "a float")], ids=["vector", "number"]
)
def test_a_loss_of_ones_own_that_is_no_scalar_is_told(term, what, small_whisper, data, trainer, tmp_path):
    class Wrong(Small):
        def terms(self):
            return {"mine": term}

    adaptation = method("bottleneck")
    adaptation.auxiliary_losses = Wrong
    module = DetectionModule(WhisperBackbone(small_whisper), adaptation, MeanPooling)
    with pytest.raises(InputError, match=f"the auxiliary loss mine is {what}: terms"):
        trainer(tmp_path, limit_val_batches=0).fit(module, datamodule=data())


@pytest.mark.forks
def test_two_processes_train_it_as_one_with_twice_the_batch(name, small_whisper, data, trainer, tmp_path):
    states = []
    for processes, arguments in ((1, {}), (2, {"devices": 2, "strategy": "ddp_fork"})):
        torch.manual_seed(0)
        module = DetectionModule(WhisperBackbone(small_whisper), method(name), MeanPooling, adapter_lr=0.01)
        before = {one: tensor.clone() for one, tensor in module.detector.state_dict().items()}
        run = trainer(tmp_path, limit_val_batches=0, **arguments)
        run.fit(module, datamodule=data(batch_size=4 // processes))
        states.append(module.detector.state_dict())
    for one, tensor in states[0].items():
        torch.testing.assert_close(states[1][one], tensor, rtol=1e-3, atol=1e-5, msg=one)
        assert torch.equal(tensor, before[one]) == (one not in kept(name)), one


def test_two_processes_of_the_command_keep_the_same(experiment, write_config, tmp_path):
    """A user starts DDP over gloo, with a file of their own in the folder."""
    path, arguments, *_ = METHODS["bottleneck"]
    experiment["model"]["adaptation"] = {"class_path": path, "init_args": arguments}
    experiment["trainer"] |= {"max_epochs": 1, "devices": 2, "strategy": "ddp"}
    command = [sys.executable, "-m", "moelora_ad", "fit", "--config", str(write_config(experiment))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, cwd=PROJECT)
    assert done.returncode == 0, done.stdout + done.stderr
    (checkpoint,) = (tmp_path / "runs" / "tiny" / "version_0" / "checkpoints").glob("epoch*.ckpt")
    assert tensors_of(checkpoint).keys() == kept("bottleneck")

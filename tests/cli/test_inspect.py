"""The command inspect and its account of a model, against published counts, formulas, files and real runs."""

import json
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from moelora_ad.adapters import FrozenBackbone, FullFineTuning, LayerRange, LoRA, MoELoRA, TopLayers
from moelora_ad.cli.lightning_cli import inspection
from moelora_ad.models import AASIST, Backbone, Detector, MeanPooling, Wav2Vec2Backbone, WhisperBackbone
from moelora_ad.models.accounting.account import Account, account
from moelora_ad.models.accounting.parameters import Sites

PROJECT = Path(__file__).parents[2]
SAMPLES = 16_000


@pytest.fixture
def inspected(monkeypatch, lightning):
    """Runs the verb in the project's folder and returns its JSON."""
    monkeypatch.chdir(PROJECT)

    def call(*arguments: str) -> dict:
        code, out, err = lightning("inspect", *arguments, "--format", "json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return call


@pytest.mark.slow
def test_the_papers_model_up_to_its_fourth_layer(inspected):
    """For the published counts of all 24 layers, see tests/models/test_detector.py."""
    options = ("--model.adaptation.init_args.num_experts", "7", "--model.backbone.init_args.hidden_states", "4")
    given = inspected("--config", "experiments/paper.yaml", *options)
    counts, sites = given["parameters"], 4 * 4
    assert counts["experts"] == sites * 7 * 2 * 8 * 1024
    assert counts["gates"] == counts["gate_noise"] == sites * 7 * 1024
    assert counts["classifier"] == 447_242
    one_layer = 4 * (1024**2 + 1024) + 2 * 4 * 1024**2 + 5 * 1024 + 4 * 1024
    assert counts["backbone_frozen"] == 315_438_720 - 20 * one_layer - 2 * 1024  # without 20 layers and the last norm
    assert given["sites"]["wrapped"] == given["sites"]["expected"] == sites
    assert given["sites"]["by_name"] == dict.fromkeys(("k_proj", "v_proj", "q_proj", "out_proj"), 4)
    assert given["setting"] == {"seconds": 4.0375, "batch_size": 14, "precision": "bf16-mixed"}
    trained = counts["total"] - counts["backbone_frozen"]
    assert given["kept_bytes"] == 4 * trained + 4 * sites * 7 + given_buffers()


def given_buffers() -> int:
    """Bytes of the batch statistics of AASIST."""
    return sum(buffer.numel() * buffer.element_size() for buffer in AASIST(1024).buffers())


def on_meta(build) -> Detector:
    with torch.device("meta"):
        return build()


class TwoLinears(nn.Module):
    """A stand-in for an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[1](self.layers[0](x))


class FramedLinear(Backbone):
    """A backbone with frames of 8 samples and two linear layers, so that every operation is known."""

    def __init__(self) -> None:
        super().__init__(TwoLinears(), 8, "last")

    def layers(self) -> nn.ModuleList:
        return self.encoder.layers

    def encode(self, waveforms, lengths):
        return self.encoder(waveforms.unflatten(1, (-1, 8)))


@pytest.mark.parametrize("experts", [1, 3])
def test_operations_are_those_of_the_formulas(experts):
    method = LoRA(2, targets=["0", "1"]) if experts == 1 else MoELoRA(experts, 2, targets=["0", "1"])
    detector = on_meta(lambda: Detector(FramedLinear(), method, MeanPooling))
    given = account(detector, torch.optim.SGD, SAMPLES, 3)
    frames = SAMPLES // 8
    base, head = 2 * 2 * frames * 8 * 8, 2 * 8 * 2
    gate = experts if experts > 1 else 0
    adapters = 2 * (2 * frames * 8 * (2 * experts + gate) + 2 * frames * 2 * experts * 8)
    assert given.forward == {
        "backbone": base,
        "adapters": adapters,
        "classifier": head,
        "total": base + adapters + head,
    }
    # Training adds the product with W_noise. In the backward pass, the second layer's input gets a gradient, also
    # through its base, and the first layer's input gets none; lora_A, lora_B and the gate get theirs in both layers.
    noise = 2 * 2 * frames * 8 * gate
    down, up = 2 * frames * 8 * (2 * experts + 2 * gate), 2 * frames * 2 * experts * 8
    backward = 2 * head + base // 2 + (2 * down + 2 * up) + (down + 2 * up)
    assert given.training_step == base + adapters + noise + head + backward


class GroupedConvolutions(nn.Module):
    """A stand-in for an encoder: two convolutions, grouped and depthwise, like those of speech encoders."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv1d(8, 8, 3, padding=1, groups=2), nn.Conv1d(8, 8, 3, padding=1, groups=8)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[1](self.layers[0](x.mT)).mT


def test_operations_of_grouped_convolutions():
    def build() -> Detector:
        backbone = FramedLinear()
        backbone.encoder = GroupedConvolutions()
        return Detector(backbone, FullFineTuning(), MeanPooling)

    given = account(on_meta(build), torch.optim.SGD, SAMPLES, 3)
    frames = SAMPLES // 8
    # Each output channel uses the 8 / groups input channels of its own group.
    first, second, head = 2 * frames * 8 * 4 * 3, 2 * frames * 8 * 1 * 3, 2 * 8 * 2
    assert given.forward["backbone"] == first + second
    # In the backward pass, every weight and every input but the first gets a gradient, for the price of a forward pass.
    assert given.training_step == 2 * first + 3 * second + 3 * head


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [MoELoRA(3, 2), LoRA(2, layers=LayerRange(first=1)), FrozenBackbone(), TopLayers(1)])
def test_saved_bytes_are_those_of_a_real_run(small_whisper, method, precision):
    given = account(
        on_meta(lambda: Detector(WhisperBackbone(small_whisper), method, MeanPooling)),
        torch.optim.AdamW,
        SAMPLES,
        4,
        precision,
    )
    real = Detector(WhisperBackbone(small_whisper), method, MeanPooling).train()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*real.parameters(), *real.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    mixed = torch.autocast("cpu", precision, enabled=precision != torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), mixed:
        logits = real(torch.randn(4, SAMPLES)).float()
        loss = nn.functional.cross_entropy(logits, torch.zeros(4, dtype=torch.long))
    assert loss.requires_grad
    assert given.saved_bytes == pytest.approx(sum(storage.nbytes() for storage in kept.values()), rel=0.01)


def test_sizes_are_those_of_the_files(experiment, write_config, inspected, lightning, tmp_path):
    experiment["model"]["classifier"] = "moelora_ad.models.StatisticsPooling"  # has batch statistics
    config = str(write_config(experiment))
    given = inspected("--config", config)
    code, _, err = lightning(*("fit", "--config", config, "--trainer.max_steps", "1", "--test_after_fit", "false"))
    assert code == 0, err
    (path,) = (tmp_path / "runs").rglob("last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    state = [*checkpoint["state_dict"].values()]
    for values in checkpoint["optimizer_states"][0]["state"].values():
        state += [value for value in values.values() if isinstance(value, torch.Tensor)]
    assert given["checkpoint_bytes"] == sum(tensor.numel() * tensor.element_size() for tensor in state)
    assert lightning("export", "--checkpoint", path, "--to", tmp_path / "kept")[0] == 0
    data = (tmp_path / "kept" / "model.safetensors").read_bytes()
    assert given["kept_bytes"] == len(data) - 8 - struct.unpack("<Q", data[:8])[0]


def test_parts_of_the_parameters(small_wav2vec2):
    method = MoELoRA(3, 2, share_gate=True, freeze_experts=[0])
    detector = on_meta(
        lambda: Detector(Wav2Vec2Backbone(small_wav2vec2, hidden_states="weighted"), method, MeanPooling)
    )
    given = account(detector, torch.optim.AdamW, SAMPLES, 2)
    counts = given.parameters
    assert (counts["experts"], counts["gates"], counts["gate_noise"]) == (3 * 4 * 2 * 2 * 64, 3 * 3 * 32, 3 * 3 * 32)
    assert (counts["classifier"], counts["layer_weights"], counts["backbone_trained"]) == (66, 4, 0)
    assert counts["total"] == sum(n for name, n in counts.items() if name != "total")
    assert (given.sites.wrapped, given.sites.gates, given.sites.layers) == (12, 3, 3)


def test_the_table_is_readable(experiment, write_config, lightning, monkeypatch):
    monkeypatch.setattr(inspection, "account", lambda *_: ACCOUNT)
    code, out, err = lightning("inspect", "--config", write_config(experiment), "--seconds", "2")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for wanted in (
        "experts 2,000 20.00 %",
        "trained 3,000 30.00 %",
        "adapted 16 of 16 projections, in 4 layers",
        "forward 1.50 GFLOP per second of audio: backbone 1.00, adapters 0.25,",
        "activations 3 MiB saved for the backward pass: 4 clips of 2 s, 32-true",
        "exported model 12.0 MB",
    ):
        assert wanted in lines
    assert "gate noise" not in out  # no gate noise is counted in ACCOUNT
    assert "plain loss" not in out


def test_what_a_step_does_beyond_the_plain_loss_is_told(experiment, write_config, lightning, monkeypatch):
    monkeypatch.setattr(inspection, "account", lambda *_: ACCOUNT)
    experiment["model"]["meta_learning"] = {"class_path": "moelora_ad.training.MLDG"}
    experiment["model"]["adaptation"]["init_args"]["auxiliary"] = {"importance": 0.1}
    code, out, err = lightning("inspect", "--config", write_config(experiment))
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "a step of the plain loss, without meta-learning and auxiliary losses"


@pytest.mark.parametrize(
    ("given", "name", "dtype"),
    [
        (None, "32-true", torch.float32),
        (32, "32-true", torch.float32),
        (16, "16-mixed", torch.float16),
        ("bf16", "bf16-mixed", torch.bfloat16),
        ("bf16-mixed", "bf16-mixed", torch.bfloat16),
        ("bf16-true", "bf16-true", torch.float32),
    ],
)
def test_lightnings_names_of_precisions_are_understood(
    experiment, write_config, inspected, monkeypatch, given, name, dtype
):
    asked = []
    monkeypatch.setattr(inspection, "account", lambda *arguments: asked.append(arguments[-1]) or ACCOUNT)
    experiment["trainer"]["precision"] = given
    assert inspected("--config", str(write_config(experiment)))["setting"]["precision"] == name
    assert asked == [dtype]


def test_a_frozen_encoder_in_half_precision_keeps_less(experiment, write_config, inspected):
    """And an experiment needs no seed."""
    del experiment["seed_everything"]
    config = str(write_config(experiment))
    single, half = (inspected("--config", config, "--trainer.precision", name) for name in ("32-true", "bf16-true"))
    assert half["saved_bytes"] < single["saved_bytes"]
    # Trained weights are still in single precision, and so is what is kept.
    assert half["checkpoint_bytes"] == single["checkpoint_bytes"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--seconds", "0.001"], "the model cannot process clips of 0.001 s: "),
        (["--seconds", "0.00001"], "the model cannot process clips of 0 s: "),
        (
            ["--trainer.precision", "64-true"],
            "trainer.precision 64-true: give one of 16-mixed, 32-true, bf16-mixed, bf16-true, which train here",
        ),
    ],
)
def test_what_cannot_be_counted_is_one_line(experiment, write_config, lightning, arguments, told):
    code, out, err = lightning("inspect", "--config", write_config(experiment), *arguments)
    assert (code, out) == (1, "")
    assert err.startswith(f"lightning inspect: error: {told}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give the configuration of a training run with --config"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config", "CONFIG", "--model.adaptation.init_args.rnk", "3"], "did you mean 'rank'?"),
        (["--config", "CONFIG", "--second", "1"], "unknown option --second; did you mean --seconds?"),
        (["--config", "adapters/lora_r8"], "lora_r8.yaml only changes an experiment: name one before it, such as "),
        (["--config", "CONFIG", "--seconds", "0"], "--seconds: must be above 0 and below 3,600, not 0"),
        (["--config", "CONFIG", "--seconds", "1e9"], "--seconds: must be above 0 and below 3,600, not 1e+09"),
        (["--config", "CONFIG", "--format", "xml"], "invalid choice: 'xml'"),
    ],
)
def test_a_mistake_is_one_line(experiment, write_config, lightning, arguments, told):
    config = str(write_config(experiment))
    code, out, err = lightning("inspect", *(config if part == "CONFIG" else part for part in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("lightning inspect: error: ")
    assert told in err
    assert err.count("\n") == 1


def test_targets_that_do_not_fit_are_failed_work(experiment, write_config, lightning):
    experiment["model"]["adaptation"]["init_args"]["layers"] = {"first": 9}
    code, _, err = lightning("inspect", "--config", write_config(experiment))
    assert code in (1, 2)
    assert "no target is in LayerRange(first=9" in err
    assert err.count("\n") == 1


ACCOUNT = Account(
    parameters={"experts": 2_000, "gates": 500, "gate_noise": 0, "classifier": 500, "layer_weights": 0}
    | {"backbone_trained": 0, "backbone_frozen": 7_000, "total": 10_000},
    sites=Sites(16, 16, {"q_proj": 8, "v_proj": 8}, 4, [(384, 384)], 16),
    forward={"backbone": 1e9, "adapters": 0.25e9, "classifier": 0.25e9, "total": 1.5e9},
    training_step=3e9,
    saved_bytes=3 * 2**20,
    kept_bytes=12_000_000,
    checkpoint_bytes=36_000_000,
)

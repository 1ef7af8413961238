"""Mixed precision, and a half-precision backbone with adapters in single precision."""

import csv
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from moelora_ad.adapters import FullFineTuning, GatePolicy, LoRA, MoELoRA, adapter_modules
from moelora_ad.cli.saved_models import export as export_command
from moelora_ad.errors import InputError
from moelora_ad.inference import Scorer
from moelora_ad.models import MeanPooling, Wav2Vec2Backbone, WhisperBackbone
from moelora_ad.runs.record import read_record
from moelora_ad.training import DetectionModule
from moelora_ad.training.precision import FrozenHalfPrecision


class Losses(Callback):
    """Keeps the losses, and the gradients of all adapters in the last step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        encoder = pl_module.detector.backbone.encoder
        self.gradients = {
            f"{site}.{name}": parameter.grad
            for site, module in adapter_modules(encoder)
            for name, parameter in module.named_parameters(recurse=False)
        }


@pytest.fixture
def fit(small_wav2vec2, small_whisper, data, trainer, tmp_path):
    """Trains a mixture without noise for two epochs; returns the module and the watched losses."""

    def run(kind: str, method=None, **arguments) -> tuple[DetectionModule, Losses]:
        torch.manual_seed(0)
        backbone = WhisperBackbone(small_whisper) if kind == "whisper" else Wav2Vec2Backbone(small_wav2vec2)
        method = method or MoELoRA(2, 2, gate=GatePolicy(noise="none"))
        module = DetectionModule(backbone, method, MeanPooling)
        watched = Losses()
        trainer(tmp_path, max_epochs=2, callbacks=[watched], **arguments).fit(module, datamodule=data())
        return module, watched

    return run


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_gradients_are_clipped_before_the_step_of_a_fused_optimizer(small_whisper, data, trainer, tmp_path, precision):
    """A step of plain SGD is the clipped gradient; on a GPU optimisers are fused without being asked to be."""
    module = DetectionModule(
        WhisperBackbone(small_whisper), LoRA(2), MeanPooling, optimizer=partial(torch.optim.SGD, lr=1.0, fused=True)
    )
    before = [parameter.detach().clone() for parameter in module.parameters()]
    given = {"gradient_clip_val": 1e-3, "max_steps": 1, "limit_val_batches": 0}
    given |= {"plugins": FrozenHalfPrecision(precision)} if precision == "bf16-true" else {"precision": precision}
    trainer(tmp_path, **given).fit(module, datamodule=data())
    steps = [new.detach() - old for new, old in zip(module.parameters(), before, strict=True) if new.requires_grad]
    assert torch.stack([step.norm() for step in steps]).norm() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("kind", ["whisper", "wav2vec2"])
def test_losses_of_every_precision_are_close_and_every_adapter_learns(fit, kind, device):
    fit = partial(fit, accelerator=device.type)
    _, exact = fit(kind)
    for arguments in (
        {"precision": "bf16-mixed"},
        {"precision": "16-mixed"},
        {"plugins": [FrozenHalfPrecision("bf16-true")]},
    ):
        module, watched = fit(kind, **arguments)
        # bfloat16 has 8 bits, so losses near log 2 have errors of a few parts in a thousand.
        assert watched.losses == pytest.approx(exact.losses, abs=0.02), arguments
        assert watched.losses != exact.losses
        for name, gradient in watched.gradients.items():
            assert gradient is not None, (arguments, name)
            assert gradient.dtype == torch.float32
            assert gradient.abs().sum() > 0, (arguments, name)
        assert all(p.dtype == torch.float32 for p in module.parameters() if p.requires_grad)


def test_what_is_frozen_is_half_and_what_is_trained_is_whole(fit):
    module, _ = fit("whisper", LoRA(2), plugins=[FrozenHalfPrecision("bf16-true")])
    assert {p.dtype for p in module.detector.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in module.detector.parameters() if p.requires_grad} == {torch.float32}
    assert {b.dtype for b in module.detector.classifier.buffers() if b.is_floating_point()} <= {torch.float32}
    kept = {k: v for k, v in module.detector.state_dict().items() if k in module.detector.kept_names()}
    assert {tensor.dtype for tensor in kept.values() if tensor.is_floating_point()} == {torch.float32}


def test_a_trained_encoder_is_not_rounded(fit):
    with pytest.raises(InputError, match="use bf16-mixed"):
        fit("whisper", FullFineTuning(), plugins=[FrozenHalfPrecision("bf16-true")])


def test_the_precision_by_its_name(lightning, experiment, write_config, tmp_path):
    config = write_config(experiment)
    code, _, err = lightning("fit", "--config", config, "--trainer.precision", "bf16-true")
    assert code == 0, err
    folder = tmp_path / "runs" / "tiny" / "version_0"
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {torch.float32}
    best = next(path for path in (folder / "checkpoints").glob("epoch*.ckpt"))
    scores = {path.name: path.read_text() for path in (folder / "scores").glob("*/*.csv")}
    assert len(scores) == 3
    arguments = ("--config", folder / "config.yaml", "--ckpt_path", best, "--score_folder", tmp_path / "again")
    assert lightning("test", *arguments)[0] == 0
    assert (tmp_path / "again" / "in_domain.csv").read_text() == scores["in_domain.csv"]
    code, _, err = lightning(
        "fit", "--config", config, "--trainer.precision", "bf16-true", "--model.adaptation", "FullFineTuning"
    )
    assert (code, err.count("\n")) == (1, 1)
    assert "trainer.precision bf16-true rounds the encoder, which this adaptation trains: use bf16-mixed" in err


@pytest.mark.parametrize("verb", ["fit", "plan", "inspect"])
def test_float16_without_a_scale_does_not_train(lightning, experiment, write_config, verb):
    config = write_config(experiment)
    code, out, err = lightning(verb, "--config", config, "--trainer.precision", "16-true")
    assert (code, out, err.count("\n")) == (2, "", 1)
    told = "trainer.precision 16-true does not train: small gradients vanish in float16; use bf16-true or 16-mixed"
    assert err == f"lightning {verb}: error: {told}\n"


def test_float16_without_a_scale_is_for_evaluation(fit, data, trainer, tmp_path):
    with pytest.raises(InputError, match="16-true does not train"):
        fit("whisper", plugins=[FrozenHalfPrecision("16-true")])
    module, _ = fit("whisper")
    (figures,) = trainer(tmp_path, plugins=[FrozenHalfPrecision("16-true")]).validate(module, datamodule=data())
    assert 0 <= figures["dev/eer"] <= 1
    assert module.detector.backbone.encoder.conv1.weight.dtype == torch.float16


def scores(folder: Path) -> dict[str, float]:
    files = sorted(folder.glob("**/*_domain.csv"))
    assert len(files) == 2
    return {row["utterance"]: float(row["score"]) for path in files for row in csv.DictReader(path.open())}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "bf16-true"])
def test_what_a_gpu_has_trained_is_judged_alike_everywhere(
    lightning, run_verb, experiment, write_config, whisper_tiny, tmp_path, gpu, monkeypatch, precision
):
    """A model trained on a GPU has the same scores in tests on the GPU and on the CPU, and when exported.

    Encoder, mixture and head are the quickstart's, trained on the GPU for two epochs of its speech. In float32, scores
    agree within 1e-4, with PyTorch's TF32 setting as it is; in half precision, within the rounding errors.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    experiment["model"]["backbone"]["init_args"]["source"] = str(whisper_tiny)
    experiment["model"] |= {"adaptation": {"class_path": "moelora_ad.adapters.MoELoRA"}, "class_weights": [0.5, 0.5]}
    experiment["model"]["classifier"] = "moelora_ad.models.AASIST"
    experiment["trainer"] |= {"accelerator": gpu.type, "devices": 1, "precision": precision, "gradient_clip_val": 1.0}
    code, _, err = lightning("fit", "--config", write_config(experiment))
    assert code == 0, err
    run = tmp_path / "runs" / "tiny" / "version_0"
    record = read_record(run)
    assert (record.step, record.state) == (6, "finished")
    assert 0 <= record.dev_eer <= 1
    (best,) = (run / "checkpoints").glob("epoch*.ckpt")
    on_gpu = scores(run / "scores")

    arguments = ("--config", run / "config.yaml", "--ckpt_path", best, "--trainer.accelerator", "cpu")
    code, _, err = lightning("test", *arguments, "--score_folder", tmp_path / "cpu")
    assert code == 0, err
    on_cpu = scores(tmp_path / "cpu")
    assert len(set(on_cpu.values())) == len(on_cpu) == 14
    error = {"32-true": 1e-4, "bf16-mixed": 0.3, "16-mixed": 0.3, "bf16-true": 0.3}[precision]
    assert on_gpu == pytest.approx(on_cpu, abs=error)

    assert run_verb(export_command, "--checkpoint", best, "--to", tmp_path / "model")[0] == 0
    listed = [row for name in ("eval", "ood") for row in csv.DictReader((tmp_path / f"{name}.csv").open())]
    places = {row["utterance"]: row["path"] for row in listed}
    for device, judged in ((torch.device("cpu"), on_cpu), (gpu, on_gpu)):
        scorer = Scorer.from_pretrained(tmp_path / "model", device=device)
        found = {name: next(iter(scorer.score_files([path]))).windows[0].score for name, path in places.items()}
        assert found == pytest.approx(judged, abs=1e-4 if precision == "32-true" else error)


def test_evaluation_computes_float32_as_float32(fit, data, trainer, tmp_path):
    """On a GPU, PyTorch would compute convolutions in TF32: training may do so, scores may not."""
    module, _ = fit("whisper")
    seen: dict[bool, set[bool]] = {True: set(), False: set()}
    module.detector.register_forward_pre_hook(lambda one, _: seen[one.training].add(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32
    trainer(tmp_path, limit_train_batches=1).fit(module, datamodule=data())
    trainer(tmp_path).test(module, datamodule=data())
    assert seen == {True: {before}, False: {False}}
    assert torch.backends.cudnn.allow_tf32 is before is True

"""Mixed precision, and a half-precision backbone with adapters in single precision."""

import pytest
import torch
from lightning.pytorch import Callback

from moelora_ad.adapters import FullFineTuning, GatePolicy, LoRA, MoELoRA, adapter_modules
from moelora_ad.errors import InputError
from moelora_ad.models import MeanPooling, Wav2Vec2Backbone, WhisperBackbone
from moelora_ad.training import DetectionModule
from moelora_ad.training.precision import FrozenHalfPrecision


class Losses(Callback):
    """Keeps the losses, and what part of every adapter gets a gradient in the last step."""

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
    """Two epochs of a mixture without noise; returns the module and what was watched."""

    def run(kind: str, method=None, **arguments) -> tuple[DetectionModule, Losses]:
        torch.manual_seed(0)
        backbone = WhisperBackbone(small_whisper) if kind == "whisper" else Wav2Vec2Backbone(small_wav2vec2)
        method = method or MoELoRA(2, 2, gate=GatePolicy(noise="none"))
        module = DetectionModule(backbone, method, MeanPooling)
        watched = Losses()
        trainer(tmp_path, max_epochs=2, callbacks=[watched], **arguments).fit(module, datamodule=data())
        return module, watched

    return run


@pytest.mark.parametrize("kind", ["whisper", "wav2vec2"])
def test_losses_of_every_precision_are_close_and_every_adapter_learns(fit, kind):
    _, exact = fit(kind)
    for arguments in (
        {"precision": "bf16-mixed"},
        {"precision": "16-mixed"},
        {"plugins": [FrozenHalfPrecision("bf16-true")]},
    ):
        module, watched = fit(kind, **arguments)
        # bfloat16 has 8 bits: errors of a few parts in a thousand, of losses near log 2.
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

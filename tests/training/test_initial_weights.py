"""Training that starts from the weights of a model or a checkpoint, with everything else new."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file, save_file
from torch import nn

from moelora_ad.adapters import FrozenBackbone, FullFineTuning, LoRA, MoELoRA
from moelora_ad.errors import InputError
from moelora_ad.files import file_hash
from moelora_ad.models import AttentiveStatistics, Detector, MeanPooling, Wav2Vec2Backbone, WhisperBackbone
from moelora_ad.runs.record import read_record
from moelora_ad.training import DetectionModule, WarmupCosine
from moelora_ad.training.initial_weights import load_initial_weights


def trained(detector: Detector) -> Detector:
    with torch.no_grad():
        for parameter in detector.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return detector


def whisper(source: Path, method=None, head=MeanPooling) -> Detector:
    return Detector(WhisperBackbone(source), MoELoRA(2, 2) if method is None else method, head)


@pytest.fixture
def model(small_whisper: Path, tmp_path: Path) -> Path:
    trained(whisper(small_whisper)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def kept(detector: Detector) -> dict[str, torch.Tensor]:
    state = detector.state_dict()
    return {name: state[name].clone() for name in detector.kept_names()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_all_that_a_model_has_is_taken(model, small_whisper):
    detector = whisper(small_whisper)
    wanted = kept(Detector.from_pretrained(model))
    assert not same(kept(detector), wanted)
    record, told = load_initial_weights(detector, model)
    assert same(kept(detector), wanted)
    count = len(wanted)
    assert told == [f"model.init_weights: {count} of {count} tensors are taken from {model}"]
    assert record == (str(model), file_hash(model / "model.safetensors"), count, 0, 0)


def test_what_is_missing_or_not_used_is_told_by_name(model, small_whisper):
    detector = whisper(small_whisper, MoELoRA(3, 2), AttentiveStatistics)
    before = kept(detector)
    record, told = load_initial_weights(detector, model)
    after, given = kept(detector), kept(Detector.from_pretrained(model))
    expert = "backbone.encoder.layers.0.self_attn.q_proj.experts."
    assert torch.equal(after[f"{expert}1.lora_A"], given[f"{expert}1.lora_A"])
    for name in (f"{expert}2.lora_A", "classifier.output.weight"):
        assert torch.equal(after[name], before[name])
    assert "missing, initialised: backbone.encoder.layers.0.self_attn.k_proj.experts.2.lora_A, " in told[1]
    assert " and 13 more; classifier.attention.0.bias, classifier.attention.0.weight, " in told[1]
    # The gate has three experts instead of two, and the head has twice the width.
    assert "classifier.output.weight ((2, 32) there, (2, 64) here)" in told[2]
    assert "self_attn.k_proj.gate.logit_offset ((2,) there, (3,) here)" in told[2]
    assert record.loaded + record.begun_anew == len(before)
    assert record.loaded + record.not_used == len(given)
    # From a mixture to a single LoRA, experts are left over.
    detector = whisper(small_whisper, LoRA(2))
    _, told = load_initial_weights(detector, model)
    assert any(
        "present and not used: backbone.encoder.layers.0.self_attn.k_proj.experts.1.lora_A" in line for line in told
    )


def refusal(detector: Detector, source: Path | str) -> str:
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_initial_weights(detector, source)
    assert same(before, detector.state_dict())  # the detector is unchanged
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("of", [FrozenBackbone(), LoRA(2), MoELoRA(2, 2)], ids=["frozen", "lora", "mixture"])
def test_adapters_that_start_elsewhere_stay_as_they_are(of, small_whisper, tmp_path):
    trained(whisper(small_whisper, of)).save_pretrained(tmp_path / "model")
    whole = whisper(small_whisper, LoRA(2))
    with torch.no_grad():
        for parameter in whole.backbone.encoder.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    whole.save_pretrained(tmp_path / "lora")
    wanted = whole.backbone.encoder.layers[0].self_attn.q_proj.experts[0]

    detector = whisper(small_whisper, MoELoRA(2, 2, init_from=str(tmp_path / "lora"), perturbation=0.0))
    detector.adaptation.initialise(detector.backbone.encoder)
    _, notes = load_initial_weights(detector, tmp_path / "model")
    for expert in detector.backbone.encoder.layers[0].self_attn.q_proj.experts:
        assert torch.equal(expert.lora_A, wanted.lora_A)
        assert torch.equal(expert.lora_B, wanted.lora_B)
    given = Detector.from_pretrained(tmp_path / "model").classifier
    assert torch.equal(detector.classifier.output.weight, given.output.weight)
    named = any("started from model.adaptation.init_args.init_from instead: backbone" in note for note in notes)
    assert named == (not isinstance(of, FrozenBackbone))
    assert not any("initialised" in note for note in notes)


def test_a_wholly_different_model_is_refused(model, small_wav2vec2, tmp_path):
    class Head(MeanPooling):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.last, self.output = self.output, nn.Identity()

    other = Detector(Wav2Vec2Backbone(small_wav2vec2), FrozenBackbone(), Head)
    line = refusal(other, model)
    assert f"model.init_weights: nothing in {model} fits the configured model" in line
    assert "and here classifier.last.bias, classifier.last.weight" in line


def test_an_encoder_that_was_trained_is_not_lost(small_whisper, tmp_path):
    """The new training freezes the encoder, so its checkpoints would lack the trained weights."""
    whole = trained(whisper(small_whisper, FullFineTuning()))
    whole.save_pretrained(tmp_path / "whole")
    line = refusal(whisper(small_whisper, FrozenBackbone()), tmp_path / "whole")
    assert "has trained the encoder (backbone.encoder." in line
    assert "which is frozen here and in no checkpoint: train it too" in line
    detector = whisper(small_whisper, FullFineTuning())
    load_initial_weights(detector, tmp_path / "whole")
    assert same(kept(detector), kept(whole))
    # Saved as the line says, the trained encoder is what adapters are put on.
    loaded = Detector.from_pretrained(tmp_path / "whole")
    loaded.backbone.encoder.save_pretrained(tmp_path / "encoder")
    adapted = whisper(tmp_path / "encoder", LoRA(2))
    load_initial_weights(adapted, tmp_path / "whole")
    clips = 0.1 * torch.randn(2, 8_000)
    with torch.inference_mode():  # a new LoRA changes nothing
        torch.testing.assert_close(adapted.eval()(clips), whole.eval()(clips))


def test_another_encoder_is_told_and_its_own_is_named(model, small_whisper, tmp_path):
    other = shutil.copytree(small_whisper, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["encoder.conv1.weight"][0, 0, 0] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    _, told = load_initial_weights(whisper(other), model)
    assert f"was trained on another encoder than the one configured: give {model / 'backbone'} as" in told[-1]
    _, told = load_initial_weights(whisper(model / "backbone"), model)
    assert len(told) == 1


def test_sources_that_are_none(model, small_whisper, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    detector = whisper(small_whisper)
    assert "model.init_weights: nothing: no such folder or file" in refusal(detector, "nothing")
    assert "not available from the hub" in refusal(detector, "nobody/nothing")
    (tmp_path / "text.ckpt").write_text("x")
    assert "model.init_weights: " in refusal(detector, tmp_path / "text.ckpt")
    (tmp_path / "empty").mkdir()
    assert "checkpoints to choose from" in refusal(detector, tmp_path / "empty")
    path = model / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "is not the file that config.json was written with" in refusal(detector, model)


class Start(Callback):
    """Keeps the state before the first step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 0:
            self.state = kept(pl_module.detector)
            (self.optimizer,) = trainer.optimizers
            self.moments = len(self.optimizer.state)
            self.rates = [group["lr"] for group in self.optimizer.param_groups]
            self.step, self.epoch = trainer.global_step, trainer.current_epoch


@pytest.mark.parametrize("kind", ["model", "checkpoint"])
def test_optimiser_and_schedule_are_new(kind, small_whisper, data, trainer, tmp_path):
    torch.manual_seed(1)
    parts = WhisperBackbone(small_whisper), MoELoRA(2, 2), MeanPooling
    first = DetectionModule(*parts, lambda groups: torch.optim.AdamW(groups, lr=0.01), WarmupCosine(warmup=0.5))
    earlier = trainer(tmp_path / "first", limit_val_batches=0)
    earlier.fit(first, datamodule=data())
    source = tmp_path / "start"
    if kind == "checkpoint":
        source = tmp_path / "last.ckpt"
        earlier.save_checkpoint(source)
    else:
        first.detector.save_pretrained(source)
    parts = WhisperBackbone(small_whisper), MoELoRA(2, 2), MeanPooling
    second = DetectionModule(
        *parts,
        lambda groups: torch.optim.AdamW(groups, lr=0.02),
        WarmupCosine(warmup=0.5),
        init_weights=str(source),
    )
    start, reference = Start(), Start()
    trainer(tmp_path / "second", limit_val_batches=0, callbacks=[start]).fit(second, datamodule=data())
    assert same(start.state, kept(first.detector))
    assert (start.moments, start.step, start.epoch) == (0, 0, 0)
    fresh = DetectionModule(
        *(WhisperBackbone(small_whisper), MoELoRA(2, 2), MeanPooling),
        lambda groups: torch.optim.AdamW(groups, lr=0.02),
        WarmupCosine(warmup=0.5),
    )
    trainer(tmp_path / "third", limit_val_batches=0, callbacks=[reference]).fit(fresh, datamodule=data())
    assert start.rates == reference.rates
    assert not same(kept(second.detector), start.state)  # training does change the weights


def test_fit_by_a_command_records_it_and_goes_on_without_it(model, experiment, write_config, lightning, tmp_path):
    experiment["trainer"]["max_epochs"], experiment["test_after_fit"] = 1, False
    config = write_config(experiment)
    arguments = ("fit", "--config", config, "--model.init_weights", model)
    code, out, err = lightning(*arguments)
    assert code == 0, err
    count = len(kept(Detector.from_pretrained(model)))
    assert f"model.init_weights: {count} of {count} tensors are taken from {model}\n" in out
    run = tmp_path / "runs" / "tiny" / "version_0"
    wanted = {
        "source": str(model),
        "sha256": file_hash(model / "model.safetensors"),
        "loaded": count,
        "begun_anew": 0,
        "not_used": 0,
    }
    assert json.loads((run / "run.json").read_text())["init_weights"] == wanted
    shutil.rmtree(model)
    continuing = ("fit", "--config", run / "config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", 2)
    code, out, err = lightning(*continuing)
    assert code == 0, err
    assert "model.init_weights" not in out
    record = read_record(run)
    assert (record.epoch, record.attempts) == (2, 2)
    assert record.init_weights is not None
    assert record.init_weights._asdict() == wanted
    code, _, err = lightning(*arguments)
    assert (code, err.count("\n")) == (1, 1)
    assert f"model.init_weights: {model}: no such folder or file" in err
    assert not (tmp_path / "runs" / "tiny" / "version_1").exists()

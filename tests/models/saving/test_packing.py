"""The encoder in a model's folder gives the same scores anywhere, and no file has a path of the training machine."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moelora_ad.adapters import FullFineTuning, LoRA, MoELoRA, TopLayers
from moelora_ad.errors import InputError
from moelora_ad.files import file_hash
from moelora_ad.models import AttentiveStatistics, Detector, MeanPooling, Wav2Vec2Backbone, WhisperBackbone
from moelora_ad.models.saving import model_folder
from moelora_ad.models.saving.checkpoints import ARCHITECTURE, architecture_of, tell_other_architecture

Build = Callable[[Path], Detector]
CLIPS = 0.1 * torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0))


def logits(detector: Detector) -> torch.Tensor:
    with torch.inference_mode():
        return detector.eval()(CLIPS)


def disturbed(detector: Detector) -> Detector:
    with torch.no_grad():
        for parameter in detector.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return detector


def as_pickle(folder: Path) -> None:
    """Rewrite the weights as two pickled shards, as older checkpoints on the hub have them."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, places = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def wav2vec2(method, **arguments) -> Build:
    return lambda source: Detector(Wav2Vec2Backbone(source, **arguments), method, AttentiveStatistics)


def whisper(method, **arguments) -> Build:
    return lambda source: Detector(WhisperBackbone(source, **arguments), method, MeanPooling)


CASES = {
    "wav2vec2": ("small_wav2vec2", wav2vec2(MoELoRA(2, 2)), ["config.json", "model.safetensors", "preprocessor_"]),
    "a lower layer": ("small_wav2vec2", wav2vec2(LoRA(2), hidden_states=1), ["config.json", "model", "preprocessor_"]),
    "the top layer": ("small_wav2vec2", wav2vec2(TopLayers(1)), ["config.json", "model", "preprocessor_"]),
    # The encoder's weights are among the detector's; the files of its architecture are packed.
    "trained whole": ("small_wav2vec2", wav2vec2(FullFineTuning()), ["config.json", "preprocessor_"]),
    "weighted": ("small_whisper", whisper(LoRA(2), hidden_states="weighted"), ["config.json", "model.safetensors"]),
    # All weights but the fixed sinusoids are among the detector's; the sinusoids are the larger part.
    "whisper, trained whole": ("small_whisper", whisper(FullFineTuning()), ["config.json", "model.safetensors"]),
    "most layers": ("small_wav2vec2", wav2vec2(TopLayers(3)), ["config.json", "preprocessor_"]),
    "quickstart": ("whisper_tiny", whisper(MoELoRA(3, 8)), ["LICENSE", "README.md", "config.json", "model", "prep"]),
}
PICKLED = [("wav2vec2", True), ("weighted", True)]


@pytest.mark.parametrize(("name", "pickled"), [*((name, False) for name in CASES), *PICKLED])
def test_the_same_scores_without_the_folder_that_it_was_trained_with(name, pickled, request, tmp_path, monkeypatch):
    fixture, build, files = CASES[name]
    source = tmp_path / "training machine" / "encoder"
    shutil.copytree(request.getfixturevalue(fixture), source)
    if pickled:
        as_pickle(source)
    saved = disturbed(build(source))
    wanted = logits(saved)
    saved.save_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "training machine")
    (tmp_path / "there").mkdir()
    (tmp_path / "model").rename(tmp_path / "there" / "moved")
    monkeypatch.chdir(tmp_path / "there")
    for path in Path("moved").rglob("*.[jm][sd]*"):
        assert "training machine" not in path.read_text()
    found = sorted(path.name for path in Path("moved", "backbone").iterdir())
    assert all(one.startswith(start) for one, start in zip(found, files, strict=True))
    loaded = Detector.from_pretrained("moved")
    assert torch.equal(logits(loaded), wanted)
    # The loaded detector can be saved over itself and elsewhere.
    loaded.save_pretrained("moved")
    loaded.save_pretrained("copy")
    monkeypatch.chdir("/")
    for folder in ("moved", "copy"):
        again = Detector.from_pretrained(tmp_path / "there" / folder)
        assert torch.equal(logits(again), wanted)
        assert again.configuration == json.loads((tmp_path / "there" / "moved" / "config.json").read_text())


def test_files_are_copied_as_they_are(whisper_tiny, tmp_path):
    """Half-precision weights stay small, and the licence is copied with them."""
    whisper(LoRA(2))(whisper_tiny).save_pretrained(tmp_path)
    for path in whisper_tiny.iterdir():
        assert (tmp_path / "backbone" / path.name).read_bytes() == path.read_bytes()
    card = (tmp_path / "README.md").read_text()
    assert "is part of these files, in `backbone/`" in card
    assert "see `backbone/LICENSE`, `backbone/README.md`" in card


@pytest.fixture
def model(small_wav2vec2, tmp_path) -> Path:
    disturbed(wav2vec2(LoRA(2))(small_wav2vec2)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        Detector.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_an_encoder_s_file_that_is_damaged_or_missing_is_named(name, model):
    path = model / "backbone" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert f"{path}: is not the file that config.json was written with" in refusal(model)
    path.unlink()
    assert f"{path}: is missing: the encoder belongs to the model" in refusal(model)
    os.mkfifo(path)
    assert f"{path}: is not a regular file" in refusal(model)


@pytest.mark.parametrize(
    "name", ["../config.json", "/etc/passwd", "backbone/../../x", "backbone/a/b", "backbone/.x", "backbone", "x"]
)
def test_a_stranger_s_model_names_no_file_outside_its_folder(name, model):
    path = model / "config.json"
    config = json.loads(path.read_text())
    config["backbone_files"][name] = "0" * 64
    path.write_text(json.dumps(config))
    assert "the field 'backbone_files' cannot be" in refusal(model)


def test_a_large_encoder_is_packed_if_it_is_asked_for(small_wav2vec2, tmp_path, monkeypatch):
    detector = wav2vec2(LoRA(2))(small_wav2vec2)
    monkeypatch.setattr(model_folder, "MOST_WEIGHTS", 1_000)
    detector.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "backbone").exists()
    assert "is not part of these files" in (tmp_path / "model" / "README.md").read_text()
    assert "give the encoder's folder with `backbone=`" in (tmp_path / "model" / "README.md").read_text()
    detector.save_pretrained(tmp_path / "model", with_backbone=True)
    assert torch.equal(logits(Detector.from_pretrained(tmp_path / "model")), logits(detector))


def test_the_same_weights_beside_another_preprocessor_give_the_same_scores(small_wav2vec2, tmp_path, capsys):
    detector = disturbed(wav2vec2(LoRA(2))(small_wav2vec2))
    detector.save_pretrained(tmp_path / "model", with_backbone=False)
    other = tmp_path / "other"
    shutil.copytree(small_wav2vec2, other)
    file = other / "preprocessor_config.json"
    file.write_text(file.read_text().replace('"do_normalize": true', '"do_normalize": false'))
    assert not torch.equal(logits(disturbed(wav2vec2(LoRA(2))(other))), logits(detector))
    for _ in range(2):
        assert torch.equal(logits(Detector.from_pretrained(tmp_path / "model", backbone=other)), logits(detector))
        file.unlink(missing_ok=True)  # it is not needed
    earlier = architecture_of(detector) | {"backbone.normalize": "None"}  # as earlier versions recorded it
    tell_other_architecture({ARCHITECTURE: earlier}, detector)
    assert capsys.readouterr().err == ""


def test_a_model_that_is_saved_over_itself_keeps_its_encoder(small_wav2vec2, tmp_path, monkeypatch):
    saved, folder = wav2vec2(LoRA(2))(small_wav2vec2), tmp_path / "model"
    saved.save_pretrained(folder, with_backbone=True)
    before = {path.name: path.read_bytes() for path in (folder / "backbone").iterdir()}
    monkeypatch.setattr(model_folder, "MOST_WEIGHTS", 1_000)
    detector = Detector.from_pretrained(folder)
    detector.save_pretrained(folder)
    with pytest.raises(InputError, match="may be the only copy of the encoder: to leave it out, save to"):
        detector.save_pretrained(folder, with_backbone=False)
    assert {path.name: path.read_bytes() for path in (folder / "backbone").iterdir()} == before
    assert torch.equal(logits(Detector.from_pretrained(folder)), logits(saved))
    detector.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other" / "backbone").exists()


def test_a_hub_id_stays_with_its_commit_when_the_encoder_is_packed(small_wav2vec2, tmp_path, monkeypatch):
    commit, cache = "0123456789abcdef0123456789abcdef01234567", tmp_path / "cache"
    cached = cache / "models--somebody--encoder"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    shutil.copytree(small_wav2vec2, cached / "snapshots" / commit)
    (cached / "snapshots" / commit / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    saved = disturbed(Detector(Wav2Vec2Backbone("somebody/encoder"), LoRA(2), MeanPooling))
    saved.save_pretrained(tmp_path / "model")
    shutil.rmtree(cache)
    loaded = Detector.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(loaded), logits(saved))
    loaded.save_pretrained(tmp_path / "again")
    for folder in ("model", "again"):
        named = json.loads((tmp_path / folder / "config.json").read_text())["backbone"]["init_args"]
        assert (named["source"], named["revision"]) == ("somebody/encoder", commit)
        assert file_hash(tmp_path / folder / "backbone" / "README.md")
    loaded.save_pretrained(tmp_path / "again", with_backbone=False)
    assert "somebody/encoder" in refusal(tmp_path / "again")  # the encoder is looked for on the hub

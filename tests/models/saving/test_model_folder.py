"""Saved detectors load bit for bit, stay small, and refuse whatever does not fit."""

import errno
import json
import os
import pickle
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from moelora_ad.adapters import (
    AuxiliaryWeights,
    FrozenBackbone,
    FullFineTuning,
    GatePolicy,
    LayerRange,
    LoRA,
    MoELoRA,
    TopLayers,
)
from moelora_ad.errors import InputError
from moelora_ad.files import file_hash
from moelora_ad.models import (
    AASIST,
    AttentiveStatistics,
    Classifier,
    Detector,
    MeanPooling,
    Wav2Vec2Backbone,
    WhisperBackbone,
)
from moelora_ad.models.saving import model_folder as keeping
from moelora_ad.models.saving.files import save_tensors, tensors_hash
from moelora_ad.models.saving.specification import describe, maker


def trained(detector: Detector) -> Detector:
    """The detector with every kept tensor moved away from its initial value, as after training."""
    generator = torch.Generator().manual_seed(1)
    kept, state = detector.kept_names(), detector.state_dict()
    with torch.no_grad():
        for name in kept:
            if state[name].is_floating_point():
                state[name].add_(0.05 * torch.rand(state[name].shape, generator=generator))
            else:
                state[name].add_(3)
    return detector.eval()


def speech(samples: int = 16_000) -> torch.Tensor:
    return 0.1 * torch.randn(2, samples, generator=torch.Generator().manual_seed(0))


def logits(detector: Detector) -> torch.Tensor:
    with torch.inference_mode():
        return detector(speech())


CASES = {
    "wav2vec2, LoRA, mean": (Wav2Vec2Backbone, {}, LoRA(2, alpha=4), MeanPooling),
    "wav2vec2, top-2, AASIST, weighted": (
        Wav2Vec2Backbone,
        {"hidden_states": "weighted"},
        MoELoRA(3, 2, top_k=2),
        AASIST,
    ),
    "wav2vec2, gate policy, layer 2": (
        Wav2Vec2Backbone,
        {"hidden_states": 2, "normalize": False},
        MoELoRA(3, 2, gate=GatePolicy(top_k=2, noise="none", renormalise=True), targets=".*(q|v)_proj"),
        partial(AttentiveStatistics, hidden=7),
    ),
    "whisper, frozen, statistics": (WhisperBackbone, {}, FrozenBackbone(), AttentiveStatistics),
    "whisper, dense, AASIST": (WhisperBackbone, {}, MoELoRA(2, 2, targets=["q_proj", "fc1"]), AASIST),
    "whisper, shared gates of one layer": (
        WhisperBackbone,
        {},
        MoELoRA(3, 2, layers=LayerRange(first=1), share_gate=True, auxiliary=AuxiliaryWeights(z=0.1)),
        MeanPooling,
    ),
    "wav2vec2, top layer": (Wav2Vec2Backbone, {}, TopLayers(1), MeanPooling),
    "whisper, full": (WhisperBackbone, {}, FullFineTuning(), MeanPooling),
    "wav2vec2, full": (Wav2Vec2Backbone, {}, FullFineTuning(), MeanPooling),
    "wav2vec2, random encoder": (Wav2Vec2Backbone, {"pretrained": False}, LoRA(2), MeanPooling),
}


def built(name: str, small_wav2vec2: Path, small_whisper: Path) -> Detector:
    backbone, arguments, method, classifier = CASES[name]
    source = small_wav2vec2 if backbone is Wav2Vec2Backbone else small_whisper
    return trained(Detector(backbone(source, **arguments), method, classifier))


@pytest.mark.parametrize("name", CASES)
def test_a_detector_comes_back_bit_for_bit(name, tmp_path, small_wav2vec2, small_whisper):
    saved = built(name, small_wav2vec2, small_whisper)
    saved.window = 16_000
    saved.calibration = {"scale": 0.1 + 0.2, "offset": -1.0, "fitted_on": "dev"}
    saved.save_pretrained(tmp_path / "model")
    loaded = Detector.from_pretrained(tmp_path / "model")
    assert not loaded.training
    assert torch.equal(logits(loaded), logits(saved))
    assert {n: t.tolist() for n, t in loaded.state_dict().items()} == {
        n: t.tolist() for n, t in saved.state_dict().items()
    }
    assert (loaded.window, loaded.calibration, loaded.sites) == (16_000, saved.calibration, saved.sites)
    # The loaded detector trains the same parameters, and is saved to the same files.
    assert loaded.parameter_counts() == saved.parameter_counts()
    loaded.save_pretrained(tmp_path / "again")
    again = tmp_path / "again" / "model.safetensors"
    assert again.read_bytes() == (tmp_path / "model" / "model.safetensors").read_bytes()
    assert torch.equal(logits(Detector.from_pretrained(tmp_path / "again")), logits(saved))


def test_what_a_class_keeps_of_its_arguments_survives_copies_and_pickling(small_whisper):
    detector = Detector(WhisperBackbone(small_whisper), MoELoRA(2, rank=3), AttentiveStatistics)
    for one in (detector, deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert one.adaptation.init_args["rank"] == 3
        assert one.backbone.init_args == {
            "source": small_whisper,
            "revision": None,
            "pretrained": True,
            "hidden_states": "last",
            "pad": False,
        }
        assert one.classifier.init_args == {"width": 32, "hidden": 128}


@pytest.fixture
def model(tmp_path: Path, small_whisper: Path) -> Path:
    """The folder of a saved detector."""
    detector = trained(Detector(WhisperBackbone(small_whisper), MoELoRA(2, 2), MeanPooling))
    detector.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Put other tensors into a saved detector, with the matching hash."""
    save_file(tensors, folder / "model.safetensors")
    change(folder, weights_sha256=file_hash(folder / "model.safetensors"))


def refusal(folder: Path | str, **arguments: object) -> str:
    with pytest.raises(InputError) as caught:
        Detector.from_pretrained(folder, **arguments)
    line = str(caught.value)
    assert "\n" not in line
    return line


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_files_hold_what_was_trained_and_the_encoder_apart(model, small_whisper):
    files = [path for path in model.rglob("*") if path.is_file()]
    of_encoder = ["backbone/config.json", "backbone/model.safetensors"]
    assert sorted(all_files(model)) == ["README.md", *of_encoder, "config.json", "model.safetensors"]
    assert len({path.stat().st_mode for path in files}) == 1  # all files have the same permissions
    loaded = Detector.from_pretrained(model)
    with safe_open(model / "model.safetensors", "pt") as file:
        assert set(file.keys()) == loaded.kept_names()
        assert not any(".base." in name or "conv1" in name for name in file.keys())  # noqa: SIM118
    config = json.loads((model / "config.json").read_text())
    assert config["adaptation"]["class_path"] == "moelora_ad.adapters.MoELoRA"
    assert config["classifier"] == {"class_path": "moelora_ad.models.MeanPooling", "init_args": {}}
    assert config["labels"] == ["spoof", "bonafide"]
    # The hash is over the encoder's own tensors, whatever adapts it; the checkpoint file gives the same hash.
    encoder = {
        name.removeprefix("encoder."): tensor
        for name, tensor in load_file(small_whisper / "model.safetensors").items()
        if name.startswith("encoder.")
    }
    assert config["backbone_sha256"] == tensors_hash(encoder)
    # So does the packed encoder, which is a whole model's encoder without the decoder.
    assert tensors_hash(load_file(model / of_encoder[1])) == tensors_hash(encoder)
    assert config["backbone_files"] == {name: file_hash(model / name) for name in of_encoder}


def test_the_encoder_may_lie_elsewhere_but_must_be_the_same(model, tmp_path, small_whisper, monkeypatch):
    wanted = logits(Detector.from_pretrained(model))
    Detector.from_pretrained(model, backbone=small_whisper).save_pretrained(model, with_backbone=False)
    assert sorted(all_files(model)) == ["README.md", "config.json", "model.safetensors"]  # the packed encoder is gone
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(small_whisper, elsewhere)
    config = json.loads((model / "config.json").read_text())
    assert config["backbone"]["init_args"]["source"] == small_whisper.name
    line = refusal(model)
    assert f"the folder {small_whisper.name} (SHA-256 {config['backbone_sha256'][:16]}...), is not part of" in line
    assert "--backbone FOLDER" in line
    assert torch.equal(logits(Detector.from_pretrained(model, backbone=elsewhere)), wanted)
    monkeypatch.chdir(small_whisper.parent)  # a folder of that name in the current folder is tried
    assert torch.equal(logits(Detector.from_pretrained(model)), wanted)
    tensors = load_file(elsewhere / "model.safetensors")
    tensors["encoder.conv1.weight"][0, 0, 0] += 1e-6
    save_file(tensors, elsewhere / "model.safetensors", metadata={"format": "pt"})
    line = refusal(model, backbone=elsewhere)
    assert "is not the one" in line
    assert config["backbone_sha256"][:16] in line
    assert str(elsewhere) in line
    assert "gone2" in refusal(model, backbone=tmp_path / "gone2")


def test_tensors_that_do_not_fit_are_refused(model):
    good = load_file(model / "model.safetensors")
    name = "classifier.output.weight"
    rewrite(model, {n: t for n, t in good.items() if n != name})
    assert f"lacks 1 tensor, first {name}" in refusal(model)
    rewrite(model, good | {"backbone.encoder.conv1.weight": torch.zeros(3)})
    assert "has besides the model's own 1 tensor" in refusal(model)
    rewrite(model, good | {name: torch.zeros(2, 31)})
    assert "(2, 31)" in refusal(model)
    rewrite(model, good | {name: good[name].double()})
    assert "float64" in refusal(model)
    rewrite(model, good | {name: torch.full((2, 32), torch.nan)})
    assert "not finite" in refusal(model)
    rewrite(model, good)
    Detector.from_pretrained(model)


def test_a_damaged_file_is_refused(model):
    path = model / "model.safetensors"
    good = path.read_bytes()
    for size in (0, 4, 200, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:size])
        assert "is not a readable safetensors file" in refusal(model)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert "is not the file" in refusal(model)
    path.write_bytes(pickle.dumps({"a": 1}))
    assert "is not a readable safetensors file" in refusal(model)
    path.unlink()
    assert "model.safetensors" in refusal(model)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not of a detector"),
        ('{"model_type": "wav2vec2"}', "is not of a detector"),
        (b"\xff\xfe\x00", "is not JSON"),
    ],
)
def test_a_config_that_is_none_is_refused(model, content, expected):
    (model / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert expected in refusal(model)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_nothing_waits_for_a_pipe_or_reads_a_device(model, name):
    (model / name).unlink()
    os.mkfifo(model / name)
    assert f"{name}: is not a regular file" in refusal(model)
    (model / name).unlink()
    (model / name).symlink_to("/dev/zero")
    assert f"{name}: is not a regular file" in refusal(model)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"format": 2}, "is of format 2"),
        ({"labels": ["bonafide", "spoof"]}, "'labels'"),
        ({"window": 0}, "'window'"),
        ({"window": True}, "'window'"),
        ({"window": 1}, "'window'"),
        ({"fill": 0}, "'fill'"),
        ({"fill": "whole"}, "'fill'"),
        ({"window": 10**400}, "a whole number of 401 digits"),
        ({"sample_rate": 8000}, "'sample_rate'"),
        ({"sites": ["layers.0.fc1"]}, "adapted 1 projection,"),
        ({"backbone_sha256": "abc"}, "'backbone_sha256'"),
        ({"backbone": []}, "'backbone'"),
        ({"calibration": 3}, "'calibration'"),
        ({"parameters": {"total": "many"}}, "'parameters'"),
        ({"adaptation": {}}, "'adaptation'"),
        ({"about": 3}, "'about'"),
        ({"about": {"data": 3}}, "'about'"),
        ({"about": {"history": "pruned"}}, "'about'"),
        ({"about": {"history": [1]}}, "'about'"),
        ({"about": {"results": [{"set": "a", "figures": {"EER": 0.1}}]}}, "'about'"),
        ({"about": {"results": [{"set": "a", "num_bona_fide": 1, "num_spoof": "1", "figures": {}}]}}, "'about'"),
        ({"adaptation": {"class_path": "moelora_ad.adapters.MoELoRA", "init_args": {"num_experts": 3}}}, "lacks"),
        ({"adaptation": {"class_path": "moelora_ad.adapters.LoRA", "init_args": {"rnk": 3}}}, "rnk"),
        ({"adaptation": {"class_path": "moelora_ad.adapters.LoRA", "init_args": {"rank": "8"}}}, "LoRA.rank"),
        ({"adaptation": {"class_path": "moelora_ad.adapters.LoRA", "init_args": {"rank": True}}}, "LoRA.rank"),
        ({"adaptation": {"class_path": "moelora_ad.adapters.LoRA", "init_args": {"rank": -1}}}, "rank is -1"),
        ({"adaptation": {"class_path": "moelora_ad.adapters.LoRA", "init_args": {"targets": ["x"]}}}, "matches no"),
        ({"adaptation": {"class_path": "moelora_ad.adapters.AdaptationMethod"}}, "built as AdaptationMethod"),
        ({"adaptation": {"class_path": "moelora_ad.adapters.Nothing"}}, "built as AdaptationMethod"),
        ({"adaptation": {"class_path": "moelora_ad.nowhere.LoRA"}}, "nowhere"),
        ({"classifier": {"class_path": "moelora_ad.adapters.LoRA"}}, "built as Classifier"),
        ({"classifier": {"class_path": "moelora_ad.models.MeanPooling", "init_args": {"width": 3}}}, "width"),
        ({"classifier": {"class_path": 7}}, "dotted path"),
        (
            {
                "adaptation": {
                    "class_path": "moelora_ad.adapters.MoELoRA",
                    "init_args": {"num_experts": 2, "rank": 2, "gate": {"top_k": 5}},
                }
            },
            "top_k is 5",
        ),
        (
            {"adaptation": {"class_path": "moelora_ad.adapters.MoELoRA", "init_args": {"gate": {"policy": 5}}}},
            "MoELoRA.gate",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_refused(model, fields, expected):
    change(model, **fields)
    assert expected in refusal(model)


def test_a_field_that_is_missing_is_named(model):
    config = json.loads((model / "config.json").read_text())
    for name in config.keys() - {"format", "library", "backbone", "precision", "backbone_files", "fill"}:
        (model / "config.json").write_text(json.dumps({n: v for n, v in config.items() if n != name}))
        assert f"has no field {name!r}" in refusal(model)


def test_the_precision_is_kept_and_models_of_earlier_versions_have_none(model):
    detector = Detector.from_pretrained(model)
    assert detector.precision is None
    detector.precision = "bf16-mixed"
    detector.save_pretrained(model)
    assert Detector.from_pretrained(model).precision == "bf16-mixed"
    assert "They were computed in bf16-mixed." in (model / "README.md").read_text()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"precision": 16}))
    assert "the field 'precision' cannot be 16" in refusal(model)
    del config["precision"]
    (model / "config.json").write_text(json.dumps(config))
    assert Detector.from_pretrained(model).precision is None


HOSTILE = [
    {"class_path": "antigravity.fly"},
    {"class_path": "os.system"},
    {"class_path": "moelora_ad.__main__.run"},
    {"class_path": "moelora_ad.models.backbones.pretrained.Path"},
    {"class_path": "moelora_ad..adapters.LoRA"},
    {"class_path": "moelora_ad_evil.adapters.LoRA"},
    {"class_path": "moelora_ad.adapters.LoRA", "init_args": {"targets": {"class_path": "antigravity.fly"}}},
    {"class_path": "moelora_ad.adapters.MoELoRA", "init_args": {"gate": "antigravity.fly"}},
    {"class_path": "moelora_ad.adapters.MoELoRA", "init_args": {"gate": {"class_path": "antigravity.fly"}}},
    {"class_path": "moelora_ad.adapters.LoRA", "dict_kwargs": {"a": 1}},
]


@pytest.mark.parametrize("place", ["adaptation", "classifier", "backbone"])
@pytest.mark.parametrize("described", HOSTILE, ids=lambda d: str(d)[16:60])
def test_no_code_from_outside_is_imported(model, place, described):
    before = set(sys.modules)
    change(model, **{place: described | {"init_args": described.get("init_args", {})}})
    refusal(model)
    assert not {name for name in set(sys.modules) - before if not name.startswith("moelora_ad")}


def test_code_from_outside_can_be_trusted(tmp_path, small_whisper, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from torch import nn\n"
        "from moelora_ad.adapters import AdaptationMethod\n"
        "from moelora_ad.models import Classifier\n"
        "class Head(Classifier):\n"
        "    def __init__(self, features, *, scale: float = 1.0, **more: int):\n"
        "        super().__init__()\n"
        "        self.output, self.scale = nn.Linear(features, 2), scale + sum(more.values())\n"
        "    def forward(self, features, lengths=None):\n"
        "        return self.scale * self.output(features.mean(1))\n"
        "@dataclass(frozen=True)\n"
        "class First(AdaptationMethod):\n"
        "    count: int\n"
        "    def adapt(self, encoder):\n"
        "        encoder.requires_grad_(False)\n"
        "        for layer in encoder.layers[:self.count]:\n"
        "            layer.requires_grad_(True)\n"
        "        return ()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import mine

    saved = Detector(WhisperBackbone(small_whisper), mine.First(1), partial(mine.Head, scale=2.0, extra=3))
    trained(saved).save_pretrained(tmp_path / "model")
    assert "--allow mine (in Python allow=['mine'])" in refusal(tmp_path / "model")
    loaded = Detector.from_pretrained(tmp_path / "model", allow=("mine",))
    assert loaded.classifier.scale == 5.0
    assert torch.equal(logits(loaded), logits(saved))
    # The encoder layer that was trained is in the file, and not in the hash of the frozen encoder.
    assert any(
        name.startswith("backbone.encoder.layers.0.") for name in load_file(tmp_path / "model/model.safetensors")
    )


class Hinted(MeanPooling):
    """A head whose arguments have the types that signatures usually name."""

    def __init__(
        self,
        width: int,
        names: Collection[str],
        sizes: Iterable[int],
        shares: dict[str, float],
        more: Mapping[str, int],
    ) -> None:
        super().__init__(width)


def test_arguments_of_every_usual_type_come_back_and_others_are_refused():
    head = Hinted(4, ["a", "b"], (1, 2), {"a": 0.5}, {"b": 3})
    described = json.loads(json.dumps(describe(head, leave_out={"width"})))
    assert maker(described, Classifier, allow=("tests",), given=1)(4).init_args == {
        "width": 4,
        "names": ["a", "b"],
        "sizes": [1, 2],
        "shares": {"a": 0.5},
        "more": {"b": 3},
    }
    for name, wrong in (("names", "ab"), ("names", [1]), ("sizes", [0.5]), ("shares", {"a": "x"}), ("more", [3])):
        faulty = {**described, "init_args": {**described["init_args"], name: wrong}}
        with pytest.raises(InputError, match=rf"Hinted\.{name}"):
            maker(faulty, Classifier, allow=("tests",), given=1)


def test_what_cannot_be_described_is_not_saved(tmp_path, small_whisper):
    class Local(Classifier):
        def forward(self, features, lengths=None):
            return features.mean(1)[:, :2]

    with pytest.raises(InputError, match="Local"):
        Detector(WhisperBackbone(small_whisper), LoRA(2), lambda width: Local()).save_pretrained(tmp_path / "a")
    strange = LoRA(2, alpha=np.float32(3))
    with pytest.raises(InputError, match=r"LoRA\(alpha=...\) has a float32"):
        Detector(WhisperBackbone(small_whisper), strange, MeanPooling).save_pretrained(tmp_path / "b")
    half = Detector(WhisperBackbone(small_whisper), LoRA(2), MeanPooling).half()
    with pytest.raises(InputError, match="float16"):
        half.save_pretrained(tmp_path / "c")
    diverged = Detector(WhisperBackbone(small_whisper), LoRA(2), MeanPooling)
    torch.nn.init.constant_(diverged.classifier.output.bias, torch.inf)
    with pytest.raises(InputError, match="not finite"):
        diverged.save_pretrained(tmp_path / "d")
    assert not any((tmp_path / name / "config.json").exists() for name in "abcd")


def test_an_encoder_of_the_hub_is_pinned_to_its_commit(small_wav2vec2, tmp_path, monkeypatch):
    """The model keeps the commit in the hub's cache, as ``main`` may be another commit tomorrow; no network is used."""
    commit, cached = "0123456789abcdef0123456789abcdef01234567", tmp_path / "cache" / "models--somebody--encoder"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    shutil.copytree(small_wav2vec2, cached / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for revision in (None, "main", commit):
        detector = trained(Detector(Wav2Vec2Backbone("somebody/encoder", revision), MoELoRA(2, 2), MeanPooling))
        detector.save_pretrained(tmp_path / "model")
        kept = json.loads((tmp_path / "model" / "config.json").read_text())["backbone"]["init_args"]
        assert (kept["source"], kept["revision"]) == ("somebody/encoder", commit)
        assert torch.equal(logits(Detector.from_pretrained(tmp_path / "model")), logits(detector))


def test_places_that_are_no_model(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "config.json: cannot be read" in refusal(tmp_path)
    assert "no such folder" in refusal(tmp_path / "nothing")
    assert "not available from the hub" in refusal("nobody/nothing")
    told = "model Mini: no such folder, and no packaged model (moelora-ad models has them: mini)"
    assert refusal("Mini") == told
    assert "is for the hub" in refusal(tmp_path, revision="main")


def test_a_run_in_the_place_of_a_model_is_told_what_makes_one(run_of_experiment, tmp_path):
    checkpoint = run_of_experiment / "checkpoints" / "best.ckpt"
    made = "not a saved model; moelora-ad export --checkpoint"
    advice = f"{run_of_experiment}: is the folder of a run, {made} {run_of_experiment}/checkpoints/NAME.ckpt --to MODEL"
    assert refusal(run_of_experiment).startswith(advice)
    assert refusal(checkpoint).startswith(f"{checkpoint}: is a checkpoint, {made} {checkpoint} --to MODEL")
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file") == f"model {tmp_path / 'file'}: is a file, not the folder of a model"


def test_a_device_that_is_not_there(model):
    assert "device nonsense" in refusal(model, device="nonsense")


def test_push_to_hub_uploads_every_file(model, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, repo_id, *, private, exist_ok):
            calls.append(("create", repo_id, private, exist_ok))
            return type("Url", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
            files = all_files(Path(folder_path))
            calls.append(("upload", repo_id, revision, commit_message, files))
            return type("Commit", (), {"commit_url": "https://hub/commit"})

    monkeypatch.setattr(keeping, "HfApi", Hub)
    loaded = Detector.from_pretrained(model)
    assert loaded.push_to_hub("detector", private=True, revision="v1") == "https://hub/commit"
    assert calls[0] == ("create", "detector", True, True)
    *call, files = calls[1]
    assert call == ["upload", "me/detector", "v1", "Upload a detector"]
    assert files == all_files(model)


def test_from_the_hub(model, monkeypatch):
    """The files requested from the hub, all in the same revision."""
    asked = []

    def fetch(repo_id, filename, *, revision):
        asked.append((repo_id, filename, revision))
        return str(model / filename)

    monkeypatch.setattr("moelora_ad.models.saving.files.hf_hub_download", fetch)
    detector = Detector.from_pretrained("me/detector", revision="v1")
    assert torch.equal(logits(detector), logits(Detector.from_pretrained(model)))
    names = ["backbone/config.json", "backbone/model.safetensors", "config.json", "model.safetensors"]
    assert sorted(asked) == [("me/detector", name, "v1") for name in names]


def test_the_published_size():
    """MoE-LoRA 3 x r8 on XLSR-53 with AASIST: 5,755,658 float32 values, about 23 MB."""
    with torch.device("meta"):
        detector = Detector(Wav2Vec2Backbone(), MoELoRA(3, 8), AASIST)
    state = detector.state_dict()
    size = sum(state[name].numel() * state[name].element_size() for name in detector.kept_names())
    parameters = 4 * 5_755_658
    assert parameters <= size < parameters + 20_000  # the rest: batch statistics and logit offsets
    assert size / 1e6 == pytest.approx(23.0, abs=0.1)


def test_saving_over_a_model_that_breaks_off_is_noticed(model, monkeypatch):
    """A broken-off save leaves new weights with the old configuration, which is refused."""
    other = Detector.from_pretrained(model)
    with torch.no_grad():
        other.classifier.output.weight.add_(1.0)

    replace, done = os.replace, []

    def killed(*paths):
        if done:
            raise KeyboardInterrupt
        done.append(replace(*paths))

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        other.save_pretrained(model)
    assert "is not the file that config.json was written with" in refusal(model)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_is_full_changes_no_model_and_leaves_no_folder(model, monkeypatch, number):
    detector = Detector.from_pretrained(model)
    before = all_files(model)
    with torch.no_grad():
        detector.classifier.output.weight.add_(1.0)

    def full(path, config):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(keeping, "write_config", full)
    for folder in (model, model.parent / "new" / "model"):
        with pytest.raises(OSError, match=os.strerror(number)):
            detector.save_pretrained(folder)
    assert all_files(model) == before
    assert not (model.parent / "new").exists()


def test_weights_that_cannot_be_written_are_told_by_the_system_s_error(tmp_path):
    with pytest.raises(OSError, match="No such file or directory") as caught:
        save_tensors({"weight": torch.ones(3)}, tmp_path / "no folder" / "weights")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(tmp_path / "no folder" / "weights"))


def test_loading_prints_nothing(model, capfd):
    Detector.from_pretrained(model)
    assert capfd.readouterr() == ("", "")


def test_the_model_card_says_what_is_known_and_nothing_else(model):
    bare = (model / "README.md").read_text()
    card = ModelCard(bare)
    assert card.data.library_name == "moelora_ad"
    assert "Not stated." in bare
    assert "None stated." in bare
    assert "log-odds and not calibrated" in bare
    assert card.data.base_model is None  # the encoder came from a folder, not from the hub
    detector = Detector.from_pretrained(model)
    detector.calibration = {"scale": 1.0, "offset": 0.0, "fitted_on": "dev.csv"}
    detector.about = {
        "data": {"training": "LA19 <script>|`"},
        "results": [
            {
                "set": "ITW",
                "num_bona_fide": 19_963,
                "num_spoof": 11_816,
                "figures": {
                    "EER": {"value": 0.0177, "low": 0.015, "high": 0.0201},
                    "minDCF": {"value": 0.1234, "low": None, "high": None},
                },
            },
        ],
    }
    detector.save_pretrained(model)
    text = (model / "README.md").read_text()
    assert "| ITW | 19,963 | 11,816 | 1.77 % [1.50, 2.01] | 0.1234 |" in text
    assert "LA19 &lt;script&gt;\\|'" in text
    assert "calibrated on dev.csv" in text
    count = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    assert f"| **trained** | **{count:,}** |" in text
    (eer, dcf) = ModelCard(text).data.eval_results
    assert (eer.dataset_name, eer.metric_type, eer.metric_value) == ("ITW", "EER", 0.0177)
    assert dcf.metric_value == 0.1234
    assert Detector.from_pretrained(model).about == detector.about

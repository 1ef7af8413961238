"""The command export: from a checkpoint of a training run to a model that scores the same."""

import json
import shutil
import zlib
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from moelora_ad.adapters import GatePolicy, MoELoRA
from moelora_ad.cli.saved_models import export as export_command
from moelora_ad.inference.loading import load
from moelora_ad.models import AttentiveStatistics, Detector, WhisperBackbone
from moelora_ad.models.saving import onnx_export
from moelora_ad.training.detection_module import DetectionModule

CORPUS = Path(__file__).parents[2] / "experiments" / "quickstart" / "corpus" / "MiniLA"


class Run:
    """A training run of a small detector: its folder, its configuration and its module."""

    def __init__(self, folder: Path, encoder: Path) -> None:
        torch.manual_seed(3)
        self.module = DetectionModule(
            WhisperBackbone(encoder, hidden_states="weighted"),
            MoELoRA(3, 2, gate=GatePolicy(top_k=2)),
            lambda width: AttentiveStatistics(width, hidden=5),
        ).eval()
        with torch.no_grad():
            for parameter in self.module.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape))
        self.folder = folder
        self.checkpoint = folder / "checkpoints" / "last.ckpt"
        self.checkpoint.parent.mkdir(parents=True)
        checkpoint = {"state_dict": self.module.state_dict(), "epoch": 3}
        self.module.on_save_checkpoint(checkpoint)
        torch.save(checkpoint, self.checkpoint)
        corpus = {
            "class_path": "moelora_ad.corpora.ASVspoof2019Protocol",
            "init_args": {"name": "MiniLA", "protocol": "absent.txt", "audio": "absent", "split": "train"},
        }
        self.config = {
            "seed_everything": 1,
            "trainer": {"max_epochs": 3},
            "model": {
                "backbone": {
                    "class_path": "moelora_ad.models.WhisperBackbone",
                    "init_args": {"source": str(encoder), "hidden_states": "weighted"},
                },
                "adaptation": {
                    "class_path": "moelora_ad.adapters.MoELoRA",
                    "init_args": {"num_experts": 3, "rank": 2, "gate": {"top_k": 2}},
                },
                "classifier": {
                    "class_path": "moelora_ad.models.AttentiveStatistics",
                    "init_args": {"hidden": 5},
                },
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
                "adapter_lr": 0.1,
            },
            "data": {"train": corpus, "seed": 1, "eval_segment": {"samples": 16_000}},
            "checkpoint": {"save_last": True},
        }
        self.write()

    def write(self) -> None:
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config))


@pytest.fixture
def run(tmp_path: Path, small_whisper: Path) -> Run:
    return Run(tmp_path / "run", small_whisper)


@pytest.fixture
def export(run_verb):
    return partial(run_verb, export_command)


def test_an_exported_model_gives_the_logits_of_its_run(run, export, tmp_path):
    code, printed, error = export("--checkpoint", run.checkpoint, "--to", tmp_path / "model")
    assert (code, error) == (0, "")
    assert f"moelora-ad score FILES --model {tmp_path / 'model'}" in printed
    loaded = Detector.from_pretrained(tmp_path / "model")
    clips = 0.1 * torch.randn(3, 16_000)
    with torch.inference_mode():
        assert torch.equal(loaded(clips), run.module(clips))
    assert loaded.window == 16_000
    assert loaded.about == {"data": {"training": "MiniLA train", "augmentation in training": "none"}}
    assert loaded.calibration is None
    text = (tmp_path / "model" / "README.md").read_text()
    assert "- training: MiniLA train" in text
    assert "replaced" not in printed
    # A second export replaces it, and its calibration.
    code, printed, _ = export("--checkpoint", run.checkpoint, "--to", tmp_path / "model")
    assert code == 0
    assert "replaced the model that was there (MoELoRA)\n" in printed
    loaded.calibration = {"scale": 1.0, "offset": 0.0}
    loaded.save_pretrained(tmp_path / "model")
    code, printed, _ = export("--checkpoint", run.checkpoint, "--to", tmp_path / "model")
    assert code == 0
    assert "replaced the model that was there (MoELoRA), and its calibration\n" in printed


@pytest.mark.parametrize(
    ("segment", "window"),
    [
        (None, 64_600),
        ({"samples": 8_000}, 8_000),
        ({"class_path": "moelora_ad.audio.Crops", "init_args": {"count": 3, "samples": 20_000}}, 20_000),
        ({"class_path": "moelora_ad.audio.FullUtterance"}, 32_000),  # not fixed: the length in training
    ],
)
def test_the_window_is_what_was_evaluated(run, export, tmp_path, segment, window):
    run.config["data"] |= {"eval_segment": segment, "train_segment": {"samples": 32_000}}
    run.write()
    assert export("--checkpoint", run.checkpoint, "--to", tmp_path / "model")[0] == 0
    assert Detector.from_pretrained(tmp_path / "model").window == window


def test_configurations_compose_as_for_fit(run, export, tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    wrong = run.config["model"] | {"classifier": "moelora_ad.models.MeanPooling"}
    third = tmp_path / "third.yaml"
    third.write_text(yaml.safe_dump({"model": {"backbone": wrong["backbone"], "adaptation": wrong["adaptation"]}}))
    first.write_text(yaml.safe_dump({"model": wrong}))
    second.write_text(yaml.safe_dump({"model": {"classifier": run.config["model"]["classifier"]}}))
    arguments = ("--checkpoint", run.checkpoint, "--to", tmp_path / "model", "--config", first)
    code, _, error = export(*arguments)
    assert code == 2
    assert "does not fit the configuration" in error
    assert export(*arguments, "--config", second)[0] == 0
    base = ("--checkpoint", run.checkpoint, "--to", tmp_path / "model")
    assert export(*base, "--config", second, "--config", third)[0] == 0  # only complete together
    assert "no model.classifier" in export(*base, "--config", third)[2]


def test_the_encoder_may_have_moved(run, export, tmp_path, small_whisper):
    run.config["model"]["backbone"]["init_args"]["source"] = str(tmp_path / "gone")
    run.write()
    arguments = ("--checkpoint", run.checkpoint, "--to", tmp_path / "model")
    code, _, error = export(*arguments)
    assert code == 2
    assert "gone: no such folder; give its place now with --backbone" in error
    assert export(*arguments, "--backbone", small_whisper)[0] == 0
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["backbone"]["init_args"]["source"] == small_whisper.name  # a name, not a path of this machine


@pytest.mark.parametrize("packed", [True, False])
def test_a_model_is_scored_with_anywhere(packed, run, export, lightning, tmp_path, small_whisper, monkeypatch):
    encoder = tmp_path / "training machine" / "encoder"
    shutil.copytree(small_whisper, encoder)
    run.config["model"]["backbone"]["init_args"]["source"] = "training machine/encoder"  # relative, as people write it
    run.write()
    monkeypatch.chdir(tmp_path)
    option = "--with-backbone" if packed else "--without-backbone"
    code, printed, error = export("--checkpoint", run.checkpoint, "--to", "model", option)
    assert (code, error) == (0, "")
    assert ("the folder is all that is needed" in printed) == packed
    assert ("say where it is with --backbone FOLDER" in printed) == (not packed)
    for name in ("config.json", "README.md"):
        assert "training machine" not in (tmp_path / "model" / name).read_text()
    sound = next(CORPUS.rglob("*.flac"))
    given = () if packed else ("--backbone", encoder)
    wanted = load(tmp_path / "model", backbone=None if packed else encoder)
    row = json.loads(lightning("score", sound, "--model", "model", "--format", "jsonl", *given)[1])

    elsewhere = tmp_path / "another" / "machine"
    elsewhere.mkdir(parents=True)
    (tmp_path / "model").rename(elsewhere / "moved")
    (tmp_path / "training machine").rename(elsewhere / "away")
    monkeypatch.chdir(elsewhere / "moved")
    if not packed:
        code, _, error = lightning("score", sound, "--model", elsewhere / "moved")
        assert (code, error.count("\n")) == (2, 1)
        assert "the folder encoder (SHA-256 " in error
        assert "give its place with --backbone FOLDER" in error
        given = ("--backbone", elsewhere / "away" / "encoder")
    code, printed, error = lightning("score", sound, "--model", elsewhere / "moved", "--format", "jsonl", *given)
    assert code == 0, error
    assert json.loads(printed) == row
    found = load(elsewhere / "moved", backbone=given[-1] if given else None)
    clips = 0.1 * torch.randn(3, 16_000)
    with torch.inference_mode():
        assert torch.equal(found(clips), wanted(clips))


def test_the_card_tells_the_figures_of_the_run(run, export, make_run, make_scores, tmp_path):
    """The card has the figures of the best checkpoint's scores, with intervals; for another checkpoint it has none."""
    made = make_run("mine", 1)
    for name in ("run.json", "scores"):
        (made / name).rename(run.folder / name)
    best = run.checkpoint.rename(run.checkpoint.with_name("best.ckpt"))
    shutil.copy(best, run.checkpoint)
    arguments = ("--to", tmp_path / "model", "--licence", "Apache-2.0")
    code, printed, _ = export("--checkpoint", best, *arguments)
    assert code == 0
    assert "no figures" not in printed
    results = json.loads((tmp_path / "model" / "config.json").read_text())["about"]["results"]
    assert [result["set"] for result in results] == ["dev", "in_domain", "out_of_domain"]
    card = (tmp_path / "model" / "README.md").read_text()
    _, header, text = card.split("---\n", 2)
    front = yaml.safe_load(header)
    assert front["license"] == "apache-2.0"
    told = {one.dataset_name: one for one in ModelCard(card).data.eval_results if one.metric_type == "EER"}
    for number, (result, corpus) in enumerate(zip(results, ("MiniLA", "MiniLA", "MiniOOD"), strict=True)):
        right = make_scores(zlib.crc32(f"mine 1 {number}".encode()), corpus, 60).equal_error_rate().eer
        figure = result["figures"]["EER"]
        assert figure["value"] == pytest.approx(right)
        assert 0 <= figure["low"] < right < figure["high"] <= 1
        assert told[result["set"]].metric_value == pytest.approx(right)
        shown = f"{100 * right:.2f} % [{100 * figure['low']:.2f}, {100 * figure['high']:.2f}]"
        assert f"| {result['set']} | 20 | 40 | {shown} |" in text
    assert "They were computed in 32-true." in text
    assert "These weights: Apache-2.0." in text
    assert "- training: MiniLA train" in text
    code, printed, _ = export("--checkpoint", run.checkpoint, *arguments)
    assert code == 0
    assert "note: the model card has no figures: the run scored another checkpoint" in printed
    (run.folder / "scores/best/dev.csv").write_text("x")
    code, printed, _ = export("--checkpoint", best, *arguments)
    assert code == 0
    assert "note: the model card has no figures: " in printed


def test_a_packaged_model_is_exported_by_its_name(export, tmp_path):
    code, _, error = export("--checkpoint", "mini", "--to", tmp_path / "model")
    assert code == 0, error
    sums = [load(source).state_dict() for source in ("mini", tmp_path / "model")]
    assert all(torch.equal(sums[1][name], tensor) for name, tensor in sums[0].items())


def test_a_model_is_exported_again(run, export, tmp_path, small_whisper):
    """A second export can add the encoder, for example; the rest of the model stays the same."""
    assert export("--checkpoint", run.checkpoint, "--to", tmp_path / "first", "--without-backbone")[0] == 0
    again = ("--checkpoint", tmp_path / "first", "--to", tmp_path / "second")
    code, _, error = export(*again, "--config", run.folder / "config.yaml")
    assert (code, "has a configuration of its own" in error) == (2, True)
    code, printed, _ = export(*again, "--backbone", small_whisper, "--licence", "CC-BY-4.0")
    assert code == 0
    assert "the folder is all that is needed" in printed
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second"))
    assert first.pop("backbone_files") == {}
    assert [*second.pop("backbone_files")] == ["backbone/config.json", "backbone/model.safetensors"]
    assert second.pop("about") == first.pop("about") | {"licence": "CC-BY-4.0"}
    assert second == first


def test_nothing_but_a_model_is_overwritten(run, export, tmp_path):
    target = tmp_path / "thesis"
    target.mkdir()
    assert export("--checkpoint", run.checkpoint, "--to", target)[0] == 0  # the folder is empty
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("x")
    for name in ("other", "file"):
        code, _, error = export("--checkpoint", run.checkpoint, "--to", tmp_path / name)
        assert code == 2
        assert "is not a model of ours" in error
    assert (tmp_path / "other" / "config.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ({}, {}, "32-true"),
        ({"precision": "bf16-mixed"}, {}, "bf16-mixed"),
        ({"precision": 32}, {"precision": 16}, "16-mixed"),
    ],
)
def test_the_precision_is_that_of_the_run(run, export, tmp_path, monkeypatch, first, second, name):
    run.config["trainer"] |= first
    run.write()
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({"trainer": second}))
    monkeypatch.setattr(onnx_export, "export_onnx", lambda _detector, path, **_: path.write_bytes(b"onnx") and None)
    configs = ("--config", run.folder / "config.yaml", "--config", tmp_path / "more.yaml")
    code, printed, _ = export("--checkpoint", run.checkpoint, *configs, "--to", tmp_path / "model", "--onnx")
    assert code == 0
    assert Detector.from_pretrained(tmp_path / "model").precision == name
    assert f"score computes in {name}, like the run" in printed
    assert ("model.onnx computes in 32-true: its scores differ slightly" in printed) == (name != "32-true")


def test_an_onnx_file_never_outlives_its_model(run, export, tmp_path, monkeypatch):
    arguments = ("--checkpoint", run.checkpoint, "--to", tmp_path / "model")
    monkeypatch.setattr(onnx_export, "export_onnx", lambda _detector, path, **_: path.write_bytes(b"onnx") and None)
    code, printed, _ = export(*arguments, "--onnx")
    assert code == 0
    assert "model.onnx" in printed
    code, _, error = export(*arguments)
    assert code == 2
    assert "give --onnx too" in error

    def fail(_detector, _path, **_):
        raise RuntimeError("no such\noperator")

    monkeypatch.setattr(onnx_export, "export_onnx", fail)
    code, printed, error = export(*arguments, "--onnx")
    assert code == 1
    assert "no such operator" in error
    assert not (tmp_path / "model" / "model.onnx").exists()
    Detector.from_pretrained(tmp_path / "model")


def test_a_folder_that_cannot_be_made(run, export, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, error = export("--checkpoint", run.checkpoint, "--to", tmp_path / "file" / "model")
    assert code in (1, 2)
    assert "file" in error


def test_mistakes_are_one_line(run, export, tmp_path):
    def error(checkpoint: object = run.checkpoint, *arguments: object) -> str:
        code, printed, line = export("--checkpoint", checkpoint, "--to", tmp_path / "model", *arguments)
        assert (code, printed) == (2, "")
        return line

    assert "is not a file" in error(tmp_path / "absent.ckpt")
    assert error(run.folder).endswith(f"its checkpoints: {run.checkpoint}\n")
    assert "is not a checkpoint" in error(run.folder / "config.yaml")
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(run.checkpoint.read_bytes()[:-100])
    assert "is not a checkpoint, or is truncated" in error(cut)
    alone = tmp_path / "alone.ckpt"
    torch.save({"a": 1}, alone)
    assert "no state_dict" in error(alone)
    elsewhere = tmp_path / "deep" / "er" / "last.ckpt"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_bytes(run.checkpoint.read_bytes())
    assert "give that of the run with --config" in error(elsewhere)
    assert "cannot be read" in error(run.checkpoint, "--config", tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    for content, expected in {
        "a: [": "is not YAML",
        "- 1": "is not a configuration",
        "model: 3": "is not a mapping",
        "model: {adaptation: moelora_ad.adapters.LoRa}": "LoRA",
        "data: {eval_segment: {samples: -1}}": "samples",
    }.items():
        broken.write_text(content)
        assert expected in error(run.checkpoint, "--config", run.folder / "config.yaml", "--config", broken), content
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_executes_nothing(run, export, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "pwned",))

    torch.save({"state_dict": {}, "evil": Evil()}, run.checkpoint)
    code, _, error = export("--checkpoint", run.checkpoint, "--to", tmp_path / "model")
    assert code == 2
    assert "is not a readable checkpoint" in error
    assert not (tmp_path / "pwned").exists()


def test_what_a_person_says_of_the_model_is_kept_and_shown(run, export, tmp_path):
    told = {
        "notice": "A toy, <b>no</b> evidence.",
        "licence": "MIT",
        "limits": ["Knows nothing."],
        "recordings": ["Air"],
    }
    (tmp_path / "about.yaml").write_text(yaml.safe_dump(told))
    arguments = ("--checkpoint", run.checkpoint, "--to", tmp_path / "model", "--about", tmp_path / "about.yaml")
    assert export(*arguments)[0] == 0
    about = load(tmp_path / "model").about
    assert told.items() <= about.items()
    card = (tmp_path / "model" / "README.md").read_text()
    assert "**A toy, &lt;b&gt;no&lt;/b&gt; evidence.**" in card
    assert "\n- Knows nothing." in card
    assert "\n- Air" in card


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("notic: x", "must have the fields notice, licence, limits, recordings, or some of them, and no others"),
        ("[x]", "must have the fields notice"),
        ("limits: x", "limits must be a list of lines: what the model cannot do"),
        ("notice: [x]", "notice must be a line, which is shown with every score"),
        ("notice: ''", "notice must be a line"),
        ("notice: [", "about.yaml: "),
        (None, "about.yaml: No such file or directory"),
    ],
)
def test_a_faulty_description_is_told_in_a_line(run, export, tmp_path, text, told):
    if text is not None:
        (tmp_path / "about.yaml").write_text(text)
    arguments = ("--checkpoint", run.checkpoint, "--to", tmp_path / "model", "--about", tmp_path / "about.yaml")
    code, _, error = export(*arguments)
    assert code == 2
    assert told in error
    assert not (tmp_path / "model").exists()

"""The command import; its models are like any other for score, test, calibrate, compare and export."""

import csv
import json

import pytest
import soundfile
import torch
from safetensors.torch import load_file
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

from moelora_ad.evaluation import ScoreTable
from moelora_ad.inference import Scorer
from moelora_ad.models import Detector

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 12,
}


@pytest.fixture
def published(tmp_path):
    """A small random classifier, as published on the hub."""
    torch.manual_seed(0)
    model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**SMALL))
    model.config.id2label = {0: "Real", 1: "AIVoice"}
    model.save_pretrained(tmp_path / "hub")
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False).save_pretrained(tmp_path / "hub")
    return tmp_path / "hub"


@pytest.fixture
def model(published, lightning, tmp_path):
    code, printed, _ = lightning("import", published, "--to", tmp_path / "model", "--window", "1")
    assert code == 0, printed
    return tmp_path / "model"


def test_what_is_told_and_written(published, lightning, tmp_path):
    code, printed, _ = lightning("import", published, "--to", tmp_path / "model")
    assert code == 0
    lines = printed.splitlines()
    assert "README.md, backbone/config.json, backbone/model.safetensors, backbone/preprocessor_config.json" in lines[0]
    assert "read as Wav2Vec2ForSequenceClassification of transformers, 'Real' as bona fide" in lines[1]
    assert lines[-1] == f"next: lightning score FILES --model {tmp_path / 'model'}"
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["window"] == 64_600
    assert str(tmp_path) not in json.dumps(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "model"]


def test_it_is_a_model_like_any_other(model, published, experiment, write_config, lightning, make_scores, tmp_path):
    """The model is scored, evaluated, calibrated, compared and exported after its folder has moved."""
    moved = model.rename(tmp_path / "moved")
    data = write_config({"data": experiment["data"], "trainer": {"accelerator": "cpu", "logger": False}})
    code, printed, told = lightning("validate", "--config", data, "--ckpt_path", moved)
    assert (code, told) == (0, ""), printed
    scores = tmp_path / "scores" / "moved" / "dev.csv"
    table = ScoreTable.read(scores)
    scorer, found = Scorer.from_pretrained(moved), dict(zip(table.trials.columns.utterance, table.scores, strict=True))
    with open(tmp_path / "dev.csv", newline="") as file:
        for row in csv.DictReader(file):
            sound, rate = soundfile.read(row["path"], dtype="float32")
            assert scorer(sound[:16_000], rate).score == pytest.approx(found[row["utterance"]], abs=1e-5)
    assert json.loads(scores.with_suffix(".json").read_text())["checkpoint"]["path"].endswith("moved")
    code, printed, told = lightning("evaluate", "--compare", scores, scores, "--resamples", "20")
    assert (code, told) == (0, ""), printed
    make_scores().write(tmp_path / "better.csv")  # scores of an untrained model cannot be calibrated
    code, printed, told = lightning("calibrate", tmp_path / "better.csv", "--model", moved)
    assert (code, told) == (0, ""), printed
    assert Detector.from_pretrained(moved).calibration is not None
    code, printed, told = lightning("export", "--checkpoint", moved, "--to", tmp_path / "copy", "--scores", scores)
    assert (code, told) == (0, ""), printed
    clips = 0.1 * torch.randn(1, 16_000)
    with torch.no_grad():
        assert torch.equal(Detector.from_pretrained(tmp_path / "copy")(clips), Detector.from_pretrained(moved)(clips))


def test_the_model_decides_and_not_the_configuration(model, experiment, write_config, lightning, tmp_path):
    """The model's parts replace those of the configuration, and damage to any of its files is reported."""
    config = write_config(experiment | {"trainer": experiment["trainer"] | {"logger": False}}, "run.yaml")
    arguments = ["validate", "--config", config, "--ckpt_path", model]
    code, printed, told = lightning(*arguments)
    assert (code, told) == (0, ""), printed
    about = json.loads((tmp_path / "scores" / "model" / "dev.json").read_text())
    assert about["configuration"]["model"]["backbone"]["class_path"] == "moelora_ad.models.Wav2Vec2Backbone"
    code, _, told = lightning("fit", *arguments[1:])
    assert code == 2
    assert told.endswith(f"to start from its weights, --model.init_weights {model}\n")
    for name in ("backbone/model.safetensors", "model.safetensors", "config.json"):
        content = (model / name).read_bytes()
        (model / name).write_bytes(content[: len(content) // 2])
        code, _, told = lightning(*arguments)
        (model / name).write_bytes(content)
        assert (code, told.count("\n")) in ((2, 1), (1, 1))
        assert f"{model / name}" in told


def test_classes_of_strangers_are_not_imported(model, experiment, write_config, lightning, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stranger.py").write_text("open('harmed', 'w')")
    config = json.loads((model / "config.json").read_text())
    config["classifier"] = {"class_path": "stranger.Head", "init_args": {}}
    (model / "config.json").write_text(json.dumps(config))
    code, _, told = lightning("test", "--config", write_config(experiment), "--ckpt_path", model)
    assert (code, told.count("\n")) == (2, 1)
    assert "stranger.Head is code from outside moelora_ad" in told
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing.pt", "--to", "new"], "nothing.pt: no such file or folder"),
        (["hub"], "the following arguments are required: --to"),
        (["hub", "--to", "hub"], "--to: hub already exists"),
        (["hub", "--to", "new", "--window", "0.01"], "--window: must be 0.1 s to an hour, not 0.01"),
        (["hub", "--to", "new", "--window", "nan"], "--window: must be"),
        (["hub", "--to", "new", "--attention-heads", "0"], "--attention-heads: must be at least 1"),
        (["hub", "--to", "new", "--normalize", "maybe"], "--normalize: invalid choice"),
        (["hub", "--to", "new", "--revision", "main"], "revision 'main' is for the hub"),
        (
            ["hub", "--to", "new", "--bona-fide", "genuine"],
            "there is no label 'genuine', they are 'Real' and 'AIVoice'",
        ),
        (["one/two", "--to", "new"], "not available from the hub"),
    ],
)
def test_mistakes_are_one_line(arguments, told, published, lightning, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, printed, error = lightning("import", *arguments)
    assert (code, printed, error.count("\n")) == (2, "", 1)
    assert told in error
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


def test_training_starts_from_it(model, experiment, write_config, lightning, tmp_path):
    """Training puts adapters on the imported encoder and starts from the imported head."""
    backbone = "moelora_ad.models.Wav2Vec2Backbone"
    head = {"class_path": "moelora_ad.models.ProjectedMean", "init_args": {"hidden": 12}}
    experiment["model"] |= {
        "backbone": {"class_path": backbone, "init_args": {"source": str(model / "backbone")}},
        "classifier": head,
        "init_weights": str(model),
    }
    experiment["trainer"] |= {"max_epochs": 1, "limit_train_batches": 1}
    experiment["model"]["optimizer"]["init_args"]["lr"] = 0.0
    code, printed, _ = lightning("fit", "--config", write_config(experiment), "--test_after_fit", "false")
    assert code == 0, printed
    (checkpoint,) = (tmp_path / "runs").rglob("epoch*.ckpt")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    kept = load_file(model / "model.safetensors")
    assert len(kept) == 4
    for name, tensor in kept.items():
        assert torch.equal(state[f"detector.{name}"], tensor), name


def test_a_run_of_ours_is_exported_instead(run_of_experiment, lightning, tmp_path):
    for source in (run_of_experiment, run_of_experiment / "checkpoints" / "best.ckpt"):
        code, _, error = lightning("import", source, "--to", tmp_path / "to")
        assert (code, error.count("\n")) == (2, 1)
        assert "not a saved model; moelora-ad export --checkpoint" in error

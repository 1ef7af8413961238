"""The command calibrate, and the calibration and figures that export stores."""

import json
import math
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from moelora_ad.adapters import LoRA
from moelora_ad.cli.saved_models import calibrate as calibrate_command
from moelora_ad.cli.saved_models.calibrate import figures_of_sets, fitted
from moelora_ad.corpora import Trial
from moelora_ad.evaluation.metrics.calibration import Calibration
from moelora_ad.evaluation.score_table import ScoreTable
from moelora_ad.models import Detector, MeanPooling, WhisperBackbone
from moelora_ad.models.saving import onnx_export
from moelora_ad.models.saving.packaged import packaged_models


@pytest.fixture
def model(tmp_path: Path, small_whisper: Path) -> Path:
    Detector(WhisperBackbone(small_whisper), LoRA(2), MeanPooling).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def score_file(path: Path, split: str = "dev", reverse: bool = False, seed: int = 0) -> Path:
    """Writes the scores of 400 trials whose log-likelihood ratio is known: a value from N(+-2, 4) is its own ratio, and
    the file holds (ratio - 3) / 5."""
    random = np.random.default_rng(seed)
    labels = np.tile([1, 0], 200)
    ratios = random.normal(np.where(labels == 1, 2.0, -2.0), 2.0)
    trials = [
        Trial(utterance=f"{split}{n}", audio="", label=int(label), corpus="LA", split=split, speaker=f"s{n % 20}")
        for n, label in enumerate(labels)
    ]
    ScoreTable(trials, (ratios - 3.0) / 5.0 * (-1 if reverse else 1)).write(path)
    return path


def cllr(ratios: np.ndarray, labels: np.ndarray) -> float:
    """Cllr, as written in Brümmer and du Preez 2006, eq. 3."""
    bona_fide = [math.log2(1 + math.exp(-one)) for one in ratios[labels == 1]]
    spoof = [math.log2(1 + math.exp(one)) for one in ratios[labels == 0]]
    return (sum(bona_fide) / len(bona_fide) + sum(spoof) / len(spoof)) / 2


@pytest.fixture
def calibrate(run_verb):
    return partial(run_verb, calibrate_command)


def test_scores_become_log_likelihood_ratios(model, calibrate, tmp_path):
    path = score_file(tmp_path / "dev.csv")
    weights = (model / "model.safetensors").read_bytes()
    code, printed, error = calibrate(path, "--model", model)
    assert (code, error) == (0, "")
    stored = Detector.from_pretrained(model).calibration
    calibration = Calibration.from_dict(stored)
    assert stored == json.loads((model / "config.json").read_text())["calibration"]
    assert (calibration.scale, calibration.offset) == pytest.approx((5.0, 3.0), abs=0.8)
    assert (calibration.num_bona_fide, calibration.num_spoof) == (200, 200)
    assert calibration.fitted_on == "dev.csv (LA dev)"
    assert (model / "model.safetensors").read_bytes() == weights
    table = ScoreTable.read(path)
    before, after = cllr(table.scores, table.labels), cllr(calibration.apply(table.scores), table.labels)
    shown = {row[0]: row[1] for row in re.findall(r"(before|after)\W+([\d.]+)", printed)}
    assert shown == {"before": f"{before:.4f}", "after": f"{after:.4f}"}
    assert after < before
    assert "on the scores that it was fitted on" in printed
    assert "calibrated on dev.csv (LA dev)" in (model / "README.md").read_text()
    # A second calibration takes the place of the first, and the output says so.
    _, printed, _ = calibrate(score_file(tmp_path / "other.csv", seed=1), "--model", model)
    assert "replacing another one" in printed
    assert Detector.from_pretrained(model).calibration["fitted_on"] == "other.csv (LA dev)"


def test_a_model_card_that_somebody_wrote_stays(model, calibrate, tmp_path):
    (model / "README.md").write_text("my own words\n")
    assert calibrate(score_file(tmp_path / "dev.csv"), "--model", model)[0] == 0
    assert (model / "README.md").read_text() == "my own words\n"


def test_figures_of_another_calibration_are_taken_out(model, calibrate, tmp_path):
    detector = Detector.from_pretrained(model)
    figures = {name: {"value": 0.1, "low": None, "high": None} for name in ("EER", "minDCF", "actDCF", "Cllr")}
    result = {"set": "ITW", "num_bona_fide": 1, "num_spoof": 2, "figures": figures}
    detector.about = {"data": {"training": "LA"}, "results": [result]}
    detector.save_pretrained(model)
    assert calibrate(score_file(tmp_path / "dev.csv"), "--model", model)[0] == 0
    about = Detector.from_pretrained(model).about
    assert about["data"] == {"training": "LA"}
    assert list(about["results"][0]["figures"]) == ["EER", "minDCF"]
    assert "| set | bona fide | spoof | EER | minDCF |\n" in (model / "README.md").read_text()


def test_mistakes_change_nothing(model, calibrate, tmp_path):
    good, before = score_file(tmp_path / "dev.csv"), (model / "config.json").read_bytes()
    bona_fide = tmp_path / "one.csv"
    table = ScoreTable.read(good)
    keep = np.flatnonzero(table.labels == 1)
    ScoreTable([table.trials[int(n)] for n in keep], table.scores[keep]).write(bona_fide)
    for path, expected in {
        tmp_path / "absent.csv": "absent.csv",
        bona_fide: "",
        score_file(tmp_path / "reversed.csv", reverse=True): "reversed.csv",
        model / "config.json": "config.json",
    }.items():
        code, printed, error = calibrate(path, "--model", model)
        assert (code, printed) == (2, "")
        assert expected in error
        assert (model / "config.json").read_bytes() == before
    code, _, error = calibrate(good, "--model", tmp_path / "nowhere")
    assert code == 2
    assert "cannot be read" in error
    code, _, error = calibrate(good, "--model", "mini")
    assert code == 2
    assert "mini is a packaged model, which stays as it is: moelora-ad export --checkpoint mini --to MODEL" in error


def test_figures_for_the_card(tmp_path):
    dev, test = score_file(tmp_path / "dev.csv"), score_file(tmp_path / "test.csv", "eval", seed=7)
    development = ScoreTable.read(dev)
    calibration = fitted(development, dev)
    copy = tmp_path / "renamed.csv"
    shutil.copy(dev, copy)
    raw = figures_of_sets([test], None, None)[0]
    results = {result["set"]: result for result in figures_of_sets([dev, copy, test], calibration, development)}
    assert set(results) == {"dev", "renamed", "test"}
    assert set(results["test"]["figures"]) == {"EER", "minDCF", "actDCF", "Cllr"}
    # No trials that the calibration was fitted on are reported as calibrated, whatever the file's name.
    assert set(results["dev"]["figures"]) == set(results["renamed"]["figures"]) == {"EER", "minDCF"}
    assert set(raw["figures"]) == {"EER", "minDCF"}
    table = ScoreTable.read(test)
    eer = results["test"]["figures"]["EER"]
    assert eer["value"] == raw["figures"]["EER"]["value"] == table.equal_error_rate().eer
    assert eer["low"] < eer["value"] < eer["high"]
    wanted = cllr(calibration.apply(table.scores), table.labels)
    assert results["test"]["figures"]["Cllr"]["value"] == pytest.approx(wanted, abs=1e-12)
    assert (results["test"]["num_bona_fide"], results["test"]["num_spoof"]) == (200, 200)
    json.dumps(results)
    with pytest.raises(ValueError, match="'dev' names more than one"):
        figures_of_sets([dev, tmp_path / "other" / "dev.csv"], None, None)


def test_an_onnx_file_beside_it_gets_the_calibration_too(model, calibrate, tmp_path, monkeypatch):
    scores = score_file(tmp_path / "dev.csv")
    value = onnx.helper.make_tensor_value_info("waveforms", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["waveforms"], ["logits"])], "g", [value], [])
    exported = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(exported, {"window": "4000", "calibration": "null"})
    onnx.save(exported, str(model / "model.onnx"))
    code, _, error = calibrate(scores, "--model", model)
    assert code == 0, error
    facts = {entry.key: entry.value for entry in onnx.load(model / "model.onnx").metadata_props}
    stored = json.loads((model / "config.json").read_text())["calibration"]
    assert stored is not None
    assert facts["window"] == "4000"
    assert json.loads(facts["calibration"]) == stored
    before = (model / "config.json").read_bytes()
    other = score_file(tmp_path / "other.csv", seed=1)
    with monkeypatch.context() as patch:  # as if onnx were not installed
        patch.setattr(onnx_export.importlib.util, "find_spec", lambda _name: None)
        code, printed, error = calibrate(other, "--model", model)
    assert (code, printed) == (1, "")
    assert "nothing is stored: changing an ONNX file needs the package onnx: pip install" in error
    assert (model / "config.json").read_bytes() == before
    (model / "model.onnx").write_bytes(b"damaged")
    code, _, error = calibrate(other, "--model", model)
    assert code == 1
    assert "model.onnx: is not a readable ONNX file" in error
    assert (model / "config.json").read_bytes() == before


def test_scores_of_another_model_are_refused(lightning, experiment, write_config, tmp_path):
    model, other, scores = tmp_path / "mini", tmp_path / "other", tmp_path / "scores"
    shutil.copytree(packaged_models()["mini"], model)
    detector = Detector.from_pretrained(model)
    with torch.no_grad():  # one weight of one expert
        next(tensor for name, tensor in detector.named_parameters() if "lora_A" in name)[0, 0] += 1e-3
    detector.save_pretrained(other)
    experiment["data"]["test"] = {"held_out": experiment["data"]["val"]}
    config = write_config(experiment)
    for verb in ("validate", "test"):
        code, _, error = lightning(verb, "--config", config, "--ckpt_path", model, "--score_folder", scores)
        assert code == 0, error
    code, printed, error = lightning("calibrate", scores / "dev.csv", "--model", model)
    assert (code, error) == (0, "")
    assert "note:" not in printed
    code, printed, error = lightning("calibrate", scores / "held_out.csv", "--model", model)
    assert code == 0, error
    assert "held_out.csv is of a test set: report no calibrated figures" in printed
    before = (other / "config.json").read_bytes()
    refused = [
        ("calibrate", scores / "dev.csv", "--model", other),
        ("export", "--checkpoint", other, "--to", tmp_path / "again", "--calibrate", scores / "dev.csv"),
        ("export", "--checkpoint", other, "--to", tmp_path / "again", "--scores", scores / "dev.csv"),
    ]
    for command in refused:
        code, printed, error = lightning(*command)
        assert (code, printed, error.count("\n")) == (2, "", 1)
        assert "dev.csv: are scores of another model" in error
    assert (other / "config.json").read_bytes() == before
    assert not (tmp_path / "again").exists()
    code, printed, _ = lightning("export", "--checkpoint", model, "--to", tmp_path / "again", *refused[1][-2:])
    assert (code, "note:" in printed) == (0, False)
    # Nothing is known of a copy, nor of a model that cannot be loaded here.
    shutil.copy(scores / "dev.csv", tmp_path / "copy.csv")
    code, printed, _ = lightning("calibrate", tmp_path / "copy.csv", "--model", other)
    assert code == 0
    assert "note: whether this model made the scores in" in printed
    assert "no copy.json beside them records it" in printed
    detector.save_pretrained(tmp_path / "apart", with_backbone=False)
    code, printed, _ = lightning("calibrate", scores / "dev.csv", "--model", tmp_path / "apart")
    assert code == 0
    assert "is not known" in printed


def test_scores_by_the_same_weights_under_another_gate_are_refused(lightning, experiment, write_config, tmp_path):
    model, sparse, scores = tmp_path / "mini", tmp_path / "sparse", tmp_path / "scores"
    for folder in (model, sparse):
        shutil.copytree(packaged_models()["mini"], folder)
    described = json.loads((sparse / "config.json").read_text())
    described["adaptation"]["init_args"] |= {"top_k": 1, "alpha": 16}
    (sparse / "config.json").write_text(json.dumps(described))
    code, _, error = lightning(
        "validate", "--config", write_config(experiment), "--ckpt_path", sparse, "--score_folder", scores
    )
    assert code == 0, error
    for command in (
        ("calibrate", scores / "dev.csv", "--model", model),
        ("export", "--checkpoint", model, "--to", tmp_path / "again", "--calibrate", scores / "dev.csv"),
        ("export", "--checkpoint", model, "--to", tmp_path / "again", "--scores", scores / "dev.csv"),
    ):
        code, printed, error = lightning(*command)
        assert (code, printed, error.count("\n")) == (2, "", 1)
        assert "dev.csv: are scores of another model: it has the weights of this one, but another " in error
        assert "another adaptation.top_k, adaptation.alpha; moelora-ad validate" in error
    assert json.loads((model / "config.json").read_text())["calibration"]["fitted_on"] != "dev.csv"
    code, printed, error = lightning("calibrate", scores / "dev.csv", "--model", sparse)
    assert (code, error, "note:" in printed) == (0, "", False)
    # What this version does not know, or another did not, says nothing.
    beside = json.loads((scores / "dev.json").read_text())
    settings = beside["origin"]["settings"]
    assert settings.pop("adaptation.share_gate") is False
    (scores / "dev.json").write_text(
        json.dumps(beside | {"origin": beside["origin"] | {"settings": {"x": 1, **settings}}})
    )
    code, printed, error = lightning("calibrate", scores / "dev.csv", "--model", sparse)
    assert (code, error, "note:" in printed) == (0, "", False)


def test_the_scores_of_a_test_set_are_told(model, calibrate, tmp_path):
    _, printed, _ = calibrate(score_file(tmp_path / "scores.csv", "eval"), "--model", model)
    assert "scores.csv is of a test set: report no calibrated figures (actDCF, Cllr) on its trials" in printed
    assert "test set" not in calibrate(score_file(tmp_path / "dev.csv"), "--model", model)[1]


def test_a_table_of_scores_and_labels_is_enough(model, calibrate, tmp_path):
    whole = score_file(tmp_path / "dev.csv")
    assert calibrate(whole, "--model", model)[0] == 0
    wanted = Detector.from_pretrained(model).calibration
    table = ScoreTable.read(whole)
    words = np.where(table.labels == 1, "bonafide", "spoof")
    rows = zip(table.trials.columns.utterance, words, map(repr, table.scores.tolist()), strict=True)
    (tmp_path / "own.csv").write_text("utterance,label,score\n" + "".join(f"{','.join(row)}\n" for row in rows))
    code, _, error = calibrate(tmp_path / "own.csv", "--model", model)
    assert code == 0, error
    assert Detector.from_pretrained(model).calibration == wanted | {"fitted_on": "own.csv"}
    assert figures_of_sets([tmp_path / "own.csv"], None, None)[0]["figures"]["EER"]["value"] == pytest.approx(
        table.equal_error_rate().eer
    )
    # The command score writes the scale of its scores too.
    for scale, expected in (("log_odds", 0), ("llr", 2)):
        lines = (tmp_path / "own.csv").read_text().splitlines()
        scaled = [f"{lines[0]},scale", *(f"{line},{scale}" for line in lines[1:])]
        (tmp_path / "scaled.csv").write_text("\n".join(scaled))
        code, _, error = calibrate(tmp_path / "scaled.csv", "--model", model)
        assert (code, "calibrated already (column 'scale' has llr)" in error) == (expected, expected == 2)
    (tmp_path / "bare.csv").write_text("utterance,score\na,1\nb,2\n")
    code, _, error = calibrate(tmp_path / "bare.csv", "--model", model)
    assert code == 2
    assert "has scores but no labels: add a column 'label' with bonafide or spoof" in error

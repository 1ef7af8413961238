"""The packaged model works after an install, from any folder and offline, and says that it is no evidence."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from moelora_ad.inference.loading import load
from moelora_ad.inference.scorer import Scorer
from moelora_ad.models import Detector
from moelora_ad.models.saving.packaged import found_model, packaged_models

PROJECT = Path(__file__).parents[3]
CORPUS = PROJECT / "experiments" / "quickstart" / "corpus"
# Raw log-odds (float32) that the model gave these whole utterances when it was made.
RAW: dict[str, float] = json.loads((Path(__file__).parent / "mini_scores.json").read_text())


def sound(utterance: str) -> Path:
    return next(CORPUS.rglob(f"{utterance}.flac"))


@pytest.fixture(scope="module")
def calibration() -> dict:
    return json.loads((packaged_models()["mini"] / "config.json").read_text())["calibration"]


def test_real_files_have_their_scores_from_another_folder_without_a_network(tmp_path, calibration):
    program = (
        "import socket, sys\n"
        "def refuse(*_, **__): raise AssertionError('the network was asked')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from moelora_ad.cli.main import main\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", program, "score", *map(str, map(sound, RAW)), "--model", "mini", "--format=csv"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"PYTHONPATH": str(PROJECT), "HF_HOME": str(tmp_path / "empty")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    for row, raw in zip(rows, RAW.values(), strict=True):
        wanted = calibration["scale"] * raw + calibration["offset"]
        assert float(row["score"]) == pytest.approx(wanted, abs=1e-3)
        assert "no evidence" in row["notice"]


def test_a_name_is_the_packages_model_and_a_path_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()
    assert found_model("mini") == packaged_models()["mini"]
    for path in ("./mini", str(tmp_path / "mini"), "mini/", "other", "owner/mini"):
        assert found_model(path) == path
    loaded, ours = load("mini"), Detector.from_pretrained("mini")
    assert loaded.configuration == ours.configuration
    assert Path(str(ours.backbone.init_args["source"])).is_relative_to(packaged_models()["mini"])
    assert Scorer(loaded).notice == Scorer.from_pretrained("mini").notice == ours.about["notice"]


def test_every_output_says_that_it_is_no_evidence(tmp_path, lightning):
    file, notice = sound(next(iter(RAW))), Scorer.from_pretrained("mini").notice
    score = ("score", file, "--model", "mini")
    code, table, _ = lightning(*score, "--timeline", tmp_path / "pages")
    assert code == 0
    assert notice in table
    assert notice in (tmp_path / "pages" / "index.html").read_text()
    rows = list(csv.DictReader((tmp_path / "pages" / "windows.csv").open()))
    assert rows
    assert {row["notice"] for row in rows} == {notice}
    assert json.loads(lightning(*score, "--format", "jsonl")[1])["notice"] == notice
    (row,) = csv.DictReader(io.StringIO(lightning(*score, "--format", "csv")[1]))
    assert row["notice"] == notice
    assert Scorer.from_pretrained("mini")(file).as_dict()["notice"] == notice


def test_nothing_of_the_machine_that_made_it_is_in_it(calibration):
    folder = packaged_models()["mini"]
    for name in ("config.json", "README.md"):
        text = (folder / name).read_text()
        assert not [place for place in ("/tmp", "/home", "/root", "/work", "CORPORA") if place in text]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert 15e6 < size < 25e6
    assert calibration["num_bona_fide"] == 320
    assert calibration["num_spoof"] == 654


def test_it_says_of_itself_what_its_recipe_says():
    told = yaml.safe_load((PROJECT / "experiments" / "mini" / "about.yaml").read_text())
    assert told.items() <= json.loads((packaged_models()["mini"] / "config.json").read_text())["about"].items()

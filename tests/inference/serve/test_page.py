"""The page in a real browser, without a screen: upload, play, verdict, error, record, save, 400 pixels wide."""

import csv
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from moelora_ad.inference.descriptions import described, described_model
from moelora_ad.inference.output import FILE_COLUMNS
from moelora_ad.inference.timeline import timeline_folder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NODE = shutil.which("node")


@pytest.fixture(scope="module")
def node():
    """Runs a Node script with playwright-core from NODE_PATH or npm's global folder."""
    if NODE is None or CHROMIUM is None:
        pytest.skip(f"there is no {'node' if NODE is None else 'chromium'} here")
    folders = [os.environ.get("NODE_PATH", "")]
    if npm := shutil.which("npm"):
        folders.append(subprocess.run([npm, "root", "-g"], capture_output=True, text=True).stdout.strip())
    environment = os.environ | {"NODE_PATH": os.pathsep.join(filter(None, folders))}
    if subprocess.run([NODE, "-e", "require('playwright-core')"], env=environment, capture_output=True).returncode:
        pytest.skip("there is no playwright-core here: npm install -g playwright-core")

    def run(*arguments):
        command = [NODE, str(Path(__file__).with_name("page.js")), CHROMIUM, *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.slow
def test_a_person_uses_the_page(node, live, scorer, decision, sounds, tmp_path):
    hostile = tmp_path / "<img src=x onerror=alert(1)><b>.flac"
    shutil.copy(sounds[1], hostile)
    bad = tmp_path / "no sound.wav"
    bad.write_bytes(b"hello")
    silence = tmp_path / "silence.wav"
    soundfile.write(silence, np.zeros(16_000), 16_000)
    files = [sounds[0], hostile, silence, bad]
    results = [scorer(str(path)) for path in files[:3]]
    assert [result.verdict() == "inconclusive" for result in results] == [False, False, True]
    with timeline_folder(tmp_path / "lines", decision, described_model(scorer, "small", decision), "csv") as add:
        add(results[0])

    address = live()
    seen = node(f"{address}/", (tmp_path / "lines" / "index.html").as_uri(), tmp_path / "lines", *files)
    assert seen["problems"] == []
    assert seen["hosts"] == [address.removeprefix("http://"), ""]  # the second page is a file, so its host is empty
    assert [row[0] for row in seen["rows"]] == [path.name for path in files]
    for row, result in zip(seen["rows"], results, strict=False):
        assert row[1] == result.verdict().replace("bonafide", "bona fide")
        assert float(row[2]) == pytest.approx(result.score, abs=6e-4)
    assert seen["rows"][3][1] == "no score"
    assert "is it an audio file?" in seen["rows"][3][5]
    assert seen["failure"] == seen["rows"][3][5]
    assert seen["status"] == "3 sounds scored, 1 could not be."
    assert seen["verdict"] == seen["rows"][0][1]
    assert seen["meaning"] == described(results[0], decision)["meaning"]
    assert seen["steps"] == len(results[0].windows)
    assert seen["chart"].startswith(f"Score over time: {len(results[0].windows)} window")
    assert not seen["played"].startswith("0:00.0 ")
    assert seen["width"] <= 400
    assert (seen["focused"], seen["markup"]) == ("detail-name", 0)

    rows = [*csv.DictReader(io.StringIO(seen["csv"]))]
    assert [*rows[0]] == [*FILE_COLUMNS]
    assert [row["path"] for row in rows] == [path.name for path in files]
    assert float(rows[0]["score"]) == pytest.approx(results[0].score, abs=1e-5)
    assert (rows[0]["scale"], rows[0]["error"], rows[3]["score"]) == ("llr", "", "")
    assert rows[2]["reason"] == results[2].reason
    saved = json.loads(seen["json"])
    assert saved["model"]["name"] == "small"
    assert [one["name"] for one in saved["results"]] == [path.name for path in files]
    assert "waveform" not in saved["results"][0]

    assert seen["recorded"][0] == seen["shown"] == "recording 1.webm"
    assert seen["recorded"][1] in ("bona fide", "spoof", "inconclusive")
    assert seen["record"] == "Record"  # and no second recorder holds the microphone
    assert seen["folder"].startswith("This cannot be read: it is a folder")
    assert seen["timeline"]["verdict"] == seen["verdict"]
    assert not seen["timeline"]["played"].startswith("0:00.0 ")

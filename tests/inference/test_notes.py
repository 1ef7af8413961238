"""Whatever makes a score unreliable is noted, with its figure, in every format; no note changes a score."""

import csv
import io
import json
import re
import sys

import numpy as np
import pytest
import soundfile
import torch

from moelora_ad.adapters import LoRA
from moelora_ad.audio import AudioReader
from moelora_ad.cli.main import main
from moelora_ad.inference import Scorer
from moelora_ad.models import Detector, MeanPooling, WhisperBackbone

RATE = 16_000
REASONS = {
    "antiphase.wav": "no speech: silent",
    "hiss.wav": "no speech: silent",
    "short.wav": "too short: 0.05 s, of at least 0.5 s",
    "told short.wav": "too short: 0.03 s, of at least 0.5 s",
    "zero.wav": "no speech: silent",
}
CANCEL = "channels cancel: mono is inf dB below the channels"


@pytest.fixture(scope="module")
def model(small_whisper, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    detector = Detector(WhisperBackbone(small_whisper), LoRA(2), MeanPooling).eval()
    detector.window = RATE
    detector.save_pretrained(folder)
    return folder


def faulty_sounds():
    """Sounds, (samples,) or (samples, channels), and their notes, by name."""
    clean = np.random.default_rng(0).uniform(-0.5, 0.5, 40_000)
    cut_off = clean.copy()
    cut_off[1_000:2_200] = 0.6
    return {
        "antiphase": (np.stack([clean, -clean], axis=1), f"silent: -inf dBFS; {CANCEL}"),
        "clean": (clean, None),
        "clipped": (cut_off, "clipped: 3.0 % of samples"),
        "hiss": (clean / 2_000, "silent: -72 dBFS"),
        "short": (clean[:800], "short: 0.05 s"),
        "stereo": (np.stack([clean, clean[::-1]], axis=1), None),
        "zero": (np.zeros((500, 2)), "silent: -inf dBFS; short: 0.0312 s"),
    }


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Notes of files in the current folder, by name; the header of one file declares less than the file has."""
    monkeypatch.chdir(tmp_path)
    notes = {}
    for name, (sound, told) in faulty_sounds().items():
        soundfile.write(f"{name}.wav", sound, RATE, "FLOAT")
        notes[f"{name}.wav"] = told
    cut = (tmp_path / "clean.wav").read_bytes()
    at = cut.index(b"data") + 4
    (tmp_path / "told short.wav").write_bytes(cut[:at] + (480 * 4).to_bytes(4, "little") + cut[at + 4 :])
    notes["told short.wav"] = "short: 0.03 s; header shorter than file: header 0.03 s, file 2.50 s"
    return notes


@pytest.fixture
def score(monkeypatch, model, capfd):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["moelora-ad", "score", *arguments, "--model", str(model)])
        capfd.readouterr()
        assert main() == 0
        return capfd.readouterr().out

    return run


def joined(result):
    return "; ".join(map(str, result.notes)) or None


def test_files_arrays_and_batches_have_the_same_notes(model, files):
    scorer = Scorer.from_pretrained(model, batch_size=3)
    assert {result.name: joined(result) for result in scorer.score_files(files)} == files
    assert {name: joined(scorer(name)) for name in files} == files
    for name, (sound, told) in faulty_sounds().items():
        assert joined(scorer(sound.T)) == told, name
    whole_numbers = (faulty_sounds()["antiphase"][0] * 32_767).astype(np.int16)
    assert joined(scorer(whole_numbers.T)) == f"silent: -inf dBFS; {CANCEL}"
    assert joined(scorer(faulty_sounds()["clipped"][0], 44_100)) == "clipped: 3.0 % of samples"


def test_notes_change_no_score(model, files, monkeypatch):
    scorer = Scorer.from_pretrained(model)
    with_notes = [scorer(name).score for name in files]
    for name, score in zip(files, with_notes, strict=True):
        with AudioReader(name) as reader:
            assert scorer(reader.read()).score == pytest.approx(score, abs=1e-6)


def test_tables_for_programs_have_a_column_of_notes(score, files):
    rows = list(csv.DictReader(io.StringIO(score(*files, "--format", "csv"))))
    assert {row["path"]: row["notes"] or None for row in rows} == files
    rows = [json.loads(line) for line in score(*files, "--format", "jsonl").splitlines()]
    assert {row["path"]: row["notes"] for row in rows} == files


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_for_a_person_has_a_column_of_notes_that_80_columns_hold(score, files, speech, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = score(*files).splitlines()
    (heading,) = [number for number, line in enumerate(lines) if line.split()[:1] == ["file"]]
    end = next(number for number, line in enumerate(lines) if line.startswith("score:"))
    assert max(map(len, lines[:end])) <= width
    at = lines[heading].index("notes")
    notes, name = {}, ""
    for line in lines[heading + 2 : end]:
        # A line that does not begin with a file's name continues the notes of the file before.
        name = next((one for one in files if line.startswith(f" {one} ")), name)
        notes[name] = f"{notes.get(name, '')} {line[at:].strip()}".strip()
    for name, told in files.items():
        reason = REASONS.get(name, "no speech: noise or tones alone")
        assert notes[name] == f"{reason} {told or ''}".replace(";", "").strip()
    soundfile.write("speech.wav", speech, RATE)
    assert "notes" not in score("speech.wav")


def test_the_page_of_timelines_has_the_notes(score, files, tmp_path):
    score(*files, "--timeline", str(tmp_path / "lines"))
    page = (tmp_path / "lines" / "index.html").read_text(encoding="utf-8")
    results = map(json.loads, re.findall(r'<script type="application/json" class="result">(.*)</script>', page))
    notes = {one["name"]: "; ".join(f"{n['kind']}: {n['detail']}" for n in one["notes"]) or None for one in results}
    assert notes == files

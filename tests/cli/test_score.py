"""The command score, as a person or a program meets it."""

import csv
import io
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console

from moelora_ad.adapters import LoRA
from moelora_ad.cli.main import main
from moelora_ad.inference.output import DecisionRule, print_scores
from moelora_ad.inference.scorer import Scorer
from moelora_ad.models import Detector, MeanPooling, WhisperBackbone

CALIBRATION = {"scale": 3.0, "offset": 0.25, "fitted_on": "dev", "num_bona_fide": 5, "num_spoof": 6}
SECOND = 16_000


@pytest.fixture(scope="module")
def models(small_whisper, tmp_path_factory):
    """Folders of one small model, without and with a calibration."""
    torch.manual_seed(0)
    detector = Detector(WhisperBackbone(small_whisper), LoRA(2), MeanPooling).eval()
    detector.window = SECOND
    folder = tmp_path_factory.mktemp("models")
    detector.save_pretrained(folder / "raw")
    detector.calibration = CALIBRATION
    detector.save_pretrained(folder / "calibrated")
    return folder


@pytest.fixture
def sounds(tmp_path, monkeypatch, speech):
    """Two files of speech, 0.5 s and 2.5 s long, in the current folder."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("short.wav", speech[12_000:20_000], SECOND)
    soundfile.write("long.flac", np.stack([speech, speech], axis=1), SECOND)
    return tmp_path


@pytest.fixture
def score(monkeypatch, models, capfd):
    """Runs the verb in this process; returns exit code, standard output and standard error."""

    def run(*arguments, model="calibrated", lines=b""):
        monkeypatch.setattr(sys, "argv", ["/bin/moelora-ad", "score", *arguments, "--model", str(models / model)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        capfd.readouterr()
        try:
            code = main()
        except SystemExit as left:
            code = left.code
        return code, *capfd.readouterr()

    return run


def records(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_a_row_for_each_file_with_all_that_is_said(score, sounds, models):
    code, out, err = score("long.flac", "short.wav", "--prior", "0.2", "--format", "csv")
    assert (code, err) == (0, "")
    scorer = Scorer.from_pretrained(models / "calibrated")
    for row, (name, seconds, windows) in zip(records(out), [("long.flac", 2.5, 4), ("short.wav", 0.5, 1)], strict=True):
        score_alone = scorer(name).score
        assert row["path"] == name
        assert float(row["score"]) == pytest.approx(score_alone, abs=1e-5)
        odds = math.exp(float(row["score"])) * 0.2 / 0.8
        assert float(row["probability"]) == pytest.approx(odds / (1 + odds))
        assert float(row["threshold"]) == pytest.approx(math.log(0.8 / 0.2))
        assert row["verdict"] == ("bonafide" if odds >= 1 else "spoof")
        assert (row["scale"], float(row["prior"])) == ("llr", 0.2)
        assert (float(row["seconds"]), int(row["windows"]), row["error"]) == (seconds, windows, "")


def test_json_lines_and_csv_have_the_same_content(score, sounds):
    _, as_csv, _ = score(".", "gone.wav", "--format", "csv")
    code, as_json, _ = score(".", "gone.wav", "--output", "out.jsonl")
    assert (code, as_json) == (1, "scores: out.jsonl\n")
    rows = [json.loads(line) for line in (sounds / "out.jsonl").read_text().splitlines()]
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows] == records(as_csv)
    assert rows[-1]["path"] == "gone.wav"
    assert rows[-1]["error"] == "no such audio file: gone.wav"
    assert rows[-1]["score"] is None


def test_the_threshold_makes_the_verdict(score, sounds):
    for threshold, verdict in (("-1e3", "bonafide"), ("1e3", "spoof")):
        code, out, _ = score("short.wav", f"--threshold={threshold}", "--format", "jsonl")
        assert (code, json.loads(out)["verdict"], json.loads(out)["threshold"]) == (0, verdict, float(threshold))


def test_raw_scores_are_said_to_be_raw(score, sounds, models):
    code, out, err = score("short.wav", "--format", "csv", model="raw")
    (row,) = records(out)
    assert (code, row["scale"], row["probability"], row["prior"]) == (0, "log_odds", "", "")
    assert float(row["score"]) == pytest.approx(
        (Scorer.from_pretrained(models / "calibrated")("short.wav").score - 0.25) / 3
    )
    assert "not calibrated" in err
    code, out, err = score("short.wav", model="raw")
    assert "not calibrated" in " ".join(out.split())
    assert err == ""


def test_a_table_for_a_person(score, sounds):
    code, out, err = score("long.flac", "short.wav", "--prior", "0.3")
    assert (code, err) == (0, "")
    cells = [re.split(r"\s+(?!fide)", line.strip()) for line in out.splitlines() if line.strip()]
    cells = [cells[0], *cells[2:4]]  # without the line under the header
    assert cells[0] == ["file", "score", "P(bona fide)", "verdict", "length", "windows"]
    assert [row[0] for row in cells[1:]] == ["long.flac", "short.wav"]
    assert [row[4:] for row in cells[1:]] == [["0:02.5", "4"], ["0:00.5", "1"]]
    assert all(row[3] == ("bona fide" if float(row[1]) >= 0.847 else "spoof") for row in cells[1:])
    said = " ".join(out.split())
    assert "score: log-likelihood ratio of bona fide against spoof" in said
    assert "at a prior of 0.3; verdict: bona fide from a score of 0.847 on" in said
    _, told, _ = score("long.flac", "short.wav", "--prior", "0.3", "--output", "table.txt")
    assert told == "scores: table.txt (a table for people; .csv and .jsonl have rows for programs)\n"
    assert "0:02.5" in (sounds / "table.txt").read_text()


def test_the_end_tells_where_everything_is(score, sounds):
    code, out, err = score("short.wav", "--output", "a.csv", "--timeline", "pages")
    assert (code, out, err) == (0, "scores: a.csv\ntimeline: pages/index.html\n", "")
    assert (sounds / "pages" / "index.html").is_file()
    assert score("short.wav", "--output", "a.csv")[1] == "scores: a.csv; it replaces an earlier file\n"
    assert score("short.wav", "--output", "a.csv", "--resume")[1] == "scores: a.csv\n"
    _, out, err = score("short.wav", "--timeline")
    assert (out.splitlines()[-1], err) == ("timeline: timeline/index.html", "")
    # Rows for programs stay alone on standard output.
    rows = score("short.wav", "--format", "csv")[1]
    for more in ((), ("--output", "-")):
        _, out, err = score("short.wav", *more, "--format", "csv", "--timeline=pages")
        assert (out, err) == (rows, "timeline: pages/index.html\n")
    assert not (sounds / "-").exists()


def test_names_reach_neither_the_terminal_nor_the_lines_as_commands(score, sounds):
    name = "a\x1b[31m[bold]x\n.wav"
    os.rename("short.wav", name)
    _, out, _ = score(name)
    assert "\x1b" not in out
    assert "[bold]" in out
    _, out, _ = score(name, "--format", "jsonl")
    assert json.loads(out)["path"] == name
    _, out, _ = score(name, "--format", "csv")
    assert records(out)[0]["path"] == name
    code, out, err = score("\x1b]gone\n.wav")
    assert (code, err.count("\n")) == (1, 2)
    assert "\x1b" not in err + out


def test_names_that_are_not_unicode_come_back_byte_for_byte(score, sounds):
    os.rename("short.wav", b"\xff.wav")
    score(os.fsdecode(b"\xff.wav"), "--output", "out.csv")
    assert (sounds / "out.csv").read_bytes().splitlines()[1].startswith(b"\xff.wav,")
    _, out, _ = score("-", "--format", "jsonl", lines=b"\xff.wav\n")
    assert os.fsencode(json.loads(out)["path"]) == b"\xff.wav"


def test_sound_on_standard_input_is_scored_and_text_is_a_list(score, sounds):
    for name in ("long.flac", "short.wav"):
        (by_name,) = records(score(name, "--format", "csv")[1])
        code, out, err = score("-", "--format", "csv", lines=(sounds / name).read_bytes())
        assert (code, err, records(out)) == (0, "", [by_name | {"path": "standard input"}])
        code, out, err = score("-", "--format", "csv", lines=name.encode())
        assert (code, err, records(out)) == (0, "", [by_name])
    code, _, err = score("-", lines=b"RIFF\0\0 damaged")
    assert code == 1
    assert err.startswith("cannot decode standard input: ")


def test_a_folder_tells_what_it_leaves_out(score, sounds):
    for name in ("a.txt", "b.TXT", "c.json", "README"):
        (sounds / name).write_text("no sound")
    os.rename("short.wav", "short")
    code, out, err = score(".", "--format", "csv")
    assert (code, [row["path"] for row in records(out)]) == (0, ["./long.flac", "./short"])
    assert err == "left out: 2 .txt, 1 without ending, 1 .json; a file that is named itself is always tried\n"
    assert score("long.flac", "short")[2] == ""
    code, out, err = score("*.json")
    assert (code, err[:22]) == (1, "cannot decode c.json: ")


def test_the_timeline(score, sounds):
    code, out, _ = score("long.flac", "short.wav", "--hop", "0.5", "--format", "csv", "--timeline", "lines")
    assert code == 0
    whole = {row["path"]: row for row in records(out)}
    rows = records((sounds / "lines" / "windows.csv").read_text())
    assert [(row["path"], float(row["start"]), float(row["end"])) for row in rows] == [
        *(("long.flac", start, start + 1) for start in (0, 0.5, 1.0, 1.5)),
        ("short.wav", 0, 0.5),
    ]
    mean = np.mean([float(row["score"]) for row in rows[:4]])
    assert float(whole["long.flac"]["score"]) == pytest.approx(mean)
    assert float(rows[4]["probability"]) == float(whole["short.wav"]["probability"])
    assert sorted(os.listdir("lines")) == ["index.html", "long.flac.png", "short.wav.png", "windows.csv"]
    page = (sounds / "lines" / "index.html").read_text(encoding="utf-8")
    assert "Model calibrated, calibrated on dev (5 bona fide, 6 spoofed utterances); scored on 2" in page
    assert page.count('class="result">{"name":') == 2
    score("short.wav", "--format", "jsonl", "--timeline")
    assert json.loads((sounds / "timeline" / "windows.jsonl").read_text())["path"] == "short.wav"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "the following arguments are required: PATH"),
        (["x.wav", "--prior", "1"], "--prior: must be above 0 and below 1, not 1.0"),
        (["x.wav", "--prior", "nan"], "--prior: must be above 0"),
        (["x.wav", "--threshold", "inf"], "--threshold: must be a finite number"),
        (["x.wav", "--hop", "0"], "--hop: must be above 0"),
        (["x.wav", "--hop", "1.5"], "at most a window"),
        (["x.wav", "--batch-size", "0"], "--batch-size: must be at least 1"),
        (["x.wav", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["x.wav", "--model", "gone"], "gone"),
        (["x.wav", "--format", "xml"], "invalid choice: 'xml'"),
        (["*.ogg"], "no audio file in *.ogg"),
        (["-"], "no files to score: standard input is empty"),
        (["gone.csv"], "gone.csv: no such file"),
        (["x.wav", "--output", "."], "--output: . is a folder"),
        (["x.wav", "--output", os.devnull], f"--output: {os.devnull} is a device or a pipe: leave the option out"),
        (["x.wav", "--num-workers", "-1"], "--num-workers: must be at least 0, not -1"),
        (["x.wav", "--output", "a/../t/windows.csv", "--timeline", "t"], "--timeline writes a/../t/windows.csv, too"),
        (["--timeline", "short.wav", "x.wav"], "--timeline: short.wav is not a folder; name the files first"),
    ],
)
def test_mistakes_in_use_are_one_line_and_exit_code_2(score, sounds, monkeypatch, arguments, told):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = arguments if "--model" not in arguments else arguments[:-2]
    code, out, err = score(*given, model="../gone" if given != arguments else "calibrated")
    assert (code, out) == (2, "")
    assert err.startswith("moelora-ad score: error: ")
    assert err.count("\n") == 1
    assert told in err


@pytest.mark.parametrize(
    ("given", "output", "told"),
    [
        ("list.csv", "list.csv", "list.csv is one of the inputs"),
        ("short.wav", "long.flac", "long.flac is a sound"),  # what --output *.flac is without the file's name
    ],
)
def test_no_output_replaces_what_is_scored(score, sounds, given, output, told):
    (sounds / "list.csv").write_text("path\nshort.wav\n")
    before = (sounds / output).read_bytes()
    code, out, err = score(given, "--output", output)
    assert (code, out) == (2, "")
    assert err == f"moelora-ad score: error: --output: {told}, which would be lost; name another file\n"
    assert (sounds / output).read_bytes() == before


def test_what_fails_is_told_and_counted_and_the_rest_is_scored(score, sounds):
    (sounds / "text.wav").write_text("no sound")
    (sounds / "empty").mkdir()
    code, out, err = score("gone.wav", "empty", "short.wav", "text.wav", "short.wav", "--format", "csv")
    rows = records(out)
    assert code == 1
    assert [(row["path"], row["score"] != "", row["error"] != "") for row in rows] == [
        ("gone.wav", False, True),
        ("short.wav", True, False),
        ("text.wav", False, True),
    ]
    lines = err.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("no audio file in empty")
    assert lines[1:3] == [rows[0]["error"], rows[2]["error"]]
    assert lines[3] == "3 of 4 inputs could not be scored"


@pytest.mark.parametrize("form", ["csv", "table"])
def test_ctrl_c_keeps_what_was_scored(score, sounds, monkeypatch, form):
    original = Scorer.score_files

    def interrupted(self, places, *rest):
        results = original(self, places, *rest)
        yield next(results)
        raise KeyboardInterrupt

    monkeypatch.setattr(Scorer, "score_files", interrupted)
    code, _, err = score("short.wav", "long.flac", "--format", form, "--output", "out")
    more = "; --resume continues" if form == "csv" else ""
    assert (code, err) == (130, f"moelora-ad score: interrupted; the files before are scored{more}\n")
    text = (sounds / "out").read_text()
    assert "short.wav" in text
    assert "long.flac" not in text
    assert not [name for name in os.listdir() if name.endswith(".tmp")]


def test_a_device_without_memory_ends_the_work_and_keeps_what_was_scored(score, sounds, monkeypatch):
    original, calls = Scorer._log_odds, []

    def full(self, waveforms):
        calls.append(len(waveforms))
        if len(calls) > 1:
            monkeypatch.setattr(self.detector, "forward", lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError()))
        return original(self, waveforms)

    monkeypatch.setattr(Scorer, "_log_odds", full)
    code, out, err = score("short.wav", "long.flac", "--format", "csv", "--batch-size", "1")
    assert (code, [row["path"] for row in records(out)]) == (1, ["short.wav"])
    assert "too little memory for 1 windows at once: use a smaller batch size" in err


@pytest.mark.slow
def test_a_reader_that_goes_away(sounds, models):
    command = [sys.executable, "-m", "moelora_ad", "score", "short.wav", "--model", str(models / "raw")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--format", "csv"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as run:
        run.stdout.close()
        told = run.stderr.read().decode()
    assert run.returncode == 1
    assert "Traceback" not in told
    assert "BrokenPipe" not in told


def test_an_output_that_cannot_be_written(score, sounds):
    code, out, err = score("short.wav", "--output", "long.flac/out.csv")
    assert (code, out) == (1, "")
    assert err == "moelora-ad score: error: long.flac: File exists\n"


def test_a_narrow_terminal_loses_no_column():
    row = {"path": "speech.wav", "score": -1.5, "probability": 0.2, "verdict": "spoof", "seconds": 4.0, "windows": 3}
    shown = io.StringIO()
    print_scores([row | {"reason": None, "notes": None}], DecisionRule(True, 0.5, 0.0), Console(file=shown, width=40))
    for word in ("speech.wav", "-1.500", "0.200", "spoof", "0:04.0"):
        assert word in shown.getvalue()

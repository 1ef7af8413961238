"""The command score over many files: the rows that remain when it is killed, and how it resumes."""

import csv
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from moelora_ad.adapters import LoRA
from moelora_ad.cli import score_output
from moelora_ad.errors import InputError
from moelora_ad.evaluation import read_scores
from moelora_ad.inference.file_scores import FileScore, WindowScore
from moelora_ad.inference.output import FILE_COLUMNS, DecisionRule, file_row
from moelora_ad.inference.row_files import RowFile
from moelora_ad.inference.scorer import Scorer
from moelora_ad.models import Detector, MeanPooling, WhisperBackbone

SECOND = 16_000
COUNT = 70


@pytest.fixture(scope="module")
def models(small_whisper, tmp_path_factory):
    """Folders of two small models."""
    folder = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        torch.manual_seed(seed)
        detector = Detector(WhisperBackbone(small_whisper), LoRA(2), MeanPooling).eval()
        detector.window = SECOND
        detector.save_pretrained(folder / str(seed))
    return folder


def write_sounds(folder, speech):
    """Seventy short files in the folder ``in``; one is not an audio file, and the name of one has two lines."""
    (folder / "in").mkdir()
    for number in range(COUNT):
        name = f"in/{number:02}.wav" if number != 20 else 'in/20 "a\n\rb".wav'
        soundfile.write(folder / name, speech[100 * number :][:12_000], SECOND)
    (folder / "in" / "40.wav").write_text("no sound")


@pytest.fixture
def sounds(tmp_path, monkeypatch, speech):
    """The folder of the sounds of `write_sounds`, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    write_sounds(tmp_path, speech)
    return tmp_path


@pytest.fixture(scope="module")
def killed(models, speech, tmp_path_factory):
    """A folder with the sounds, and in csv/out.csv and jsonl/out.jsonl the rows of runs that were killed in the middle.

    They are forks of one new process that has scored a file before, as the imports take seconds.
    """
    folder = tmp_path_factory.mktemp("killed")
    write_sounds(folder, speech)
    arguments = ["--batch-size", "1", "--model", str(models / "0"), "--output"]
    program = (
        "import os, signal, sys\n"
        "from moelora_ad.cli.main import main\n"
        f"sys.argv = ['moelora-ad', 'score', 'in/00.wav', *{arguments!r}, 'first.csv']\n"
        "assert main() == 0\n"
        "from moelora_ad.inference import row_files\n"
        "write = row_files.RowFile._write\n"
        "def last(self, line):\n"
        "    write(self, line)\n"
        "    if b'/30.wav' in line:\n"
        "        write(self, half)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "row_files.RowFile._write = last\n"
        """for form, half in {'csv': b'in/31.wav,"0.1', 'jsonl': b'{"path": "in/31'}.items():\n"""
        "    os.mkdir(form)\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        f"        sys.argv = ['moelora-ad', 'score', 'in', *{arguments!r}, f'{{form}}/out.{{form}}']\n"
        "        os._exit(main())\n"
        "    print(form, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder)
    assert done.stdout.splitlines()[1:] == [f"{form} {-signal.SIGKILL}" for form in ("csv", "jsonl")], done.stderr
    return folder


@pytest.fixture
def score(monkeypatch, models, lightning):
    """Runs the verb in this process; returns exit code, standard output and standard error."""
    return lambda *arguments, model=0: lightning("score", *arguments, "--model", models / str(model))


def rows(path):
    text = path.read_bytes().decode()
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline="")))
    return [json.loads(line) for line in text.splitlines()]


def same(found, wanted):
    assert [row["path"] for row in found] == [row["path"] for row in wanted]
    for row, other in zip(found, wanted, strict=True):
        assert float(row["score"] or 0) == pytest.approx(float(other["score"] or 0), abs=1e-5)
        assert {**row, "score": 0} == {**other, "score": 0}


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_killed_in_the_middle_and_resumed_it_ends_with_the_same_rows(score, sounds, killed, form):
    out, whole = sounds / f"out.{form}", sounds / f"whole.{form}"
    assert score("in", "--output", whole.name, "--num-workers", 1)[0] == 1
    wanted = rows(whole)
    assert len(wanted) == COUNT
    for name in (out.name, "out.json"):
        shutil.copy(killed / form / name, sounds)
    assert not out.read_bytes().endswith(b"\n")
    assert json.loads((sounds / "out.json").read_text())["complete"] is False
    code, _, err = score("in", "--output", out.name)
    assert (code, err) == (
        2,
        f"lightning score: error: out.{form} is of an interrupted run: continue it with --resume, or delete it\n",
    )
    code, _, err = score("in", "--output", out.name, "--resume", "--num-workers", 1)
    assert code == 1
    assert "31 of 70 files are already in out" in err
    assert err.endswith("1 of 70 inputs could not be scored\n")
    same(rows(out), wanted)
    # A second --resume has nothing to do, and a new file is added after the others.
    before = out.read_bytes()
    assert score("in", "--output", out.name, "--resume")[0] == 1
    assert out.read_bytes() == before
    soundfile.write("in/new.wav", np.zeros(9_000), SECOND)
    assert score("in", "--output", out.name, "--resume")[0] == 1
    assert out.read_bytes().startswith(before)
    assert rows(out)[-1]["path"] == "in/new.wav"
    assert [json.loads((sounds / "out.json").read_text())[name] for name in ("files", "failed")] == [COUNT + 1, 1]
    if form == "csv":
        read_scores(out)
        out.write_bytes(before)
        with pytest.raises(InputError, match=r"is not the file that out\.json beside it records"):
            read_scores(out)


def test_only_what_was_made_alike_is_resumed(score, sounds, models):
    described = json.loads((models / "0" / "config.json").read_text())
    scaled = described["adaptation"] | {"init_args": described["adaptation"]["init_args"] | {"alpha": 4.0}}
    for name, change in (("scaled", {"adaptation": scaled}), ("filling", {"fill": 2_000})):
        shutil.copytree(models / "0", models / name)
        (models / name / "config.json").write_text(json.dumps(described | change))
    first = ("in/00.wav", "--output", "out.csv")
    assert score(*first, "--resume")[0] == 0  # there is no output file yet
    text = (sounds / "out.csv").read_bytes()
    for more, model, told in (
        ((), 1, "another model: cannot resume"),
        ((), "scaled", "another settings: cannot resume"),
        ((), "filling", "another fill: cannot resume"),
        (("--hop", "0.25"), 0, "another hop"),
        (("--prior", "0.2", "--threshold", "3"), 0, "another prior, threshold"),
        (("--precision", "bf16"), 0, "another precision"),
    ):
        code, _, err = score(*first, "--resume", *more, model=model)
        assert (code, err.count("\n")) == (2, 1)
        assert told in err
    assert (
        "out.csv has rows of csv: cannot resume with those of jsonl"
        in score(*first, "--resume", "--format", "jsonl")[2]
    )
    code, _, err = score("in/00.wav", "--output", "out.jsonl")  # out.json could not describe both
    assert (code, "out.json describes out.csv, and its name is needed" in err) == (2, True)
    read_scores(sounds / "out.csv")
    (sounds / "out.csv").write_bytes(text.replace(b"in/00.wav,", b"in/00.wav,,"))
    assert "out.csv: row 1 is damaged: cannot resume" in score(*first, "--resume")[2]
    (sounds / "out.json").unlink()
    assert "out.json, which describes it, is missing: cannot resume" in score(*first, "--resume")[2]
    (sounds / "out.json").write_text("[]")
    assert "out.json is another file, and its name is needed" in score(*first)[2]
    assert (sounds / "out.json").read_text() == "[]"
    for options in (("--output", "o.txt"), ("--format", "csv"), ("--output", "o.csv", "--timeline")):
        code, _, err = score("in/00.wav", "--resume", *options)
        assert (code, err) == (
            2,
            "lightning score: error: --resume: needs --output FILE.csv or FILE.jsonl, and no --timeline\n",
        )


def test_rows_are_on_the_disk_as_they_come(score, sounds, monkeypatch):
    original, seen = Scorer.score_files, []

    def watched(self, *arguments):
        for result in original(self, *arguments):
            seen.append((sounds / "out.csv").read_bytes().count(b".wav"))
            yield result

    monkeypatch.setattr(Scorer, "score_files", watched)
    assert score("in/00.wav", "in/01.wav", "in/02.wav", "--output", "out.csv")[0] == 0
    assert seen == [0, 1, 2]


def test_a_full_disk_ends_the_work_in_one_line_and_resume_continues(score, sounds):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, limits[1]))
    try:
        code, _, err = score("in", "--output", "out.csv", "--num-workers", 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert err.endswith(
        "out.csv: File too large; the files before are scored; --resume continues\n1 of 70 inputs could not be scored\n"
    )
    assert score("in", "--output", "out.csv", "--resume", "--num-workers", 0)[0] == 1
    assert len({row["path"] for row in rows(sounds / "out.csv")}) == len(rows(sounds / "out.csv")) == COUNT


def test_a_killed_worker_ends_the_work_in_one_line_and_the_rows_stay(score, sounds, monkeypatch):
    original = score_output.RowFile.__call__

    def killing(self, row):
        original(self, row)
        if row["path"].endswith("03.wav"):
            for child in open(f"/proc/self/task/{os.getpid()}/children").read().split():  # noqa: SIM115
                os.kill(int(child), signal.SIGKILL)

    monkeypatch.setattr(score_output.RowFile, "__call__", killing)
    code, out, err = score("in", "--output", "out.jsonl", "--num-workers", 1, "--batch-size", 2)
    told = [line for line in err.splitlines() if not line.startswith("note: score: raw")]
    assert (code, out, len(told)) == (1, "", 1)
    assert told[0].startswith("a process that reads audio was killed, most likely for lack of memory: lower ")
    assert told[0].endswith("the files before are scored; --resume continues")
    assert [row["path"] for row in rows(sounds / "out.jsonl")][:4] == [f"in/0{n}.wav" for n in range(4)]
    monkeypatch.undo()
    assert len(rows(sounds / "out.jsonl")) < COUNT


def test_a_table_of_many_files_comes_in_parts(score, sounds, monkeypatch):
    monkeypatch.setattr(score_output, "_ROWS_OF_TABLE", 30)
    code, out, _ = score("in")
    assert code == 1
    assert len(re.findall(r"^ file ", out, re.MULTILINE)) == 3
    assert out.count("score: raw log-odds") == 1
    assert len(re.findall(r"^ .+\.\w+ .*(spoof|bona fide|inconclusive)", out, re.MULTILINE)) >= COUNT - 1


def inconclusive(sound, score, name="odd.wav"):
    soundfile.write(name, sound, SECOND)
    (row,) = [json.loads(line) for line in score(name, "--format", "jsonl")[1].splitlines()]
    return row["verdict"], row["reason"]


def test_where_there_is_nothing_to_judge_there_is_a_score_and_no_verdict(score, sounds, speech):
    tone = 0.5 * np.sin(np.arange(4 * SECOND) * 880 * np.pi / SECOND)
    noise = 0.1 * np.random.default_rng(0).standard_normal(4 * SECOND)
    for sound, reason in (
        (np.zeros(4 * SECOND), "no speech: silent"),
        (tone, "no speech: noise or tones alone"),
        (noise, "no speech: noise or tones alone"),
        (speech[:800], "too short: 0.05 s, of at least 0.5 s"),
        (speech[:7_999], "too short: 0.5 s, of at least 0.5 s"),
        (speech, None),
    ):
        verdict, told = inconclusive(sound, score)
        assert told == reason
        assert (verdict == "inconclusive") == (reason is not None)
    soundfile.write("tone.wav", tone, SECOND)
    code, out, err = score("tone.wav", "in/00.wav", "--threshold=-1000")
    assert (code, err) == (0, "")
    assert "inconclusive" in out
    assert "bona fide" in out
    assert "no speech: noise or tones" in " ".join(out.replace("│", " ").split())
    (row, _) = csv.DictReader(io.StringIO(score("tone.wav", "in/00.wav", "--format", "csv")[1]))
    assert (row["verdict"], row["reason"]) == ("inconclusive", "no speech: noise or tones alone")
    assert float(row["score"]) != 0


def test_what_would_be_heard_as_a_rhythm_has_no_verdict(models, speech):
    scorer = Scorer(Scorer.from_pretrained(models / "0").detector, window=6 * SECOND)
    assert scorer(speech[:11_000]).reason == "repeated to fill: 0.688 s, 9 times in a window of 6 s"
    assert scorer(speech[:12_000]).reason is None  # repeated eight times
    told = scorer(speech[:11_000]).as_dict(prior=0.5)
    assert (told["verdict"], told["probability"]) == ("inconclusive", None)
    assert told["reason"].startswith("repeated to fill")


def test_a_verdict_is_of_the_score_where_there_is_a_reason_for_none():
    envelope = np.zeros((1, 2), np.float32)
    result = FileScore("a.wav", 2.0, True, 4.0, (WindowScore(0, 4, 2.0),), envelope, 4.0, reason="no speech: silent")
    assert (result.verdict(), result.score) == ("inconclusive", 2.0)
    assert result.as_dict()["probability"] == pytest.approx(0.8808, abs=1e-4)
    with pytest.raises(InputError, match="prior"):
        result.verdict(prior=0)
    row = file_row(result, DecisionRule.of(True, 0.5, None))
    assert tuple(row) == FILE_COLUMNS
    assert (row["verdict"], row["reason"], row["score"]) == ("inconclusive", "no speech: silent", 2.0)


def test_a_file_whose_json_would_be_itself_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"call them \.jsonl or \.csv"):
        RowFile(tmp_path / "out.json", "jsonl", {}, resumes=False)
    assert not [*tmp_path.iterdir()]

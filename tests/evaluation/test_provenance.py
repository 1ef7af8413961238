"""Every reader refuses a score file that differs from the one recorded beside it; hashes are from sha256sum."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelora_ad.cli import evaluate as evaluate_command
from moelora_ad.cli import results as results_command
from moelora_ad.corpora import Trial
from moelora_ad.evaluation import ScoreError, ScoreTable, read_scores
from moelora_ad.evaluation.provenance import partial_note

NUMBER = 40


def recorded(path: Path, **changes) -> Path:
    """Write scores with the record that a test writes beside them."""
    scores = np.random.default_rng(4).normal(size=NUMBER)
    ScoreTable([Trial(f"u{i}", "", i % 2) for i in range(NUMBER)], scores).write(path)
    digest = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    record = {"trials": NUMBER, "scored": NUMBER, "complete": True, "score_file_sha256": digest}
    path.with_suffix(".json").write_text(json.dumps(record | changes))
    return path


def refusal(path: Path) -> str:
    told = set()
    for read in (ScoreTable.read, read_scores):
        with pytest.raises(ScoreError) as caught:
            read(path)
        told.add(str(caught.value))
    (line,) = told
    assert line.startswith(f"{path}: is not the file that {path.stem}.json beside it records: ")
    assert f"remove {path.stem}.json if the file was changed on purpose" in line
    return line


def test_a_file_as_recorded_is_read(tmp_path):
    path = recorded(tmp_path / "eval.csv")
    assert len(ScoreTable.read(path)) == len(read_scores(path).scores) == NUMBER
    path.with_suffix(".json").unlink()
    assert len(ScoreTable.read(path)) == NUMBER


def test_a_file_that_lost_its_last_lines(tmp_path):
    path = recorded(tmp_path / "eval.csv")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:31]))
    assert "it has 30 scores, recorded: 40" in refusal(path)


def test_a_number_that_lost_its_last_digits(tmp_path):
    path = recorded(tmp_path / "eval.csv")
    path.write_text(path.read_text()[:-6] + "\n")
    assert "its SHA-256 is " in refusal(path)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_cut_and_any_flipped_bit_is_refused(tmp_path_factory, data):
    path = recorded(tmp_path_factory.mktemp("changed") / "eval.csv")
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scored": 41}, "it has 40 scores, recorded: 41"),
        ({"trials": 41}, "it has 40 scores, and all of 41 trials are recorded as scored"),
        ({"score_file_sha256": None}, "where None... is recorded"),
        ({"score_file_sha256": [[]]}, "its SHA-256 is "),
    ],
)
def test_a_record_that_counts_otherwise(tmp_path, changes, words):
    assert words in refusal(recorded(tmp_path / "eval.csv", **changes))


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"name": "mine"}', "[" * 100_000])
def test_another_file_of_that_name_is_no_record(tmp_path, content):
    path = recorded(tmp_path / "eval.csv")
    path.with_suffix(".json").write_text(content)
    assert len(ScoreTable.read(path)) == NUMBER


def test_a_copy_in_another_format_is_not_what_is_recorded(tmp_path):
    table = ScoreTable.read(recorded(tmp_path / "eval.csv"))
    table.write(tmp_path / "eval.tsv")
    assert len(ScoreTable.read(tmp_path / "eval.tsv")) == NUMBER


def test_a_part_of_the_trials_is_told(tmp_path, run_verb):
    path = recorded(tmp_path / "eval.csv", trials=60, complete=False)
    assert partial_note(path, NUMBER) == "only 40 of 60 trials with a score"
    code, printed, _ = run_verb(evaluate_command, path)
    assert code == 0
    assert "note: eval: only 40 of 60 trials with a score" in " ".join(printed.split())


def test_evaluate_and_results_refuse_a_cut_file(tmp_path, run_verb, make_run):
    path = recorded(tmp_path / "eval.csv")
    path.write_text(path.read_text()[:-6] + "\n")
    code, printed, err = run_verb(evaluate_command, path)
    assert (code, printed, err.count("\n")) == (1, "", 1)
    assert f"{path}: is not the file that eval.json beside it records" in err

    run = make_run("a", 1)
    scores = run / "scores/best/in_domain.csv"
    record = json.loads(scores.with_suffix(".json").read_text())
    scores.with_suffix(".json").write_text(json.dumps(record | {"scored": 60}))
    scores.write_text("".join(scores.read_text().splitlines(keepends=True)[:-1]))
    code, printed, err = run_verb(results_command, run)
    assert (code, err.count("\n")) == (1, 1)
    assert f"{scores}: is not the file that in_domain.json beside it records: it has 59 scores, recorded: 60" in err

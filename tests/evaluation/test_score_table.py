import csv
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelora_ad.corpora import Trial, TrialList
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreError, ScoreTable

HEADER = "utterance,label,speaker,attack,codec,corpus,split,score\n"
TRIALS = [
    Trial("u1", "/a/u1.flac", 1, "Obama, Barack", None, "opus", "Mine", "eval"),
    Trial("u2", "/a/u2.flac", 0, None, "A01", None, "Mine", None),
    Trial("u3", "/a/u3.flac", None),
]
WRITTEN = HEADER + 'u1,bonafide,"Obama, Barack",,opus,Mine,eval,0.1\nu2,spoof,,A01,,Mine,,-1e-300\nu3,,,,,,,3.0\n'


def test_the_file_is_this(tmp_path):
    ScoreTable(TRIALS, np.array([0.1, -1e-300, 3.0])).write(tmp_path / "new" / "scores.csv")
    assert (tmp_path / "new" / "scores.csv").read_bytes() == WRITTEN.encode()


def test_reading_gives_back_all_but_the_audio(tmp_path):
    (tmp_path / "scores.csv").write_text(WRITTEN)
    table = ScoreTable.read(tmp_path / "scores.csv")
    assert list(table.trials) == [dataclasses.replace(trial, audio="") for trial in TRIALS]
    assert table.scores.tolist() == [0.1, -1e-300, 3.0]
    assert table.labels.tolist() == [1, 0, -1]
    assert len(table) == 3


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)
MAYBE = st.none() | TEXT
ROWS = st.builds(Trial, TEXT, st.just(""), st.sampled_from([0, 1, None]), MAYBE, MAYBE, MAYBE, TEXT, MAYBE)


@settings(deadline=None)
@given(
    st.lists(ROWS, min_size=1, max_size=5, unique_by=lambda trial: trial.utterance),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=5, max_size=5),
)
def test_any_table_survives_the_file(tmp_path_factory, trials, scores):
    path = tmp_path_factory.getbasetemp() / "scores.csv"
    ScoreTable(trials, scores[: len(trials)]).write(path)
    table = ScoreTable.read(path)
    assert list(table.trials) == trials
    assert [score.hex() for score in table.scores.tolist()] == [score.hex() for score in scores[: len(trials)]]


def test_float32_scores_keep_their_exact_value(tmp_path):
    scores = np.array([0.1, 1 / 3, -7e-30], np.float32)
    ScoreTable(TRIALS, scores).write(tmp_path / "scores.csv")
    np.testing.assert_array_equal(ScoreTable.read(tmp_path / "scores.csv").scores, scores.astype(np.float64))


def test_the_table_is_read_only_and_its_own():
    scores = np.array([1.0, 2.0, 3.0])
    table = ScoreTable(TrialList(TRIALS), scores)
    scores[0] = 99.0
    assert table.scores[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        table.scores[0] = 0.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        table.scores = scores


@pytest.mark.parametrize("scores", [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0], [[1.0, 2.0, 3.0]]])
def test_one_score_for_each_trial(scores):
    with pytest.raises(ScoreError, match="3 trials need as many scores"):
        ScoreTable(TRIALS, scores)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_must_be_finite(bad):
    with pytest.raises(ScoreError, match="1 score not finite; the first is of utterance 'u2'"):
        ScoreTable(TRIALS, [1.0, bad, 2.0])


def test_repeated_utterances_and_empty_tables_are_refused():
    with pytest.raises(InputError, match="'u1'"):
        ScoreTable([TRIALS[0], TRIALS[0]], [1.0, 2.0])
    with pytest.raises(InputError, match="empty"):
        ScoreTable([], [])


def test_equal_error_rate():
    trials = [Trial(f"u{i}", "", label) for i, label in enumerate([1, 1, 0, 0])]
    assert ScoreTable(trials, [3.0, 1.0, 2.0, 0.0]).equal_error_rate() == (0.5, 2.0)
    assert ScoreTable(trials, [3.0, 4.0, 2.0, 0.0]).equal_error_rate() == (0.0, 3.0)
    with pytest.raises(ScoreError, match="for example -1"):
        ScoreTable(TRIALS, [1.0, 2.0, 3.0]).equal_error_rate()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ": is empty; the first line must name the columns"),
        (HEADER, ": has no scores"),
        ("utterance,label,score\nu,spoof,1\n", ", line 1: no column 'speaker', 'attack', 'codec', 'corpus', 'split'"),
        (HEADER + "u1,spoof,,,,,,1\nu2,spoof,,,,,1\n", ", line 3: 7 fields where the header has 8"),
        (HEADER + "u1,spoof,,,,,,high\n", ", line 2, column 'score': 'high' is not a number"),
        (HEADER + "u1,spoof,,,,,,1\nu2,spoof,,,,,,1_0\n", ", line 3, column 'score': '1_0' is not a number"),
        (HEADER + "u1,spoof,,,,,,\u0661\n", ", line 2, column 'score': '\u0661' is not a number"),
        (HEADER + "u1,spoof,,,,,,nan\n", ", line 2, column 'score': nan is not finite"),
        (HEADER + "u1,spoof,,,,,,\n", ", line 2, column 'score': '' is not a number"),
        (HEADER + "u1,spoof,,,,,,1\nu1,spoof,,,,,,2\n", ", line 3: utterance 'u1' was already in line 2"),
    ],
)
def test_faulty_files_are_told_with_line_and_column(tmp_path, text, told):
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(ScoreError) as error:
        ScoreTable.read(path)
    assert str(error.value) == f"{path}{told}"


def test_a_bad_label_and_a_missing_file(tmp_path):
    (tmp_path / "scores.csv").write_text(HEADER + "u1,sproof,,,,,,1\n")
    with pytest.raises(ScoreError, match="line 2, column 'label': 'sproof' is not a label"):
        ScoreTable.read(tmp_path / "scores.csv")
    with pytest.raises(ScoreError, match=r"none\.csv: no such file"):
        ScoreTable.read(tmp_path / "none.csv")


def table_or_error(path):
    try:
        return ScoreTable.read(path)
    except InputError as error:
        return error


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_give_a_table_or_an_input_error(tmp_path_factory, rest):
    path = tmp_path_factory.getbasetemp() / "soup.csv"
    path.write_bytes(HEADER.encode() + b"u1,spoof,,,,,,1\n" + rest)
    result = table_or_error(path)
    if isinstance(result, InputError):
        assert len(str(result).splitlines()) == 1
    else:
        assert result.trials[0] == Trial("u1", "", 0)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "scores.csv"
    ScoreTable(TRIALS, [1.0, 2.0, 3.0]).write(path)
    before = path.read_bytes()
    unwritable = [Trial("good", ""), Trial("\ud800", "")]  # a lone surrogate cannot be encoded as UTF-8
    with pytest.raises(UnicodeEncodeError):
        ScoreTable(unwritable, [1.0, 2.0]).write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_other_readers_understand_the_file(tmp_path):
    ScoreTable(TRIALS, [0.5, 0.25, 0.125]).write(tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == [0.5, 0.25, 0.125]
    assert rows[0]["speaker"] == "Obama, Barack"

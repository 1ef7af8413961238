"""Score files in published formats."""

import csv

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moelora_ad.corpora import Trial
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreError, ScoreTable, read_scores, write_scores
from moelora_ad.inference.output import FILE_COLUMNS, RowWriter

TRIALS = [
    Trial("LA_E_1", "/data/a b/LA_E_1.flac", 1, "LA_0001", corpus="ASVspoof2019_LA"),
    Trial("LA_E_2", "/data/LA_E_2.flac", 0, "LA_0002", "A07", corpus="ASVspoof2019_LA"),
]
TABLE = ScoreTable(TRIALS, [0.1, -1e-300])
WRITTEN = {
    "asvspoof2019": "LA_E_1 - bonafide 0.1\nLA_E_2 A07 spoof -1e-300\n",
    "asvspoof2021": "LA_E_1 0.1\nLA_E_2 -1e-300\n",
    "asvspoof5": "filename\tcm-score\nLA_E_1\t0.1\nLA_E_2\t-1e-300\n",
    "arena": '"/data/a b/LA_E_1.flac" 0.1\n/data/LA_E_2.flac -1e-300\n',
}


@pytest.mark.parametrize("name", WRITTEN)
def test_each_format_is_written_and_found_out(tmp_path, name):
    path = tmp_path / "scores.txt"
    write_scores(TABLE, path, name)
    assert path.read_text() == WRITTEN[name]
    for found in (read_scores(path), read_scores(path, name)):
        if name == "asvspoof2019":
            assert isinstance(found, ScoreTable)
            assert [(t.utterance, t.label, t.attack) for t in found.trials] == [
                ("LA_E_1", 1, None),
                ("LA_E_2", 0, "A07"),
            ]
        else:
            ids = [t.audio if name == "arena" else t.utterance for t in TRIALS]
            assert list(found.utterances) == ids
        assert found.scores.tolist() == [0.1, -1e-300]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_tables(tmp_path, suffix):
    path = tmp_path / f"scores.{suffix}"
    rich = [Trial("u,1\t", "", 1, gender="f", language="de", source="x", race="-", transmission="sat", split="eval")]
    write_scores(ScoreTable(rich, [1 / 3]), path, "table")
    found = read_scores(path)
    assert list(found.trials) == rich
    assert found.scores.tolist() == [1 / 3]


def test_a_table_of_ids_and_scores_needs_a_key(tmp_path):
    (tmp_path / "a.csv").write_text("score,utterance,other\n1.5,u1,x\n-2,u2,y\n")
    found = read_scores(tmp_path / "a.csv")
    assert list(found.utterances) == ["u1", "u2"]
    assert found.scores.tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "utterance,label,score\nu1,bona-fide,1.5\nu2,Fake,-2\n"),
        ("a.csv", "score;utterance;label\n1.5;u1;real\n-2;u2;spoof\n"),
        ("a.csv", "utterance\tlabel\tscore\tx\nu1\tgenuine\t1.5\t\nu2\tspoof\t-2\t\n"),
        ("a.tsv", "utterance,label,score\nu1,real,1.5\nu2,spoof,-2\n"),
        ("a.txt", '"file";"label";"score"\nu1;real;1.5\nu2;spoof;-2\n'),
        (
            "a.jsonl",
            '{"utterance": "u1", "label": "real", "score": 1.5}\n'
            '{"path": "x", "utterance": "u2", "label": "fake", "score": -2}\n',
        ),
        ("a.tsv", "filename\tcm-label\tcm-score\nu1\tbonafide\t1.5\nu2\tspoof\t-2\n"),
    ],
)
def test_a_table_with_labels_needs_no_more_columns(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = read_scores(tmp_path / name)
    assert [(trial.utterance, trial.label) for trial in found.trials] == [("u1", 1), ("u2", 0)]
    assert found.scores.tolist() == [1.5, -2.0]
    assert read_scores(tmp_path / name, "table").scores.tolist() == [1.5, -2.0]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_what_the_verb_score_wrote(tmp_path, form):
    # Columns other than path, score and error do not matter.
    unscored = dict.fromkeys(FILE_COLUMNS)
    with open(tmp_path / f"scores.{form}", "wb") as file:
        write = RowWriter(form, FILE_COLUMNS, file.write)
        write(unscored | {"path": "calls/a, b.wav", "score": 1 / 3, "verdict": "bonafide"})
        write(unscored | {"path": "calls/c.wav", "error": "calls/c.wav: no audio"})
        write(unscored | {"path": "calls/d.wav", "score": -1e-300, "verdict": "spoof"})
    found = read_scores(tmp_path / f"scores.{form}")
    assert list(found.utterances) == ["calls/a, b.wav", "calls/d.wav"]
    assert found.scores.tolist() == [1 / 3, -1e-300]
    assert found.num_failed == 1


def test_scores_with_tabs_and_without_a_header(tmp_path):
    (tmp_path / "a.txt").write_text("u1\t0.5\nu2\t-1\n")
    assert list(read_scores(tmp_path / "a.txt").utterances) == ["u1", "u2"]


def test_further_columns_of_asvspoof5_are_ignored(tmp_path):
    (tmp_path / "a.tsv").write_text("spk\tfilename\tcm-score\tasv-score\ns\tE_1\t0.5\t-\n")
    assert list(read_scores(tmp_path / "a.tsv").utterances) == ["E_1"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.txt", "", ": is empty"),
        ("a.txt", "u1 0.5\n\nu2 x\n", ", line 3, column 'score': 'x' is not a number"),
        ("a.txt", "u1 0.5\nu2 1_0\n", ", line 2, column 'score': '1_0' is not a number"),
        ("a.tsv", "filename\tcm-score\nu1\t0_1.5\n", ", line 2, column 'score': '0_1.5' is not a number"),
        ("a.jsonl", '{"path": "u", "score": "1_0"}\n', ", line 1, column 'score': '1_0' is not a number"),
        ("a.txt", "u1 0.5\nu2 nan\n", ", line 2, column 'score': nan is not finite"),
        ("a.txt", "u1 0.5\nu2 1 2\n", ", line 2: 3 columns where 2 are needed: utterance score"),
        ("a.txt", "u1 0.5\nu1 1\n", ", line 2: utterance 'u1' was already in line 1"),
        ("a.txt", "u1 A01 sproof 1\n", ", line 1, column 'label': 'sproof' is not a label"),
        ("a.txt", '/a "b 1\n', ", line 1: not valid CSV"),
        ("a.txt", "one\n", ", line 1: is in no known format of scores (table: "),
        ("a.tsv", "filename\tcm-score\n", ": has no scores"),
        ("a.csv", "id,score\nu,1\n", ", line 1: no column 'utterance'; the header has 'id', 'score'"),
        ("a.csv", "path,score,error\na.wav,,\n", ", line 2, column 'score': '' is not a number"),
        ("a.csv", "path,score,error\na.wav,,broken\n", ": has no scores"),
        ("a.csv", "utterance,label,score\nu,sproof,1\n", ", line 2, column 'label': 'sproof' is not a label"),
        ("a.csv", "utterance;label;score\nu;spoof;0,5\n", ", line 2, column 'score': '0,5' is not a number"),
        ("a.jsonl", '{"path": "u", "score": 1}\n[]\n', ", line 2: not a JSON object"),
        ("a.jsonl", "", ", line 1: no column 'utterance', 'score'"),
        ("a.parquet", "no parquet", ": not valid Parquet"),
    ],
)
def test_faults_are_told_with_their_place(tmp_path, name, text, told):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ScoreError) as error:
        read_scores(path)
    assert str(error.value).startswith(f"{path}{told}")


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    table = ScoreTable([Trial("a b", ""), Trial("c", "")], [1.0, 2.0])
    for name in ("asvspoof2021", "asvspoof5"):
        with pytest.raises(ScoreError, match="'a b' has spaces"):
            write_scores(table, tmp_path / "x", name)
    for path in ("a\nb.wav", "a\r.wav"):
        with pytest.raises(ScoreError, match="line breaks, or is empty, which arena cannot represent"):
            write_scores(ScoreTable([Trial("c", path)], [1.0]), tmp_path / "x", "arena")
    for name in ("asvspoof2019", "asvspoof2021"):
        with pytest.raises(ScoreError, match=f"'a\"' has .*quotation marks.* which {name} cannot represent"):
            write_scores(ScoreTable([Trial('a"', "", 1)], [1.0]), tmp_path / "x", name)
    with pytest.raises(ScoreError, match="needs a label"):
        write_scores(table, tmp_path / "x", "asvspoof2019")
    with pytest.raises(ScoreError, match=r"\.csv, \.tsv or \.parquet"):
        table.write(tmp_path / "x.txt")
    assert not list(tmp_path.iterdir())


IDS = st.lists(st.text("abcé/_-. 1\"'", min_size=1, max_size=8), min_size=1, max_size=6, unique=True)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(IDS, st.data())
def test_arena_files_hold_any_path(tmp_path_factory, paths, data):
    scores = data.draw(st.lists(FLOATS, min_size=len(paths), max_size=len(paths)))
    path = tmp_path_factory.getbasetemp() / "arena.txt"
    write_scores(ScoreTable([Trial(f"u{i}", p, 1) for i, p in enumerate(paths)], scores), path, "arena")
    found = read_scores(path, "arena")
    assert list(found.utterances) == paths
    assert found.scores.tolist() == scores
    with open(path, newline="") as file:
        assert [row[0] for row in csv.reader(file, delimiter=" ")] == paths


WORDS = [b"utterance", b"path", b"label", b"score", b"error", b"cm-score", b"spoof", b"1.5", b"a.wav", b'{"score": 1}']
SOUP = st.lists(st.sampled_from([*WORDS, b",", b";", b"\t", b" ", b"\n", b'"', b"\r"]), max_size=30).map(b"".join)


@settings(deadline=None)
@example(b"\x01\r\x01", "csv")
@example(b"u" * 200_000, "txt")
@given(st.binary(max_size=60) | SOUP, st.sampled_from(["csv", "tsv", "txt", "jsonl", "parquet"]))
def test_any_bytes_give_scores_or_one_line(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"soup.{suffix}"
    path.write_bytes(content)
    result = scores_or_error(path)
    if isinstance(result, InputError):
        assert len(str(result).splitlines()) == 1
    else:
        assert np.isfinite(result.scores).all()


def scores_or_error(path):
    try:
        return read_scores(path)
    except InputError as error:
        return error

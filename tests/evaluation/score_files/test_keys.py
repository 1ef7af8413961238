"""Keys in published formats, and strict joining of scores and keys."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelora_ad.corpora import Trial, TrialList
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreError, Scores, ScoreTable, join_scores, read_key
from moelora_ad.evaluation.score_files.keys import PHASES

LA_2021 = (
    "LA_0009 LA_E_9332881 alaw ita_tx A07 spoof notrim eval\n"
    "LA_0020 LA_E_6866159 alaw loc_tx bonafide bonafide notrim progress\n"
    "LA_0021 LA_E_6866160 none loc_tx bonafide bonafide notrim eval\n"
)
DF_2021 = (
    "LA_0043 DF_E_2000026 mp3m4a asvspoof A09 spoof notrim eval traditional_vocoder - - - -\n"
    "TEF2 DF_E_2000027 low_m4a vcc2020 - bonafide notrim eval - Task1 team20 FF E\n"
)
KEYS = {
    "2019": ("LA_0079 LA_T_1138215 - - bonafide\nLA_0079 LA_T_2 - A01 spoof\n", [("LA_T_1138215", 1), ("LA_T_2", 0)]),
    "2021_LA": (LA_2021, [("LA_E_9332881", 0), ("LA_E_6866160", 1)]),
    "2021_DF": (DF_2021, [("DF_E_2000026", 0), ("DF_E_2000027", 1)]),
    "asvspoof5": ("E_1607 E_0009538969 M - - - - bonafide bonafide -\nE_2 E_3 F C01 1 2 - A17 spoof -\n", None),
    "asvspoof5_key": ("filename\tcm-label\nE_1\tspoof\nE_2\tbonafide\n", [("E_1", 0), ("E_2", 1)]),
    "arena": ("file_name,label\n/a/b.wav,spoof\n/a/c.wav,bonafide\n", [("/a/b.wav", 0), ("/a/c.wav", 1)]),
    "manifest": ("path,label\nd/b.wav,spoof\nd/c.wav,bonafide\n", [("d/b", 0), ("d/c", 1)]),
    "table": ("utterance,label,attack\nu1,spoof,A09\nu2,genuine,\n", [("u1", 0), ("u2", 1)]),
}
KEYS |= {
    "six columns": ("- 0.wav - - - spoof\n- 1.wav - - - bonafide\n", [("0.wav", 0), ("1.wav", 1)]),
    "laundered": (
        "LA_1 LA_E_1 A11 spoof Filtering lpf\nLA_1 LA_E_2 - bonafide Filtering lpf\n",
        [("LA_E_1", 0), ("LA_E_2", 1)],
    ),
    "two columns": ("a.wav genuine\nb.wav\tfake\n", [("a.wav", 1), ("b.wav", 0)]),
    "three columns": ("a.wav real 0\nb.wav fake 1\n", [("a.wav", 1), ("b.wav", 0)]),
    "in the wild": ('file,speaker,label\n0.wav,"Smith, J.",spoof\n1.wav,B,bona-fide\n', [("0", 0), ("1", 1)]),
    "in the wild of a spreadsheet": (
        "file;speaker;label\n0.wav;A, B;spoof\n1.wav;C;real\n",
        [("0.wav", 0), ("1.wav", 1)],
    ),
    "semicolons": ('"utterance";"label"\nu1;spoof\nu2;real\n', [("u1", 0), ("u2", 1)]),
    "manifest of a spreadsheet": ("path;label\na/b.wav;spoof\na/c.wav;real\n", [("a/b", 0), ("a/c", 1)]),
    "files": ("filename,label\na.wav,Fake\nb.wav,Real\n", [("a.wav", 0), ("b.wav", 1)]),
}
KEYS["asvspoof5"] = (KEYS["asvspoof5"][0], [("E_0009538969", 1), ("E_3", 0)])


@pytest.mark.parametrize("name", KEYS)
def test_official_keys_are_known_by_their_content(tmp_path, name):
    text, wanted = KEYS[name]
    (tmp_path / "key").write_text(text)
    trials = read_key(tmp_path / "key")
    assert [(trial.utterance, trial.label) for trial in trials] == wanted


AV = "source,target1,target2,method,category,type,race,gender,{}\n"
AV_ROW = "id1,-,-,{},{},{},African,men,{}.mp4,{}/{}/African/men/id1\n"
AV_KINDS = (
    ("real", "A", "RealVideo-RealAudio"),
    ("rtvc", "B", "RealVideo-FakeAudio"),
    ("fsgan", "C", "FakeVideo-RealAudio"),
)


@pytest.mark.parametrize(("header", "top"), [("path,", "FakeAVCeleb"), ("filename,path", "FakeAVCeleb_v1.2")])
@pytest.mark.parametrize(("phase", "labels"), [(None, [1, 0, 1]), ("all", [1, 0, 1]), ("a_vs_b", [1, 0])])
def test_fakeavcelebs_list_is_a_key_by_each_of_its_lists(tmp_path, header, top, phase, labels):
    rows = (AV_ROW.format(*kind, i, top, kind[2]) for i, kind in enumerate(AV_KINDS))
    (tmp_path / "meta_data.csv").write_text(AV.format(header) + "".join(rows))
    trials = read_key(tmp_path / "meta_data.csv", phase)
    assert trials.labels.tolist() == labels
    assert trials[1].utterance == "RealVideo-FakeAudio/African/men/id1/1"
    assert trials[1].corpus == f"FakeAVCeleb_{phase or 'all'}"
    with pytest.raises(ScoreError, match="phase 'hidden' is not one of all, a_vs_fake, a_vs_b"):
        read_key(tmp_path / "meta_data.csv", "hidden")


def test_fields_of_protocols_without_a_header(tmp_path):
    (tmp_path / "key").write_text("S1 u1 - x A07 spoof\nS2 u2 - x - bonafide\n")
    first, second = read_key(tmp_path / "key")
    assert (first.speaker, first.attack, first.corpus) == ("S1", "A07", "key")
    assert (second.speaker, second.attack) == ("S2", None)


def test_json_lines_are_keys(tmp_path):
    (tmp_path / "key.jsonl").write_text('{"utterance": "u1", "label": "fake"}\n\n{"utterance": 2, "label": "real"}\n')
    assert [(t.utterance, t.label) for t in read_key(tmp_path / "key.jsonl")] == [("u1", 0), ("2", 1)]
    (tmp_path / "list.jsonl").write_text('{"path": "a/u1.wav", "label": "fake"}\n')
    (trial,) = read_key(tmp_path / "list.jsonl")
    assert (trial.utterance, trial.audio) == ("a/u1", str(tmp_path / "a/u1.wav"))


def test_a_list_with_ids_is_the_key_of_the_scores_of_its_files(tmp_path):
    (tmp_path / "list.csv").write_text("utterance,path,label\nu1,in/b.wav,spoof\nu2,in/a.wav,bonafide\nu3,,spoof\n")
    trials = read_key(tmp_path / "list.csv")
    assert [(trial.utterance, trial.audio) for trial in trials][2] == ("u3", "")
    found = join_scores(
        Scores([str(tmp_path / "in" / name) for name in ("a.wav", "b.wav")], np.array([1.0, 2.0])), trials, True
    )
    assert ([trial.utterance for trial in found.table.trials], [*found.table.scores]) == (["u1", "u2"], [2.0, 1.0])


def test_fields_of_keys_and_other_phases(tmp_path):
    (tmp_path / "key").write_text(LA_2021)
    (trial,) = read_key(tmp_path / "key", "progress")
    assert (trial.utterance, trial.speaker, trial.codec) == ("LA_E_6866159", "LA_0020", "alaw")
    assert len(read_key(tmp_path / "key", "all")) == 3
    (tmp_path / "table.tsv").write_text("utterance\tlabel\tattack\tcorpus\nu1\tspoof\tA09\tX\n")
    (trial,) = read_key(tmp_path / "table.tsv")
    assert (trial.attack, trial.corpus, trial.speaker) == ("A09", "X", None)


def test_a_score_table_is_a_key(tmp_path):
    trials = [Trial("u1", "", 1, "s1"), Trial("u2", "", 0, attack="A01")]
    for suffix in ("csv", "parquet"):
        ScoreTable(trials, [1.0, 2.0]).write(tmp_path / f"key.{suffix}")
        read = read_key(tmp_path / f"key.{suffix}")
        assert [(t.utterance, t.label, t.attack) for t in read] == [("u1", 1, None), ("u2", 0, "A01")]


@pytest.mark.parametrize(
    ("text", "phase", "told"),
    [
        ("", "eval", "is not a key; accepted are"),
        ("what is this\n", "eval", "is not a key; accepted are"),
        ("name,label\nu,spoof\n", "eval", "no column 'utterance'"),
        (LA_2021, "evil", "phase 'evil' is not one of eval, progress"),
        ("utterance,label\nu,spof\n", "eval", "line 2, column 'label': 'spof' is not a label"),
        ("- 0.wav - - - spoof\n- 1.wav - - - spof\n", None, "line 2, column 'label': 'spof' is not a label"),
        ("- 0.wav - - - spoof\n- 1.wav - - spoof\n", None, "line 2: 5 columns where 6 are needed"),
        ("a spoof\na real\n", None, "line 2: utterance 'a' was already in line 1"),
        (LA_2021, "a_vs_b", "phase 'a_vs_b' is not one of eval, progress, hidden, all"),
    ],
)
def test_faulty_keys_are_told(tmp_path, text, phase, told):
    (tmp_path / "key").write_text(text)
    with pytest.raises(ValueError, match=told) as error:
        read_key(tmp_path / "key", phase)
    assert len(str(error.value).splitlines()) == 1


def key(*utterances):
    return TrialList(Trial(u, "", i % 2, attack="A01" if i % 2 == 0 else None) for i, u in enumerate(utterances))


@given(st.permutations(list(range(7))), st.sets(st.integers(0, 6)), st.integers(0, 3))
def test_joining_equals_a_dictionary(order, left_out, num_extra):
    scores = {f"u{i}": float(i) for i in order if i not in left_out} | {f"x{i}": 9.0 for i in range(num_extra)}
    trials = key(*(f"u{i}" for i in range(7)))
    given_scores = Scores(list(scores), np.array(list(scores.values())))
    wanted = [t for t in trials if t.utterance in scores]
    if left_out or num_extra:
        with pytest.raises(ScoreError):
            join_scores(given_scores, trials)
    if wanted:
        table, missing, extra, note = join_scores(given_scores, trials, allow_partial=True)
        assert list(table.trials) == wanted
        assert table.scores.tolist() == [scores[t.utterance] for t in wanted]
        assert (missing, extra, note) == (len(left_out), num_extra, None)


def test_what_differs_is_counted_and_named():
    trials = key(*(f"u{i}" for i in range(9)))
    with pytest.raises(ScoreError) as error:
        join_scores(Scores(["u1", "x1"], np.zeros(2)), trials)
    assert str(error.value) == (
        "8 of 9 trials of the key without a score: u0, u2, u3, u4, u5, ...; 1 of 2 scores not of the key: x1; "
        "give --allow-partial to use the trials that both have"
    )
    with pytest.raises(ScoreError, match="is it the key of another set"):
        join_scores(Scores(["x1"], np.zeros(1)), trials, allow_partial=True)
    with pytest.raises(ScoreError, match="the ids differ in folders or endings"):
        join_scores(Scores(["a/u1.flac", "b/u1.flac"], np.zeros(2)), trials)


def test_labels_that_contradict_the_key_are_refused():
    mine = ScoreTable([Trial("u0", "", 1), Trial("u1", "", None)], [1.0, 2.0])
    with pytest.raises(ScoreError, match="against the key: 1 label in the scores, u0"):
        join_scores(mine, key("u0", "u1"))
    right = mine.select(np.array([1]))
    assert join_scores(right, key("u0", "u1"), allow_partial=True).table.labels.tolist() == [1]


def test_a_real_protocol_of_the_quickstart(tmp_path, quickstart):
    protocol = quickstart / "corpus/MiniLA/protocols/MiniLA.cm.dev.trl.txt"
    rows = [line.split() for line in protocol.read_text().splitlines()]
    with open(tmp_path / "scores.txt", "w", newline="") as file:
        csv.writer(file, delimiter=" ").writerows((row[1], i) for i, row in enumerate(reversed(rows)))
    trials = read_key(protocol)
    assert (trials.num_bona_fide, trials.num_spoof) == (44, 66)
    table = join_scores(Scores([row[1] for row in reversed(rows)], np.arange(len(rows))), trials).table
    assert table.scores.tolist() == list(range(len(rows)))[::-1]


WORDS = ["a", "b.wav", "-", "spoof", "real", "LA_1", "LA_E_1", "DF_E_1", "eval", " ", "\t", "\n", ",", ";", '"', "\r"]
HEADERS = ["utterance,label", "path,label", "file,speaker,label", "file_name,label", "path;label", "filename\tcm-label"]
START = st.sampled_from(["", *(f"{header}\n" for header in HEADERS), AV.format("path,"), AV.format("filename,path")])
TEXT = st.lists(st.sampled_from(WORDS), max_size=40).map("".join)


@settings(deadline=None)
@given(
    START,
    TEXT | st.text(max_size=30),
    st.sampled_from(["txt", "csv", "tsv", "jsonl", "parquet"]),
    st.sampled_from([None, *PHASES]),
)
def test_any_text_is_a_key_or_one_line(tmp_path_factory, start, text, suffix, phase):
    path = tmp_path_factory.getbasetemp() / f"soup_key.{suffix}"
    path.write_text(start + text, newline="", encoding="utf-8", errors="replace")
    trials = trials_or_error(path, phase)
    if isinstance(trials, InputError):
        assert len(str(trials).splitlines()) == 1
    else:
        assert len(trials) >= 1


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["spoof", "fake", "real", "genuine"]), st.text("ab1", min_size=1)),
        min_size=1,
        unique_by=lambda row: row[1],
    )
)
def test_protocols_are_read_whatever_their_columns(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "protocol.txt"
    wanted = [(utterance, int(label in ("real", "genuine"))) for label, utterance in rows]
    for layout in ("{1} {0}", "{1}\t{0} 7", "- {1} - - - {0}", "- {1} - {0}", "s {1} x A1 {0} y", "- {1} - - - - {0}"):
        path.write_text("".join(layout.format(*row) + "\n" for row in rows))
        assert [(trial.utterance, trial.label) for trial in read_key(path)] == wanted


def trials_or_error(path, phase):
    try:
        return read_key(path, phase)
    except InputError as error:
        return error

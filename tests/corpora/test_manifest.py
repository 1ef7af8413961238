import csv
import io
import itertools
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelora_ad.corpora import Manifest, ProtocolError, Trial

FULL = """\
path,label,utterance,speaker,attack,codec,split,language
a/1.wav,bona-fide,one,"Obama, Barack",,opus,eval,en
a/2.wav,Fake,two,Ü,A01,-,dev,
/abs/3.mp3,,,,,,,
"""


def manifest(tmp_path, text, **arguments):
    path = tmp_path / "mine.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Manifest(path, **arguments)


def told(tmp_path, text, **arguments):
    with pytest.raises(ProtocolError) as error:
        manifest(tmp_path, text, **arguments).trials()
    (line,) = str(error.value).splitlines()
    return line.removeprefix(str(tmp_path / "mine.csv"))


@pytest.mark.parametrize("text", [FULL, "\ufeff" + FULL, FULL.replace("\n", "\r\n")])
def test_every_column_finds_its_field(tmp_path, text):
    assert list(manifest(tmp_path, text).trials()) == [
        Trial("one", str(tmp_path / "a/1.wav"), 1, "Obama, Barack", None, "opus", "mine", "eval", language="en"),
        Trial("two", str(tmp_path / "a/2.wav"), 0, "Ü", "A01", None, "mine", "dev"),
        Trial("/abs/3", "/abs/3.mp3", None, None, None, None, "mine", None),
    ]


def test_path_alone_is_enough_and_other_columns_are_ignored(tmp_path):
    trials = manifest(tmp_path, "room,path,duration,\nA, x/a.b.flac ,3.1,\n\nB,y/noending,2,0\n").trials()
    assert [trial.utterance for trial in trials] == ["x/a.b", "y/noending"]
    assert [trial.label for trial in trials] == [None, None]
    assert trials[0].audio == str(tmp_path / "x/a.b.flac")


@pytest.mark.parametrize(
    ("rows", "ids"),
    [
        (["a.wav", "a.mp3", "a.opus", "b.wav"], ["a.wav", "a.mp3", "a.opus", "b"]),
        (["spk.001", "spk.002", "spk.003.wav"], ["spk.001", "spk.002", "spk.003"]),
        (["x/a.WAV", "y/a.wav", "x/a.v2.flac"], ["x/a", "y/a", "x/a.v2"]),
        (["a", "a.wav", "b.wav"], ["a", "a.wav", "b"]),
        (["a.wav.flac", "a.wav"], ["a.wav.flac", "a"]),
        (["b.wav,a", "a.wav,", "c.wav,"], ["a", "a.wav", "c"]),
        (["b.wav,a.wav", "a.wav.mp3,"], ["a.wav", "a.wav.mp3"]),
    ],
)
def test_ids_have_no_ending_where_that_is_unique(tmp_path, rows, ids):
    header = "path,utterance" if "," in rows[0] else "path"
    for order in itertools.permutations(range(len(rows))):
        trials = manifest(tmp_path, "\n".join([header, *(rows[i] for i in order)]) + "\n").trials()
        assert [trial.utterance for trial in trials] == [ids[i] for i in order]


def test_an_id_is_the_same_whichever_split_is_read(tmp_path):
    text = "path,split\na.wav,dev\na.mp3,eval\nb.wav,dev\nb.wav,eval\n"
    assert [trial.utterance for trial in manifest(tmp_path, text, split="dev").trials()] == ["a.wav", "b"]
    assert [trial.utterance for trial in manifest(tmp_path, text, split="eval").trials()] == ["a.mp3", "b"]


PATHS = st.lists(st.sampled_from(["a", "b/a", "a.wav", "a.flac", "a.wav.mp3", "a.x", "b/a.WAV", ".wav"]), min_size=1)


@settings(deadline=None)
@given(PATHS, st.data())
def test_different_paths_are_never_repeated_and_the_same_always(tmp_path_factory, paths, data):
    result = trials_or_error(manifest(tmp_path_factory.getbasetemp(), "\n".join(["path", *paths]) + "\n"))
    if len(set(paths)) < len(paths):
        assert "was already in line" in str(result)
    else:
        assert all(trial.audio.endswith(path) for trial, path in zip(result, paths, strict=True))
        assert all(path.startswith(id_) for path, id_ in zip(paths, ids(result), strict=True))
        shuffled = data.draw(st.permutations(paths))
        other = trials_or_error(manifest(tmp_path_factory.getbasetemp(), "\n".join(["path", *shuffled]) + "\n"))
        assert dict(zip(shuffled, ids(other), strict=True)) == dict(zip(paths, ids(result), strict=True))


def ids(trials):
    return [trial.utterance for trial in trials]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_spreadsheets_and_databases_write_other_delimiters(tmp_path, delimiter):
    assert list(manifest(tmp_path, FULL.replace('"Obama, Barack"', "Obama").replace(",", delimiter)).trials()) == list(
        manifest(tmp_path, FULL.replace('"Obama, Barack"', "Obama")).trials()
    )


def test_name_and_root(tmp_path):
    corpus = manifest(tmp_path, "path\na.wav\n", name="Mine", root="/data/mine")
    (trial,) = corpus.trials()
    assert (corpus.name, trial.corpus, trial.audio) == ("Mine", "Mine", "/data/mine/a.wav")
    assert manifest(tmp_path, "path\na.wav\n").name == "mine"


def test_split_takes_its_lines_only(tmp_path):
    text = "path,split\na.wav,dev\nb.wav,eval\nc.wav,dev\n"
    trials = manifest(tmp_path, text, split="dev").trials()
    assert [trial.utterance for trial in trials] == ["a", "c"]
    assert {trial.split for trial in trials} == {"dev"}
    assert len(manifest(tmp_path, text).trials()) == 3


def test_a_quoted_field_over_two_lines_does_not_shift_the_line_numbers(tmp_path):
    text = 'path,label,note\na.wav,real,"two\nlines"\nb.wav,reel,x\n'
    assert told(tmp_path, text).startswith(", line 4, column 'label': 'reel' is not a label; accepted are bonafide,")


REPEATED = "; if both are trials, give them different ids in the column 'utterance'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": is empty; the first line must name the columns"),
        ("path,label\n", ": has no trials"),
        ("file,label\na.wav,real\n", ", line 1: no column 'path'; the header has 'file', 'label'"),
        ("path,lable\na.wav,real\n", ", line 1: column 'lable' is unknown; did you mean 'label'?"),
        ("Path,label\na.wav,real\n", ", line 1: column 'Path' is unknown; did you mean 'path'?"),
        ("path,atack\na.wav,A01\n", ", line 1: column 'atack' is unknown; did you mean 'attack'?"),
        ("path,label,label\na.wav,real,real\n", ", line 1: column 'label' occurs 2 times"),
        ("path,label\na.wav\n", ", line 2: 1 fields where the header has 2"),
        ("path,label\na.wav,real\nb.wav,real,x\n", ", line 3: 3 fields where the header has 2"),
        ("path,label\n,real\n", ", line 2, column 'path': is empty"),
        ("path\na.wav\na.wav\n", f", line 3: utterance 'a' was already in line 2{REPEATED}"),
        ("path,utterance\na.wav,u\nb.wav,u\n", f", line 3: utterance 'u' was already in line 2{REPEATED}"),
        (
            "path,utterance\na.wav,\nb.wav,a.wav\nc.wav,a\n",
            f", line 3: utterance 'a.wav' was already in line 2{REPEATED}",
        ),
        (b"path\na.wav\n\xe4.wav\n", ", line 3: not UTF-8 text at byte 11"),
        (b"path\na\0.wav\n", ", line 2: not a text file: NUL at byte 6"),
        ('path\n"a.wav\n', ", line 2: not valid CSV: unexpected end of data"),
        ('path\n"a"b.wav\n', ", line 2: not valid CSV: ',' expected after '\"'"),
    ],
)
def test_faults_are_told_with_line_and_column(tmp_path, text, message):
    assert told(tmp_path, text) == message


def test_a_column_beside_the_one_it_resembles_is_just_another_column(tmp_path):
    (trial,) = manifest(tmp_path, "path,codec,codec_q,speaker,speaker_id\na.wav,opus,5,Ann,7\n").trials()
    assert (trial.codec, trial.speaker) == ("opus", "Ann")


def test_a_split_without_lines_names_those_there_are(tmp_path):
    text = "path,split\na.wav,dev\nb.wav,eval\nc.wav,\n"
    assert told(tmp_path, text, split="test") == ", column 'split': no line has the split 'test'; it has 'dev', 'eval'"
    assert told(tmp_path, "path\na.wav\n", split="test").endswith("no line has the split 'test'; it has none")


def test_an_archive_in_place_of_a_manifest_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "calls.zip", "w") as archive:
        archive.writestr("in/list.csv", "path\na.wav\n")
    with pytest.raises(ProtocolError, match=r"calls\.zip: an archive or .*, not a file; a file in it is .*\.zip!/NAME"):
        Manifest(tmp_path / "calls.zip").trials()
    (trial,) = Manifest(f"{tmp_path}/calls.zip!/in/list.csv").trials()
    assert trial.audio == f"{tmp_path}/calls.zip!/in/a.wav"


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(ProtocolError, match=r"none\.csv: no such file"):
        Manifest(tmp_path / "none.csv").trials()


HEADER = st.sampled_from([b"path,label\n", b"path,label,utterance,split\n", b"path\n", b""])
WORDS = st.lists(
    st.sampled_from([b"a", b".", b"..", b"/", b",", b'"', b"\n", b"\r", b"real", b"\0", b"\xc3\xa9", b"\xff"])
)


def trials_or_error(corpus):
    try:
        return corpus.trials()
    except ProtocolError as error:
        return error


@settings(deadline=None)
@given(HEADER, st.binary(max_size=50) | WORDS.map(b"".join), st.sampled_from([None, "a"]))
def test_any_bytes_give_trials_or_a_protocol_error(tmp_path_factory, header, rest, split):
    folder = tmp_path_factory.getbasetemp()
    result = trials_or_error(manifest(folder, header + rest, split=split))
    if isinstance(result, ProtocolError):
        assert len(str(result).splitlines()) == 1
    else:
        assert len(result) >= 1
        assert all(trial.split == split or split is None for trial in result)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).map(str.strip).filter(bool)


@settings(deadline=None)
@given(st.lists(st.tuples(TEXT, st.sampled_from([0, 1]), TEXT), min_size=1, unique_by=lambda row: row[0]))
def test_whatever_a_csv_writer_wrote_is_read_back(tmp_path_factory, rows):
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)
    writer.writerow(["utterance", "label", "speaker", "path"])
    writer.writerows([utterance, ("spoof", "bonafide")[label], speaker, "x.wav"] for utterance, label, speaker in rows)
    trials = manifest(tmp_path_factory.getbasetemp(), file.getvalue()).trials()
    read = [(trial.utterance, trial.label, trial.speaker or "-") for trial in trials]
    assert read == rows

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelora_ad.corpora import ASVspoof2019, ASVspoof2019Protocol, ProtocolError, StorageError, Trial

LINES = """\
LA_0079 LA_T_1138215 - - bonafide
LA_0079 LA_T_1271820 - A01 spoof
LA_0080 LA_T_1272637 - A06 spoof
"""


def protocol(tmp_path, text, **arguments):
    path = tmp_path / "protocol.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return ASVspoof2019Protocol(name="Mini", protocol=path, audio=tmp_path / "flac", **arguments)


def only_line(error):
    (line,) = str(error.value).splitlines()
    return line


def test_every_column_finds_its_field(tmp_path):
    first, second, third = protocol(tmp_path, LINES, split="train").trials()
    folder = tmp_path / "flac"
    assert first == Trial(
        "LA_T_1138215", str(folder / "LA_T_1138215.flac"), 1, "LA_0079", None, None, corpus="Mini", split="train"
    )
    assert second == Trial(
        "LA_T_1271820", str(folder / "LA_T_1271820.flac"), 0, "LA_0079", "A01", None, corpus="Mini", split="train"
    )
    assert (third.speaker, third.attack) == ("LA_0080", "A06")


def test_extension_and_no_split(tmp_path):
    trial = protocol(tmp_path, LINES, extension=".wav").trials()[0]
    assert trial.audio.endswith("flac/LA_T_1138215.wav")
    assert trial.split is None


@pytest.mark.parametrize(
    "text", [LINES.replace("\n", "\r\n"), "\ufeff" + LINES, LINES.rstrip() + "\n\n \n", LINES.rstrip()]
)
def test_line_endings_byte_order_mark_and_blank_lines(tmp_path, text):
    assert list(protocol(tmp_path, text).trials()) == list(protocol(tmp_path, LINES).trials())


def test_the_files_are_read_when_trials_is_called(tmp_path):
    corpus = ASVspoof2019Protocol("Mini", tmp_path / "later.txt", tmp_path)
    with pytest.raises(ProtocolError) as error:
        corpus.trials()
    assert only_line(error) == f"{tmp_path / 'later.txt'}: no such file; check the path"
    (tmp_path / "later.txt").write_text(LINES)
    assert len(corpus.trials()) == 3


def test_a_relative_path_that_is_missing_is_told_with_the_folder_it_was_seen_from(tmp_path, monkeypatch):
    """The configuration of a run has paths as they were given where it was trained; it may be read elsewhere."""
    monkeypatch.chdir(tmp_path)
    seen = f"(seen from {tmp_path}; paths of a run count from the folder that it was trained in); check the path"
    with pytest.raises(ProtocolError) as error:
        ASVspoof2019Protocol("Mini", "later.txt", "data").trials()
    assert only_line(error).startswith(f"later.txt: no such file {seen}")
    with pytest.raises(StorageError) as error:
        ASVspoof2019("data/LA", "dev").trials()
    assert only_line(error).startswith("data/LA: ")
    assert f"(seen from {tmp_path};" in only_line(error)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a b - - bonafide\na c - spoof\n", "line 2: 4 columns where 5 are needed"),
        ("a b - - bonafide x\n", "line 1: 6 columns where 5 are needed"),
        ("\n\na b - - bonafied\n", "line 3, column 'label': 'bonafied' is not a label; accepted are bonafide,"),
        ("a u - - bonafide\nb v - A1 spoof\nc u - A1 spoof\n", "line 3: utterance 'u' was already in line 1"),
        ("", "has no trials"),
        ("\n \n", "has no trials"),
        (b"a b - - bonafide\na \xff - - bonafide\n", "line 2: not UTF-8 text at byte 19"),
        ("a b - - bona\0fide\n", "line 1: not a text file: NUL at byte 12"),
        (LINES.encode("utf-16"), "line 1: not UTF-8 text at byte 0"),
    ],
)
def test_faults_are_told_with_file_and_line(tmp_path, text, told):
    with pytest.raises(ProtocolError) as error:
        protocol(tmp_path, text).trials()
    line = only_line(error)
    assert line.startswith(f"{tmp_path / 'protocol.txt'}")
    assert told in line


def test_a_folder_is_no_protocol(tmp_path):
    with pytest.raises(ProtocolError, match="cannot be read: Is a directory"):
        ASVspoof2019Protocol("Mini", tmp_path, tmp_path).trials()


WORDS = st.sampled_from(
    ["u", "v", "-", "A01", "bonafide", "spoof", "Real", " ", "\t", "\n", "\r", "\r\n", "\x1c", "\0", "é"]
)


def trials_or_error(corpus):
    try:
        return corpus.trials()
    except ProtocolError as error:
        return error


@settings(deadline=None)
@given(st.binary(max_size=60) | st.lists(WORDS, max_size=40).map(lambda words: " ".join(words).encode()))
def test_any_bytes_give_trials_or_a_protocol_error(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    result = trials_or_error(protocol(folder, data))
    if isinstance(result, ProtocolError):
        assert len(str(result).splitlines()) == 1
    else:
        assert 1 <= len(result) <= data.count(b"\n") + 1
        assert all(trial.label in (0, 1) and trial.utterance.encode() in data for trial in result)


FILES = {"train": ("train.trn", "T"), "dev": ("dev.trl", "D"), "eval": ("eval.trl", "E")}


def official(folder, access):
    """Writes the official layout with one trial in each split."""
    protocols = folder / access / f"ASVspoof2019_{access}_cm_protocols"
    protocols.mkdir(parents=True)
    for ending, letter in FILES.values():
        text = f"{access}_0001 {access}_{letter}_1 aaa AB spoof\n"
        (protocols / f"ASVspoof2019.{access}.cm.{ending}.txt").write_text(text)


@pytest.mark.parametrize("access", ["LA", "PA"])
@pytest.mark.parametrize("split", ["train", "dev", "eval"])
@pytest.mark.parametrize("inside", [False, True])
def test_the_official_distribution_from_either_folder(tmp_path, access, split, inside):
    official(tmp_path, access)
    corpus = ASVspoof2019(tmp_path / access if inside else str(tmp_path), split, access)
    (trial,) = corpus.trials()
    name = f"{access}_{FILES[split][1]}_1"
    assert trial.utterance == name
    assert trial.audio == str(tmp_path / access / f"ASVspoof2019_{access}_{split}" / "flac" / f"{name}.flac")
    assert (trial.label, trial.attack, trial.codec) == (0, "AB", None)
    assert (trial.split, trial.corpus, corpus.name) == (split, f"ASVspoof2019_{access}", f"ASVspoof2019_{access}")


def test_a_wrong_root_says_what_was_looked_for(tmp_path):
    official(tmp_path, "PA")
    corpus = ASVspoof2019(tmp_path, "dev")
    with pytest.raises(StorageError) as error:
        corpus.trials()
    line = only_line(error)
    assert line.startswith(str(tmp_path))
    assert "neither LA/ASVspoof2019_LA_cm_protocols nor ASVspoof2019_LA_cm_protocols" in line
    assert "LA.zip" in line


def test_an_incomplete_distribution_names_the_missing_protocol(tmp_path):
    official(tmp_path, "LA")
    missing = tmp_path / "LA/ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.eval.trl.txt"
    missing.unlink()
    with pytest.raises(ProtocolError, match=re.escape(str(missing))):
        ASVspoof2019(tmp_path, "eval").trials()


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    official(tmp_path / "data", "LA")
    (trial,) = ASVspoof2019("~/data", "dev").trials()
    assert trial.audio.startswith(str(tmp_path / "data"))

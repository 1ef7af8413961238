import csv

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelora_ad import corpora
from moelora_ad.corpora import (
    ASVspoof5,
    ASVspoof2021DF,
    ASVspoof2021LA,
    FakeAVCeleb,
    InTheWild,
    ProtocolError,
    StorageError,
)

LA = """\
LA_0009 LA_E_1 alaw ita_tx A07 spoof notrim eval
LA_0010 LA_E_2 none - bonafide bonafide notrim progress
LA_0011 LA_E_3 gsm sin_tx A08 spoof notrim hidden_track
LA_0012 LA_E_4 gsm sin_tx A08 spoof notrim hidden
"""
DF = "LA_0043 DF_E_1 mp3m4a vcc2020 Task1-team20 spoof trim eval{}\nL DF_E_2 nocodec asvspoof - bonafide trim eval{}\n"
V5 = "D_4461 D_0000000169 F - - - AC1 A14 spoof -\nD_1 D_2 M C05 3 9 - bonafide bonafide -\n"
AV = "source,target1,target2,method,category,type,race,gender"
AV_ROWS = [
    ("id1", "real", "A", "RealVideo-RealAudio", "African", "men", "1.mp4"),
    ("id1", "rtvc", "B", "RealVideo-FakeAudio", "African", "men", "2.mp4"),
    ("id1", "faceswap", "C", "FakeVideo-RealAudio", "African", "men", "3.mp4"),
    ("id1", "fsgan", "D", "FakeVideo-FakeAudio", "African", "men", "4.mp4"),
    ("id1", "fsgan", "D", "FakeVideo-FakeAudio", "African", "men", "4.mp4"),
]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def fakeavceleb(folder, top, rows=AV_ROWS):
    old = top == "FakeAVCeleb"
    lines = [AV + (",path," if old else ",filename,path")]
    for source, method, category, kind, race, gender, file in rows:
        place = f"{top}/{kind}/{race}/{gender}/{source}"
        lines.append(f"{source},-,-,{method},{category},{kind},{race},{gender},{file},{place}")
    write(folder / "meta_data.csv", "\n".join(lines))


@pytest.mark.parametrize(("phase", "ids"), [("eval", "1"), ("progress", "2"), ("hidden", "34"), ("all", "1234")])
@pytest.mark.parametrize("place", ["keys/LA/CM", "keys/CM"])
def test_asvspoof2021_la(tmp_path, phase, ids, place):
    write(tmp_path / place / "trial_metadata.txt", LA)
    trials = ASVspoof2021LA(tmp_path, phase).trials()
    assert [trial.utterance for trial in trials] == [f"LA_E_{i}" for i in ids]
    assert all(phase in ("all", trial.split) for trial in trials)
    assert trials[0].audio == str(tmp_path / "ASVspoof2021_LA_eval/flac" / f"LA_E_{ids[0]}.flac")
    if phase == "all":
        assert (trials[0].codec, trials[0].transmission, trials[0].attack, trials[0].label) == (
            "alaw",
            "ita_tx",
            "A07",
            0,
        )
        assert (trials[1].transmission, trials[1].attack, trials[1].label) == (None, None, 1)


@pytest.mark.parametrize("more", ["", " traditional_vocoder - - - -"])
def test_asvspoof2021_df_in_both_generations_of_keys(tmp_path, more):
    keys = write(tmp_path / "mine.txt", DF.format(more, more))
    first, second = ASVspoof2021DF(tmp_path, keys=keys).trials()
    assert (first.codec, first.source, first.attack, first.split) == ("mp3m4a", "vcc2020", "Task1-team20", "eval")
    assert (second.label, second.attack, second.corpus) == (1, None, "ASVspoof2021_DF")


def test_asvspoof2021_faults(tmp_path):
    with pytest.raises(StorageError, match="LA-keys-full"):
        ASVspoof2021LA(tmp_path).trials()
    keys = write(tmp_path / "k", LA.replace("progress", "later"))
    with pytest.raises(ProtocolError, match=r"line 2, column 'phase': 'later' is none of eval"):
        ASVspoof2021LA(tmp_path, keys=keys).trials()
    with pytest.raises(ProtocolError, match=r"line 1, column 'trial': 'LA_E_1' is no trial of ASVspoof2021_DF"):
        ASVspoof2021DF(tmp_path, keys=keys).trials()


def test_asvspoof5(tmp_path):
    write(tmp_path / "ASVspoof5.dev.track_1.tsv", V5)
    first, second = ASVspoof5(tmp_path, "dev").trials()
    assert first.audio == str(tmp_path / "flac_D/D_0000000169.flac")
    assert (first.label, first.attack, first.codec, first.gender) == (0, "A14", None, "F")
    assert (second.label, second.attack, second.codec, second.split) == (1, None, "C05", "dev")


@pytest.mark.parametrize("folder", ["", "release_in_the_wild"])
def test_in_the_wild(tmp_path, folder):
    write(tmp_path / folder / "meta.csv", 'file,speaker,label\n0.wav,"Obama, Barack",spoof\n1.wav,A B,bona-fide\n')
    first, second = InTheWild(tmp_path).trials()
    assert (first.utterance, first.speaker, first.label) == ("0", "Obama, Barack", 0)
    assert (second.audio, second.label) == (str(tmp_path / folder / "1.wav"), 1)


@pytest.mark.parametrize("top", ["FakeAVCeleb", "FakeAVCeleb_v1.2"])
@pytest.mark.parametrize(("name", "labels"), [("all", [1, 0, 1, 0]), ("a_vs_fake", [1, 0, 0]), ("a_vs_b", [1, 0])])
def test_fakeavceleb(tmp_path, top, name, labels):
    fakeavceleb(tmp_path, top)
    trials = FakeAVCeleb(tmp_path, name).trials()
    assert trials.labels.tolist() == labels
    assert trials[1].audio == str(tmp_path / "RealVideo-FakeAudio/African/men/id1/2.mp4")
    assert (trials[0].attack, trials[1].attack) == (None, "rtvc")
    assert (trials[1].source, trials[1].race, trials[1].gender) == ("id1", "African", "men")
    assert trials[1].corpus == f"FakeAVCeleb_{name}"


def test_fakeavceleb_rows_of_one_file_must_agree(tmp_path):
    other = ("id1", "wav2lip", *AV_ROWS[3][2:])
    fakeavceleb(tmp_path, "FakeAVCeleb", [*AV_ROWS, other])
    with pytest.raises(ProtocolError, match=r"line 7: utterance .* was already in line 5"):
        FakeAVCeleb(tmp_path).trials()


def test_listed_sets(tmp_path):
    write(tmp_path / "metadata/train.csv", "file,speaker,attack\na00/i/1.flac,i,a00\na06/i/2.flac,i,a06\n")
    first, second = corpora.SpoofCeleb(tmp_path, "train").trials()
    assert (first.label, first.attack, first.speaker, second.label, second.attack) == (1, None, "i", 0, "a06")
    assert first.audio == str(tmp_path / "flac/train/a00/i/1.flac")
    write(tmp_path / "label.txt", "x.wav genuine\ny.wav fake\n")
    add = corpora.ADD(tmp_path, "ADD2023").trials()
    assert (add.labels.tolist(), add[0].audio, add[0].corpus) == ([1, 0], str(tmp_path / "wav/x.wav"), "ADD2023")
    write(tmp_path / "audio-metadata-publish.csv", "Filename,Ground Truth,Other\na.mp3,Real,\nb.mp3,Fake,\n")
    long = corpora.DeepfakeEval2024(tmp_path).trials()
    assert (long.labels.tolist(), long[1].audio) == ([1, 0], str(tmp_path / "audio-data/b.mp3"))


@pytest.mark.parametrize(
    ("make", "files", "labels", "attacks"),
    [
        (
            lambda r: corpora.FakeOrReal(r, "testing"),
            ["testing/fake/a.wav", "testing/real/a.mp3"],
            [0, 1],
            [None, None],
        ),
        (corpora.LibriSeVoc, ["gt/a.wav", "melgan/a_gen.wav"], [1, 0], [None, "melgan"]),
        (corpora.MLAAD, ["fake/de/bark/a.wav", "fake/de/vits/b.wav"], [0, 0], ["bark", "vits"]),
        (corpora.WaveFake, ["jsut_melgan/a.wav", "ljspeech_melgan/a.wav"], [0, 0], ["jsut_melgan", "ljspeech_melgan"]),
        (corpora.Folder, ["a.wav", "b/c.flac"], [-1, -1], [None, None]),
    ],
)
def test_sets_in_folders(tmp_path, make, files, labels, attacks):
    for file in [*files, "readme.txt"]:
        write(tmp_path / file, "")
    trials = make(tmp_path).trials()
    assert trials.labels.tolist() == labels
    assert [trial.attack for trial in trials] == attacks
    assert [trial.audio for trial in trials] == [str(tmp_path / file) for file in files]
    with pytest.raises(StorageError):
        make(tmp_path / "nowhere").trials()


READERS = {
    "keys/CM/trial_metadata.txt": (lambda r: ASVspoof2021LA(r, "all"), LA),
    "keys/DF/CM/trial_metadata.txt": (lambda r: ASVspoof2021DF(r, "all"), DF.format("", "")),
    "ASVspoof5.dev.track_1.tsv": (lambda r: ASVspoof5(r, "dev"), V5),
    "meta.csv": (InTheWild, "file,speaker,label\n0.wav,a,spoof\n"),
    "meta_data.csv": (FakeAVCeleb, AV + ",path,\nid1,-,-,real,A,RealVideo-RealAudio,x,y,1.mp4,F/G\n"),
    "metadata/train.csv": (lambda r: corpora.SpoofCeleb(r, "train"), "file,speaker,attack\na,b,a00\n"),
    "label.txt": (corpora.ADD, "a.wav fake\n"),
    "m.tsv": (lambda r: corpora.Manifest(r / "m.tsv"), "path\tlabel\na.wav\tfake\n"),
    "m.jsonl": (lambda r: corpora.Manifest(r / "m.jsonl"), '{"path": "a.wav", "label": "fake"}\n'),
}


@pytest.mark.parametrize("file", READERS)
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_any_bytes_give_trials_or_a_protocol_error(tmp_path_factory, file, data):
    make, good = READERS[file]
    folder = tmp_path_factory.getbasetemp() / "soup" / file.replace("/", "_")
    good = good.encode()
    cut = data.draw(st.integers(0, len(good)))
    write(
        folder / file, good[:cut] + data.draw(st.binary(max_size=20)) + good[data.draw(st.integers(cut, len(good))) :]
    )
    try:
        assert len(make(folder).trials()) >= 1
    except ProtocolError as error:
        message = str(error)
    else:
        message = ""
    assert len(message.splitlines()) <= 1


def test_manifests_in_other_formats(tmp_path):
    rows = [{"path": "a.wav", "label": "real", "codec": "opus"}, {"path": "b.wav", "label": "", "codec": ""}]
    with open(tmp_path / "m.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    wanted = list(corpora.Manifest(tmp_path / "m.csv").trials())
    write(tmp_path / "m.tsv", (tmp_path / "m.csv").read_text().replace(",", "\t"))
    write(tmp_path / "m.jsonl", '{"path": "a.wav", "label": "real", "codec": "opus"}\n\n{"path": "b.wav"}\n')
    assert list(corpora.Manifest(tmp_path / "m.tsv").trials()) == wanted
    assert list(corpora.Manifest(tmp_path / "m.jsonl").trials()) == wanted
    with pytest.raises(ProtocolError, match=r"m2\.jsonl, line 1: column 'lable' is unknown"):
        corpora.Manifest(write(tmp_path / "m2.jsonl", '{"path": "a", "lable": 1}')).trials()


def test_parquet(tmp_path):
    path = write(tmp_path / "m.parquet", "not parquet")
    with pytest.raises(ProtocolError, match="Parquet"):
        corpora.Manifest(path).trials()
    arrow = pytest.importorskip("pyarrow")
    columns = {"path": ["a.wav", "b.wav"], "label": ["real", None]}
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table(columns), path)
    assert corpora.Manifest(path).trials().labels.tolist() == [1, -1]

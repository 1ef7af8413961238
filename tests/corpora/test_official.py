import csv
import io

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelora_ad import corpora
from moelora_ad.corpora import (
    ASVspoof5,
    ASVspoof2019,
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


def parquet():
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a.wav", "b.wav"], "label": ["real", None]}), file)
    return file.getvalue()


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


@pytest.mark.parametrize(("more", "language"), [("", None), (" traditional_vocoder - - - en", "en")])
def test_asvspoof2021_df_in_both_generations_of_keys(tmp_path, more, language):
    keys = write(tmp_path / "mine.txt", DF.format(more, more))
    first, second = ASVspoof2021DF(tmp_path, keys=keys).trials()
    assert (first.codec, first.source, first.attack, first.split) == ("mp3m4a", "vcc2020", "Task1-team20", "eval")
    assert (second.label, second.attack, second.corpus) == (1, None, "ASVspoof2021_DF")
    assert (first.language, first.speaker) == (language, "LA_0043")


def test_asvspoof2021_faults(tmp_path):
    with pytest.raises(StorageError, match="LA-keys-full"):
        ASVspoof2021LA(tmp_path).trials()
    keys = write(tmp_path / "k", LA.replace("progress", "later"))
    with pytest.raises(ProtocolError, match=r"line 2, column 'phase': 'later' is not one of eval"):
        ASVspoof2021LA(tmp_path, keys=keys).trials()
    with pytest.raises(ProtocolError, match=r"line 1, column 'trial': 'LA_E_1' is not a trial of ASVspoof2021_DF"):
        ASVspoof2021DF(tmp_path, keys=keys).trials()


@pytest.mark.parametrize("folder", ["", "ASVspoof5_protocols"])
def test_asvspoof5(tmp_path, folder):
    write(tmp_path / folder / "ASVspoof5.dev.track_1.tsv", V5)
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


def test_a_file_of_fakeavceleb_in_two_rows_is_one_trial_with_the_first_method(tmp_path):
    other = ("id1", "wav2lip", *AV_ROWS[3][2:])
    fakeavceleb(tmp_path, "FakeAVCeleb", [*AV_ROWS, other])
    trials = FakeAVCeleb(tmp_path).trials()
    assert [(trial.attack, trial.label) for trial in trials] == [(None, 1), ("rtvc", 0), (None, 1), ("fsgan", 0)]


# Counts in papers and key files: total, bona fide, spoof; None where only a part is published.
OFFICIAL = [
    (ASVspoof2019("", "train"), (25380, 2580, 22800)),
    (ASVspoof2019("", "dev"), (24844, 2548, 22296)),
    (ASVspoof2019("", "eval"), (71237, 7355, 63882)),
    (ASVspoof2019("", "train", "PA"), (54000, 5400, 48600)),
    (ASVspoof2019("", "dev", "PA"), (29700, 5400, 24300)),
    (ASVspoof2019("", "eval", "PA"), (134730, 18090, 116640)),
    (ASVspoof2021LA(""), (148176, 14816, 133360)),
    (ASVspoof2021LA("", "progress"), (16464, 1676, 14788)),
    (ASVspoof2021LA("", "hidden"), (16926, 1960, 14966)),
    (ASVspoof2021LA("", "all"), (181566, 18452, 163114)),
    (ASVspoof2021DF(""), (533928, 14869, 519059)),
    (ASVspoof2021DF("", "progress"), (59325, None, None)),
    (ASVspoof2021DF("", "hidden"), (18576, None, None)),
    (ASVspoof2021DF("", "all"), (611829, None, None)),
    (ASVspoof5("", "train"), (182357, None, None)),
    (ASVspoof5("", "dev"), (140950, None, None)),
    (ASVspoof5("", "eval"), (680774, 138688, 542086)),
    (InTheWild(""), (31779, 19963, 11816)),
    (FakeAVCeleb(""), (21544, 10209, 11335)),
    (FakeAVCeleb("", "a_vs_fake"), (11835, 500, 11335)),
    (FakeAVCeleb("", "a_vs_b"), (1000, 500, 500)),
    (corpora.Codecfake("", "train"), (740747, None, None)),
    (corpora.Codecfake("", "C7"), (145505, None, None)),
    (corpora.ASVspoofLaundered("", "Filtering"), (71237, 7355, 63882)),
    (corpora.ASVspoofLaundered("", "Noise_Addition"), (1068555, 110325, 958230)),
    (corpora.HABLA(""), (80816, None, None)),
    (corpora.LibriSeVoc(""), (92407, 13201, 79206)),
    (corpora.LJSpeech(""), (13100, 13100, 0)),
    (corpora.JSUT(""), (5000, 5000, 0)),
    (corpora.WaveFake(""), None),
    (corpora.MLAAD(""), None),
    (corpora.Manifest("m.csv"), None),
]


@pytest.mark.parametrize(("corpus", "counts"), OFFICIAL)
def test_official_counts(corpus, counts):
    assert corpus.official_counts() == counts
    if counts is not None and None not in counts:
        total, bona_fide, spoof = counts
        assert bona_fide + spoof == total


@pytest.mark.parametrize("track", [ASVspoof2021LA, ASVspoof2021DF])
def test_the_phases_of_2021_add_up(track):
    parts = [track("", phase).official_counts().total for phase in ("eval", "progress", "hidden")]
    assert sum(parts) == track("", "all").official_counts().total


DF_FULL = DF.format(*[" traditional_vocoder - - - en"] * 2)
AV_FULL = AV + ",filename,path\nid1,-,-,real,A,RealVideo-RealAudio,x,y,1.mp4,F/G\n"
READERS = {
    "LA/ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.dev.trl.txt": (
        lambda r: ASVspoof2019(r, "dev"),
        "LA_1 LA_D_1 - - bonafide\nLA_1 LA_D_2 - A01 spoof\n",
    ),
    "keys/CM/trial_metadata.txt": (lambda r: ASVspoof2021LA(r, "all"), LA),
    "keys/LA/CM/trial_metadata.txt": (lambda r: ASVspoof2021LA(r, "eval"), LA),
    "first/trial_metadata.txt": (
        lambda r: ASVspoof2021DF(r, "all", r / "first/trial_metadata.txt"),
        DF.format("", ""),
    ),
    "keys/DF/CM/trial_metadata.txt": (lambda r: ASVspoof2021DF(r, "eval"), DF_FULL),
    "ASVspoof5.dev.track_1.tsv": (lambda r: ASVspoof5(r, "dev"), V5),
    "meta.csv": (InTheWild, "file,speaker,label\n0.wav,a,spoof\n"),
    "meta_data.csv": (FakeAVCeleb, AV + ",path,\nid1,-,-,real,A,RealVideo-RealAudio,x,y,1.mp4,F/G\n"),
    "FakeAVCeleb_v1.2/meta_data.csv": (lambda r: FakeAVCeleb(r, "a_vs_b"), AV_FULL),
    "metadata/train.csv": (lambda r: corpora.SpoofCeleb(r, "train"), "file,speaker,attack\na,b,a00\n"),
    "label.txt": (corpora.ADD, "a.wav fake\n"),
    "label/C1.txt": (lambda r: corpora.Codecfake(r, "C1"), "a.wav real 0\nb.wav fake 1\n"),
    "audio-metadata-publish.csv": (
        lambda r: corpora.DeepfakeEval2024(r, "test"),
        "Filename,Ground Truth,Finetuning Set\na.mp3,Real,Test\n",
    ),
    "protocols/ASVspoofLauneredDatabase_Filtering.txt": (
        lambda r: corpora.ASVspoofLaundered(r, "Filtering"),
        "LA_1 LA_E_1 A11 spoof Filtering lpf_7000\n",
    ),
    "m.csv": (lambda r: corpora.Manifest(r / "m.csv"), "path,label,language\na.wav,fake,en\n"),
    "m.tsv": (lambda r: corpora.Manifest(r / "m.tsv"), "path\tlabel\na.wav\tfake\n"),
    "m.jsonl": (lambda r: corpora.Manifest(r / "m.jsonl"), '{"path": "a.wav", "label": "fake"}\n'),
    "m.parquet": (lambda r: corpora.Manifest(r / "m.parquet"), parquet()),
}
WORDS = st.sampled_from(
    [
        b" ",
        b",",
        b"\t",
        b"\n",
        b"\r",
        b'"',
        b"-",
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"spoof",
        b"[[",
        b'{"path": 1}',
        b"1e9",
    ]
)
SOUP = st.binary(max_size=20) | st.lists(WORDS, max_size=8).map(b"".join)


def test_every_reader_reads_what_is_then_spoiled(tmp_path):
    for file, (make, good) in READERS.items():
        write(tmp_path / file.replace("/", "_") / file, good)
        assert len(make(tmp_path / file.replace("/", "_")).trials()) >= 1


@pytest.mark.parametrize("file", READERS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_bytes_give_trials_or_an_error_with_the_file(tmp_path_factory, file, data):
    make, good = READERS[file]
    folder = tmp_path_factory.getbasetemp() / "soup" / file.replace("/", "_")
    good = good if isinstance(good, bytes) else good.encode()
    start = data.draw(st.integers(0, len(good)))
    stop = data.draw(st.integers(start, len(good)))
    write(folder / file, good[:start] + data.draw(SOUP) + good[stop:] * data.draw(st.sampled_from([1, 1, 2])))
    try:
        assert len(make(folder).trials()) >= 1
    except ProtocolError as error:
        (line,) = str(error).splitlines()
        assert line.startswith(str(folder / file))


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
    assert corpora.Manifest(write(path, parquet())).trials().labels.tolist() == [1, -1]


def test_a_parquet_date_that_python_lacks_is_told(tmp_path):
    days = pyarrow.array([2**31 - 1], pyarrow.int32()).view(pyarrow.date32())
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a.wav"], "split": days}), tmp_path / "m.parquet")
    with pytest.raises(ProtocolError, match=r"m\.parquet: not valid Parquet: days"):
        corpora.Manifest(tmp_path / "m.parquet").trials()

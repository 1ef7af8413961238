import os
import shutil
import zipfile
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelora_ad import corpora
from moelora_ad.audio import keyed_generator
from moelora_ad.corpora import ProtocolError, StorageError
from moelora_ad.corpora.storage.files import open_file
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def values(trials, *fields):
    return [tuple(getattr(trial, field) for field in fields) for trial in trials]


@pytest.mark.parametrize("top", ["", "spoofceleb"])
def test_spoofceleb(tmp_path, top):
    folder = tmp_path / top
    write(folder / "metadata/train.csv", "file,speaker,attack\na00/i/1.flac,i,a00\na06/j/2.flac,j,a06\n")
    trials = corpora.SpoofCeleb(tmp_path, "train").trials()
    assert values(trials, "label", "attack", "speaker", "split") == [(1, None, "i", "train"), (0, "a06", "j", "train")]
    assert trials[0].audio == str(folder / "flac/train/a00/i/1.flac")


def test_add_of_both_years(tmp_path):
    write(tmp_path / "label.txt", "x.wav genuine\ny.wav fake\n")
    first, second = corpora.ADD(tmp_path, "ADD2023").trials()
    assert (first.label, first.audio, first.corpus) == (1, str(tmp_path / "wav/x.wav"), "ADD2023")
    assert second.label == 0
    write(tmp_path / "label/dev_label.txt", "z.wav fake\n")
    (trial,) = corpora.ADD(tmp_path, listing="label/dev_label.txt", audio="dev").trials()
    assert (trial.label, trial.audio) == (0, str(tmp_path / "dev/z.wav"))


@pytest.mark.parametrize("folder", ["C1", "test/C1"])
def test_codecfake(tmp_path, folder):
    write(tmp_path / "label/C1.txt", "a.wav real 0\nF01_a.wav fake 1\n")
    write(tmp_path / folder / "a.wav")
    trials = corpora.Codecfake(tmp_path, "C1").trials()
    assert values(trials, "utterance", "label", "attack") == [("a.wav", 1, None), ("F01_a.wav", 0, "1")]
    assert trials[1].audio == str(tmp_path / folder / "F01_a.wav")


def test_codecfake_unpacked_beside_its_archives_in_parts(tmp_path):
    write(tmp_path / "label/train.txt", "a.wav real 0\n")
    audio = write(tmp_path / "train/a.wav", "sound")
    write(tmp_path / "train_split.zip", "the last part of a zip archive, which cannot be read alone")
    (trial,) = corpora.Codecfake(tmp_path, "train").trials()
    assert open_file(trial.audio) == str(audio)


@pytest.mark.parametrize("unknown", ["Unknown", "unknown"])
def test_deepfake_eval_2024(tmp_path, unknown):
    rows = ["Filename,Ground Truth,Finetuning Set", "a.mp3,Real,Train", "b.mp3,Fake,Test", f"c.mp3,{unknown},Test"]
    write(tmp_path / "audio-metadata-publish.csv", "\n".join(rows))
    trials = corpora.DeepfakeEval2024(tmp_path).trials()
    assert values(trials, "label", "split") == [(1, "Train"), (0, "Test"), (None, "Test")]
    assert trials[1].audio == str(tmp_path / "audio-data/b.mp3")
    assert values(corpora.DeepfakeEval2024(tmp_path, "train").trials(), "utterance") == [("a.mp3",)]
    write(tmp_path / "audio-metadata-publish.csv", "Filename,Label\na.mp3,Real\n")
    with pytest.raises(ProtocolError, match="line 1: no column 'Ground Truth', 'Finetuning Set'"):
        corpora.DeepfakeEval2024(tmp_path).trials()


@pytest.mark.parametrize("top", ["", "ASVspoofLauneredDatabase"])
@pytest.mark.parametrize("audio", ["flac", "Filtering/flac"])
def test_asvspoof_laundered(tmp_path, top, audio):
    lines = "LA_0039 LA_E_1_lpf_7000 A11 spoof Filtering lpf_7000\nLA_1 LA_E_2_lpf_7000 - bonafide Filtering lpf_7000\n"
    write(tmp_path / top / "protocols/ASVspoofLauneredDatabase_Filtering.txt", lines)
    write(tmp_path / top / audio / "LA_E_1_lpf_7000.flac")
    first, second = corpora.ASVspoofLaundered(tmp_path, "Filtering").trials()
    assert first.audio == str(tmp_path / top / audio / "LA_E_1_lpf_7000.flac")
    assert (first.label, first.attack, first.codec, first.speaker) == (0, "A11", "lpf_7000", "LA_0039")
    assert (second.label, second.attack) == (1, None)


def test_a_laundered_set_has_every_setting_once():
    launderings = ("Noise_Addition", "Reverberation", "Recompression", "Resampling", "Filtering")
    totals = [corpora.ASVspoofLaundered("", laundering).official_counts().total for laundering in launderings]
    assert sum(totals) == 2_065_873  # from the publishers' README


@pytest.mark.parametrize(
    ("make", "files", "wanted"),
    [
        (
            lambda root: corpora.FakeOrReal(root, "testing"),
            ["testing/fake/a.wav", "testing/real/a.mp3"],
            {"label": [0, 1], "split": ["testing"] * 2, "attack": [None] * 2},
        ),
        (
            lambda root: corpora.DFADD(root, "test"),
            ["DATASET_GradTTS/test/p225_1.wav", "DATASET_VCTK_BONAFIDE/test/p226_2_mic1.flac"],
            {"label": [0, 1], "attack": ["DATASET_GradTTS", None], "speaker": ["p225", "p226"], "split": ["test"] * 2},
        ),
        (
            corpora.LibriSeVoc,
            ["gt/12_3.wav", "melgan/12_3_gen.wav"],
            {"label": [1, 0], "attack": [None, "melgan"], "speaker": ["12", "12"]},
        ),
        (
            corpora.HABLA,
            [
                "CycleGAN/Peru-Chile/pem_01-clf_02/CycleGAN-pem_01_0099-clf_02_0202.wav",
                "Real/Chile/clf_02/clf_02_0079.wav",
                "TTS-VC/TTS-Diff/Peru-Chile/TTS-Diff-pem_01_0099_TTS-clf_02_1.wav",
                "TTS/Chile/TTS-clf_02_0079.wav",
            ],
            {
                "label": [0, 1, 0, 0],
                "attack": ["CycleGAN", None, "TTS-VC", "TTS"],
                "speaker": ["pem_01", "clf_02", "pem_01", "clf_02"],
            },
        ),
        (
            corpora.MLAAD,
            ["fake/de/bark/a.wav", "fake/fr/vits/b.wav"],
            {"label": [0, 0], "attack": ["bark", "vits"], "language": ["de", "fr"]},
        ),
        (corpora.LJSpeech, ["LJSpeech-1.1/wavs/LJ001-0001.wav"], {"label": [1], "attack": [None]}),
        (corpora.LJSpeech, ["wavs/LJ001-0001.wav"], {"label": [1]}),
        (corpora.JSUT, ["jsut_ver1.1/basic5000/wav/BASIC5000_0001.wav"], {"label": [1]}),
        (
            corpora.WaveFake,
            ["generated_audio/jsut_melgan/a.wav", "generated_audio/ljspeech_melgan/a.wav"],
            {"label": [0, 0], "attack": ["jsut_melgan", "ljspeech_melgan"]},
        ),
        (corpora.WaveFake, ["jsut_melgan/a.wav"], {"label": [0], "attack": ["jsut_melgan"]}),
        (corpora.Folder, ["a.wav", "b/c.flac"], {"label": [None, None], "attack": [None, None]}),
    ],
)
def test_sets_in_folders(tmp_path, make, files, wanted):
    for file in [*files, "readme.txt"]:
        write(tmp_path / file)
    trials = make(tmp_path).trials()
    assert [trial.audio for trial in trials] == [str(tmp_path / file) for file in files]
    assert {field: [getattr(trial, field) for trial in trials] for field in wanted} == wanted
    with pytest.raises(StorageError):
        make(tmp_path / "nowhere").trials()


def test_a_name_that_is_not_utf_8_gets_an_id_that_is(tmp_path):
    for name in (b"gt/1_caf\xe9.wav", b"caf\xe9/2_x.wav"):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "wb").close()
    trials, in_folder = (list(make(tmp_path).trials()) for make in (corpora.LibriSeVoc, corpora.Folder))
    ids = ["caf\\udce9/2_x.wav", "gt/1_caf\\udce9.wav"]
    assert [trial.utterance for trial in trials] == [trial.utterance for trial in in_folder] == ids
    assert [trial.attack for trial in trials] == ["caf\\udce9", None]
    for trial in [*trials, *in_folder]:
        assert os.path.exists(trial.audio)
        keyed_generator(1, 0, trial.utterance)
    ScoreTable(trials, [1.5, -2.0]).write(tmp_path / "scores.csv")
    assert [trial.utterance for trial in ScoreTable.read(tmp_path / "scores.csv").trials] == ids


def test_only_the_split_asked_for_is_taken(tmp_path):
    for split in ("train", "valid", "test"):
        write(tmp_path / "DATASET_GradTTS" / split / f"p1_{split}.wav")
    assert values(corpora.DFADD(tmp_path, "valid").trials(), "utterance") == [("DATASET_GradTTS/valid/p1_valid.wav",)]


def test_wavefake_with_the_speech_that_it_was_made_from(tmp_path):
    write(tmp_path / "fakes/jsut_melgan/BASIC5000_1_gen.wav")
    write(tmp_path / "lj/wavs/LJ1.wav")
    write(tmp_path / "jsut/basic5000/wav/BASIC5000_1.wav")
    corpus = corpora.WaveFake(tmp_path / "fakes", ljspeech=tmp_path / "lj", jsut=tmp_path / "jsut")
    trials = corpus.trials()
    assert values(trials, "utterance", "label", "corpus") == [
        ("jsut_melgan/BASIC5000_1_gen.wav", 0, "WaveFake"),
        ("LJ1.wav", 1, "WaveFake"),
        ("BASIC5000_1.wav", 1, "WaveFake"),
    ]
    assert trials[1].audio == str(tmp_path / "lj/wavs/LJ1.wav")


def test_a_file_outside_the_folders_is_told_not_skipped(tmp_path):
    write(tmp_path / "gt/1_2.wav")
    write(tmp_path / "3_4.wav")
    with pytest.raises(ProtocolError, match=r"3_4\.wav: is not in folders attack; is root right\?"):
        corpora.LibriSeVoc(tmp_path).trials()


def test_a_folder_that_is_no_label_is_told(tmp_path):
    write(tmp_path / "testing/faked/1.wav")
    with pytest.raises(ProtocolError, match=r"testing/faked/1\.wav: 'faked' is not a label; accepted are bonafide"):
        corpora.FakeOrReal(tmp_path, "testing").trials()


def test_a_split_without_files_is_told(tmp_path):
    write(tmp_path / "DATASET_GradTTS/test/p1.wav")
    with pytest.raises(ProtocolError, match="has no trials"):
        corpora.DFADD(tmp_path, "train").trials()


NAMES = [
    b"gt",
    b"Real",
    b"real",
    b"fake",
    b"train",
    b"wavs",
    b"DATASET_VCTK_BONAFIDE",
    b"x y",
    b"..x",
    b"-",
    b"\n",
    b"\xff",
]
FOLDERED = {
    "DFADD": (lambda root: corpora.DFADD(root, "train"), ""),
    "FakeOrReal": (lambda root: corpora.FakeOrReal(root, "training"), "training"),
    "HABLA": (corpora.HABLA, "FinalDataset_16khz"),
    "LibriSeVoc": (corpora.LibriSeVoc, ""),
    "LJSpeech": (corpora.LJSpeech, "wavs"),
    "JSUT": (corpora.JSUT, "basic5000/wav"),
    "MLAAD": (corpora.MLAAD, "fake"),
    "WaveFake": (lambda root: corpora.WaveFake(root, ljspeech=root), ""),
    "Folder": (corpora.Folder, ""),
}
PARTS = st.sampled_from(NAMES) | st.text(min_size=1, max_size=3).map(lambda text: text.encode(errors="replace"))
FOLDERS = st.lists(PARTS.filter(lambda part: part not in (b".", b"..") and not set(part) & set(b"/\0!")), max_size=4)
FILES = st.tuples(FOLDERS, st.sampled_from([b"a.wav", b"p1_b.FLAC", b"c.txt", b"\xfe.mp3", b"\n.wav", b".wav"]))
TREE = count()


def trials_or_error(corpus):
    try:
        return list(corpus.trials())
    except InputError as error:
        (line,) = str(error).splitlines()
        return line


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("name", FOLDERED)
@settings(deadline=None, max_examples=30)
@given(tree=st.lists(FILES, max_size=6, unique_by=lambda file: b"/".join([*file[0], file[1]])))
def test_any_folders_give_trials_or_one_error(tmp_path_factory, name, tree):
    make, below = FOLDERED[name]
    root = tmp_path_factory.getbasetemp() / "trees" / f"{next(TREE)}"
    for folders, file in tree:
        folder = os.path.join(os.fsencode(root / below), *folders)
        os.makedirs(folder, exist_ok=True)
        open(os.path.join(folder, file), "wb").close()
    result = trials_or_error(make(root))
    if isinstance(result, list):
        assert len(result) >= 1
        assert all(os.path.exists(trial.audio) for trial in result)
    shutil.rmtree(root, ignore_errors=True)


def test_any_folders_are_the_same_in_a_zip_archive(tmp_path):
    files = ["gt/1_x.wav", "melgan/1_x_gen.wav", "x y/\u00fc_1.flac", "-/..x/2_a.MP3", "melgan/readme.txt"]
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in files:
            archive.write(write(tmp_path / "set" / file), file)
    folder, packed = (list(corpora.LibriSeVoc(tmp_path / name).trials()) for name in ("set", "set.zip"))
    for one, other in zip(folder, packed, strict=True):
        assert other.audio == f"{tmp_path}/set.zip!/{one.utterance}"
        assert (one.utterance, one.label, one.attack, one.speaker) == (
            other.utterance,
            other.label,
            other.attack,
            other.speaker,
        )

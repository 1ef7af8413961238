"""Each distribution as published and unpacked: the same trials and the same samples."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from moelora_ad.audio import read_audio
from moelora_ad.corpora import (
    DFADD,
    ASVspoof5,
    ASVspoof2019,
    ASVspoof2021DF,
    ASVspoof2021LA,
    FakeAVCeleb,
    InTheWild,
    StorageError,
    WaveFake,
)
from moelora_ad.corpora.storage.files import open_file

SPEECH = sorted((Path(__file__).parents[3] / "experiments/quickstart/corpus/MiniLA/flac").glob("*.flac"))[:4]
FLAC = [path.read_bytes() for path in SPEECH]


def wav(flac):
    """Audio as In-the-Wild has it: WAV of 16 kHz with float samples."""
    file = io.BytesIO()
    samples, rate = soundfile.read(io.BytesIO(flac), dtype="float32")
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def mp4(flac):
    """Audio as FakeAVCeleb has it: AAC in MP4."""
    file = io.BytesIO()
    samples, rate = soundfile.read(io.BytesIO(flac), dtype="float32")
    with av.open(file, "w", format="mp4") as video:
        track = video.add_stream("aac", rate=rate, layout="mono")
        for start in range(0, len(samples) - 1024, 1024):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate = rate
            video.mux(track.encode(frame))
        video.mux(track.encode(None))
    return file.getvalue()


@dataclass(frozen=True)
class Distribution:
    """Files by name, and for each published archive the beginnings of the names of its files."""

    make: Callable
    files: dict[str, bytes]
    archives: dict[str, tuple[str, ...]]


def asvspoof2019(access):
    folder = f"{access}/ASVspoof2019_{access}_cm_protocols"
    rows = [f"{access}_1 {access}_D_1 aaa - bonafide", f"{access}_2 {access}_D_2 bbb AB spoof"]
    files = {f"{folder}/ASVspoof2019.{access}.cm.dev.trl.txt": "\n".join(rows).encode()}
    files |= {f"{access}/ASVspoof2019_{access}_dev/flac/{access}_D_{i}.flac": FLAC[i] for i in (1, 2)}
    return Distribution(lambda root: ASVspoof2019(root, "dev", access), files, {f"{access}.zip": (access,)})


def asvspoof2021_la():
    rows = ["LA_9 LA_E_1 alaw ita_tx A07 spoof notrim eval", "LA_8 LA_E_2 none loc_tx bonafide bonafide notrim eval"]
    files = {"keys/LA/CM/trial_metadata.txt": "\n".join(rows).encode()}
    files |= {f"ASVspoof2021_LA_eval/flac/LA_E_{i}.flac": FLAC[i] for i in (1, 2)}
    archives = {"ASVspoof2021_LA_eval.tar.gz": ("ASVspoof2021_LA_eval",), "LA-keys-full.tar.gz": ("keys",)}
    return Distribution(ASVspoof2021LA, files, archives)


def asvspoof2021_df():
    row = "LA_43 DF_E_{} mp3m4a vcc2020 Task1-team20 spoof trim eval neural_vocoder Task1 team20 FF en"
    files = {"keys/DF/CM/trial_metadata.txt": "\n".join(map(row.format, range(4))).encode()}
    files |= {f"ASVspoof2021_DF_eval/flac/DF_E_{i}.flac": FLAC[i] for i in range(4)}
    parts = {f"ASVspoof2021_DF_eval_part0{i}.tar.gz": (f"ASVspoof2021_DF_eval/flac/DF_E_{i}.flac",) for i in range(4)}
    return Distribution(ASVspoof2021DF, files, {**parts, "DF-keys-full.tar.gz": ("keys",)})


def asvspoof5():
    rows = [f"E_1607 E_{i} M C05 2 E_77 AC1 A26 spoof -" for i in range(3)] + ["E_9 E_3 F - 0 - - bonafide bonafide -"]
    files = {"ASVspoof5.eval.track_1.tsv": "\n".join(rows).encode(), "ASVspoof5.train.tsv": b"not needed"}
    files |= {f"flac_E_eval/E_{i}.flac": FLAC[i] for i in range(4)}
    archives = {
        "flac_E_aa.tar": ("flac_E_eval/E_0", "flac_E_eval/E_1"),
        "flac_E_ab.tar": ("flac_E_eval/E_2",),
        "flac_E_aj.tar": ("flac_E_eval/E_3",),
        "ASVspoof5_protocols.tar.gz": ("ASVspoof5.",),
    }
    return Distribution(lambda root: ASVspoof5(root, "eval"), files, archives)


def in_the_wild():
    rows = ['0.wav,"Barack Obama",spoof', '1.wav,"Smith, J. K.",bona-fide']
    files = {"release_in_the_wild/meta.csv": "\n".join(["file,speaker,label", *rows]).encode()}
    files |= {f"release_in_the_wild/{i}.wav": wav(FLAC[i]) for i in range(2)}
    return Distribution(InTheWild, files, {"release_in_the_wild.zip": ("release_in_the_wild",)})


def fakeavceleb():
    kinds = {"RealVideo-RealAudio": ("A", "real"), "FakeVideo-FakeAudio": ("D", "wav2lip")}
    rows = ["source,target1,target2,method,category,type,race,gender,filename,path"]
    files = {}
    for i, (kind, (category, method)) in enumerate(kinds.items()):
        place = f"FakeAVCeleb_v1.2/{kind}/Asian (East)/women/id0001{i}"
        rows.append(f"id0001{i},-,-,{method},{category},{kind},Asian (East),women,0001{i}_1.mp4,{place}")
        files[f"{place}/0001{i}_1.mp4"] = mp4(FLAC[i])
    files["FakeAVCeleb_v1.2/meta_data.csv"] = "\n".join(rows).encode()
    return Distribution(FakeAVCeleb, files, {"FakeAVCeleb_v1.2.zip": ("FakeAVCeleb_v1.2",)})


def dfadd():
    files = {"DATASET_VCTK_BONAFIDE/test/p225_001.wav": wav(FLAC[0]), "DATASET_GradTTS/test/p225_1.wav": wav(FLAC[1])}
    archives = {"VCTK_BONAFIDE.zip": ("DATASET_VCTK",), "DATASET_GradTTS.zip": ("DATASET_GradTTS",)}
    return Distribution(lambda root: DFADD(root, "test"), files, archives)


def wavefake():
    files = {f"generated_audio/{kind}_melgan/{i}_gen.wav": wav(FLAC[i]) for i, kind in enumerate(("jsut", "ljspeech"))}
    return Distribution(WaveFake, files, {"generated_audio.zip": ("generated_audio",)})


DISTRIBUTIONS = {
    "LA.zip": asvspoof2019("LA"),
    "PA.zip": asvspoof2019("PA"),
    "2021 LA": asvspoof2021_la(),
    "2021 DF": asvspoof2021_df(),
    "ASVspoof 5": asvspoof5(),
    "In-the-Wild": in_the_wild(),
    "FakeAVCeleb": fakeavceleb(),
    "DFADD": dfadd(),
    "WaveFake": wavefake(),
}
ONE_ARCHIVE = [name for name, one in DISTRIBUTIONS.items() if len(one.archives) == 1]


def unpacked(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def packed(folder, one, prefix=""):
    """Writes the archives of a distribution; ``prefix`` is what tar puts before each name."""
    folder.mkdir(exist_ok=True)
    for archive, starts in one.archives.items():
        inside = {name: data for name, data in one.files.items() if name.startswith(starts)}
        if archive.endswith(".zip"):
            with zipfile.ZipFile(folder / archive, "w", zipfile.ZIP_DEFLATED) as file:
                for name, data in inside.items():
                    file.writestr(name, data)
        else:
            with tarfile.open(folder / archive, "w:gz" if archive.endswith("gz") else "w") as file:
                for name, data in inside.items():
                    member = tarfile.TarInfo(prefix + name)
                    member.size = len(data)
                    file.addfile(member, io.BytesIO(data))
    return folder


def samples(trial):
    return read_audio(open_file(trial.audio), name=trial.audio)


def assert_same(published, expected):
    """Checks that two corpora have the same samples and, apart from the places of their audio, the same trials."""
    one, other = published.trials(), expected.trials()
    assert [replace(trial, audio="") for trial in one] == [replace(trial, audio="") for trial in other]
    for trial, wanted in zip(one, other, strict=True):
        assert "!/" in trial.audio
        np.testing.assert_array_equal(samples(trial), samples(wanted))
        assert len(samples(trial)) > 8_000


@pytest.fixture(autouse=True)
def index_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("prefix", ["", "./"])
def test_a_folder_of_what_was_downloaded(tmp_path, name, prefix):
    one = DISTRIBUTIONS[name]
    downloaded = packed(tmp_path / "downloaded", one, prefix)
    assert_same(one.make(downloaded), one.make(unpacked(tmp_path / "unpacked", one.files)))
    assert {path.name for path in downloaded.iterdir()} == one.archives.keys()


@pytest.mark.parametrize("name", ONE_ARCHIVE)
def test_the_archive_itself(tmp_path, name):
    one = DISTRIBUTIONS[name]
    (archive,) = packed(tmp_path / "downloaded", one).iterdir()
    assert_same(one.make(archive), one.make(unpacked(tmp_path / "unpacked", one.files)))


def test_keys_in_an_archive_elsewhere(tmp_path):
    one = DISTRIBUTIONS["2021 DF"]
    downloaded = packed(tmp_path / "downloaded", one)
    (tmp_path / "keys").mkdir()
    keys = (downloaded / "DF-keys-full.tar.gz").rename(tmp_path / "keys/DF-keys-full.tar.gz")
    expected = ASVspoof2021DF(unpacked(tmp_path / "unpacked", one.files))
    assert_same(ASVspoof2021DF(downloaded, keys=keys), expected)
    assert_same(ASVspoof2021DF(downloaded, keys=keys.parent), expected)
    with pytest.raises(StorageError, match=r"put DF-keys-full\.tar\.gz there"):
        ASVspoof2021DF(downloaded).trials()


def test_some_parts_unpacked_beside_the_others(tmp_path):
    one = DISTRIBUTIONS["ASVspoof 5"]
    downloaded = packed(tmp_path / "downloaded", one)
    for archive in ("flac_E_aa.tar", "ASVspoof5_protocols.tar.gz"):
        with tarfile.open(downloaded / archive) as file:
            # Python 3.10 and 3.11 have filters only since a late patch release.
            file.extractall(downloaded, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        (downloaded / archive).unlink()
    assert_same(one.make(downloaded), one.make(unpacked(tmp_path / "unpacked", one.files)))


def test_a_part_that_was_not_downloaded_is_told_for_each_of_its_files(tmp_path):
    one = DISTRIBUTIONS["2021 DF"]
    downloaded = packed(tmp_path / "downloaded", one)
    (downloaded / "ASVspoof2021_DF_eval_part02.tar.gz").unlink()
    trials = one.make(downloaded).trials()
    assert len(trials) == 4
    with pytest.raises(StorageError, match=r"no such file: .*DF_E_2\.flac"):
        open_file(trials[2].audio)
    assert len(samples(trials[3])) > 8_000

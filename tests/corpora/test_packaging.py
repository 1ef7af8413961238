"""The official packagings: the same trials and the same samples from what was downloaded as from what it unpacks to."""

import io
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from moelora_ad.audio import read_audio
from moelora_ad.corpora import ASVspoof5, ASVspoof2019, ASVspoof2021DF, ASVspoof2021LA, FakeAVCeleb, InTheWild
from moelora_ad.corpora.storage import open_file

SPEECH = sorted((Path(__file__).parents[2] / "experiments/quickstart/corpus").rglob("*.flac"))[:6]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pack(folder, archive, members):
    """Write members of ``{name: bytes}`` to an archive in a folder."""
    folder.mkdir(exist_ok=True)
    if archive.endswith(".zip"):
        with zipfile.ZipFile(folder / archive, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in members.items():
                file.writestr(name, data)
        return
    with tarfile.open(folder / archive, "w:gz" if archive.endswith("gz") else "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def unpack(folder, members):
    for name, data in members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def flac(ids, folder):
    return {f"{folder}/{name}.flac": path.read_bytes() for name, path in zip(ids, SPEECH, strict=False)}


def asvspoof2019():
    ids = [f"LA_E_{n}" for n in range(6)]
    lines = [f"LA_0039 {name} - {'A07 spoof' if n else '- bonafide'}" for n, name in enumerate(ids)]
    protocol = {"LA/ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.eval.trl.txt": "\n".join(lines).encode()}
    return lambda root: ASVspoof2019(root, "eval"), {"LA.zip": protocol | flac(ids, "LA/ASVspoof2019_LA_eval/flac")}


def asvspoof2021_la():
    ids = [f"LA_E_{n}" for n in range(6)]
    lines = [f"LA_0009 {name} alaw ita_tx A07 {'spoof' if n else 'bonafide'} notrim eval" for n, name in enumerate(ids)]
    return ASVspoof2021LA, {
        "LA-keys-full.tar.gz": {"keys/LA/CM/trial_metadata.txt": "\n".join(lines).encode()},
        "ASVspoof2021_LA_eval.tar.gz": flac(ids, "ASVspoof2021_LA_eval/flac"),
    }


def asvspoof2021_df():
    ids = [f"DF_E_{n}" for n in range(6)]
    rest = "notrim eval neural_vocoder_autoregressive Task1 team20 F-F en"
    lines = [f"L {name} mp3m4a vcc2020 T20 {'spoof' if n else 'bonafide'} {rest}" for n, name in enumerate(ids)]
    audio = list(flac(ids, "ASVspoof2021_DF_eval/flac").items())
    parts = {f"ASVspoof2021_DF_eval_part0{n}.tar.gz": dict(audio[n::4]) for n in range(4)}
    return ASVspoof2021DF, parts | {"DF-keys-full.tar.gz": {"keys/DF/CM/trial_metadata.txt": "\n".join(lines).encode()}}


def asvspoof5():
    ids = [f"E_{n:010d}" for n in range(6)]
    lines = [f"E_1 {name} F - - - AC1 {'A17 spoof' if n else 'bonafide bonafide'} -" for n, name in enumerate(ids)]
    audio = list(flac(ids, "flac_E_eval").items())
    parts = {f"flac_E_a{letter}.tar": dict(audio[n::3]) for n, letter in enumerate("abj")}
    protocols = {"ASVspoof5.eval.track_1.tsv": "\n".join(lines).encode()}
    return lambda root: ASVspoof5(root, "eval"), parts | {"ASVspoof5_protocols.tar.gz": protocols}


def in_the_wild():
    lines = ["file,speaker,label"]
    members = {}
    for n, path in enumerate(SPEECH):
        data = io.BytesIO()
        soundfile.write(data, *soundfile.read(path), format="WAV", subtype="FLOAT")
        members[f"release_in_the_wild/{n}.wav"] = data.getvalue()
        lines.append(f'{n}.wav,"Martin Luther King, Jr.",{"spoof" if n else "bona-fide"}')
    return InTheWild, {"release_in_the_wild.zip": members | {"release_in_the_wild/meta.csv": "\n".join(lines).encode()}}


def fakeavceleb():
    lines = ["source,target1,target2,method,category,type,race,gender,filename,path"]
    members = {}
    for n, (kind, category) in enumerate([("RealVideo-RealAudio", "A"), ("RealVideo-FakeAudio", "B")] * 3):
        folder = f"{kind}/African/men/id0007{n}"
        members[f"FakeAVCeleb_v1.2/{folder}/00109.mp4"] = video(SPEECH[n])
        method = "real" if category == "A" else "rtvc"
        lines.append(f"id{n},-,-,{method},{category},{kind},African,men,00109.mp4,FakeAVCeleb_v1.2/{folder}")
    members["FakeAVCeleb_v1.2/meta_data.csv"] = "\n".join(lines).encode()
    return lambda root: FakeAVCeleb(root, "a_vs_b"), {"FakeAVCeleb_v1.2.zip": members}


def video(speech):
    """An MP4 with a few pictures and the speech as AAC."""
    data, (waveform, rate) = io.BytesIO(), soundfile.read(speech, dtype="float32")
    with av.open(data, "w", format="mp4") as container:
        pictures, sound = container.add_stream("mpeg4", rate=25), container.add_stream("aac", rate=rate, layout="mono")
        pictures.width = pictures.height = 32
        frame = av.AudioFrame.from_ndarray(waveform[None], "fltp", "mono")
        frame.sample_rate = rate
        for stream, picture in ((pictures, av.VideoFrame(32, 32, "yuv420p")), (sound, frame)):
            container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
    return data.getvalue()


@pytest.mark.parametrize("make", [asvspoof2019, asvspoof2021_la, asvspoof2021_df, asvspoof5, in_the_wild, fakeavceleb])
def test_archives_and_what_they_unpack_to(tmp_path, make):
    corpus, archives = make()
    for archive, members in archives.items():
        pack(tmp_path / "packed", archive, members)
        unpack(tmp_path / "unpacked", members)
    packed, unpacked = corpus(tmp_path / "packed").trials(), corpus(tmp_path / "unpacked").trials()
    assert [replace(trial, audio="") for trial in packed] == [replace(trial, audio="") for trial in unpacked]
    assert len(packed) == 6
    assert packed.num_bona_fide > 0
    assert packed.num_spoof > 0
    for one, other in zip(packed, unpacked, strict=True):
        assert "!" in one.audio
        assert "!" not in other.audio
        samples = read_audio(open_file(one.audio), name=one.audio)
        np.testing.assert_array_equal(samples, read_audio(open_file(other.audio)))
        assert np.abs(samples).max() > 0.01
    if len(archives) == 1:  # the archive itself is a root, too
        alone = corpus(tmp_path / "packed" / next(iter(archives))).trials()
        assert list(alone.labels) == list(packed.labels)
        assert len(read_audio(open_file(alone[5].audio))) == len(read_audio(open_file(packed[5].audio)))

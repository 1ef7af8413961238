"""Pipes and standard input are read once and forwards, as a sound or as a list of files."""

import errno
import io
import os
import tempfile
import threading

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from moelora_ad.audio import AudioError, read_audio
from moelora_ad.inference import FileFailure, Scorer, pipes
from moelora_ad.inference.pipes import is_pipe, spooled
from moelora_ad.inference.sources import _sound_or_lines, find_sounds


def encoded(form, samples=20_000, subtype=None):
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).uniform(-0.5, 0.5, samples), 16_000, subtype, format=form)
    return file.getvalue()


def without_nul():
    """A sound without NUL bytes: a header of text, and loud samples."""
    file = io.BytesIO()
    soundfile.write(file, np.arange(0x1111, 0x1177, dtype=np.int16), 16_000, format="NIST")
    return file.getvalue().replace(b"\0", b" ")


@pytest.fixture
def write_later():
    """Writes bytes to a pipe in a thread, which is joined at the end."""
    threads = []

    def start(path_or_number, data):
        def write():
            with open(path_or_number, "wb") as end:
                end.write(data)

        threads.append(threading.Thread(target=write))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def piped(write_later):
    """A path ``/dev/fd/N`` from which bytes can be read once, as a shell's ``<(command)`` gives it."""
    ends = []

    def start(data):
        reading, writing = os.pipe()
        ends.append(reading)
        write_later(writing, data)
        return f"/dev/fd/{reading}"

    yield start
    for end in ends:
        os.close(end)


class Mean(torch.nn.Module):
    def forward(self, waveforms):
        return torch.stack([waveforms.mean(1), waveforms.std(1)], 1)


SOUNDS = {
    "wav": encoded("WAV"),
    "one sample": encoded("WAV", 1),
    "flac": encoded("FLAC"),
    "mp3": encoded("MP3"),
    "opus": encoded("OGG", subtype="OPUS"),
    "sphere": encoded("NIST"),  # begins with a page of text
    "no NUL": without_nul(),
}


@pytest.mark.parametrize("form", SOUNDS)
def test_sound_on_standard_input_and_through_pipes(form, piped, write_later, tmp_path):
    data = SOUNDS[form]
    assert (b"\0" in data) == (form != "no NUL")
    wanted = read_audio(io.BytesIO(data))
    os.mkfifo(tmp_path / "named")
    write_later(tmp_path / "named", data)
    sources = ["-", piped(data), str(tmp_path / "named")]
    sounds, problems, _ = find_sounds(sources, io.BytesIO(data))
    assert (problems, [sound.name for sound in sounds]) == ([], ["standard input", *sources[1:]])
    for sound in sounds:
        np.testing.assert_array_equal(read_audio(sound), wanted)


lines = st.lists(st.binary(min_size=1, max_size=30).filter(lambda name: not set(name) & set(b"\0\n\r")))


@given(lines)
def test_a_list_on_standard_input_stays_a_list(names):
    assert list(_sound_or_lines(io.BytesIO(b"\n".join(names)))) == [os.fsdecode(name) for name in names]


def test_a_pipe_is_scored_as_the_file_is(piped, write_later, tmp_path):
    data = encoded("WAV", 90_000)
    (tmp_path / "a.wav").write_bytes(data)
    scorer = Scorer(Mean())
    wanted = scorer(tmp_path / "a.wav")
    assert len(wanted.windows) == 2
    os.mkfifo(tmp_path / "pipe")
    write_later(tmp_path / "pipe", data)
    results = [scorer(tmp_path / "pipe"), scorer(path := piped(data))]
    assert [result.name for result in results] == [str(tmp_path / "pipe"), path]
    with open(piped(data), "rb", buffering=0) as pipe:  # not a path, but a file object that cannot seek
        results.append(scorer(pipe))
    results += scorer.score_files([io.BytesIO(data)])
    assert [result.score for result in results] == [wanted.score] * 4


@pytest.mark.parametrize("in_memory", [100, 2**20])
def test_long_sound_goes_to_a_file_that_vanishes(piped, tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(pipes, "_IN_MEMORY", in_memory)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = encoded("FLAC")
    with spooled(io.BytesIO(data), "x") as file:
        assert file.read() == data
        file.seek(10)
        assert file.read(5) == data[10:15]
    assert os.listdir(tmp_path) == []


class Endless(io.RawIOBase):
    taken = 0

    def readinto(self, buffer):
        self.taken += len(buffer)
        return len(buffer)


def test_an_endless_pipe_is_refused_in_one_line():
    pipe = Endless()
    with pytest.raises(
        AudioError, match=r"^cannot use x: more than 3,000,000 bytes come through the pipe; save it to a file$"
    ):
        spooled(pipe, "x", most=3_000_000)
    assert pipe.taken <= 4 * 2**20
    assert len(spooled(io.BytesIO(bytes(30)), "x", most=30).read()) == 30


def test_what_cannot_be_kept_is_told(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "write", full)
    told = "^cannot read standard input: No space left on device; data from pipes is stored in /"
    sounds, problems, _ = find_sounds(["-", "a.wav"], io.BytesIO(encoded("WAV")))
    assert sounds == ["a.wav"]
    with pytest.raises(AudioError, match=told):
        raise problems[0]


def test_pipes_that_nobody_named_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    (tmp_path / "list.csv").write_text("path\na.wav\n")
    for source in (tmp_path, tmp_path / "*.w*", tmp_path / "list.csv"):
        sounds, problems, _ = find_sounds([str(source)], io.BytesIO())
        assert (sounds, problems) == ([str(tmp_path / "a.wav")], [])
    (result,) = Scorer(Mean()).score_files(sounds)
    assert isinstance(result, FileFailure)
    assert result.reason == f"cannot decode {tmp_path}/a.wav: this is a pipe; name it directly"


def test_devices_are_no_pipes():
    for path in ("/dev/zero", "/dev/null", os.curdir, "gone", "a\0b"):
        assert not is_pipe(path)
    sounds, problems, _ = find_sounds(["/dev/zero"], io.BytesIO())
    assert (sounds, problems) == (["/dev/zero"], [])
    with pytest.raises(AudioError, match="cannot decode /dev/zero: this is a device"):
        Scorer(Mean())("/dev/zero")


def test_the_same_pipe_is_read_once(piped):
    path = piped(encoded("WAV"))
    sounds, problems, _ = find_sounds([path, path], io.BytesIO())
    assert (len(sounds), problems) == (1, [])


@pytest.mark.parametrize("data", [b"", b"text", encoded("WAV")[:30], bytes(100)])
def test_what_is_no_sound_in_a_pipe(piped, data):
    with pytest.raises(AudioError, match="cannot decode /dev/fd/"):
        Scorer(Mean())(piped(data))

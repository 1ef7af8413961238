"""Files cut short, also where libsndfile or FFmpeg would not notice it."""

import io

import av
import numpy as np
import pytest
import soundfile

from moelora_ad.audio import AudioError, AudioReader, audio_length, read_audio


def noise(samples):
    return np.random.default_rng(0).uniform(-0.5, 0.5, samples).astype(np.float32)


def cut(path, share):
    """Keeps only the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("form", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAVEX", "PCM_24"), ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("OGG", "VORBIS"),
     ("OGG", "OPUS"), ("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III")],
)  # fmt: skip
@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("as_object", [False, True])
def test_what_is_cut_short_is_an_error(tmp_path, form, subtype, share, as_object):
    path = tmp_path / "a"

    def source():
        return io.BytesIO(path.read_bytes()) if as_object else path

    soundfile.write(path, noise(64_000), 16_000, format=form, subtype=subtype)
    assert len(read_audio(source(), name=str(path))) == 64_000
    cut(path, share)
    with pytest.raises(AudioError, match=rf"^cannot decode {path}: .*"):
        read_audio(source(), name=str(path))


def wav(tmp_path, told):
    """A WAV file of 64,000 samples (128,000 bytes), whose header states ``told`` bytes."""
    soundfile.write(tmp_path / "a.wav", noise(64_000), 16_000)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[40:44] = told.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(data)
    return tmp_path / "a.wav"


@pytest.mark.parametrize("told", [2**32 - 1, 2**31 - 1, 0x7FFF_F000, 128_036, 131_200])
def test_headers_of_streams_and_small_faults_are_accepted(tmp_path, told):
    assert audio_length(wav(tmp_path, told)) == 64_000


def test_the_number_of_missing_samples_is_told(tmp_path):
    with pytest.raises(AudioError, match="it ends 1601 samples early; is it truncated"):
        audio_length(wav(tmp_path, 128_000 + 2 * 1_601))


@pytest.mark.parametrize("offset", [0.0, 1.5])
def test_matroska(tmp_path, offset):
    path = tmp_path / "a.mka"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for start in range(0, 64_000, 1_000):
            frame = av.AudioFrame.from_ndarray(np.full((1, 1_000), start % 500, np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 16_000, start + round(offset * 16_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert audio_length(path) == 64_000
    cut(path, 0.8)
    with pytest.raises(AudioError, match="is it truncated"):
        audio_length(path)


def test_an_ogg_file_is_read_from_where_it_was(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.ogg", noise(640_000), 16_000)
    whole = read_audio(tmp_path / "a.ogg")
    monkeypatch.setattr("moelora_ad.audio.source._IN_MEMORY", 10)
    with AudioReader(open(tmp_path / "a.ogg", "rb"), "a") as sound:
        np.testing.assert_array_equal(sound.read(), whole)

"""Sound read block by block is the sound read as a whole."""

import os

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from moelora_ad.audio import AudioError, AudioReader, read_audio
from moelora_ad.audio.streaming import StreamingResampler

RATES = [8_000, 11_025, 12_345, 16_000, 22_050, 44_100, 48_000, 192_000]


def noise(samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, samples).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    rate=st.sampled_from([1_000, 8_000, 11_025, 22_050, 44_100, 48_000]),
    sizes=st.lists(st.integers(0, 3_000), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) > 0),
)
def test_the_resampler_gives_what_torchaudio_gives_for_the_whole(rate, sizes):
    blocks = [noise(size, seed) for seed, size in enumerate(sizes)]
    resample = StreamingResampler(rate)
    parts = [resample(block, last=number == len(blocks) - 1) for number, block in enumerate(blocks)]
    whole = torchaudio.functional.resample(torch.from_numpy(np.concatenate(blocks)), rate, 16_000).numpy()
    joined = np.concatenate(parts)
    assert len(joined) == -(-sum(sizes) * 16_000 // rate)
    np.testing.assert_allclose(joined[: len(whole)], whole[: len(joined)], atol=2e-6)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("at_once", [700, 2**20])
def test_blocks_are_the_whole_file(tmp_path, monkeypatch, rate, at_once):
    monkeypatch.setattr("moelora_ad.audio.decoding._AT_ONCE", at_once)
    soundfile.write(tmp_path / "a.wav", np.stack([noise(9_001), noise(9_001, 1)], axis=1), rate, subtype="FLOAT")
    with AudioReader(tmp_path / "a.wav") as sound:
        joined = np.concatenate(list(sound.blocks()))
        assert len(joined) == sound.length
    whole = read_audio(tmp_path / "a.wav")
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined, whole)


@pytest.fixture(scope="module")
def files_of_rates(tmp_path_factory):
    """Files of 3 s of stereo at each rate, and what read_audio returns for each whole file."""
    files = {}
    for number, rate in enumerate((8_000, 22_050, 44_100, 48_000, 12_345)):
        path = tmp_path_factory.mktemp("rates") / f"{rate}.{('flac', 'wav')[number % 2]}"
        soundfile.write(path, np.stack([noise(3 * rate + 7, 1), noise(3 * rate + 7, 2)], axis=1), rate)
        files[rate] = path, read_audio(path)
    return files


@settings(max_examples=60, deadline=None)
@given(
    rate=st.sampled_from([8_000, 22_050, 44_100, 48_000, 12_345]),
    start=st.integers(0, 48_000),
    samples=st.one_of(st.integers(1, 200), st.integers(1, 60_000), st.none()),
)
def test_a_part_is_that_of_the_whole_bit_for_bit(files_of_rates, rate, start, samples):
    path, whole = files_of_rates[rate]
    wanted = whole[start:] if samples is None else whole[start : start + samples]
    np.testing.assert_array_equal(read_audio(path, start, samples), wanted)


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_the_whole_is_what_torchaudio_gives(files_of_rates, rate):
    path, whole = files_of_rates[rate]
    mono = torch.from_numpy(soundfile.read(path, dtype="float32")[0].mean(axis=1))
    np.testing.assert_allclose(whole, torchaudio.functional.resample(mono, rate, 16_000)[: len(whole)], atol=2e-6)


@pytest.mark.parametrize("form", ["flac", "wav", "aiff"])
@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_a_crop_reads_no_more_of_a_long_file(tmp_path, monkeypatch, form, rate):
    read, original = [], soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda self, frames=-1, **how: read.append(frames) or original(self, frames, **how)
    )
    for seconds in (20, 60):
        soundfile.write(tmp_path / f"{seconds}.{form}", noise(rate * seconds), rate)
        read_audio(tmp_path / f"{seconds}.{form}", 100_000, 64_000)
    # The crop's 4 s, at most two more steps of a second each, and the reach of the filter.
    assert read[0] == read[1] <= 6.1 * rate


@pytest.mark.parametrize("form", ["flac", "mp3", "ogg", "aiff"])
def test_decoders_with_a_memory_are_not_disturbed(tmp_path, monkeypatch, form):
    soundfile.write(tmp_path / f"a.{form}", noise(40_000) / 10, 16_000)
    whole = read_audio(tmp_path / f"a.{form}")
    monkeypatch.setattr("moelora_ad.audio.decoding._AT_ONCE", 1_000)
    with AudioReader(tmp_path / f"a.{form}") as sound:
        joined = np.concatenate(list(sound.blocks()))
    # The MP3 decoder rounds differently from run to run; a wrong seek would make a far larger difference.
    np.testing.assert_allclose(joined, whole, rtol=0, atol=1e-6)


def test_what_ffmpeg_decodes_comes_in_blocks_too(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.flac", noise(20_000), 16_000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)  # libsndfile refuses FLAC of unknown length
    (tmp_path / "b.flac").write_bytes(data)
    monkeypatch.setattr("moelora_ad.audio.decoding._AT_ONCE", 3_000)
    with AudioReader(tmp_path / "b.flac") as sound:
        blocks = list(sound.blocks())
    assert max(map(len, blocks)) == 3_000
    np.testing.assert_array_equal(np.concatenate(blocks), read_audio(tmp_path / "a.flac"))


def test_a_fault_is_told_when_it_is_reached(tmp_path, monkeypatch):
    monkeypatch.setattr("moelora_ad.audio.decoding._AT_ONCE", 1_000)
    sound = noise(5_000)
    sound[3_500] = np.nan
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")
    with AudioReader(tmp_path / "a.wav") as opened:
        blocks = opened.blocks()
        assert sum(len(next(blocks)) for _ in range(3)) == 3_000
        with pytest.raises(AudioError, match=r"a\.wav: it has NaN"):
            next(blocks)
    soundfile.write(tmp_path / "a.flac", noise(50_000), 16_000)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match=r"a\.flac"), AudioReader(tmp_path / "a.flac") as opened:
        list(opened.blocks())


@pytest.mark.parametrize("samples", [8_000, 8_320])
def test_telephone_files_that_cannot_seek(tmp_path, samples):
    path = tmp_path / "a.wav"
    soundfile.write(path, 0.3 * np.sin(np.arange(samples) / 9), 16_000, "GSM610")
    with AudioReader(path) as sound:
        joined = np.concatenate(list(sound.blocks()))
    np.testing.assert_array_equal(joined, soundfile.read(path, dtype="float32")[0])
    np.testing.assert_array_equal(read_audio(path, 1_000, 2_000), joined[1_000:3_000])


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX")
def test_a_name_that_is_not_utf_8(tmp_path):
    sound = noise(1_000)
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")
    path = os.path.join(tmp_path, os.fsdecode(b"\xff.wav"))
    os.rename(tmp_path / "a.wav", path)
    np.testing.assert_array_equal(read_audio(path), sound)

import contextlib
import ctypes
import io
import math
import os
import pickle
import re
import resource
import struct
import subprocess
import sys

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
import torchaudio.functional

from moelora_ad.audio import AudioError, AudioReader, audio_length, read_audio
from moelora_ad.audio.notes import silent_decoders
from moelora_ad.audio.probing import holds_sound
from moelora_ad.errors import InputError


def noise(samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


def only_line(error):
    (line,) = str(error.value).splitlines()
    return line


@pytest.mark.parametrize(
    ("name", "subtype"),
    [("a.flac", "PCM_16"), ("a.wav", "PCM_16"), ("a.wav", "FLOAT"), ("a.wav", "ULAW"), ("a.wav", "MS_ADPCM"),
     ("a.ogg", "VORBIS"), ("a.ogg", "OPUS"), ("a.mp3", "MPEG_LAYER_III")],
)  # fmt: skip
def test_a_part_equals_the_same_part_of_the_whole_bit_for_bit(tmp_path, name, subtype):
    soundfile.write(tmp_path / name, noise(30_000), 16_000, subtype=subtype)
    truth, _ = soundfile.read(tmp_path / name, dtype="float32")
    whole = read_audio(tmp_path / name)
    assert whole.dtype == np.float32
    if subtype == "MPEG_LAYER_III":  # soundfile.read seeks to 0 first, which costs mpg123 the last bit
        np.testing.assert_allclose(whole, truth, atol=1e-6)
    else:
        np.testing.assert_array_equal(whole, truth)
    assert audio_length(tmp_path / name) == len(whole) == len(truth)
    for start, samples in [(0, 1), (0, 30_000), (1, 10), (4_097, 8_000), (12_345, None), (29_999, 50)]:
        stop = None if samples is None else start + samples
        np.testing.assert_array_equal(read_audio(tmp_path / name, start, samples), whole[start:stop])


def test_only_the_needed_part_is_decoded(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "long.flac", noise(160_000), 16_000)
    decoded = []
    read = soundfile.SoundFile.read

    def counting_read(self, *args, **kwargs):
        frames = read(self, *args, **kwargs)
        decoded.append(len(frames))
        return frames

    monkeypatch.setattr(soundfile.SoundFile, "read", counting_read)
    read_audio(tmp_path / "long.flac", 100_000, 1_000)
    assert decoded == [1_000]


def test_channels_are_averaged(tmp_path):
    stereo = np.stack([noise(1_000, 1), noise(1_000, 2)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, 16_000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "stereo.wav"), (stereo[:, 0] + stereo[:, 1]) / 2, atol=1e-7)
    np.testing.assert_array_equal(
        read_audio(tmp_path / "stereo.wav", 10, 5), read_audio(tmp_path / "stereo.wav")[10:15]
    )


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_resampling_keeps_frequency_level_and_length(tmp_path, rate):
    seconds, hertz = 1.37, 1_000
    time = np.arange(int(rate * seconds)) / rate
    soundfile.write(tmp_path / "sine.wav", 0.4 * np.sin(2 * np.pi * hertz * time), rate, subtype="FLOAT")
    resampled = read_audio(tmp_path / "sine.wav")
    assert len(resampled) == audio_length(tmp_path / "sine.wav") == math.ceil(len(time) * 16_000 / rate)
    truth = 0.4 * np.sin(2 * np.pi * hertz * np.arange(len(resampled)) / 16_000)
    np.testing.assert_allclose(resampled[200:-200], truth[200:-200], atol=2e-3)


def test_resampling_removes_what_16_khz_cannot_carry(tmp_path):
    time = np.arange(48_000) / 48_000
    soundfile.write(tmp_path / "high.wav", 0.5 * np.sin(2 * np.pi * 11_000 * time), 48_000, subtype="FLOAT")
    assert np.abs(read_audio(tmp_path / "high.wav")[200:-200]).max() < 0.01


def test_resampling_agrees_with_scipy_on_band_limited_noise(tmp_path):
    low, high = scipy.signal.butter(8, [100, 5_000], "bandpass", fs=48_000, output="sos"), noise(48_000)
    sound = scipy.signal.sosfiltfilt(low, high).astype(np.float32)
    soundfile.write(tmp_path / "band.wav", sound, 48_000, subtype="FLOAT")
    truth = scipy.signal.resample_poly(sound, 1, 3, window=("kaiser", 12.0))
    np.testing.assert_allclose(read_audio(tmp_path / "band.wav")[500:-500], truth[500:-500], atol=5e-3)


def test_resampling_is_torchaudios_but_for_its_rounding_of_the_length(tmp_path):
    # At this length and rate torchaudio rounds 80,119.0023 to float32 before its ceil and returns one sample too few.
    sound = noise(220_828)
    soundfile.write(tmp_path / "long.wav", sound, 44_100, subtype="FLOAT")
    theirs = torchaudio.functional.resample(torch.from_numpy(sound), 44_100, 16_000).numpy()
    ours = read_audio(tmp_path / "long.wav")
    assert len(ours) == audio_length(tmp_path / "long.wav") == math.ceil(220_828 * 16_000 / 44_100) == len(theirs) + 1
    np.testing.assert_array_equal(ours[: len(theirs)], theirs)
    np.testing.assert_array_equal(read_audio(tmp_path / "long.wav", 1_000, 64_600), ours[1_000:65_600])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AudioError) as error:
        read_audio(tmp_path / "none.flac")
    assert only_line(error) == f"no such audio file: {tmp_path / 'none.flac'}"
    with pytest.raises(AudioError, match="no such audio file"):
        audio_length(tmp_path / "none.flac")


def test_text_under_the_name_of_audio(tmp_path):
    path = tmp_path / "text.flac"
    path.write_text("not found\n")
    with pytest.raises(AudioError) as error:
        read_audio(path)
    assert only_line(error) == (
        f"cannot decode {path}: Format not recognised (libsndfile), it has zero samples (FFmpeg); is it an audio file?"
    )


def test_folder_empty_file_and_headerless_samples(tmp_path):
    with pytest.raises(AudioError, match="this is a folder"):
        read_audio(tmp_path)
    (tmp_path / "empty.flac").touch()
    with pytest.raises(AudioError, match="the file is empty"):
        read_audio(tmp_path / "empty.flac")
    (tmp_path / "headerless.raw").write_bytes(bytes(100))
    with pytest.raises(AudioError, match=re.escape("headerless.raw")):
        read_audio(tmp_path / "headerless.raw")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    soundfile.write(tmp_path / "a.flac", noise(100), 16_000)
    (tmp_path / "a.flac").chmod(0)
    with pytest.raises(AudioError, match="no permission to read it"):
        read_audio(tmp_path / "a.flac")


@pytest.mark.parametrize("read", [read_audio, audio_length])
def test_a_file_that_the_system_does_not_open(tmp_path, read):
    soundfile.write(tmp_path / "a.wav", noise(100), 16_000)
    read(tmp_path / "a.wav")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(AudioError) as error:
            read(tmp_path / "a.wav")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert only_line(error).startswith(f"cannot read {tmp_path / 'a.wav'}: [Errno 24] Too many open files")


@pytest.mark.skipif(not os.path.exists("/sys/class/net/lo/speed"), reason="Linux has it, without a speed to tell")
def test_a_file_that_opens_and_cannot_be_read():
    with pytest.raises(AudioError, match=r"^cannot read /sys/class/net/lo/speed: \[Errno \d+\] "):
        read_audio("/sys/class/net/lo/speed")


class Unreadable(io.BytesIO):
    """A remote file whose connection breaks."""

    def read(self, size=-1):
        raise ConnectionResetError(104, "Connection reset by peer")


class Wrapped(io.BufferedIOBase):
    """A file object whose content is not in memory."""

    def __init__(self, inner):
        self.seek, self.tell, self.read, self.readinto = inner.seek, inner.tell, inner.read, inner.readinto


class BreaksOff(io.BytesIO):
    def read(self, size=-1):
        if self.tell() > 50_000:
            raise ConnectionResetError(104, "Connection reset by peer")
        return super().read(size)


@pytest.mark.parametrize("form", ["wav", "flac", "ogg"])
def test_a_large_remote_file_whose_connection_breaks(tmp_path, monkeypatch, capfd, form):
    monkeypatch.setattr("moelora_ad.audio.source._IN_MEMORY", 10)
    soundfile.write(tmp_path / f"a.{form}", noise(200_000), 16_000)
    data = (tmp_path / f"a.{form}").read_bytes()
    with pytest.raises(AudioError) as error:
        read_audio(Wrapped(BreaksOff(data)), name="s3://bucket/a")
    assert only_line(error) == "cannot read s3://bucket/a: [Errno 104] Connection reset by peer"
    assert capfd.readouterr() == ("", "")


RAW = "libmpg123"


@pytest.fixture
def damaged_mp3(tmp_path):
    """An MP3 file that libsndfile decodes completely, while libmpg123 prints remarks on some of its frames."""
    path = tmp_path / "damaged.mp3"
    soundfile.write(path, noise(100_000), 16_000, format="MP3", bitrate_mode="CONSTANT")
    data = bytearray(path.read_bytes())
    headers = [match.start() for match in re.finditer(re.escape(bytes(data[:2])), data)]
    for start in headers[20:60:5]:
        data[start + 4 : start + 8] = b"\x5a\xa5\x3c\xc3"  # overwrites the frame's side information
    path.write_bytes(data)
    return path


def test_what_libraries_say_of_a_damaged_file_does_not_reach_the_user(damaged_mp3, capfd):
    soundfile.read(damaged_mp3)
    assert RAW in capfd.readouterr().err  # libmpg123 does print something
    whole = read_audio(damaged_mp3)
    with AudioReader(damaged_mp3) as sound:
        np.testing.assert_array_equal(np.concatenate(list(sound.blocks())), whole)
    with open(damaged_mp3, "rb") as file:
        assert holds_sound(file)
    assert capfd.readouterr() == ("", "")
    soundfile.read(damaged_mp3)
    assert RAW in capfd.readouterr().err  # other code that decodes it still sees the remarks


def test_while_libraries_are_silent_all_others_can_write(capfd):
    library = ctypes.CDLL(None)
    with silent_decoders():
        library.perror(b"by the C library")
        with silent_decoders():  # as another thread may do
            pass
        library.perror(b"by the C library")
        print("by Python", file=sys.stderr)
        os.write(2, b"by its number\n")
        subprocess.run([sys.executable, "-c", "import sys; print('by a child', file=sys.stderr)"], check=True)
    library.perror(b"later")
    lines = sorted(capfd.readouterr().err.splitlines())
    assert lines[:-1] == ["by Python", "by a child", "by its number"]
    assert lines[-1].startswith("later: ")


def test_storage_that_fails_is_named():
    with pytest.raises(AudioError) as error:
        read_audio(Wrapped(Unreadable(b"fLaC" * 100)), name="s3://bucket/a.flac")
    assert only_line(error) == "cannot read s3://bucket/a.flac: [Errno 104] Connection reset by peer"


@pytest.mark.parametrize("limit", [10, 2**24])
@pytest.mark.parametrize(("samples", "rate"), [(100, 16_000), (0, 16_000), (100, 44_101)])
def test_file_objects_are_closed_whatever_happens(tmp_path, monkeypatch, limit, samples, rate):
    monkeypatch.setattr("moelora_ad.audio.source._IN_MEMORY", limit)
    soundfile.write(tmp_path / "a.wav", noise(samples), rate)
    (tmp_path / "text.wav").write_text("text " * 100)
    usable = samples and rate == 16_000
    for name, right in (("a.wav", usable), ("text.wav", False)):
        file = open(tmp_path / name, "rb")  # noqa: SIM115
        with contextlib.nullcontext() if right else pytest.raises(AudioError):
            assert len(read_audio(file, name="a")) == samples
        assert file.closed


def test_more_channels_than_the_memory_holds(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.flac", noise(100), 16_000)

    def no_room(*args, **kwargs):
        raise MemoryError("Unable to allocate 8.00 GiB")

    monkeypatch.setattr("soundfile.SoundFile.read", no_room)
    with pytest.raises(AudioError, match=r"a\.flac: too long for the memory"):
        read_audio(tmp_path / "a.flac")


def test_zero_samples(tmp_path):
    soundfile.write(tmp_path / "zero.wav", np.zeros(0), 16_000)
    for read in (read_audio, audio_length):
        with pytest.raises(AudioError, match="zero samples"):
            read(tmp_path / "zero.wav")


def test_start_behind_the_end(tmp_path):
    for rate in (16_000, 8_000):
        soundfile.write(tmp_path / "short.wav", noise(100), rate)
        assert len(read_audio(tmp_path / "short.wav", audio_length(tmp_path / "short.wav") - 1)) == 1
        with pytest.raises(AudioError, match="no sample from number 200 on"):
            read_audio(tmp_path / "short.wav", 200, 10)


@pytest.mark.parametrize(("start", "samples"), [(-1, None), (0, 0), (0, -5)])
def test_senseless_ranges_are_the_callers_mistake(tmp_path, start, samples):
    soundfile.write(tmp_path / "a.wav", noise(100), 16_000)
    with pytest.raises(ValueError, match="start must be >= 0"):
        read_audio(tmp_path / "a.wav", start, samples)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [16_000, 8_000])
def test_nan_and_infinite_samples(tmp_path, bad, rate):
    sound = noise(1_000)
    sound[700] = bad
    soundfile.write(tmp_path / "bad.wav", sound, rate, subtype="FLOAT")
    with pytest.raises(AudioError, match="NaN or infinite"):
        read_audio(tmp_path / "bad.wav")


def test_a_truncated_flac_is_refused_and_named(tmp_path):
    path = tmp_path / "cut.flac"
    soundfile.write(path, noise(64_000), 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError) as error:
        read_audio(path)
    assert only_line(error).startswith(f"cannot decode {path}: ")


def flac_with_length(path, frames):
    """A FLAC file of 8,000 samples whose header states another number (36 bits before STREAMINFO's MD5)."""
    soundfile.write(path, noise(8_000), 16_000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = struct.pack(">I", frames)
    path.write_bytes(data)


def test_headers_that_lie_about_the_length(tmp_path):
    flac_with_length(tmp_path / "open.flac", 0)  # the header that FFmpeg writes into a pipe
    flac_with_length(tmp_path / "right.flac", 8_000)
    assert audio_length(tmp_path / "open.flac") == 8_000
    np.testing.assert_array_equal(read_audio(tmp_path / "open.flac"), read_audio(tmp_path / "right.flac"))
    flac_with_length(tmp_path / "less.flac", 16_000)
    with pytest.raises(AudioError, match="cannot decode"):
        read_audio(tmp_path / "less.flac")


@pytest.mark.parametrize("rate", [1, 44_101])
def test_absurd_rates_are_refused_before_they_eat_the_memory(tmp_path, rate):
    soundfile.write(tmp_path / "odd.wav", noise(1_000), rate)
    with pytest.raises(AudioError, match=f"rate of {rate} Hz"):
        read_audio(tmp_path / "odd.wav")


class OneFile(torch.utils.data.Dataset):
    def __init__(self, path):
        self.path = path

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return read_audio(self.path)


def test_the_error_keeps_its_type_and_line_through_pickle_and_workers(tmp_path):
    path = tmp_path / "none.flac"
    error = AudioError(f"no such audio file: {path}")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, InputError)
    assert (type(copy), str(copy)) == (AudioError, str(error))
    with pytest.raises(AudioError) as from_worker:
        next(iter(torch.utils.data.DataLoader(OneFile(path), num_workers=1)))
    assert str(from_worker.value) == str(error)

"""Files that FFmpeg decodes instead of libsndfile, and corrupted files."""

import io
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
import torchaudio

from moelora_ad.audio import AudioError, AudioReader, audio_length, read_audio

SPEECH = sorted((Path(__file__).parents[2] / "experiments/quickstart/corpus").rglob("*.flac"))[0]


def speech(rate=16_000):
    waveform, own = soundfile.read(SPEECH, dtype="float32")
    return torchaudio.functional.resample(torch.from_numpy(waveform), own, rate).numpy()


def encode(path, codec, rate, waveform, video=False, form=None):
    """Writes a mono waveform with PyAV, and a few black pictures if it is a video."""
    with av.open(str(path), "w", format=form) as container:
        if video:
            pictures = container.add_stream("mpeg4", rate=25)
            pictures.width = pictures.height = 32
        stream = container.add_stream(codec, rate=rate, layout="mono")
        if video:
            for _ in range(10):
                container.mux(pictures.encode(av.VideoFrame(32, 32, "yuv420p")))
            container.mux(pictures.encode(None))
        frame = av.AudioFrame.from_ndarray(waveform[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate = rate
        for part in av.AudioResampler(stream.format, "mono", rate).resample(frame):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "rate", "video"),
    [
        ("a.m4a", "aac", 44_100, False),
        ("a.mp4", "aac", 48_000, True),
        ("a.webm", "libopus", 48_000, False),
    ],
)
def test_formats_that_libsndfile_does_not_know(tmp_path, name, codec, rate, video):
    path = encode(tmp_path / name, codec, rate, speech(rate), video)
    with pytest.raises(soundfile.SoundFileError):
        soundfile.info(path)
    waveform, original = read_audio(path), speech()
    with AudioReader(path) as sound:
        assert sound.source_rate == rate
        assert sound.length == audio_length(path) == len(waveform)
        np.testing.assert_array_equal(sound.read(1_000, 5_000), waveform[1_000:6_000])
    assert waveform.dtype == np.float32
    assert len(original) - 800 <= len(waveform) <= len(original) + 4_000  # the codec pads up to its blocks
    match = scipy.signal.correlate(waveform, original) / np.linalg.norm(waveform) / np.linalg.norm(original)
    assert match.max() > 0.85
    assert abs(int(match.argmax()) - (len(original) - 1)) <= 1_024  # at most one block of the codec


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("channels", [1, 2])
def test_flac_that_libsndfile_refuses_is_bit_identical(tmp_path, subtype, channels):
    frames = np.random.default_rng(0).uniform(-1, 1, (20_000, channels))
    soundfile.write(tmp_path / "a.flac", frames, 16_000, subtype=subtype)
    whole = read_audio(tmp_path / "a.flac")
    data = (tmp_path / "a.flac").read_bytes()
    for refused in (open_length(data), b"ID3\x04\0\0\0\0\x20\0" + bytes(4096) + data):
        (tmp_path / "b.flac").write_bytes(refused)
        np.testing.assert_array_equal(read_audio(tmp_path / "b.flac"), whole)
        np.testing.assert_array_equal(read_audio(tmp_path / "b.flac", 700, 900), whole[700:1_600])


def open_length(data):
    """FLAC whose header has no number of samples, as written into a pipe."""
    data = bytearray(data)
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)


@pytest.mark.parametrize("form", ["flac", "wav", "mp3", "m4a"])
def test_file_objects_are_read_like_paths(tmp_path, monkeypatch, form):
    path = tmp_path / f"a.{form}"
    if form == "m4a":
        encode(path, "aac", 16_000, speech())
    else:
        soundfile.write(path, speech(), 16_000)
    whole = read_audio(path)
    for limit in (2**24, 10):  # read into memory, and read piece by piece
        monkeypatch.setattr("moelora_ad.audio.source._IN_MEMORY", limit)
        with AudioReader(open(path, "rb"), "x.zip!/a") as sound:
            np.testing.assert_array_equal(sound.read(), whole)
            np.testing.assert_array_equal(sound.read(100, 200), whole[100:300])
    with pytest.raises(AudioError, match=r"cannot decode x\.zip!/a: the file is empty"):
        read_audio(io.BytesIO(), name="x.zip!/a")
    with pytest.raises(AudioError, match=r"cannot decode x\.zip!/a: .*is it an audio file"):
        read_audio(io.BytesIO(b"text " * 100), name="x.zip!/a")


@pytest.mark.parametrize(("layout", "channels"), [("5.1", 6), ("7.1", 8)])
def test_sound_of_many_channels(tmp_path, layout, channels):
    sound = speech(48_000)[:96_000] / 2
    frames = np.zeros((len(sound), channels), np.float32)
    frames[:, 1] = sound
    packed = av.AudioFrame.from_ndarray(frames.reshape(1, -1), "flt", layout)
    packed.sample_rate = 48_000
    with av.open(str(tmp_path / "a.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=48_000, layout=layout)
        stream.bit_rate = 512_000
        for part in av.AudioResampler("fltp", layout, 48_000, 1_024).resample(packed):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    waveform, mean = read_audio(tmp_path / "a.m4a")[:32_000], speech()[:32_000] / 2 / channels
    match = scipy.signal.correlate(waveform, mean) / np.dot(mean, mean)  # the encoder's delay is unknown
    assert match.max() == pytest.approx(1, abs=0.05)


def test_a_video_without_sound(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    with pytest.raises(AudioError, match="it has no audio stream"):
        read_audio(tmp_path / "a.mp4")


def test_what_is_cut_short_is_an_error(tmp_path):
    flac = open_length(SPEECH.read_bytes())
    mp4 = encode(tmp_path / "a.mp4", "aac", 16_000, speech()).read_bytes()
    for name, data in (("a.flac", flac), ("b.mp4", mp4)):
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(AudioError, match="cannot decode"):
            read_audio(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    ["ffconcat version 1.0\nfile '{}'\n", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"],
)
def test_a_playlist_does_not_open_other_files(tmp_path, text):
    target = tmp_path / "private.wav"
    soundfile.write(target, speech(), 16_000)
    for place in (str(target), target.as_uri(), target.name):
        path = tmp_path / "a.flac"
        path.write_text(text.format(place))
        with pytest.raises(AudioError, match="cannot decode"):
            read_audio(path)


def test_a_header_that_claims_very_much_takes_no_memory(tmp_path):
    soundfile.write(tmp_path / "a.wav", speech(), 16_000)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[40:44] = (2**32 - 2).to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(data)
    flac = bytearray(SPEECH.read_bytes())
    flac[21] |= 0x0F
    flac[22:26] = b"\xff" * 4
    (tmp_path / "a.flac").write_bytes(flac)
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav"), read_audio(SPEECH))  # the size in a stream's header
    with pytest.raises(AudioError, match=r"too many|early|cannot decode"):
        read_audio(tmp_path / "a.flac")
    np.testing.assert_array_equal(read_audio(tmp_path / "a.flac", 0, 16_000), read_audio(SPEECH, 0, 16_000))


MUTATIONS = """
import resource, sys
from pathlib import Path
import numpy as np
from moelora_ad.audio import AudioError, read_audio
resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30,) * 2)
folder, outcomes = Path(sys.argv[1]), {"decoded": 0, "refused": 0}
files = sorted(folder.glob("whole.*"))
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024  # MiB, since the start
for file in files:
    read_audio(file)
for number in range(int(sys.argv[2])):
    generator = np.random.default_rng(number)
    file = files[number % len(files)]
    data = np.frombuffer(file.read_bytes(), np.uint8).copy()
    kind = generator.integers(4)
    if kind == 0:  # anywhere
        data[generator.integers(len(data), size=8)] ^= generator.integers(1, 256, size=8, dtype=np.uint8)
    elif kind == 1:  # in the header
        data[generator.integers(min(200, len(data)), size=4)] = generator.integers(256, size=4, dtype=np.uint8)
    elif kind == 2:
        data = data[: generator.integers(len(data))]
    else:
        first, second = np.sort(generator.integers(len(data), size=2))
        data = np.concatenate([data[:first], data[second:], data[first:second]])
    path = folder / ("changed" + file.suffix)
    path.write_bytes(data.tobytes())
    try:
        waveform = read_audio(path, 0, None if number % 2 else 16_000)
        assert waveform.dtype == np.float32 and waveform.ndim == 1 and len(waveform) and np.isfinite(waveform).all()
        outcomes["decoded"] += 1
    except AudioError as error:
        assert str(path) in str(error) and "\\n" not in str(error)
        outcomes["refused"] += 1
print(outcomes["decoded"], outcomes["refused"], round(peak()))
"""


@pytest.mark.slow
def test_files_tampered_with_are_decoded_or_refused(tmp_path):
    clip = speech()[:16_000]
    for form in ("flac", "wav", "aiff", "mp3", "ogg"):
        soundfile.write(tmp_path / f"whole.{form}", clip, 16_000)
    encode(tmp_path / "whole.m4a", "aac", 16_000, clip)
    encode(tmp_path / "whole.aac", "aac", 16_000, clip, form="adts")
    encode(tmp_path / "whole.mp4", "aac", 16_000, clip, video=True)
    encode(tmp_path / "whole.webm", "libopus", 48_000, speech(48_000)[:48_000])
    arguments = [sys.executable, "-c", MUTATIONS, str(tmp_path), "2100"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    decoded, refused, peak = map(int, done.stdout.split())
    assert decoded + refused == 2_100
    assert min(decoded, refused) > 300
    assert peak < 1_500  # MiB, with torch's share

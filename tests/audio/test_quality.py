"""Measurements of a sound follow their definitions, whatever blocks the sound comes in."""

import io
import itertools
import math

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from moelora_ad.audio import AudioReader
from moelora_ad.audio.quality import ChannelMeter, level_notes

RATE = 16_000


@pytest.fixture(scope="module")
def speech(quickstart):
    """Real speech with a peak of 0.5."""
    sound, _ = soundfile.read(quickstart / "corpus" / "MiniLA" / "flac" / "ML_D_000004.flac", dtype="float32")
    return sound / (2 * np.abs(sound).max())


def measured(frames, *stops):
    meter = ChannelMeter()
    for block in np.split(np.asarray(frames, np.float32).reshape(len(frames), -1), stops):
        if len(block):
            meter.add(block)
    return dict(meter.notes())


def of_file(data):
    with AudioReader(io.BytesIO(data), meter=ChannelMeter()) as reader:
        for _ in reader.blocks():
            pass
        return dict(reader.meter.notes())


def encoded(frames, form="WAV", subtype=None, rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, frames, rate, subtype, format=form)
    return file.getvalue()


# Levels


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0.0, 0.0, "-inf dBFS"),
        (0.5, 0.5, "-inf dBFS"),  # a constant offset is not sound
        (-0.0001, 0.0001, "-80 dBFS"),
        (0.2, 0.2018, "-61 dBFS"),
        (-0.0011, 0.0011, None),
        (-1.0, 1.0, None),
    ],
)
def test_silence(low, high, wanted):
    assert dict(level_notes(RATE, RATE, low, high)).get("silent") == wanted


@pytest.mark.parametrize(
    ("samples", "wanted"), [(1, "0.0625 ms"), (80, "5 ms"), (800, "0.05 s"), (1_599, "0.0999 s"), (1_600, None)]
)
def test_short_sound(samples, wanted):
    assert dict(level_notes(samples, RATE, -0.5, 0.5)).get("short") == wanted


# Clipping


def in_rows(channel):
    """The number of samples in runs of three or more at the highest or the lowest value: the definition of clipping."""
    high, low = max(channel), min(channel)
    rows = [(value, len(list(group))) for value, group in itertools.groupby(channel)]
    return sum(size for value, size in rows if size >= 3 and value in (high, low) and low < 0 < high)


@given(
    arrays.arrays(np.int8, st.tuples(st.integers(1, 60), st.integers(1, 3)), elements=st.integers(-2, 2)),
    st.lists(st.integers(0, 60), max_size=4).map(sorted),
)
def test_any_blocks_give_the_share_by_the_definition(steps, stops):
    frames = np.concatenate([steps, -steps]) / 4  # the lowest value is as far from zero as the highest
    clipped = sum(in_rows(channel) for channel in frames.T.tolist())
    wanted = f"{100 * clipped / frames.size:.1f} % of samples" if clipped else None
    assert measured(frames, *stops).get("clipped") == wanted


@pytest.mark.parametrize("level", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_U8", "FLOAT", "ULAW"])
def test_speech_that_was_cut_off_is_clipped_also_if_it_was_turned_down(speech, level, subtype):
    whole = np.clip(16 * speech, -1, 1)
    share = in_rows(whole.tolist()) / len(whole)
    assert share > 0.02
    told = of_file(encoded(level * whole, subtype=subtype))["clipped"]
    assert float(told.removesuffix(" % of samples")) == pytest.approx(100 * share, abs=0.3)


@pytest.mark.parametrize(("form", "subtype"), [("MP3", None), ("OGG", "VORBIS")])
def test_what_a_lossy_codec_makes_of_clipping_is_found_too(speech, form, subtype):
    assert "clipped" in of_file(encoded(np.clip(30 * speech, -1, 1), form, subtype))


def test_speech_is_not_clipped(quickstart):
    files = sorted((quickstart / "corpus").glob("*/flac/*.flac"))[::10]
    assert len(files) > 30
    for path in files:
        sound, _ = soundfile.read(path, dtype="float32")
        for loud in (sound, sound / np.abs(sound).max(), np.round(sound * 100) / 128):
            assert measured(loud) == {}, path


def test_a_constant_is_not_clipped():
    assert measured(np.full((9_000, 2), 0.5)) == measured(np.full(9_000, -1.0)) == {}


def test_samples_beyond_full_scale_are_clipped():
    assert measured(32_768 * np.sin(np.arange(RATE) / 9))["clipped"] == "100.0 % of samples"


# Channels


def mixed(speech, gain):
    return np.stack([speech, gain * speech], axis=1)


@pytest.mark.parametrize("gain", [-1, -0.999, -0.9, -0.6, -0.5, -0.4, -0.1, 0, 0.5, 1])
def test_channels_that_cancel(speech, gain):
    power, mono = (1 + gain**2) / 2, (1 + gain) ** 2 / 4
    below = 10 * math.log10(power / mono) if mono else math.inf
    wanted = {"channels cancel": f"mono is {below:.0f} dB below the channels"} if below > 9.04 else {}
    assert measured(mixed(speech, gain), 5, 5_000) == wanted
    if gain in (-1, 1):
        assert of_file(encoded(mixed(speech, gain), "FLAC")) == wanted


def test_no_sound_but_the_same_in_opposite_directions_cancels():
    generator = np.random.default_rng(0)
    for channels in (2, 8, 32):
        unrelated = generator.uniform(-0.5, 0.5, (RATE, channels))
        one_alone = np.where(np.arange(channels) == 0, unrelated, 0)
        for frames in (unrelated, one_alone, 0 * unrelated):
            assert measured(frames) == {}


def test_files_that_ffmpeg_decodes_are_measured(speech):
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("alac", rate=RATE, layout="stereo")
        frame = av.AudioFrame.from_ndarray(mixed(speech, -1).T.copy(), "fltp", "stereo")
        frame.sample_rate = RATE
        for part in av.AudioResampler(stream.format, "stereo", RATE).resample(frame):
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    told = of_file(file.getvalue())["channels cancel"]
    assert float(told.split()[2]) > 60


def test_joined_files_may_differ_in_channels(speech):
    meter = ChannelMeter()
    clipped = np.clip(16 * speech, -1, 1)
    meter.add(0.1 * speech[:, None])
    meter.add(mixed(clipped, -1))
    share = 100 * 2 * in_rows(clipped.tolist()) / (3 * len(speech))
    below = 10 * math.log10(1 + 2 * 100 * (clipped**2).sum() / (2 * (speech**2).sum()))
    wanted = {"clipped": f"{share:.1f} % of samples", "channels cancel": f"mono is {below:.0f} dB below the channels"}
    assert dict(meter.notes()) == wanted

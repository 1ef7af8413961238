import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from moelora_ad.audio import (
    TRAINING_SAMPLES,
    AudioError,
    AudioReader,
    Crops,
    FullUtterance,
    Segment,
    keyed_generator,
    read_audio,
    read_segment,
)
from moelora_ad.audio.segments import SHORTEST
from moelora_ad.errors import InputError

POSITIONS = ("first", "random", "centre")


def ramp(samples):
    return np.arange(samples, dtype=np.float32)


def test_the_fields_length():
    assert TRAINING_SAMPLES == Segment().samples == 64_600
    assert TRAINING_SAMPLES / 16_000 == 4.0375


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("length", [1, 64_599, 64_600])
def test_an_utterance_that_is_not_longer_starts_at_its_beginning(position, length):
    assert Segment(position=position).start(length, np.random.default_rng(0)) == 0


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 200), st.integers(0, 2**32))
def test_start_lies_where_the_segment_fits(samples, length, seed):
    spare = max(0, length - samples)
    assert Segment(samples, "first").start(length) == 0
    assert Segment(samples, "centre").start(length) == spare // 2
    assert 0 <= Segment(samples, "random").start(length, np.random.default_rng(seed)) <= spare


def test_random_reaches_every_start_about_equally():
    generator, segment = np.random.default_rng(0), Segment(10, "random")
    counts = np.bincount([segment.start(14, generator) for _ in range(5_000)])
    assert len(counts) == 5
    assert counts.min() > 900


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 40))
def test_fill_is_the_fields_tile_and_cut(samples, length):
    clip = ramp(length)
    truth = [clip[i % length] for i in range(samples)]
    filled = Segment(samples).fill(clip)
    assert filled.dtype == np.float32
    np.testing.assert_array_equal(filled, truth)


@pytest.mark.parametrize("length", [0, -1])
def test_nothing_has_no_segment(length):
    with pytest.raises(ValueError, match="no segment"):
        Segment().start(length)
    with pytest.raises(ValueError, match="zero samples"):
        Segment().fill(ramp(0))


def test_random_needs_a_generator():
    with pytest.raises(ValueError, match="generator"):
        Segment(position="random").start(100_000)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Segment, {"samples": 0}, "segment: samples must be at least 1"),
        (Segment, {"position": "last"}, "segment: position must be first, random or centre"),
        (Segment, {"short": "mirror"}, "segment: short must be repeat or pad"),
        (Crops, {"count": 0}, "crops: count must be at least 1"),
        (Crops, {"count": 2, "samples": -1}, "crops: samples must be at least 1"),
        (FullUtterance, {"longest": 100}, "longest must be at least 1600 samples"),
    ],
)
def test_faulty_configuration_is_a_users_mistake(kind, arguments, message):
    with pytest.raises(InputError, match=message):
        kind(**arguments)


@pytest.mark.parametrize("length", [1, 3, 64_599, 64_600, 64_601, 100_000])
@pytest.mark.parametrize("position", POSITIONS)
def test_read_segment_is_the_stretch_of_the_whole_file(tmp_path, length, position):
    sound = np.random.default_rng(length).integers(-(2**15), 2**15, length).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", sound, 16_000)
    whole = sound.astype(np.float32) / 2**15
    segment = Segment(position=position)
    start = segment.start(length, keyed_generator(1, 2, "a"))
    truth = np.tile(whole, 64_600)[:64_600] if length < 10 else np.concatenate([whole, whole])[start : start + 64_600]
    result = read_segment(tmp_path / "a.wav", segment, keyed_generator(1, 2, "a"))
    assert result.shape == (64_600,)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, truth)


def test_read_segment_of_a_resampled_file(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 50_000), 44_100)
    whole = read_audio(tmp_path / "a.wav")
    centre = read_segment(tmp_path / "a.wav", Segment(1_000, "centre"))
    np.testing.assert_array_equal(centre, whole[(len(whole) - 1_000) // 2 :][:1_000])


def test_read_segment_of_zero_samples(tmp_path):
    soundfile.write(tmp_path / "zero.wav", np.zeros(0), 16_000)
    with pytest.raises(AudioError, match="zero samples"):
        read_segment(tmp_path / "zero.wav", Segment())


def wave(path, length):
    """Writes a WAV file of noise and returns its samples."""
    sound = np.random.default_rng(length).integers(-(2**15), 2**15, length).astype(np.int16)
    soundfile.write(path, sound, 16_000)
    return sound.astype(np.float32) / 2**15


def read(excerpt, path):
    with AudioReader(path) as sound:
        return excerpt.read(sound, keyed_generator(1, 2, "a"))


@pytest.mark.parametrize("length", [1, SHORTEST - 1, SHORTEST, 64_599, 64_600, 64_601])
@pytest.mark.parametrize("position", POSITIONS)
def test_a_short_utterance_can_be_left_for_the_batch_to_pad(tmp_path, length, position):
    whole = wave(tmp_path / "a.wav", length)
    (clip,) = read(Segment(position=position, short="pad"), tmp_path / "a.wav")
    assert len(clip) == min(max(length, SHORTEST), 64_600)
    (filled,) = read(Segment(position=position), tmp_path / "a.wav")
    np.testing.assert_array_equal(clip, filled[: len(clip)])
    if length <= 64_600:
        np.testing.assert_array_equal(clip, np.resize(whole, len(clip)))


@pytest.mark.parametrize(
    ("count", "length", "starts"),
    [
        (1, 100, [45]),
        (2, 100, [0, 90]),
        (4, 100, [0, 30, 60, 90]),
        (3, 11, [0, 0, 1]),  # half a sample is rounded to the even number
        (3, 10, [0, 0, 0]),
        (3, 1, [0, 0, 0]),
    ],
)
def test_crops_lie_at_equal_distances_from_beginning_to_end(tmp_path, count, length, starts):
    whole = wave(tmp_path / "a.wav", length)
    assert Crops(count, samples=10).starts(length) == starts
    crops = read(Crops(count, samples=10), tmp_path / "a.wav")
    for crop, start in zip(crops, starts, strict=True):
        np.testing.assert_array_equal(crop, np.resize(whole[start : start + 10], 10))


@given(st.integers(1, 20), st.integers(1, 50), st.integers(1, 500))
def test_crops_fit_and_their_distances_differ_by_one_at_most(count, samples, length):
    starts = Crops(count, samples).starts(length)
    spare = max(0, length - samples)
    assert len(starts) == count
    assert starts == sorted(starts)
    assert 0 <= starts[0] <= starts[-1] <= spare
    steps = np.diff(starts)
    assert count == 1 or ((starts[0], starts[-1]) == (0, spare) and steps.max() - steps.min() <= 1)


@pytest.mark.parametrize("length", [1, 64_600])
def test_crops_of_the_lengths_at_the_edge(tmp_path, length):
    whole = wave(tmp_path / "a.wav", length)
    for crop in read(Crops(3), tmp_path / "a.wav"):
        np.testing.assert_array_equal(crop, np.resize(whole, 64_600))
    for crop in read(Crops(3, short="pad"), tmp_path / "a.wav"):
        np.testing.assert_array_equal(crop, np.resize(whole, max(length, SHORTEST)))


@pytest.mark.parametrize("length", [1, SHORTEST - 1, SHORTEST, 64_600, 100_000])
def test_the_full_utterance_is_all_of_it_and_long_enough_for_an_encoder(tmp_path, length):
    whole = wave(tmp_path / "a.wav", length)
    (clip,) = read(FullUtterance(), tmp_path / "a.wav")
    np.testing.assert_array_equal(clip, np.resize(whole, max(length, SHORTEST)))


def test_a_full_utterance_that_is_too_long_is_refused_with_what_to_do(tmp_path):
    wave(tmp_path / "long.wav", 32_001)
    assert len(read(FullUtterance(longest=32_001), tmp_path / "long.wav")[0]) == 32_001
    with pytest.raises(AudioError, match=r"long\.wav.* 2\.0 s.*longest to 32001.*Segment or Crops"):
        read(FullUtterance(longest=32_000), tmp_path / "long.wav")


@pytest.mark.parametrize("excerpt", [Segment(), Segment(short="pad"), Crops(2), FullUtterance()])
def test_zero_samples_are_an_audio_error(tmp_path, excerpt):
    soundfile.write(tmp_path / "zero.wav", np.zeros(0), 16_000)
    with pytest.raises(AudioError, match="zero samples"):
        read(excerpt, tmp_path / "zero.wav")

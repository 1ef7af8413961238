import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from moelora_ad.audio import TRAINING_SAMPLES, AudioError, Segment, keyed_generator, read_audio, read_segment
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


@pytest.mark.parametrize(("arguments", "named"), [({"samples": 0}, "samples"), ({"position": "last"}, "position")])
def test_faulty_configuration_is_a_users_mistake(arguments, named):
    with pytest.raises(InputError, match=named):
        Segment(**arguments)


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

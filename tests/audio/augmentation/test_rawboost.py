import json

import numpy as np
import pytest
import scipy.signal
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from moelora_ad.audio import Augmentation, NotchFilters, RawBoost, keyed_generator
from moelora_ad.audio.augmentation.rawboost import Notches
from moelora_ad.errors import InputError

ALGORITHMS = range(1, 9)


def speech_like(samples=16_000, seed=0, peak=0.8):
    noise = np.random.default_rng(seed).standard_normal(samples + 200)
    sound = scipy.signal.lfilter([1], [1, -1.6, 0.8], noise)[200:] * np.hanning(samples)
    return (peak * sound / np.abs(sound).max()).astype(np.float32)


def generator(seed=0):
    return np.random.default_rng(seed)


def one_notch(lower, upper, length=101, gain=0.0):
    return Notches(np.array([[lower]]), np.array([[upper]]), np.array([[length]]), np.array([gain]))


def cascade_of_scipy(notches, row):
    """Band-stop filters of scipy, each with a gain of 1 at 0 Hz, convolved and scaled so that the peak of the response
    at 512 frequencies is the row's gain."""
    cascade = np.ones(1)
    for low, high, length in zip(notches.lower[row], notches.upper[row], notches.lengths[row], strict=True):
        cascade = np.convolve(cascade, scipy.signal.firwin(int(length), [low, high], fs=16_000))
    return cascade * 10 ** (notches.gains[row] / 20) / np.abs(scipy.signal.freqz(cascade)[1]).max()


# Filters


@pytest.mark.parametrize("seed", range(5))
def test_the_design_equals_scipys_cascade(seed):
    notches = NotchFilters(gain=(-6, 3)).draw(generator(seed), 5)
    rows = notches.coefficients(50)
    assert rows.shape == (5, 501)
    for row, coefficients in enumerate(rows):
        truth = cascade_of_scipy(notches, row)
        room = (501 - len(truth)) // 2
        np.testing.assert_allclose(coefficients, np.pad(truth, room), rtol=0, atol=1e-5)


def test_room_for_longer_filters_adds_zeros_only():
    notches = NotchFilters(coefficients=(10, 40)).draw(generator(), 3)
    short, long = notches.coefficients(), notches.coefficients(50)
    room = (long.shape[1] - short.shape[1]) // 2
    assert room > 0
    np.testing.assert_allclose(long, np.pad(short, ((0, 0), (room, room))), rtol=0, atol=1e-9)


def test_a_notch_is_where_it_was_drawn_and_deep():
    frequency, response = scipy.signal.freqz(one_notch(2_000, 3_000).coefficients()[0], worN=8_000, fs=16_000)
    decibels = 20 * np.log10(np.abs(response) + 1e-12)
    stopped = frequency[decibels < -6]
    assert stopped.min() == pytest.approx(2_000, abs=20)  # the window method has a gain of one half at the edges
    assert stopped.max() == pytest.approx(3_000, abs=20)
    assert decibels[(frequency > 2_300) & (frequency < 2_700)].max() < -40
    assert np.abs(decibels[(frequency < 1_700) | (frequency > 3_300)]).max() < 0.1


@pytest.mark.parametrize("gain", [-20.0, 0.0, 6.0])
def test_the_highest_response_is_the_gain(gain):
    coefficients = one_notch(500, 1_400, gain=gain).coefficients()[0]
    _, response = scipy.signal.freqz(coefficients, worN=8_192)
    assert 20 * np.log10(np.abs(response).max()) == pytest.approx(gain, abs=0.01)


def test_filters_are_symmetric_and_pass_the_lowest_frequencies_upright():
    coefficients = NotchFilters().draw(generator(), 200).coefficients()
    np.testing.assert_allclose(coefficients, coefficients[:, ::-1], atol=1e-12)
    assert (coefficients.sum(axis=1) > 0).all()


def test_notches_are_drawn_uniformly_within_the_published_limits():
    notches = NotchFilters().draw(generator(), 2_000)
    assert notches.lower.shape == (2_000, 5)
    assert notches.lower.min() == 0.001
    assert notches.upper.max() == 7_999.999
    inside = (notches.lower > 0.001) & (notches.upper < 7_999.999)
    width = (notches.upper - notches.lower)[inside]
    assert width.min() >= 100 - 1e-9
    assert width.max() <= 1_000
    # Drawn from 10 to 99, and even numbers raised by one: 45 odd lengths, of two numbers each.
    assert sorted(set(notches.lengths.ravel())) == list(range(11, 100, 2))
    assert scipy.stats.chisquare(np.bincount(notches.lengths.ravel())[11::2]).pvalue > 0.01
    assert (notches.gains == 0).all()
    centre = (notches.lower + notches.upper)[inside] / 2
    middle = centre[(centre > 500) & (centre < 7_500)]
    assert scipy.stats.kstest(middle, scipy.stats.uniform(500, 7_000).cdf).pvalue > 0.01


def test_the_attenuation_is_taken_from_both_ends_of_the_gain_once():
    gains = np.stack([NotchFilters(gain=(-6, 3)).draw(generator(seed), 4, (5, 20)).gains for seed in range(1_000)])
    assert scipy.stats.kstest(gains[:, 0], scipy.stats.uniform(-6, 9).cdf).pvalue > 0.01
    assert scipy.stats.kstest(gains[:, 1:].ravel(), scipy.stats.uniform(-17, 6).cdf).pvalue > 0.01  # -11 to -17


# Algorithm 1


def test_one_order_is_linear():
    boost = RawBoost(1, orders=1)
    quiet, half = (boost(speech_like(peak=peak), generator(1)) for peak in (0.4, 0.2))
    np.testing.assert_allclose(half, quiet / 2, atol=1e-6)


def test_more_orders_bring_harmonics():
    tone = (0.9 * np.sin(2 * np.pi * 1_000 * np.arange(16_000) / 16_000)).astype(np.float32)
    flat = NotchFilters(bands=1, centre=(7_900, 7_900), width=(100, 100))
    window = np.blackman(14_000)
    for orders in range(1, 6):
        sound = RawBoost(1, orders=orders, filters=flat)(tone, generator())[1_000:15_000]
        spectrum = np.abs(np.fft.rfft(sound * window)) / window.sum() * 2
        present = [k for k in range(2, 7) if spectrum[round(k * 1_000 * 14_000 / 16_000)] > 1e-4]
        assert present == list(range(2, orders + 1))


def test_the_result_is_kept_within_full_scale_and_not_made_louder():
    for algorithm in (1, 2, 5, 8):
        for seed in range(10):
            loud = RawBoost(algorithm)(speech_like(peak=1), generator(seed))
            assert np.abs(loud).max() <= 1
    quiet = RawBoost(1)(speech_like(peak=0.01), generator())
    assert np.abs(quiet).max() < 0.05


# Algorithm 2


def impulses_of(generator, samples=20_000, **parameters):
    waveform = np.full(samples, 0.1, np.float32)
    ratio = RawBoost(2, **parameters)(waveform, generator) / waveform - 1
    return ratio[np.abs(ratio) > 1e-6], np.flatnonzero(np.abs(ratio) > 1e-6)


def test_the_number_of_impulses_is_uniform_up_to_a_tenth():
    one = generator()
    shares = np.array([len(impulses_of(one)[0]) / 20_000 for _ in range(2_000)])
    assert shares.max() <= 0.1
    assert scipy.stats.kstest(shares, scipy.stats.uniform(0, 0.1).cdf).pvalue > 0.01


def test_impulses_lie_anywhere():
    places = np.concatenate([impulses_of(generator(seed))[1] for seed in range(20)])
    assert scipy.stats.kstest(places, scipy.stats.uniform(0, 20_000).cdf).pvalue > 0.01


@pytest.mark.parametrize("gain", [2.0, 0.5])
def test_impulses_have_the_logarithmic_density(gain):
    ratio = np.concatenate([impulses_of(generator(seed), impulse_gain=gain)[0] for seed in range(20)]) / gain
    assert np.abs(ratio).max() <= 1
    assert abs((ratio > 0).mean() - 0.5) < 0.02
    size = np.abs(ratio)
    # The density -ln|r| / 2 on both sides integrates to |r| (1 - ln|r|).
    assert scipy.stats.kstest(size, lambda r: np.clip(r, 1e-12, 1) * (1 - np.log(np.clip(r, 1e-12, 1)))).pvalue > 0.01


def test_other_samples_are_untouched_and_a_silent_place_stays_silent():
    waveform = speech_like(peak=0.3)
    waveform[1_000:2_000] = 0
    changed = RawBoost(2)(waveform, generator(5))
    assert 0.0 < (changed != waveform).mean() <= 0.1
    assert not changed[1_000:2_000].any()


# Algorithm 3


@pytest.mark.parametrize("snr", [(10.0, 10.0), (40.0, 40.0), (10.0, 40.0)])
def test_the_ratio_is_the_one_drawn(snr):
    waveform = speech_like()
    boost = RawBoost(3, snr=snr)
    replayed = generator(8)
    boost.filters.draw(replayed, 1)
    drawn = replayed.uniform(*snr)
    noise = boost(waveform, generator(8)).astype(np.float64) - waveform
    measured = 10 * np.log10((waveform.astype(np.float64) ** 2).sum() / (noise**2).sum())
    assert measured == pytest.approx(drawn, abs=0.01)


def test_the_ratio_is_uniform_from_10_to_40_dB():
    waveform = speech_like(2_000)
    power = (waveform.astype(np.float64) ** 2).sum()
    noises = (RawBoost(3)(waveform, generator(seed)).astype(np.float64) - waveform for seed in range(300))
    ratios = [10 * np.log10(power / (noise**2).sum()) for noise in noises]
    assert scipy.stats.kstest(ratios, scipy.stats.uniform(10, 30).cdf).pvalue > 0.01


def test_the_noise_has_the_filters_colour():
    waveform = speech_like(200_000)
    stop = NotchFilters(bands=1, centre=(3_000, 3_000), width=(1_000, 1_000), coefficients=(101, 101))
    noise = RawBoost(3, filters=stop)(waveform, generator()) - waveform
    frequency, density = scipy.signal.welch(noise, 16_000, nperseg=1_024)
    _, response = scipy.signal.freqz(cascade_of_scipy(stop.draw(generator(), 1), 0), worN=frequency, fs=16_000)
    passed = np.abs(response) > 0.9
    assert np.ptp(10 * np.log10(density[passed][1:-1])) < 3
    stopped = (frequency > 2_750) & (frequency < 3_250)
    assert density[stopped].max() < density[passed].mean() * 1e-3


def test_without_a_stop_band_the_noise_is_white_and_gaussian():
    waveform = speech_like(300_000)
    at_nyquist = NotchFilters(bands=1, centre=(8_000, 8_000), width=(1, 1), coefficients=(3, 3))
    noise = (RawBoost(3, filters=at_nyquist)(waveform, generator(2)).astype(np.float64) - waveform)[10:-10]
    noise /= noise.std()
    # Every third sample, because the short filter makes neighbouring samples dependent.
    assert scipy.stats.kstest(noise[::3], scipy.stats.norm.cdf).pvalue > 0.01
    assert scipy.stats.kurtosis(noise) == pytest.approx(0, abs=0.05)
    _, density = scipy.signal.welch(noise, 16_000, nperseg=256)
    assert np.ptp(10 * np.log10(density[2:-2])) < 1


# Combinations


def in_series(boost, names, waveform, generator):
    for name in names:
        waveform = getattr(boost, name)(waveform, generator)
    return waveform


@pytest.mark.parametrize(
    ("algorithm", "names"),
    [
        (1, ["convolutive"]),
        (2, ["impulsive"]),
        (3, ["stationary"]),
        (4, ["convolutive", "impulsive", "stationary"]),
        (5, ["convolutive", "impulsive"]),
        (6, ["convolutive", "stationary"]),
        (7, ["impulsive", "stationary"]),
    ],
)
def test_series_are_their_parts(algorithm, names):
    waveform, boost = speech_like(), RawBoost(algorithm)
    parts = waveform
    one = generator(4)
    for name, number in zip(names, [{"c": 1, "i": 2, "s": 3}[n[0]] for n in names], strict=True):
        np.testing.assert_array_equal(getattr(boost, name)(parts, generator(9)), RawBoost(number)(parts, generator(9)))
        parts = getattr(boost, name)(parts, one)
    np.testing.assert_array_equal(boost(waveform, generator(4)), parts)


def test_parallel_is_the_sum_within_full_scale():
    waveform, boost, one = speech_like(peak=1), RawBoost(8), generator(2)
    total = RawBoost(1)(waveform, one) + RawBoost(2)(waveform, one)
    assert np.abs(total).max() > 1
    np.testing.assert_allclose(boost(waveform, generator(2)), total / np.abs(total).max(), rtol=1e-6)


# All algorithms


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(ALGORITHMS), st.integers(1, 5_000), st.integers(0, 2**32), st.floats(0, 1e30))
def test_any_waveform_gives_as_many_finite_samples(algorithm, samples, seed, scale):
    waveform = (np.random.default_rng(seed).uniform(-1, 1, samples) * scale).astype(np.float32)
    before = waveform.copy()
    result = RawBoost(algorithm)(waveform, generator(seed))
    assert result.shape == waveform.shape
    assert result.dtype == np.float32
    assert np.isfinite(result).all()
    assert not np.shares_memory(result, waveform)
    np.testing.assert_array_equal(waveform, before)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("samples", [1, 2, 501, 3_596, 3_597, 64_600])
@pytest.mark.parametrize("level", [0.0, 1e-40, 0.5, -1.0])
def test_silent_and_constant_waveforms(algorithm, samples, level):
    result = RawBoost(algorithm)(np.full(samples, level, np.float32), generator(samples))
    assert result.shape == (samples,)
    assert np.isfinite(result).all()
    if level == 0:
        assert not result.any()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_generator_decides_everything(algorithm):
    waveform, boost = speech_like(), RawBoost(algorithm)
    first, again, other = (boost(waveform, keyed_generator(0, epoch, "LA_T_1")) for epoch in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first != waveform).any()


def test_what_is_far_above_full_scale_is_brought_to_it_first():
    waveform = speech_like(peak=0.5)
    for algorithm in ALGORITHMS:
        loud = RawBoost(algorithm)(waveform * 40, generator())
        np.testing.assert_allclose(loud, RawBoost(algorithm)(waveform * 2, generator()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("waveform", "named"),
    [(np.zeros(0), "samples >= 1"), (np.zeros((1, 5)), "samples >= 1"), ([0, np.nan], "NaN"), ([np.inf, 0], "NaN")],
)
def test_no_waveform(waveform, named):
    with pytest.raises(ValueError, match=named):
        RawBoost()(np.asarray(waveform, np.float32), generator())


# Configuration


def test_the_published_values():
    boost = RawBoost()
    assert (boost.orders, boost.attenuation, boost.impulses, boost.impulse_gain, boost.snr) == (
        5, (5, 20), 10, 2, (10, 40)
    )  # fmt: skip
    assert boost.filters == NotchFilters(5, (20, 8_000), (100, 1_000), (10, 100), (0, 0))


@pytest.mark.parametrize(
    ("build", "arguments", "named"),
    [
        (RawBoost, {"algorithm": 0}, "algorithm"),
        (RawBoost, {"algorithm": 9}, "algorithm"),
        (RawBoost, {"orders": 0}, "orders"),
        (RawBoost, {"attenuation": (20, 5)}, "attenuation"),
        (RawBoost, {"impulses": 101}, "impulses"),
        (RawBoost, {"impulses": -1}, "impulses"),
        (RawBoost, {"impulse_gain": float("nan")}, "impulse_gain"),
        (RawBoost, {"snr": (10, float("inf"))}, "snr"),
        (RawBoost, {"snr": (float("nan"), 40)}, "snr"),
        (NotchFilters, {"bands": 0}, "bands"),
        (NotchFilters, {"centre": (20, 8_001)}, "centre"),
        (NotchFilters, {"width": (0, 100)}, "width"),
        (NotchFilters, {"width": (100, 8_000)}, "width"),
        (NotchFilters, {"coefficients": (1, 10)}, "coefficients"),
        (NotchFilters, {"coefficients": (20, 10)}, "coefficients"),
        (NotchFilters, {"gain": (3, 0)}, "gain"),
    ],
)
def test_faulty_configuration_is_a_users_mistake(build, arguments, named):
    with pytest.raises(InputError, match=named):
        build(**arguments)


def test_yaml_builds_it():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--augmentation", type=Augmentation)
    arguments = {"algorithm": 3, "snr": [20, 30], "filters": {"bands": 2}}
    text = json.dumps({"class_path": "moelora_ad.audio.RawBoost", "init_args": arguments})
    built = parser.instantiate(parser.parse_args([f"--augmentation={text}"])).augmentation
    assert built == RawBoost(3, snr=(20, 30), filters=NotchFilters(bands=2))

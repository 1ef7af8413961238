"""RawBoost against the arithmetic of the published code, in plain scipy, with the same random draws.

Nothing here is designed, filtered or summed as ``moelora_ad.audio.augmentation.rawboost`` does it. How the draws are
distributed is tested in ``test_rawboost.py``.
"""

import numpy as np
import pytest
import scipy.signal
import soundfile

from moelora_ad.audio import NotchFilters, RawBoost
from moelora_ad.audio.augmentation.rawboost import _white_noise

GAINS = NotchFilters(gain=(-6, 3))
LONG = NotchFilters(bands=3, coefficients=(200, 700), width=(500, 3_000))


def notch_filter(notches, row):
    whole = np.ones(1)
    for low, high, taps in zip(notches.lower[row], notches.upper[row], notches.lengths[row], strict=True):
        whole = np.convolve(scipy.signal.firwin(taps, [low, high], window="hamming", fs=16_000), whole)
    _, response = scipy.signal.freqz(whole, 1, worN=512, fs=16_000)
    return 10 ** (notches.gains[row] / 20) * whole / np.abs(response).max()


def through(sound, taps):
    """The filtered sound, from one sample after the filter's centre on."""
    first = (len(taps) + 1) // 2
    whole = np.append(scipy.signal.fftconvolve(sound, taps), 0)
    return whole[first : first + len(sound)]


def within_full_scale(sound):
    return sound / max(1.0, np.abs(sound).max())


def convolutive(sound, boost, draws):
    notches = boost.filters.draw(draws, boost.orders, boost.attenuation)
    total = np.zeros(len(sound))
    for power in range(1, boost.orders + 1):
        total += through(sound**power, notch_filter(notches, power - 1))
    return within_full_scale(total - total.mean())


def impulsive(sound, boost, draws):
    count = int(draws.uniform(0, boost.impulses) / 100 * len(sound))
    places = draws.choice(len(sound), count, replace=False, shuffle=False)
    one, other = 2 * draws.random((2, count), np.float32).astype(np.float64) - 1
    changed = sound.copy()
    changed[places] += boost.impulse_gain * sound[places] * one * other
    return within_full_scale(changed)


def stationary(sound, boost, draws):
    notches = boost.filters.draw(draws, 1)
    decibels = draws.uniform(*boost.snr)
    noise = through(_white_noise(len(sound), draws).astype(np.float64), notch_filter(notches, 0))
    noise /= np.abs(noise).max()
    return sound + noise / np.linalg.norm(noise) * np.linalg.norm(sound) / 10 ** (decibels / 20)


SERIES = {
    1: [convolutive],
    2: [impulsive],
    3: [stationary],
    4: [convolutive, impulsive, stationary],
    5: [convolutive, impulsive],
    6: [convolutive, stationary],
    7: [impulsive, stationary],
}


def published(sound, boost, draws):
    if boost.algorithm == 8:
        return within_full_scale(convolutive(sound, boost, draws) + impulsive(sound, boost, draws))
    for step in SERIES[boost.algorithm]:
        sound = step(sound, boost, draws)
    return sound


@pytest.fixture(scope="module")
def speech(quickstart):
    """Real utterances, the beginning of one, one at full scale, and one above full scale."""
    files = sorted((quickstart / "corpus" / "MiniLA" / "flac").glob("*.flac"))[::60]
    sounds = [soundfile.read(path, dtype="float32")[0] for path in files]
    return [*sounds, sounds[0][:300], sounds[0] / np.abs(sounds[0]).max(), 1.5 * sounds[1] / np.abs(sounds[1]).max()]


@pytest.mark.parametrize("filters", [NotchFilters(), GAINS, LONG], ids=["published values", "gains", "long filters"])
@pytest.mark.parametrize("algorithm", range(1, 9))
def test_equal_draws_give_equal_sounds(speech, algorithm, filters):
    boost = RawBoost(algorithm, filters=filters)
    for seed, sound in enumerate(speech):
        wanted = published(sound.astype(np.float64), boost, np.random.default_rng(seed))
        found = boost(sound, np.random.default_rng(seed))
        assert np.linalg.norm(found - wanted) < 1e-5 * np.linalg.norm(wanted)


def test_a_stop_band_over_the_lowest_frequencies_leaves_the_polarity_to_chance():
    """The published code scales every filter to a positive gain at 0 Hz, where this one passes next to nothing."""
    low = NotchFilters(bands=1, centre=(20, 60), width=(1_000, 3_000))
    pulse = np.zeros(1_001)
    pulse[500] = 0.5
    upright = []
    for seed in range(40):
        boost = RawBoost(1, orders=1, filters=low)
        wanted = published(pulse, boost, np.random.default_rng(seed))
        found = boost(pulse.astype(np.float32), np.random.default_rng(seed))
        assert np.linalg.norm(found - wanted) < 1e-5 * np.linalg.norm(wanted)
        upright.append(found[499] > 0)
    assert 0 < sum(upright) < 40

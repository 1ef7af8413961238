"""RawBoost: convolutive and additive noise for raw waveforms, made from the waveform itself.

H. Tak, M. Kamble, J. Patino, M. Todisco, N. Evans, "RawBoost: a raw data boosting and augmentation method applied to
automatic speaker verification anti-spoofing", ICASSP 2022, https://arxiv.org/abs/2111.04433.

With equal draws, the results are those of the authors' code (https://github.com/TakHemlata/RawBoost-antispoofing).
A filter is a cascade of linear-phase band-stop filters. All of them are designed at once and in closed form, and their
real responses are multiplied: the response of a symmetric filter, seen from its centre, is a sum of cosines.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from moelora_ad.audio.augmentation.base import Augmentation, check_limits, peak, within_full_scale
from moelora_ad.audio.decoding import SAMPLE_RATE
from moelora_ad.errors import InputError

NYQUIST = SAMPLE_RATE / 2
MOST_DECIBELS = 100.0
EDGE = 0.001  # Hz that a stop band keeps from 0 and 8000 Hz
PEAK_BINS = 512  # frequencies from 0 to below 8000 Hz among which the peak of a response is found
LOUDEST = 10.0  # full scales


@dataclass(frozen=True)
class Notches:
    """Multi-notch filters as drawn: one row is one filter, a cascade of as many band-stop filters as there are columns.

    Args:
        lower: (filters, bands) lower edges of the stop bands in Hz, > 0; here and at ``upper`` the gain is one half.
        upper: (filters, bands) upper edges in Hz, < 8000.
        lengths: (filters, bands) coefficients of each band-stop filter, odd and >= 3.
        gains: (filters,) gain in dB where the cascade's response is highest, of 512 frequencies.
    """

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    lengths: NDArray[np.int64]
    gains: NDArray[np.float64]

    def coefficients(self, radius: int | None = None) -> NDArray[np.float64]:
        """The impulse responses, symmetric about their centre: (filters, 2 bands radius + 1) float64.

        Args:
            radius: Coefficients on either side of the centre of the longest band-stop filter that there is room for;
                by default those of the longest one here. A larger radius adds zeros at both ends.
        """
        if radius is None:
            radius = int(self.lengths.max()) // 2
        reach = self.lower.shape[1] * radius
        size = max(2 * PEAK_BINS, _power_of_two(2 * (2 * reach + 1)))
        cascade: NDArray[np.float64] = (self._band_stops(radius) @ _cosines(radius, size)).prod(axis=1)  # real
        peak = np.abs(cascade[:, : -1 : size // (2 * PEAK_BINS)]).max(axis=1)
        # Each band-stop filter is scaled to a gain of 1 at 0 Hz, so that the cascade's gain there is positive.
        peak = np.copysign(np.maximum(peak, np.finfo(np.float64).tiny), cascade[:, 0])
        cascade *= (10 ** (self.gains / 20) / peak)[:, None]
        centred = np.fft.irfft(cascade)
        return np.concatenate([centred[:, -reach:], centred[:, : reach + 1]], axis=1)

    def _band_stops(self, radius: int) -> NDArray[np.float64]:
        """Right halves of the Hamming-windowed ideal band-stop filters: (filters, bands, radius + 1), centre first."""
        lower, upper = self.lower[..., None] / NYQUIST, self.upper[..., None] / NYQUIST
        lag = np.arange(1, radius + 1)
        half = np.empty((*self.lengths.shape, radius + 1))
        half[..., :1] = 1 - (upper - lower)
        half[..., 1:] = (np.sin(np.pi * lower * lag) - np.sin(np.pi * upper * lag)) / (np.pi * lag)
        reach = (self.lengths // 2)[..., None]
        half[..., 1:] *= np.where(lag <= reach, 0.54 + 0.46 * np.cos(np.pi * lag / reach), 0)
        return half


@dataclass(frozen=True)
class NotchFilters:
    """The distribution of random multi-notch filters; each pair is a lowest and a highest value, both possible.

    A band-stop filter has a centre and a width drawn uniformly, its edges kept 0.001 Hz from 0 and 8000 Hz, and as many
    coefficients as the integer part of a uniform draw (10 to 99 by default); an even number is raised by one, since a
    filter that passes 8000 Hz and has a centre needs an odd one. It is designed by the window method (Hamming). The
    cascade is then scaled so that the peak of its response has the drawn gain, and its gain at 0 Hz is positive. (Where
    a stop band covers 0 Hz, it leaves the sign of that gain to chance, and so the polarity of all that is passed.)

    Args:
        bands: Stop bands of one filter (published as nBands).
        centre: Centres of the stop bands in Hz (minF, maxF).
        width: Widths of the stop bands in Hz (minBW, maxBW).
        coefficients: Coefficients of one band-stop filter (minCoeff, maxCoeff), the highest excluded.
        gain: Gain at the peak of the response in dB (minG, maxG).

    Raises:
        InputError: A value is out of range.
    """

    bands: int = 5
    centre: tuple[float, float] = (20.0, NYQUIST)
    width: tuple[float, float] = (100.0, 1_000.0)
    coefficients: tuple[int, int] = (10, 100)
    gain: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if self.bands < 1:
            raise InputError(f"RawBoost: bands must be at least 1, not {self.bands}")
        check_limits("RawBoost: centre", self.centre, 0, NYQUIST, "Hz")
        check_limits("RawBoost: width", self.width, 1, NYQUIST - 1, "Hz")
        check_limits("RawBoost: coefficients", self.coefficients, 2, 10_000)
        check_limits("RawBoost: gain", self.gain, -MOST_DECIBELS, MOST_DECIBELS, "dB")

    @property
    def radius(self) -> int:
        """Coefficients on either side of the centre of the longest band-stop filter that can be drawn."""
        return self.coefficients[1] // 2

    def draw(
        self, generator: np.random.Generator, filters: int, attenuation: tuple[float, float] = (0.0, 0.0)
    ) -> Notches:
        """Draw ``filters`` independent multi-notch filters.

        Args:
            generator: The source of randomness.
            filters: Number of filters.
            attenuation: Decibels that are subtracted from the lowest and the highest gain of all filters but the first.
        """
        shape = (filters, self.bands)
        centre = generator.uniform(*self.centre, shape)
        width = generator.uniform(*self.width, shape)
        lengths = generator.uniform(*self.coefficients, shape).astype(np.int64) | 1
        gains = generator.random(filters)
        lowest, highest = (np.full(filters, gain, np.float64) for gain in self.gain)
        lowest[1:] -= attenuation[0]
        highest[1:] -= attenuation[1]
        lower, upper = np.maximum(centre - width / 2, EDGE), np.minimum(centre + width / 2, NYQUIST - EDGE)
        return Notches(lower, upper, lengths, lowest + (highest - lowest) * gains)


@dataclass(frozen=True)
class RawBoost(Augmentation):
    """RawBoost's noises, alone or combined, by the numbers of the published code.

    1. Linear and non-linear convolutive noise: the sum of the waveform's powers 1 to ``orders``, each through a filter
       of its own.
    2. Impulsive signal-dependent noise: at random samples n, ``impulse_gain`` r x[n] is added to x[n].
    3. Stationary signal-independent noise: white noise through a filter is added.
    4. 1, 2 and 3 in series. 5. 1 and 2 in series: the paper's best on ASVspoof 2021 LA. 6. 1 and 3 in series.
    7. 2 and 3 in series. 8. 1 and 2 in parallel: the sum of both results.

    The default values are the published ones, and with equal draws the results are those of the published code:

    - A filtered waveform comes one sample earlier than the unfiltered one, which matters for 8, where the two are
      added; a waveform is taken as zero outside its samples.
    - 1 subtracts the mean. 1, 2 and 8 divide the result by its peak if that is above 1; 3 leaves it.
    - r is the product of two uniform draws from [-1, 1]: its density is -ln|r| / 2.
    - The share of samples that 2 changes is drawn uniformly up to ``impulses``, rounded down to whole samples, which
      are all different.
    - The white noise of 3 is Gaussian, here by 65,536 equally likely values; the signal-to-noise ratio is that of the
      energies over the whole waveform.

    That code changes the whole utterance and then takes the training segment from it: see ``augment_before_crop`` of
    the data module. Chosen here: a waveform with a peak above 10, where full scale is 1, is divided by its peak first,
    so that its powers stay bounded.

    A silent waveform stays silent. 1 turns a waveform of a single sample into 0, as it subtracts the mean.

    Args:
        algorithm: 1 to 8, as above.
        orders: Powers of the waveform in 1 (N_f).
        filters: What the filters of 1 and 3 are drawn from.
        attenuation: Decibels that are subtracted from the lowest and from the highest gain of the filters of all powers
            but the first (minBiasLinNonLin, maxBiasLinNonLin).
        impulses: Samples that 2 changes at most, in per cent (P).
        impulse_gain: Gain of the impulses, linear (g_sd).
        snr: Lowest and highest signal-to-noise ratio of 3 in dB (SNRmin, SNRmax).

    Raises:
        InputError: A value is out of range.
    """

    algorithm: int = 5
    orders: int = 5
    filters: NotchFilters = NotchFilters()
    attenuation: tuple[float, float] = (5.0, 20.0)
    impulses: float = 10.0
    impulse_gain: float = 2.0
    snr: tuple[float, float] = (10.0, 40.0)

    def __post_init__(self) -> None:
        if self.algorithm not in range(1, 9):
            raise InputError(f"RawBoost: algorithm must be 1 to 8, not {self.algorithm!r}")
        if not 1 <= self.orders <= 20:
            raise InputError(f"RawBoost: orders must be 1 to 20, not {self.orders}")
        check_limits("RawBoost: attenuation", self.attenuation, -MOST_DECIBELS, MOST_DECIBELS, "dB")
        check_limits("RawBoost: snr", self.snr, -MOST_DECIBELS, MOST_DECIBELS, "dB")
        if not 0 <= self.impulses <= 100:
            raise InputError(f"RawBoost: impulses must be 0 to 100 per cent, not {self.impulses}")
        if not 0 <= self.impulse_gain <= 1e6:
            raise InputError(f"RawBoost: impulse_gain must be 0 to 1000000, not {self.impulse_gain}")

    def __call__(self, waveform: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """Add the noises of ``algorithm`` to ``waveform``: see `Augmentation`.

        Raises:
            ValueError: ``waveform`` is not one-dimensional, is empty, or has NaN or infinite samples.
        """
        if waveform.ndim != 1 or len(waveform) == 0:
            raise ValueError(f"a waveform must be (samples,) with samples >= 1, not {waveform.shape}")
        loudest = peak(waveform)
        if not np.isfinite(loudest):
            raise ValueError("a waveform with NaN or infinite samples cannot be augmented")
        sound = waveform if loudest <= LOUDEST else waveform / np.float32(loudest)
        if self.algorithm == 8:
            return within_full_scale(self.convolutive(sound, generator) + self.impulsive(sound, generator))
        if self.algorithm in (1, 4, 5, 6):
            sound = self.convolutive(sound, generator)
        if self.algorithm in (2, 4, 5, 7):
            sound = self.impulsive(sound, generator)
        if self.algorithm in (3, 4, 6, 7):
            sound = self.stationary(sound, generator)
        return sound

    def convolutive(self, waveform: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """``waveform`` (samples,) through the channel of algorithm 1."""
        notches = self.filters.draw(generator, self.orders, self.attenuation)
        sound = _filter_powers(waveform, notches.coefficients(self.filters.radius))
        sound -= sound.mean(dtype=np.float64)
        return within_full_scale(sound)

    def impulsive(self, waveform: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """``waveform`` (samples,) with the impulses of algorithm 2."""
        share = generator.uniform(0, self.impulses) / 100
        places = generator.choice(len(waveform), int(share * len(waveform)), replace=False, shuffle=False)
        one, other = 2 * generator.random((2, len(places)), np.float32) - 1
        sound = waveform.copy()
        sound[places] *= 1 + np.float32(self.impulse_gain) * one * other
        return within_full_scale(sound)

    def stationary(self, waveform: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """``waveform`` (samples,) with the coloured noise of algorithm 3."""
        coefficients = self.filters.draw(generator, 1).coefficients(self.filters.radius)
        snr = generator.uniform(*self.snr)
        noise = _filter_powers(_white_noise(len(waveform), generator), coefficients)
        ratio = float(np.linalg.norm(waveform)) / max(float(np.linalg.norm(noise)), 1e-30)
        noise *= np.float32(ratio * 10 ** (-snr / 20))
        noise += waveform
        return noise


def _white_noise(samples: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Gaussian white noise of variance 1: (samples,), by 16 random bits a sample."""
    return _gaussian_values()[generator.integers(1 << 16, size=samples, dtype=np.uint16)]


@lru_cache(maxsize=1)
def _gaussian_values() -> NDArray[np.float32]:
    """65,536 values of the normal distribution, equally likely: picking one is five times as fast as drawing."""
    probability = (np.arange(1 << 16) + 0.5) / (1 << 16)
    values: NDArray[np.float32] = torch.special.ndtri(torch.from_numpy(probability)).float().numpy()
    return values


def _filter_powers(waveform: NDArray[np.float32], filters: NDArray[np.float64]) -> NDArray[np.float32]:
    """The sum of the powers 1, 2, ... of ``waveform`` (samples,), each through its filter: (samples,).

    It is computed by Fourier transforms of overlapping blocks; what wraps around within a block is discarded.

    Args:
        waveform: (samples,).
        filters: (orders, 2 reach + 1), centred; the result comes one sample earlier than their centre.
    """
    samples, overlap = len(waveform), filters.shape[1] - 1
    size = _power_of_two(min(8 * overlap, samples + overlap))
    step = size - overlap
    padded = np.zeros(-(-samples // step) * step + overlap, np.float32)
    padded[overlap // 2 - 1 : overlap // 2 - 1 + samples] = waveform
    windows = torch.from_numpy(padded).unfold(0, size, step)  # (blocks, size)
    responses = torch.fft.rfft(torch.from_numpy(filters.astype(np.float32)), size)
    power, spectrum = windows, torch.fft.rfft(windows).mul_(responses[0])
    for response in responses[1:]:
        power = power * windows
        spectrum.addcmul_(torch.fft.rfft(power), response)
    filtered: NDArray[np.float32] = torch.fft.irfft(spectrum, size)[:, overlap:].reshape(-1)[:samples].numpy()
    return filtered


@lru_cache(maxsize=8)
def _cosines(radius: int, size: int) -> NDArray[np.float64]:
    """Right half of a symmetric filter, centre first -> real response at the bins of ``size``: (radius + 1, bins)."""
    turns = np.outer(np.arange(radius + 1), np.arange(size // 2 + 1)) % size / size
    cosines = 2 * np.cos(2 * np.pi * turns)
    cosines[0] = 1
    return cosines


def _power_of_two(at_least: int) -> int:
    return 1 << (at_least - 1).bit_length()

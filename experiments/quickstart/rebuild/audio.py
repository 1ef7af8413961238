"""Small signal tools shared by every part of the rebuild. Samples are floats in [-1, 1] at 16 kHz unless noted."""

from __future__ import annotations

from pathlib import Path

import G722
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from scipy.signal import stft

Samples = NDArray[np.floating]

#: Sampling rate of the corpus, Hz.
RATE = 16000
#: Longest utterance, s.
LONGEST = 5.0
#: Shortest utterance after trimming, s.
SHORTEST = 0.8
#: Level every signal is brought to between two steps: root mean square of its active frames.
LEVEL = 0.05
#: Window of the average spectra, samples: 32 ms, bins of 31.25 Hz.
SPECTRUM_WINDOW = 512


def resample(samples: Samples, from_rate: int, to_rate: int) -> Samples:
    """Resample with soxr's high quality; the identity when the rates agree."""
    if from_rate == to_rate:
        return samples
    return soxr.resample(np.ascontiguousarray(samples, dtype=np.float64), from_rate, to_rate)


def decode(path: Path) -> tuple[Samples, int]:
    """Read a file as mono: (samples, rate in Hz). Raw G.722 at 64 kbit/s has no header; its suffix identifies it."""
    if path.suffix == ".g722":
        return np.asarray(G722.G722(RATE, 64000).decode(path.read_bytes())) / 32768.0, RATE
    samples, rate = soundfile.read(path, dtype="float64")
    return to_mono(samples), rate


def to_mono(samples: Samples) -> Samples:
    """Average the channels of a (frames, channels) array."""
    return samples.mean(1) if samples.ndim > 1 else samples


def frame_power(samples: Samples, frame: int) -> Samples:
    """Mean power of whole frames of ``frame`` samples."""
    count = max(1, len(samples) // frame)
    return (samples[: count * frame].reshape(count, frame) ** 2).mean(1)


def trim(samples: Samples, threshold: float = -35.0, margin: float = 0.03) -> Samples:
    """Cut the silent edges.

    Frames of 10 ms, smoothed over three, count as speech above ``threshold`` dB relative to the 95th percentile;
    ``margin`` seconds are kept on both sides. Signals under 0.1 s are returned as they are.
    """
    frame = 160
    if len(samples) < 10 * frame:
        return samples
    decibels = 10 * np.log10(frame_power(samples, frame) + 1e-12)
    decibels = np.convolve(decibels, np.ones(3) / 3, "same")
    active = np.where(decibels > np.percentile(decibels, 95) + threshold)[0]
    if len(active) == 0:
        return samples
    pad = int(margin * RATE)
    return samples[max(0, active[0] * frame - pad) : min(len(samples), (active[-1] + 1) * frame + pad)]


def active_rms(samples: Samples) -> float:
    """Root mean square over the frames of 20 ms within 25 dB of the 95th percentile of frame power."""
    power = frame_power(samples, 320)
    threshold = np.percentile(power, 95) * 10**-2.5
    return np.sqrt(power[power >= threshold].mean() + 1e-12)


def at_level(samples: Samples, level: float = LEVEL) -> Samples:
    """Scale to an active root mean square of ``level``."""
    return samples * (level / active_rms(samples))


def tidy(samples: Samples) -> NDArray[np.float32] | None:
    """Trim, limit to `LONGEST` and bring to `LEVEL`; ``None`` if less than `SHORTEST` is left."""
    samples = trim(samples)
    if len(samples) < SHORTEST * RATE:
        return None
    return at_level(samples[: int(LONGEST * RATE)]).astype(np.float32)


def _frame_spectra(samples: Samples) -> tuple[Samples, Samples]:
    """Power spectra (bins, frames) and power by frame."""
    _, _, transform = stft(samples, RATE, nperseg=SPECTRUM_WINDOW, noverlap=SPECTRUM_WINDOW // 2)
    power = np.abs(transform) ** 2
    return power, power.sum(0)


def speech_spectrum(samples: Samples) -> Samples:
    """Long-term average power spectrum of the frames within 30 dB of the 95th percentile: 257 bins."""
    power, frames = _frame_spectra(samples)
    return power[:, frames > np.percentile(frames, 95) * 10**-3].mean(1) + 1e-12


def noise_spectrum(samples: Samples) -> Samples:
    """Average power spectrum of the quietest 8 % of the frames: 257 bins."""
    power, frames = _frame_spectra(samples)
    return power[:, frames <= np.percentile(frames, 8)].mean(1) + 1e-14

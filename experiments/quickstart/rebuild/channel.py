"""The neutralising chain, which keeps a detector from telling the classes apart by channel, level, silence or length.

A spoof first gets the target speaker's channel: average spectrum (text-to-speech only), noise floor and source codec.
From there both classes pass the same steps: band-pass, mild random equaliser, noise, random codec, trimmed edges,
random level, fades.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import G722
import numpy as np
import soundfile
from audio import (
    LEVEL,
    LONGEST,
    RATE,
    SPECTRUM_WINDOW,
    Samples,
    active_rms,
    at_level,
    noise_spectrum,
    resample,
    speech_spectrum,
    trim,
)
from numpy.typing import NDArray
from scipy.signal import butter, fftconvolve, firwin2, istft, sosfilt, stft
from sources import BonaFide

#: The band of the corpus, Hz.
BAND = (80, 7000)
#: Noise below the active level, dB.
NOISE_BELOW = (36, 46)
#: Level around `LEVEL`, dB.
LEVEL_RANGE = (-5, 5)
#: Shortest target length, s.
SHORTEST_TARGET = 0.9
#: Number of a speaker's recordings that give the average spectrum, and the noise floors.
SPECTRUM_RECORDINGS, NOISE_RECORDINGS = 80, 60
#: Speaker prefix -> rate in Hz of the Vorbis files of the source.
VORBIS_RATES = {"tux": 44100, "fil": 22050}
#: Fade at both ends, samples (5 ms).
FADE = 80

_BAND_PASS = butter(6, BAND, "band", fs=RATE, output="sos")


def _smoothing() -> Samples:
    """Matrix that averages a spectrum over a third of an octave, at least 120 Hz."""
    bins = np.arange(SPECTRUM_WINDOW // 2 + 1) * RATE / SPECTRUM_WINDOW
    low, high = bins * 2 ** (-1 / 6) - 60, bins * 2 ** (1 / 6) + 60
    rows = ((bins >= low[:, None]) & (bins <= high[:, None])).astype(float)
    return rows / rows.sum(1, keepdims=True)


_SMOOTHING = _smoothing()


@dataclass(frozen=True)
class SpeakerChannel:
    """The channel of a speaker's recordings: average spectrum, noise floors and codec."""

    spectrum: Samples
    noise_floors: Sequence[Samples]
    #: Vorbis rate in Hz, 0 for G.722, ``None`` for uncompressed recordings.
    codec_rate: int | None

    @classmethod
    def measure(cls, speaker: str, recordings: Sequence[BonaFide]) -> SpeakerChannel:
        """Measure the channel on a speaker's bona fide recordings."""
        source = speaker.split("_")[0]
        return cls(
            spectrum=np.mean([speech_spectrum(item.samples) for item in recordings[:SPECTRUM_RECORDINGS]], 0),
            noise_floors=[noise_spectrum(item.samples) for item in recordings[:NOISE_RECORDINGS]],
            codec_rate=0 if source == "ast" else VORBIS_RATES.get(source),
        )


@dataclass(frozen=True)
class Job:
    """One utterance on its way to a file."""

    path: Path
    samples: NDArray[np.float32]
    #: The target speaker's channel for a spoof, ``None`` for a bona fide recording.
    channel: SpeakerChannel | None
    #: Whether to match the average spectrum as well: for text-to-speech.
    match_spectrum: bool
    #: Length to cut to, samples; ``None`` keeps it.
    length: int | None
    seed: int
    #: Whether to use G.722 instead of a random codec: for MiniOOD.
    telephone: bool


def _through_file(samples: Samples, rate: int, container: str, subtype: str, quality: float | None = None) -> Samples:
    """Encode to a file in memory and decode it; ``quality`` is libsndfile's compression level, 0 best to 1 smallest."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1, 1), rate, format=container, subtype=subtype, compression_level=quality)
    buffer.seek(0)
    decoded, decoded_rate = soundfile.read(buffer)
    return resample(decoded, decoded_rate, rate)[: len(samples)]


def _through_g722(samples: Samples) -> Samples:
    """G.722 at 64 kbit/s and back."""
    data = G722.G722(RATE, 64000).encode((np.clip(samples, -1, 1) * 32767).astype(np.int16))
    return np.asarray(G722.G722(RATE, 64000).decode(data))[: len(samples)] / 32768.0


def match_channel(samples: Samples, channel: SpeakerChannel, match_spectrum: bool, rng: np.random.Generator) -> Samples:
    """Give a spoof the channel of its target speaker."""
    if match_spectrum:
        gain = np.sqrt((_SMOOTHING @ channel.spectrum) / (_SMOOTHING @ speech_spectrum(samples)))
        gain /= np.exp(np.mean(np.log(gain[3:200])))
        gain = np.clip(gain, 0.1, 10)
        samples = fftconvolve(samples, firwin2(257, np.linspace(0, 1, len(gain)), gain), "same")
    samples = at_level(samples)

    present = noise_spectrum(samples)
    wanted = channel.noise_floors[rng.integers(len(channel.noise_floors))]
    window = {"fs": RATE, "nperseg": SPECTRUM_WINDOW, "noverlap": SPECTRUM_WINDOW // 2}
    _, _, noise = stft(rng.standard_normal(len(samples) + 1024), **window)
    noise *= (np.sqrt(np.maximum(wanted - present, 0)) / np.sqrt((np.abs(noise) ** 2).mean(1) + 1e-20))[:, None]
    samples = samples + istft(noise, **window)[1][: len(samples)]

    if channel.codec_rate is None:
        return samples
    if channel.codec_rate == 0:
        return _through_g722(samples)
    coded = _through_file(resample(samples, RATE, channel.codec_rate), channel.codec_rate, "OGG", "VORBIS")
    return resample(coded, channel.codec_rate, RATE)


def _random_codec(samples: Samples, codec: int, rng: np.random.Generator) -> Samples:
    """Vorbis, Opus or MP3 at a random quality for ``codec`` 1, 2 and 3; nothing otherwise."""
    if codec == 1:
        return _through_file(samples, RATE, "OGG", "VORBIS", float(rng.uniform(0.1, 0.6)))
    if codec == 2:
        return _through_file(samples, RATE, "OGG", "OPUS", float(rng.uniform(0.3, 0.7)))
    if codec == 3:
        return _through_file(samples, RATE, "MP3", "MPEG_LAYER_III", float(rng.uniform(0.3, 0.7)))
    return samples


def finish(job: Job) -> Path:
    """Pass one utterance through the chain and write it as 16-bit FLAC."""
    rng = np.random.default_rng(job.seed)
    samples = np.asarray(job.samples, float)
    if job.channel is not None:
        samples = match_channel(samples, job.channel, job.match_spectrum, rng)

    # From here on, both classes pass the same steps.
    samples = sosfilt(_BAND_PASS, samples)
    codec = rng.integers(5)
    knots = 10 ** (rng.uniform(-4, 4, 9) / 20)
    equaliser = np.interp(np.linspace(0, 1, 65), np.linspace(0, 1, 9), knots)
    samples = fftconvolve(samples, firwin2(129, np.linspace(0, 1, 65), equaliser), "same")
    samples = at_level(samples)
    noise_level = LEVEL * 10 ** (-rng.uniform(*NOISE_BELOW) / 20)
    samples = samples + noise_level * rng.standard_normal(len(samples))
    samples = _through_g722(samples) if job.telephone else _random_codec(samples, codec, rng)
    samples = trim(sosfilt(_BAND_PASS, samples), threshold=-30, margin=0.02)
    longest = int(LONGEST * RATE)
    length = longest if job.length is None else max(job.length, int(SHORTEST_TARGET * RATE))
    samples = samples[:length]
    samples = samples * (LEVEL * 10 ** (rng.uniform(*LEVEL_RANGE) / 20) / active_rms(samples))
    fade = min(FADE, len(samples) // 4)
    samples[:fade] *= np.linspace(0, 1, fade)
    samples[-fade:] *= np.linspace(1, 0, fade)
    soundfile.write(job.path, np.clip(samples, -0.99, 0.99), RATE, format="FLAC", subtype="PCM_16")
    return job.path

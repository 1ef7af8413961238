"""Audio files -> 16 kHz mono float32, through libsndfile."""

import math
import os

import numpy as np
import soundfile
import torch
import torchaudio.functional
from numpy.typing import NDArray

from moelora_ad.errors import InputError

SAMPLE_RATE = 16_000
"""Hertz. Every waveform in this package has this rate."""

MOST_FRAMES = 2**31
LOWEST_RATE = 1_000
MOST_TAPS = 20_000_000
"""Size of the resampling filter. Any usual rate needs under 300,000; 44,101 Hz would need 700 million (13 GB)."""


class AudioError(InputError):
    """An audio file that is missing or does not hold usable sound."""


def read_audio(path: str | os.PathLike[str], start: int = 0, samples: int | None = None) -> NDArray[np.float32]:
    """Decode an audio file, or the part of it that is needed.

    Channels are averaged and other rates resampled. The result equals ``read_audio(path)[start:start + samples]``
    bit for bit.

    Args:
        path: A file in any format that libsndfile reads (FLAC, WAV, Ogg, MP3, ...).
        start: The first sample wanted, counted at 16 kHz.
        samples: How many at most; to the end of the file if ``None``.

    Returns:
        (n,) float32 at 16 kHz, n >= 1; full scale is 1.

    Raises:
        AudioError: The file is missing, not audio, damaged, has no sample from ``start`` on, or has NaN or infinite
            samples.
    """
    if start < 0 or (samples is not None and samples < 1):
        raise ValueError(f"start must be >= 0 and samples >= 1, not {start} and {samples}")
    stop = None if samples is None else start + samples
    with _open(path) as sound:
        if sound.samplerate == SAMPLE_RATE and _seeks_exactly(sound):
            waveform = _decode(sound, path, start, stop)
        else:
            waveform = _resample(_decode(sound, path), sound.samplerate)[start:stop]
    if len(waveform) == 0:
        raise AudioError(f"cannot use {path}: no sample from number {start} on")
    return waveform


def audio_length(path: str | os.PathLike[str]) -> int:
    """Number of samples that `read_audio` gives for the whole file, from its header alone.

    Raises:
        AudioError: The file is missing, not audio, or has no samples.
    """
    with _open(path) as sound:
        return _length_at_16_khz(sound.frames, sound.samplerate)


def _open(path: str | os.PathLike[str]) -> soundfile.SoundFile:
    try:
        sound = soundfile.SoundFile(os.fspath(path))
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: headerless .raw
        raise AudioError(_why_not_opened(path, error)) from None
    rate, frames = sound.samplerate, sound.frames
    common = math.gcd(rate, SAMPLE_RATE)
    if frames == 0:
        problem = "it has zero samples"
    elif frames > MOST_FRAMES:  # a stream's FLAC header may leave the length open
        problem = "its header does not tell its length; write the file anew, for example with ffmpeg"
    elif rate < LOWEST_RATE or (rate // common) * (SAMPLE_RATE // common) > MOST_TAPS:
        problem = f"its sample rate of {rate} Hz cannot be brought to {SAMPLE_RATE} Hz; convert the file"
    else:
        return sound
    sound.close()
    raise AudioError(f"cannot use {path}: {problem}")


def _why_not_opened(path: str | os.PathLike[str], error: Exception) -> str:
    if not os.path.exists(path):
        return f"no such audio file: {path}"
    if os.path.isdir(path):
        return f"cannot decode {path}: this is a folder"
    if not os.access(path, os.R_OK):
        return f"cannot decode {path}: no permission to read it"
    if os.path.getsize(path) == 0:
        return f"cannot decode {path}: the file is empty"
    return f"cannot decode {path}: {_reason(error)}; is it an audio file?"


def _reason(error: Exception) -> str:
    text = str(getattr(error, "error_string", error))
    return " ".join(text.split()).removeprefix("Error : ").rstrip(".")


def _seeks_exactly(sound: soundfile.SoundFile) -> bool:
    # Decoders with memory (MP3, Vorbis, Opus) give other samples after a seek than in a run from the beginning.
    memoryless = sound.subtype.startswith("PCM_") or sound.subtype in ("FLOAT", "DOUBLE", "ULAW", "ALAW")
    return memoryless and sound.seekable()


def _decode(
    sound: soundfile.SoundFile, path: str | os.PathLike[str], start: int = 0, stop: int | None = None
) -> NDArray[np.float32]:
    """The frames [start, stop) at the file's own rate, channels averaged: (n,) float32."""
    stop = sound.frames if stop is None else min(stop, sound.frames)
    if start >= stop:
        return np.empty(0, np.float32)
    try:
        if start:
            sound.seek(start)
        frames = sound.read(stop - start, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise AudioError(f"cannot decode {path}: {_reason(error)}; is the file damaged?") from None
    if len(frames) < stop - start:
        raise AudioError(f"cannot decode {path}: it ends {stop - start - len(frames)} samples early; is it truncated?")
    waveform: NDArray[np.float32] = frames[:, 0] if frames.shape[1] == 1 else frames.mean(axis=1)
    if not np.isfinite(waveform).all():
        raise AudioError(f"cannot use {path}: it has NaN or infinite samples")
    return waveform


def _resample(waveform: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    if rate == SAMPLE_RATE:
        return waveform
    # Trailing zeros change no sample; they make up for torchaudio's rounding of the length in float32.
    padded = torch.nn.functional.pad(torch.from_numpy(waveform), (0, rate // 100))
    resampled: torch.Tensor = torchaudio.functional.resample(padded, rate, SAMPLE_RATE)
    return resampled[: _length_at_16_khz(len(waveform), rate)].numpy()


def _length_at_16_khz(frames: int, rate: int) -> int:
    return math.ceil(frames * SAMPLE_RATE / rate)

"""Recorded noises and measured rooms, from folders of audio files such as MUSAN and the RIRS_NOISES set."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torchaudio.functional
from numpy.typing import NDArray

from moelora_ad.audio.augmentation.base import Augmentation, check_limits
from moelora_ad.audio.decoding import AudioError, read_audio
from moelora_ad.audio.segments import Segment, read_segment
from moelora_ad.files import files_below
from moelora_ad.formats import left_out_note, sounds_among

MOST_DECIBELS = 100.0


@dataclass(frozen=True)
class AdditiveNoise(Augmentation):
    """Adds a random stretch of a random recording; a recording that is shorter than the waveform is repeated.

    The default signal-to-noise ratios are those at which Snyder et al. add MUSAN's noises ("X-vectors: robust DNN
    embeddings for speaker recognition", ICASSP 2018). A silent waveform stays silent, and a silent stretch of a
    recording changes nothing. The sum may exceed full scale.

    Args:
        folder: Where the recordings are, at any depth, links followed, in any format that `read_audio` takes. It is
            listed at the first use; the list is sorted, so that it is the same on every machine.
        snr_db: Lowest and highest ratio of the energies of waveform and noise in dB, drawn uniformly.

    Raises:
        InputError: ``snr_db`` is out of range.
        AudioError: when it is called: the folder is missing or has no audio file, or a file cannot be decoded.
    """

    folder: str | os.PathLike[str]
    snr_db: tuple[float, float] = (0.0, 15.0)

    def __post_init__(self) -> None:
        check_limits("AdditiveNoise: snr_db", self.snr_db, -MOST_DECIBELS, MOST_DECIBELS, "dB")

    @cached_property
    def files(self) -> list[Path]:
        """The recordings, sorted."""
        return _audio_files(self.folder)

    def __call__(self, waveform: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """Add noise to ``waveform``: see `Augmentation`."""
        path = self.files[generator.integers(len(self.files))]
        noise = read_segment(path, Segment(len(waveform), "random"), generator)
        snr = generator.uniform(*self.snr_db)
        if not noise.any():
            return waveform.copy()
        return waveform + noise * np.float32(_norm(waveform) / _norm(noise) * 10 ** (-snr / 20))


@dataclass(frozen=True)
class RoomResponse(Augmentation):
    """Puts the waveform in a random room, by convolution with a measured impulse response.

    The direct path, which is the highest peak of the response, adds no delay, and the waveform keeps its energy. A
    silent waveform stays silent, and a silent response changes nothing. The result may exceed full scale.

    Args:
        folder: Where the responses are: see `AdditiveNoise`. Several channels are averaged.

    Raises:
        AudioError: when it is called: the folder is missing or has no audio file, or a file cannot be decoded.
    """

    folder: str | os.PathLike[str]

    @cached_property
    def files(self) -> list[Path]:
        """The responses, sorted."""
        return _audio_files(self.folder)

    def __call__(self, waveform: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """Reverberate ``waveform``: see `Augmentation`."""
        response = read_audio(self.files[generator.integers(len(self.files))])
        direct = int(np.abs(response).argmax())
        convolved = torchaudio.functional.fftconvolve(torch.from_numpy(waveform), torch.from_numpy(response))
        sound: NDArray[np.float32] = convolved[direct : direct + len(waveform)].numpy()
        if not sound.any():
            return waveform.copy()
        return sound * np.float32(_norm(waveform) / _norm(sound))


def _audio_files(folder: str | os.PathLike[str]) -> list[Path]:
    if not os.path.isdir(folder):
        raise AudioError.at(folder, "no such folder; it should hold recordings for augmentation")
    try:
        files, others = sounds_among(str(path) for path in files_below(folder, follow_links=True) if path.is_file())
    except OSError as error:
        raise AudioError.at(error.filename, f"cannot be read: {error.strerror}") from None
    if not files:
        raise AudioError.at(
            folder, f"no audio file in this folder; {left_out_note(others) if others else 'it is empty'}"
        )
    return sorted(map(Path, files))


def _norm(sound: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(sound.astype(np.float64)))

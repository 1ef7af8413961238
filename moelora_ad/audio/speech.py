"""Whether there is speech in a sound at all: not silence, noise, hum or tones.

Speech changes all the time, in level (syllables and pauses), in colour (vowels and consonants), and from one moment to
the next. A stretch in which one of these changes less than in any speech has none. The thresholds are low: they should
leave speech alone, however noisy, and they do not reject lively music or song. `benchmarks/speech.py` measures it.
"""

import numpy as np
from numpy.typing import NDArray

from moelora_ad.audio.quality import is_silent
from moelora_ad.audio.segments import Clip
from moelora_ad.audio.streaming import SAMPLE_RATE

LEVEL, COLOUR, FLUX = 5.0, 2.0, 0.65
"""Decibels, see `changes`; below any of them there is no speech."""

_STRETCH = 4 * SAMPLE_RATE
_LEAST = SAMPLE_RATE  # least samples of a last stretch behind others
_FRAME = 320  # samples, 20 ms
_EDGES = (2, 6, 12, 20, 32, 50, 80, 120, 161)  # edges of the bands in bins of 50 Hz: 100, 300, 600, 1,000, ... 8,000 Hz
_HEARD = 1e-3  # of the loud frames' power, -30 dB: frames below that are pauses
_NOTHING = 1e-4  # of a frame's power, -40 dB: a band with less is empty
_WINDOW = np.hanning(_FRAME).astype(np.float32)


class SpeechMeter:
    """Looks for speech in a sound that comes block by block, until there may be some."""

    def __init__(self) -> None:
        self._kept: list[Clip] = []
        self._length = 0
        self._stretches = 0
        self._is_heard = False

    def add(self, block: Clip) -> None:
        """Examine the next samples (n,) at 16 kHz."""
        if self._is_heard:
            return
        self._kept.append(block)
        self._length += len(block)
        if self._length >= _STRETCH:
            sound = np.concatenate(self._kept)
            whole = len(sound) - len(sound) % _STRETCH
            self._listen(sound[:whole].reshape(-1, _STRETCH))
            self._kept, self._length = [sound[whole:]], len(sound) - whole

    def has_speech(self) -> bool:
        """Whether any four seconds of the sound may be speech; called when all of it has been added."""
        if self._length >= _LEAST or not self._stretches:
            self._listen(np.concatenate(self._kept)[None] if self._kept else np.empty((0, 0), np.float32))
            self._kept, self._length = [], 0
        return self._is_heard

    def _listen(self, stretches: NDArray[np.float32]) -> None:
        self._stretches += len(stretches)
        self._is_heard = self._is_heard or any(map(may_be_speech, stretches))


def may_be_speech(sound: Clip) -> bool:
    """Whether a stretch (n,) of some seconds at 16 kHz is neither silent nor changes less than speech."""
    if len(sound) < 2 * _FRAME or is_silent(float(sound.min()), float(sound.max())):
        return False
    level, colour, flux = changes(sound)
    return level >= LEVEL and colour >= COLOUR and flux >= FLUX


def changes(sound: Clip) -> tuple[float, float, float]:
    """How much a stretch changes, in decibels.

    Args:
        sound: (n,) at 16 kHz, n >= 640.

    Returns:
        Level: from the quiet frames (10th percentile) to the loud ones (95th), above 100 Hz. Colour: the standard
        deviation over time of the share of the power that a band has, the mean of eight bands. Flux: the mean change of
        these shares from one frame of 20 ms to the next, in the middle of all such changes (median), as notes and
        beeps change seldom. The last two leave pauses out.
    """
    frames = sound[: len(sound) // _FRAME * _FRAME].reshape(-1, _FRAME) * _WINDOW
    power = np.square(np.abs(np.fft.rfft(frames)))
    bands = np.add.reduceat(power[:, : _EDGES[-1]], _EDGES[:-1], axis=1)
    total = bands.sum(axis=1) + 1e-12
    quiet, loud = np.percentile(total, (10, 95))
    heard = total >= _HEARD * loud
    shares = 10 * np.log10(bands / total[:, None] + _NOTHING)
    both = heard[1:] & heard[:-1]
    flux = np.median(np.abs(np.diff(shares, axis=0))[both].mean(axis=1)) if both.any() else 0.0
    return float(10 * np.log10(loud / quiet)), float(shares[heard].std(axis=0).mean()), float(flux)

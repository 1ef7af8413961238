"""Files -> 16 kHz mono float32 waveforms of the length that a detector takes, augmented for training."""

from moelora_ad.audio.augmentation import Augmentation
from moelora_ad.audio.decoding import SAMPLE_RATE, AudioError, audio_length, read_audio
from moelora_ad.audio.randomness import keyed_generator
from moelora_ad.audio.rawboost import NotchFilters, RawBoost
from moelora_ad.audio.segments import TRAINING_SAMPLES, Segment, read_segment

__all__ = [
    "SAMPLE_RATE",
    "TRAINING_SAMPLES",
    "AudioError",
    "Augmentation",
    "NotchFilters",
    "RawBoost",
    "Segment",
    "audio_length",
    "keyed_generator",
    "read_audio",
    "read_segment",
]

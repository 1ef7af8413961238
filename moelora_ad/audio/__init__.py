"""Files -> 16 kHz mono float32 waveforms of the length that a detector takes, augmented for training."""

from moelora_ad.audio.augmentation.base import Augmentation
from moelora_ad.audio.augmentation.codecs import AAC, G722, GSM, MP3, ALaw, MuLaw, Opus, Vorbis
from moelora_ad.audio.augmentation.composition import Chain, OneOf, WithProbability
from moelora_ad.audio.augmentation.noise import AdditiveNoise, RoomResponse
from moelora_ad.audio.augmentation.rawboost import NotchFilters, RawBoost
from moelora_ad.audio.decoding import SAMPLE_RATE, AudioError, AudioReader, read_audio
from moelora_ad.audio.notes import Note
from moelora_ad.audio.probing import audio_length
from moelora_ad.audio.randomness import keyed_generator
from moelora_ad.audio.segments import (
    SHORTEST,
    TRAINING_SAMPLES,
    Crops,
    Excerpt,
    FullUtterance,
    ScoredClips,
    Segment,
    read_segment,
)

__all__ = [
    "AAC",
    "G722",
    "GSM",
    "MP3",
    "SAMPLE_RATE",
    "SHORTEST",
    "TRAINING_SAMPLES",
    "ALaw",
    "AdditiveNoise",
    "AudioError",
    "AudioReader",
    "Augmentation",
    "Chain",
    "Crops",
    "Excerpt",
    "FullUtterance",
    "MuLaw",
    "NotchFilters",
    "Note",
    "OneOf",
    "Opus",
    "RawBoost",
    "RoomResponse",
    "ScoredClips",
    "Segment",
    "Vorbis",
    "WithProbability",
    "audio_length",
    "keyed_generator",
    "read_audio",
    "read_segment",
]

"""Whether a file holds sound, whatever its name, and how long it is."""

from typing import BinaryIO

import soundfile

from moelora_ad.audio.decoding import AudioReader
from moelora_ad.audio.ffmpeg import UndecodableError, decode
from moelora_ad.audio.notes import silent_decoders
from moelora_ad.audio.source import Source


def holds_sound(file: BinaryIO) -> bool:
    """Whether libsndfile or FFmpeg can decode the beginning of a file, whatever its name.

    Args:
        file: A file that can seek; it stays open.
    """
    file.seek(0)
    try:
        with silent_decoders(), soundfile.SoundFile(file) as sound:
            return len(sound.read(sound.samplerate)) > 0
    except (soundfile.SoundFileError, TypeError):  # TypeError: named like a headerless file
        pass
    try:
        return next(decode(file), None) is not None
    except UndecodableError:
        return False


def audio_length(source: Source, name: str | None = None) -> int:
    """Number of samples that `read_audio` gives for the whole file; nothing is decoded if libsndfile reads it."""
    with AudioReader(source, name) as sound:
        return sound.length

"""Files whose names do not tell whether they are sound."""

from typing import BinaryIO

import soundfile

from moelora_ad.audio.ffmpeg import UndecodableError, decode


def holds_sound(file: BinaryIO) -> bool:
    """Whether libsndfile or FFmpeg can decode the beginning of a file, whatever its name.

    Args:
        file: It can seek, and stays open.
    """
    file.seek(0)
    try:
        with soundfile.SoundFile(file) as sound:
            return len(sound.read(sound.samplerate)) > 0
    except (soundfile.SoundFileError, TypeError):  # TypeError: named like what has no header
        pass
    try:
        return next(decode(file), None) is not None
    except UndecodableError:
        return False

"""The endings of audio files' names. They are not in `audio`, so that listing files needs no decoder."""

from collections import Counter
from collections.abc import Iterable

# Formats that recorders, telephones, editors and corpora write.
_SOUND = """3ga 8svx aa aa3 aac ac3 adts afc aif aifc aiff amr ape apl au avr awb bwf caf dff dsf dss dts dtshd eac3 ec3
fap flac gsm iff ircam latm loas m1a m2a m4a m4b m4r mac mka mlp mp+ mp1 mp2 mp3 mpa mpc mpga mpp nist oga ogg oma omg
opus paf pvf qcp ra rf64 sd2 sds sf shn snd sph spx svx tak thd tta voc w64 wav wave weba wma wv wve xi"""
_VIDEO = """3g2 3gp 3gp2 3gpp asf avi dif divx dv f4a f4v flv ism isma ismv m2p m2t m2ts m4v mj2 mk3d mkv mov mp4 mpeg
mpg mts mxf nut ogm ogv ogx psp qt rm rmvb ts vob webm wmv wtv"""

AUDIO_SUFFIXES = frozenset(f".{ending}" for ending in f"{_SOUND} {_VIDEO}".split())
"""Endings of audio files' names, in lower case: of all recordings that libsndfile or FFmpeg know by their content.

What has no header is not among them (``.raw``, ``.pcm``, ``.ul``: its rate is unknown), nor formats of game consoles.
"""

UNSURE_SUFFIXES = ("", ".htk", ".mat")
"""Endings of sound, but more often of something else: its content must decide. Empty: there is no ending."""

APPLE_DOUBLE = "._* of macOS"
"""Stands for the ending of ``._name``, which macOS puts beside each file in a zip or on a foreign disk."""

_MOST_TOLD = 10


def ending(name: str) -> str:
    """The ending of a file's name or path, in lower case, with its dot; empty if there is none, or only a number;
    ``APPLE_DOUBLE`` for the properties of another file."""
    bare = name.replace("\\", "/").rpartition("/")[2]
    if bare.startswith("._"):
        return APPLE_DOUBLE
    _, dot, last = bare.rpartition(".")
    return "" if not dot or last.isdigit() else f".{last.lower()}"


def sounds_among(names: Iterable[str]) -> tuple[list[str], Counter[str]]:
    """The names or paths with the ending of an audio file, and for each other ending the number of names with it."""
    sounds: list[str] = []
    others: Counter[str] = Counter()
    for name in names:
        if (end := ending(name)) in AUDIO_SUFFIXES:
            sounds.append(name)
        else:
            others[end] += 1
    return sounds, others


def left_out_note(endings: Counter[str]) -> str:
    """One line that counts the files that were not recognised as sound, by their ending."""
    most = endings.most_common(_MOST_TOLD)
    counts = [f"{count:,} {end or 'without ending'}" for end, count in most]
    if rest := endings.total() - sum(count for _, count in most):
        counts.append(f"{rest:,} with other endings")
    return f"left out: {', '.join(counts)}"

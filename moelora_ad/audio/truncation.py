"""Files cut short that libsndfile takes for whole ones."""

import os
import re
from typing import BinaryIO

import soundfile

_OPEN_END = 0x7FFF_0000  # headers of streams say this or more: 0x7FFFFFFF, 0xFFFFFFFF, or these rounded to blocks
_LARGEST_PAGE = 27 + 255 + 255 * 255
_LAST_PAGE = 4


def missing_frames(sound: soundfile.SoundFile) -> int:
    """How many frames the header of a WAV, AIFF or AU file promises and the file does not have.

    libsndfile corrects the header's size, and tells of it in its log alone. 0 if the header leaves the size open.
    """
    corrected = re.search(r"^ *(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    if corrected is None:
        return 0
    told, there = map(int, corrected.groups())
    return 0 if told >= _OPEN_END or told <= there else (told - there) * sound.frames // max(there, 1)


def ogg_is_cut(file: BinaryIO) -> bool:
    """Whether an Ogg file lacks its last page, which bears a mark (RFC 3533, section 6)."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LARGEST_PAGE))
    tail = file.read(_LARGEST_PAGE)
    page = tail[max(0, tail.rfind(b"OggS")) :]
    return len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]) or not page[5] & _LAST_PAGE

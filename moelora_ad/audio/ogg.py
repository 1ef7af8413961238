"""The pages of Ogg files (RFC 3533)."""

import re
import struct
from typing import NamedTuple

_PAGE = re.compile(rb"OggS\x00[\x00-\x07]")
_FIRST, _LAST = 2, 4  # flags of a stream's first and last page
_HEADER = 27  # bytes, before the table of segments


class Ogg(NamedTuple):
    """What the pages of a file show.

    Attributes:
        links: Positions of the first bytes of the files that were chained; normally one.
        tracks: Number of simultaneous streams in the first of these files.
        is_cut: Whether the page that is marked as the last one is missing or incomplete.
        is_long_enough: Whether no page is later in time than the last one, whose time libsndfile takes as the length.
    """

    links: list[int]
    tracks: int
    is_cut: bool
    is_long_enough: bool


def read_ogg(data: bytes) -> Ogg:
    """Read the pages of a file; ``data`` is the whole file."""
    links: list[int] = []
    tracks, latest, time, flags, page = 0, 0, 0, 0, 0
    for match in _PAGE.finditer(data):
        page = match.start()
        was_first, flags = bool(flags & _FIRST), data[page + 5]
        if flags & _FIRST:
            if not was_first:
                links.append(page)
            tracks += len(links) == 1
        if page + 14 <= len(data):
            (time,) = struct.unpack_from("<q", data, page + 6)
            latest = max(latest, time)
    segments = data[page + _HEADER :][: data[page + _HEADER - 1]] if page + _HEADER <= len(data) else b""
    is_whole = page + _HEADER <= len(data) and page + _HEADER + len(segments) + sum(segments) <= len(data)
    return Ogg(links, tracks, not (is_whole and flags & _LAST), time >= latest)

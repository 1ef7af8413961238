"""What a file contains, from all its chunks, pages and frames; libsndfile uses only the first header."""

import io
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import BinaryIO, NamedTuple

from moelora_ad.audio.chunks import chunked_files
from moelora_ad.audio.ffmpeg import TOLERANCE
from moelora_ad.audio.flac import flac_starts, is_length_right
from moelora_ad.audio.ogg import read_ogg

_SEARCHED = 2**20  # bytes; a larger FLAC file is searched for joined ones only once, and only if it has a path
_MATROSKA = b"\x1a\x45\xdf\xa3"
_FLV_BEGINS = re.compile(rb"FLV\x01[\x01\x04\x05]\x00\x00\x00\x09\x00{4}")


class Contents(NamedTuple):
    """What is in a file.

    Attributes:
        starts: Positions of the first bytes of the files that were joined to this one; normally one, 0.
        missing: Bytes of sound that the header claims and the file lacks, per byte that it has.
        behind: Bytes behind the end that the header declares, per byte of sound.
        fault: Why the file cannot be used; empty if it can.
        doubt: Why libsndfile would decode too little or too much; empty if it would not.
        may_be_bare: Whether this may be a stream of frames without a container (MP3, AAC).
        end: Position behind the last byte that belongs to the file, if libsndfile would decode more; else None.
    """

    starts: tuple[int, ...] = (0,)
    missing: float = 0.0
    behind: float = 0.0
    fault: str = ""
    doubt: str = ""
    may_be_bare: bool = False
    end: int | None = None


def contents_of(file: BinaryIO) -> Contents:
    """The contents of a file that can seek, as far as its first bytes identify its kind."""
    head = file.read(64)
    if head.startswith(b"fLaC"):
        return _flac(file, head)
    if head.startswith(b"OggS"):
        return _ogg(head + file.read())
    if _FLV_BEGINS.match(head):
        return Contents(tuple(match.start() for match in _FLV_BEGINS.finditer(head + file.read())))
    return _chunked(file, head)


def pieces_of(file: BinaryIO, starts: tuple[int, ...]) -> Iterator[bytes]:
    """The bytes from each start to the next one."""
    for start, stop in zip(starts, [*starts[1:], None], strict=True):
        file.seek(start)
        yield file.read() if stop is None else file.read(stop - start)


def _flac(file: BinaryIO, head: bytes) -> Contents:
    size = file.seek(0, os.SEEK_END)
    is_right = is_length_right(head, file, TOLERANCE)
    starts: tuple[int, ...] = (0,)
    if size <= _SEARCHED:
        starts = flac_starts(file)
    elif isinstance(file, io.BufferedReader) and isinstance(file.raw, io.FileIO):
        starts = _starts_in_long_flac(file.raw.name, size, os.fstat(file.fileno()).st_mtime_ns)
    return Contents(starts or (0,), doubt="" if is_right else "the length in its header is wrong")


@lru_cache(maxsize=2**14)
def _starts_in_long_flac(path: str, size: int, changed: int) -> tuple[int, ...]:
    """`flac_starts`, cached: training takes many crops from a long file, which should not be read wholly for each."""
    with open(path, "rb") as file:
        return flac_starts(file)


def _ogg(data: bytes) -> Contents:
    ogg = read_ogg(data)
    fault = "its last page is missing; is it truncated?" if ogg.is_cut else ""
    doubt = "" if ogg.is_long_enough else "its last page is of an earlier time"
    if ogg.tracks > 1:
        doubt = "it has several tracks"
    return Contents(tuple(ogg.links) or (0,), fault=fault, doubt=doubt)


def _chunked(file: BinaryIO, head: bytes) -> Contents:
    files = chunked_files(file)
    if not files:
        return Contents(may_be_bare=not head.startswith(_MATROSKA))
    last = files[-1]
    if last.there == 0:  # an MP4 file, which FFmpeg checks, or no sound
        return Contents(tuple(part.start for part in files))
    behind = (file.seek(0, os.SEEK_END) - last.end) / last.there
    missing = (last.claimed - last.there) / last.there
    starts = tuple(part.start for part in files)
    doubt = "its header says that it has zero samples" if last.unfinished else ""
    is_heard = head.startswith((b"riff", b"NIST")) or head[8:12] in (b"8SVX", b"16SV")
    return Contents(starts, missing, behind, doubt=doubt, end=last.end if behind and is_heard else None)

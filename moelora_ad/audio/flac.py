"""The length of a FLAC file, from its last frame (RFC 9639, sections 8.2 and 9.1)."""

import os
import re
from typing import BinaryIO

_BEGINS = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_BEGINNING = 8  # bytes that _BEGINS matches
_FRAME = re.compile(rb"\xff[\xf8\xf9]")
_SEARCHED = (2**14, 2**20)  # last bytes that are searched for a frame: at first, and if none is there
_AT_ONCE = 2**17  # bytes
_INFO = slice(8, 42)  # bytes of the first metadata block's content
_LONGEST_HEADER = 16


def flac_starts(file: BinaryIO) -> tuple[int, ...]:
    """The positions where the FLAC files that were joined begin; normally one."""
    starts: list[int] = []
    file.seek(0)
    position, kept = 0, b""  # the end of a piece may be half of a beginning
    while piece := file.read(_AT_ONCE):
        data = kept + piece
        starts.extend(position - len(kept) + match.start() for match in _BEGINS.finditer(data))
        position, kept = position + len(piece), data[-_BEGINNING + 1 :]
    return tuple(starts)


def is_length_right(head: bytes, file: BinaryIO, tolerance: float) -> bool:
    """Whether the length in the header is that of the sound, or exceeds it by at least ``tolerance`` seconds.

    Args:
        head: The file's first bytes, 42 at least.
        file: A file that can seek. Its last frame gives the sound's length; bytes behind that frame are ignored.
        tolerance: In seconds.
    """
    info = head[_INFO]
    if len(info) < _INFO.stop - _INFO.start:
        return False
    block, rate = int.from_bytes(info[2:4], "big"), int.from_bytes(info[10:13], "big") >> 4
    channels, told = (info[12] >> 1 & 7) + 1, int.from_bytes(info[13:18], "big") & 2**36 - 1
    size = file.seek(0, os.SEEK_END)
    for searched in _SEARCHED:
        file.seek(max(0, size - searched))
        tail = file.read()
        for position in reversed([match.start() for match in _FRAME.finditer(tail)]):
            end = _end_of_frame(tail[position : position + _LONGEST_HEADER], block, channels)
            if end is not None:
                return told == end or told > end + tolerance * rate
    return False


def _end_of_frame(header: bytes, block: int, channels: int) -> int | None:
    """The number of the sample behind a frame of ``channels``; None if this is not a frame's header."""
    if len(header) < _LONGEST_HEADER:
        header += bytes(_LONGEST_HEADER - len(header))
    samples_code, rate_code, channels_code = header[2] >> 4, header[2] & 15, header[3] >> 4
    if samples_code == 0 or rate_code == 15 or header[3] & 1:
        return None
    if channels != (channels_code + 1 if channels_code < 8 else 2):
        return None
    ones = 8 - (~header[4] & 0xFF).bit_length()  # the number is encoded as in UTF-8
    number, size = header[4] & (0x7F >> ones), 5
    for byte in header[5 : 4 + ones]:
        number, size = number << 6 | byte & 0x3F, size + 1
    if samples_code in (6, 7):
        more = samples_code - 5
        samples, size = int.from_bytes(header[size : size + more], "big") + 1, size + more
    elif samples_code < 6:
        samples = 192 if samples_code == 1 else 576 << samples_code - 2
    else:
        samples = 256 << samples_code - 8
    size += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if size >= _LONGEST_HEADER or _crc(header[:size]) != header[size]:
        return None
    return (number if header[1] & 1 else number * block) + samples


def _crc_of(byte: int) -> int:
    for _ in range(8):
        byte = byte << 1 ^ (0x107 if byte & 0x80 else 0)
    return byte


_CRC = [_crc_of(byte) for byte in range(256)]


def _crc(data: bytes) -> int:
    check = 0
    for byte in data:
        check = _CRC[check ^ byte]
    return check

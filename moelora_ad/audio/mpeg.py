"""Streams of MPEG audio (MP3) and ADTS (AAC) frames: all frames are counted, whatever a header claims."""

import re
from functools import cache
from typing import NamedTuple

_CHAIN = 4  # this many frames, one right behind another, are not a coincidence
_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")
_SYNC = re.compile(rb"\xff(?=[\xe0-\xff])")
_RATES = (44_100, 48_000, 32_000)
_KILOBITS = {  # kbit/s, by whether it is MPEG version 1, and by layer
    (True, 1): range(32, 449, 32),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_ADTS_RATES = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350)


class _Frame(NamedTuple):
    size: int  # bytes
    samples: int
    rate: int
    kind: int  # equal in all frames of a stream


class Stretch(NamedTuple):
    """Frames of one kind that belong together.

    Attributes:
        data: Their bytes, and nothing else.
        rate: In hertz.
        counted: Samples of each channel in the frames.
        claimed: Samples of each channel by the header in the first frame (Xing's, which is not sound); None if it has
            none.
        lost: Estimate of the samples that are lost where bytes between frames are neither frames nor tags.
    """

    data: bytes
    rate: int
    counted: int
    claimed: int | None
    lost: int = 0

    def fault(self, tolerance: float) -> str:
        """What is wrong if more than ``tolerance`` in seconds is missing; empty if not."""
        early = 0 if self.claimed is None else self.claimed - self.counted
        if early > self.rate * tolerance:
            return f"it ends {early} samples early; is it truncated?"
        if self.lost > self.rate * tolerance:
            return f"about {self.lost} samples in its middle are lost; is it damaged?"
        return ""


def stretches_of(data: bytes) -> list[Stretch]:
    """The streams that a file consists of, normally one, without tags and all else that is not a frame."""
    stretches: list[Stretch] = []
    runs: list[bytes] = []  # bytes of the last stretch
    kind, end, position = None, 0, _next_chain(data, 0)
    while position is not None:
        start, counted, frame = position, 0, _frame_at(data, position)
        assert frame is not None
        is_same, kind, rate = frame.kind == kind, frame.kind, frame.rate
        claimed = _claimed(data, start, frame)
        while frame is not None and frame.kind == kind and position + frame.size <= len(data):
            if position > start and _claimed(data, position, frame) is not None:
                break
            counted += frame.samples if claimed is None or position > start else 0
            position += frame.size
            frame = _frame_at(data, position)
        if is_same and claimed is None:  # it continues behind a tag or a fault
            before, between = stretches[-1], data[end:start]
            lost = 0 if between.startswith(_TAGS) else len(between) * counted // (position - start)
            stretches[-1] = before._replace(counted=before.counted + counted, lost=before.lost + lost)
        else:
            _close(stretches, runs)
            stretches.append(Stretch(b"", rate, counted, claimed))
        runs.append(data[start:position])
        end, position = position, _next_chain(data, position)
    _close(stretches, runs)
    return stretches


def _close(stretches: list[Stretch], runs: list[bytes]) -> None:
    if stretches:
        stretches[-1] = stretches[-1]._replace(data=b"".join(runs))
    runs.clear()


def _next_chain(data: bytes, begin: int) -> int | None:
    """The first position, from ``begin`` on, of several frames in a row; None if there are none."""
    for match in _SYNC.finditer(data, begin):
        position, kind, frames = match.start(), None, 0
        while frames < _CHAIN:
            frame = _frame_at(data, position)
            if frame is None or position + frame.size > len(data) or kind not in (None, frame.kind):
                break
            kind, position, frames = frame.kind, position + frame.size, frames + 1
        if frames == _CHAIN or (frames > 1 and position == len(data)):
            return match.start()
    return None


def _frame_at(data: bytes, position: int) -> _Frame | None:
    header = data[position : position + 7]
    if len(header) < 7 or header[0] != 0xFF or header[1] < 0xE0:
        return None
    if header[1] & 0xF6 == 0xF0:
        return _adts(header)
    return _mpeg(header[1] & 0xFE, header[2] & 0xFE, header[3] >> 6 == 3)


def _adts(header: bytes) -> _Frame | None:
    rate = header[2] >> 2 & 15
    size = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    if rate >= len(_ADTS_RATES) or size < 7:
        return None
    kind = header[1] << 16 | (header[2] & 0xFD) << 8 | header[3] & 0xC0
    return _Frame(size, 1_024 * ((header[6] & 3) + 1), _ADTS_RATES[rate], kind)


@cache
def _mpeg(first: int, second: int, is_mono: bool) -> _Frame | None:
    version, layer = first >> 3 & 3, 4 - (first >> 1 & 3)  # version 3 is MPEG 1, 2 is MPEG 2, 0 is MPEG 2.5
    bits, rate_code = second >> 4, second >> 2 & 3
    if version == 1 or layer == 4 or bits in (0, 15) or rate_code == 3:
        return None
    rate = _RATES[rate_code] // {3: 1, 2: 2, 0: 4}[version]
    bits_per_second = 1_000 * _KILOBITS[version == 3, layer][bits - 1]
    padding = second >> 1 & 1
    samples = {1: 384, 2: 1_152, 3: 1_152 if version == 3 else 576}[layer]
    size = (
        (12 * bits_per_second // rate + padding) * 4 if layer == 1 else samples // 8 * bits_per_second // rate + padding
    )
    return _Frame(size, samples, rate, first << 8 | rate_code << 1 | is_mono)


def _claimed(data: bytes, position: int, frame: _Frame) -> int | None:
    """Samples of the file by the header in its first frame (Xing, Info); None if this frame has no such header."""
    first, is_mono = frame.kind >> 8, frame.kind & 1
    if first >> 1 & 3 != 1 or first > 0xFF:  # only layer III has the header
        return None
    tag = position + 4 + ((17 if is_mono else 32) if first >> 3 & 3 == 3 else (9 if is_mono else 17))
    tag += 2 * (not data[position + 1] & 1)  # a checksum
    if data[tag : tag + 4] not in (b"Xing", b"Info") or not data[tag + 7 : tag + 8][0] & 1:
        return None
    return frame.samples * int.from_bytes(data[tag + 8 : tag + 12], "big")

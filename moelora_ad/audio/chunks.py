"""Files whose headers declare sizes (WAV, AIFF, CAF, MP4, ...): the bytes that they claim, and those present."""

import os
import re
import struct
from typing import BinaryIO, NamedTuple

_OPEN_END = 0x7FFF_0000  # size in a stream's header, or more: 0x7FFFFFFF, 0xFFFFFFFF, or these rounded to blocks
_HEAD = 24  # bytes that identify the kind


class ChunkedFile(NamedTuple):
    """One file of chunks.

    Attributes:
        start: Position of its first byte.
        end: Position behind its last chunk.
        claimed: Bytes of sound that its header claims; those present if the header leaves that open. 0 for MP4.
        there: How many of the claimed bytes are present.
        unfinished: Whether its header says 0 bytes of sound because its writer never came back to it.
    """

    start: int
    end: int
    claimed: int
    there: int
    unfinished: bool = False


class _Form(NamedTuple):
    """How a kind of file writes its chunks."""

    first: int  # byte of the first chunk
    header: str  # a chunk's name and size, as ``struct`` unpacks them
    aligned: int  # chunks begin at multiples of this
    sound: tuple[bytes, ...]  # chunks that hold sound
    counts_header: bool = False  # whether the size includes name and size


_RIFF = _Form(12, "<4sI", 2, (b"data",))
_FORMS = {
    b"RIFF": _RIFF,
    b"RF64": _RIFF,
    b"BW64": _RIFF,
    b"RIFX": _RIFF._replace(header=">4sI"),
    b"AVI ": _RIFF._replace(sound=(b"LIST",)),
    b"FORM": _RIFF._replace(header=">4sI", sound=(b"SSND", b"BODY")),
    b"riff": _Form(40, "<16sQ", 8, (b"data",), counts_header=True),  # Wave64
    b"caff": _Form(8, ">4sQ", 1, (b"data",)),
}


def chunked_files(file: BinaryIO) -> list[ChunkedFile]:
    """The files of one kind that follow each other in ``file``, which can seek; none if it is of another kind.

    Normally there is one. What follows the last chunk of the last file belongs to none.
    """
    size = file.seek(0, os.SEEK_END)
    files: list[ChunkedFile] = []
    if (kind := _kind(file, 0)) is None:
        return files
    start: int | None = 0
    while start is not None:
        if kind == b".snd":
            files.append(_sun(file, start, size))
        elif kind == b"NIST":
            files.append(_sphere(file, start, size))
        elif kind == b"ftyp":
            files.append(ChunkedFile(start, _end_of_boxes(file, start, size), 0, 0))
        else:
            files.append(_of_form(file, start, size, kind, _FORMS[kind]))
        end = files[-1].end
        start = next((near for near in (end, end + 1) if near < size and _kind(file, near) == kind), None)
    return files


def _kind(file: BinaryIO, start: int) -> bytes | None:
    file.seek(start)
    head = file.read(_HEAD)
    if len(head) < _HEAD:
        return None
    if head[4:8] == b"ftyp":
        return b"ftyp"
    kind = b"AVI " if head[:4] == b"RIFF" and head[8:12] == b"AVI " else head[:4]
    return kind if kind in _FORMS or kind in (b".snd", b"NIST") else None


def _of_form(file: BinaryIO, start: int, size: int, kind: bytes, form: _Form) -> ChunkedFile:
    width, position, claimed, there, large = struct.calcsize(form.header), start + form.first, 0, 0, 0
    unfinished = False
    while position + width <= size:
        file.seek(position)
        name, told = struct.unpack(form.header, file.read(width))
        name, content, told = name[:4], position + width, told - width * form.counts_header
        is_chunk = name.isascii() and name.decode("ascii").isprintable() and name != kind and told >= 0
        if not is_chunk or (name in form.sound and there and kind != b"AVI "):
            break  # these bytes are behind the file
        if name in form.sound:
            if told == 0xFFFF_FFFF and large:
                told = large
            elif told == 0 and form.first == _RIFF.first and _reaches(file, start, form, content):
                pass  # the size of the whole file was written, so this one is true
            elif told == 0 or (told >= _OPEN_END and content + told > size):
                unfinished = told == 0
                told = size - content
            claimed += told
            there += min(told, size - content)
        elif content + told > size:
            break
        elif name == b"ds64":  # RF64 has sizes of more than 32 bits there
            file.seek(content + 8)
            large = int.from_bytes(file.read(8), "little")
        position = content + told
        padding = -(position - start) % form.aligned
        if padding == 1:  # not all writers pad; if they do, with zero
            file.seek(position)
            padding = int(file.read(1) == b"\0")
        position += padding
    if kind == b"AVI ":  # a large one continues in a further RIFF
        position = size
    return ChunkedFile(start, min(position, size), claimed, there, unfinished)


def _reaches(file: BinaryIO, start: int, form: _Form, position: int) -> bool:
    """Whether the size of the whole file, which writers fill in last, reaches beyond a position."""
    file.seek(start + 4)
    (whole,) = struct.unpack(form.header[0] + "I", file.read(4))
    return bool(start + 8 + whole > position)


def _sun(file: BinaryIO, start: int, size: int) -> ChunkedFile:
    """An AU file: a header with the position and the size of the sound."""
    file.seek(start + 4)
    offset, told = struct.unpack(">II", file.read(8))
    content = min(start + max(offset, _HEAD), size)
    if told == 0 or (told >= _OPEN_END and content + told > size):
        told = size - content
    return ChunkedFile(start, min(content + told, size), told, min(told, size - content))


def _sphere(file: BinaryIO, start: int, size: int) -> ChunkedFile:
    """A SPHERE file: a header of lines (``sample_count -i 48000``), whose second gives the header's size."""
    file.seek(start)
    lines = file.read(1_024).split(b"\n")
    fields = {line.split()[0]: int(line.split()[2]) for line in lines if re.fullmatch(rb"\w+ -i \d+", line)}
    header = int(lines[1]) if len(lines) > 1 and lines[1].strip().isdigit() else 1_024
    content = min(start + header, size)
    told = fields.get(b"sample_count", 0) * fields.get(b"sample_n_bytes", 0) * fields.get(b"channel_count", 1)
    told = min(told, 2**62)  # a faulty count may have hundreds of digits
    if told == 0:
        told = size - content
    return ChunkedFile(start, min(content + told, size), told, min(told, size - content))


def _end_of_boxes(file: BinaryIO, start: int, size: int) -> int:
    """The byte behind the last box of an MP4 file."""
    position = start
    while position + 8 <= size:
        file.seek(position)
        told, name = struct.unpack(">I4s", file.read(8))
        if (name == b"ftyp" and position > start) or not name.isascii() or not name.decode("ascii").isprintable():
            return position
        if told == 1:  # 64 bits follow
            told = int.from_bytes(file.read(8), "big")
        if told < 8:  # the box reaches to the end of the file
            return size
        position += told
    return size

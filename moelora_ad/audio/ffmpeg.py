"""Decoding with FFmpeg, through PyAV: what libsndfile refuses, and the sound of videos."""

import math
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from moelora_ad.errors import counted

MOST_FRAMES = 2**28
"""Most samples a channel that are decoded into memory: 4.6 hours at 16 kHz, 1.5 hours at 48 kHz."""

TOLERANCE = 0.1
"""Seconds by which a file may be shorter than its header says: encoders round to blocks."""

# Containers only: a playlist could make FFmpeg open other files.
_FORMATS = (
    "aa,aac,ac3,aiff,amr,ape,asf,au,avi,avr,caf,dsf,dss,dts,dtshd,dv,eac3,epaf,flac,flv,gsm,iff,ircam,loas,m4a,matroska,"
    "mlp,mov,mp3,mp4,mpc,mpc8,mpeg,mpegts,mxf,nistsphere,nut,ogg,oma,pvf,qcp,rm,sds,shn,tak,truehd,tta,voc,w64,wav,webm,"
    "wtv,wv,wve"
)
_LENGTH_IS_SURE = ("flac", "mov,mp4,m4a,3gp,3g2,mj2")  # in other formats the header's length is a guess
_STREAMS = ("aac", "ac3", "mp3", "mpeg", "mpegts")  # a recording of these may begin and end anywhere
_AT_ONCE = 2**17  # samples of each channel in a block
_TOO_MANY_PLANES = 8  # from here on PyAV reads past a frame's list of planes, and may crash
_FULL_SCALE = {"u8": 2**7, "s16": 2**15, "s32": 2**31, "s64": 2**63}


class FfmpegSound(NamedTuple):
    """Decoded sound.

    Attributes:
        frames: (n, channels) float32, full scale 1.
        rate: In hertz.
        track: Which audio track this is, from 1 on.
        tracks: How many there are.
    """

    frames: NDArray[np.float32]
    rate: int
    track: int
    tracks: int


class UndecodableError(Exception):
    """FFmpeg cannot decode a file; ``str()`` says why, without the file's name."""


class NoSuchTrackError(UndecodableError):
    """A file has fewer audio tracks than the one that is wanted."""

    def __init__(self, track: int, tracks: int) -> None:
        super().__init__(f"it has {counted(tracks, 'audio track')}, no track {track}")


def decode(file: BinaryIO, track: int | None = None) -> Iterator[FfmpegSound]:
    """Decode an audio track block by block: one sample at least, all of one rate and number of channels.

    Samples that a container declares to be the codec's padding (MP4's edit list) are left out. Streams that may begin
    and end anywhere (AAC, AC-3, ...) may lose a packet that was cut at either end.

    Integers are scaled as libsndfile does: FLAC and PCM give the same samples bit for bit.

    Args:
        file: A file that can seek.
        track: Which track, from 1 on; FFmpeg's choice if not given: the one that the file calls its default, or the
            richest.

    Raises:
        NoSuchTrackError: There is no such track.
        UndecodableError: The file has no audio, is damaged or cut short, or is longer than ``MOST_FRAMES``.
    """
    try:
        with _opened(file) as container:
            yield from _decoded(container, track)
    except UndecodableError:
        raise
    except Exception as reason:  # damaged files lead PyAV to many kinds of errors
        text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise UndecodableError(" ".join(text.split())) from None


def is_bare(file: BinaryIO) -> bool:
    """Whether FFmpeg takes a file for MPEG audio or AAC without a container."""
    try:
        with _opened(file) as container:
            return container.format.name in ("mp3", "aac")
    except Exception:  # ``decode`` will report it
        return False


def _opened(file: BinaryIO) -> av.container.InputContainer:
    file.seek(0)
    return av.open(file, options={"format_whitelist": _FORMATS, "protocol_whitelist": ""})


def _decoded(container: av.container.InputContainer, track: int | None) -> Iterator[FfmpegSound]:
    streams = container.streams.audio
    if not streams:
        raise UndecodableError("it has no audio stream")
    if track is not None and track > len(streams):
        raise NoSuchTrackError(track, len(streams))
    stream = container.streams.best("audio") or streams[0] if track is None else streams[track - 1]
    number = next(number for number, one in enumerate(streams, 1) if one.index == stream.index)
    stream.codec_context.thread_count = 1  # data loaders run many processes
    stream.codec_context.options = {"err_detect": "crccheck+bitstream+buffer+explode"}
    blocks: list[NDArray[np.float32]] = []
    rate, channels, total, waiting, begin = 0, 0, 0, 0, 0.0
    for frame in _frames(container, stream):
        block = _samples(frame)
        if total and (frame.sample_rate != rate or block.shape[1] != channels):
            raise UndecodableError("its sample rate or number of channels changes")
        if not total:
            begin = frame.time or 0.0
        rate, channels = frame.sample_rate, block.shape[1]
        total += len(block)
        if total > MOST_FRAMES:
            raise UndecodableError(f"it is longer than {MOST_FRAMES:,} samples")
        blocks.append(block)
        waiting += len(block)
        if waiting >= _AT_ONCE:  # a codec's own blocks are small
            yield FfmpegSound(np.concatenate(blocks), rate, number, len(streams))
            blocks, waiting = [], 0
    if not total:
        raise UndecodableError("it has zero samples")
    missing = round(_promised_seconds(container, stream, begin) * rate) - total
    if missing > rate * TOLERANCE:
        raise UndecodableError(f"it ends {missing} samples early; is it truncated?")
    if blocks:
        yield FfmpegSound(np.concatenate(blocks), rate, number, len(streams))


def _frames(container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[av.AudioFrame]:
    """All frames. At either end, packets of up to ``TOLERANCE`` that cannot be decoded are skipped, if the stream may
    begin and end anywhere, or has a length that is compared afterwards."""
    may_be_cut = container.format.name in _STREAMS or _promised_seconds(container, stream, 0.0) > 0
    fault: av.FFmpegError | None = None
    is_heard, lost = False, 0.0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            lost += float(packet.duration * packet.time_base) if packet.duration and packet.time_base else math.inf
            if lost > TOLERANCE or not may_be_cut:
                raise
            fault = error
            continue
        if fault is not None and is_heard and packet.size:
            raise fault
        if frames and not is_heard:
            is_heard, fault, lost = True, None, 0.0
        yield from frames


def _promised_seconds(container: av.container.InputContainer, stream: av.AudioStream, begin: float) -> float:
    """The length of a stream in seconds, by its header; 0 if that has none, or only a guess."""
    if container.format.name in _LENGTH_IS_SURE and stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.format.name == "matroska,webm":  # its writers note as DURATION when the stream ends
        noted = re.fullmatch(r"(\d\d):(\d\d):(\d\d\.\d+)", stream.metadata.get("DURATION", ""))
        if noted:
            hours, minutes, seconds = map(float, noted.groups())
            return 3_600 * hours + 60 * minutes + seconds - begin
    return 0.0


def _samples(frame: av.AudioFrame) -> NDArray[np.float32]:
    """(n, channels) float32."""
    channels = len(frame.layout.channels)
    if frame.format.is_planar and channels >= _TOO_MANY_PLANES:
        (frame,) = av.AudioResampler(frame.format.packed.name, frame.layout, frame.sample_rate).resample(frame)
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(-1, channels)
    kind = frame.format.name.removesuffix("p")
    if kind == "u8":
        values = values.astype(np.int16) - 128
    if kind in _FULL_SCALE:
        # Twenty-four bits are exact in float32; of thirty-two, libsndfile keeps as many.
        return (values.astype(np.float64) / _FULL_SCALE[kind]).astype(np.float32)
    return values.astype(np.float32)

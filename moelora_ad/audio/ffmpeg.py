"""Decoding with FFmpeg, through PyAV: what libsndfile refuses, and the sound of videos."""

import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

MOST_FRAMES = 2**28
"""Most samples a channel that are decoded into memory: 4.6 hours at 16 kHz, 1.5 hours at 48 kHz."""

TOLERANCE = 0.1
"""Seconds by which a file may be shorter than its header says, except FLAC: encoders round to blocks."""

# Containers only: a playlist could make FFmpeg open other files.
_FORMATS = (
    "aa,aac,ac3,aiff,amr,ape,asf,au,avi,avr,caf,dsf,dss,dts,dtshd,dv,eac3,epaf,flac,flv,gsm,iff,ircam,loas,m4a,matroska,"
    "mlp,mov,mp3,mp4,mpc,mpc8,mpeg,mpegts,mxf,nistsphere,nut,ogg,oma,pvf,qcp,rm,sds,shn,tak,truehd,tta,voc,w64,wav,webm,"
    "wtv,wv,wve"
)
_LENGTH_IS_SURE = ("flac", "mov,mp4,m4a,3gp,3g2,mj2", "wav")  # elsewhere the header's length is a guess
_AT_ONCE = 2**17  # samples a channel of a block
_TOO_MANY_PLANES = 8  # from here on PyAV reads past a frame's list of planes, and may crash
_FULL_SCALE = {"u8": 2**7, "s16": 2**15, "s32": 2**31, "s64": 2**63}


class Sound(NamedTuple):
    """Decoded sound: (n, channels) float32, full scale 1, and its rate in hertz."""

    frames: NDArray[np.float32]
    rate: int


class UndecodableError(Exception):
    """FFmpeg cannot decode a file; ``str()`` says why, without the file's name."""


def decode(file: BinaryIO) -> Iterator[Sound]:
    """All of the first audio stream, block by block: some samples at least, of one rate and number of channels.

    What a container says of the codec's padding (MP4's edit list) is left out.

    Integers are scaled as libsndfile does: FLAC and PCM give the same samples bit for bit.

    Raises:
        UndecodableError: No audio, damaged, cut short, or longer than ``MOST_FRAMES``.
    """
    file.seek(0)
    try:
        with av.open(file, options={"format_whitelist": _FORMATS, "protocol_whitelist": ""}) as container:
            yield from _decoded(container)
    except UndecodableError:
        raise
    except Exception as reason:  # damaged files lead PyAV to many kinds of errors
        text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise UndecodableError(" ".join(text.split())) from None


def _decoded(container: av.container.InputContainer) -> Iterator[Sound]:
    if not container.streams.audio:
        raise UndecodableError("it has no audio stream")
    stream = container.streams.audio[0]
    stream.codec_context.thread_count = 1  # data loaders run many processes
    stream.codec_context.options = {"err_detect": "crccheck+bitstream+buffer+explode"}
    blocks: list[NDArray[np.float32]] = []
    rate, channels, total, waiting, begin = 0, 0, 0, 0, 0.0
    for frame in container.decode(stream):
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
            yield Sound(np.concatenate(blocks), rate)
            blocks, waiting = [], 0
    if not total:
        raise UndecodableError("it has zero samples")
    missing = round(_promised_seconds(container, stream, begin) * rate) - total
    if missing > (0 if container.format.name == "flac" else rate * TOLERANCE):
        raise UndecodableError(f"it ends {missing} samples early; is it truncated?")
    if blocks:
        yield Sound(np.concatenate(blocks), rate)


def _promised_seconds(container: av.container.InputContainer, stream: av.AudioStream, begin: float) -> float:
    """How long the header says that a stream is; 0 if it does not say, or guesses."""
    if container.format.name in _LENGTH_IS_SURE and stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.format.name == "matroska,webm":  # its writers note there when the stream ends
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

"""Audio files -> 16 kHz mono float32: libsndfile first, FFmpeg for what it refuses."""

import io
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import BinaryIO, cast

import numpy as np
import soundfile
import torch
import torchaudio.functional
from numpy.typing import NDArray

from moelora_ad.audio.ffmpeg import MOST_FRAMES, TOLERANCE, UndecodableError, decode
from moelora_ad.audio.notes import Note
from moelora_ad.audio.quality import ChannelMeter
from moelora_ad.audio.streaming import StreamingResampler
from moelora_ad.audio.truncation import missing_frames, ogg_is_cut
from moelora_ad.errors import InputError
from moelora_ad.files import ReadThrough

SAMPLE_RATE = 16_000
"""Hertz. Every waveform in this package has this rate."""

LOWEST_RATE = 1_000
MOST_TAPS = 20_000_000
"""Size of the resampling filter. Any usual rate needs under 300,000; 44,101 Hz would need 700 million (13 GB)."""
_LENGTH_UNKNOWN = 2**60  # what libsndfile says of a FLAC stream whose header leaves the length open
_AT_ONCE = 2**20  # samples of all channels that are decoded at once for blocks
_IN_MEMORY = 16 * 2**20  # bytes; libsndfile reads a Python file object piece by piece, which is slow

Source = str | os.PathLike[str] | BinaryIO


class AudioError(InputError):
    """An audio file that is missing or does not hold usable sound."""


class AudioReader:
    """An open audio file, to be used in a ``with`` statement.

    Channels are averaged and other rates resampled. libsndfile decodes if it can, otherwise FFmpeg, which reads the
    whole file first. Samples that a container declares to be the codec's padding are left out. What is cut short is an
    error if more than 0.1 s is missing (FLAC: a sample); raw AAC and live recordings have no length to tell it from.

    Args:
        source: A path, or a binary file object that can seek, which is closed in the end: FLAC, WAV, Ogg, MP3, M4A, the
            sound of MP4, ...
        name: How messages call it; the path if not given.
        track: Which of several audio tracks, from 1 on; the one that the file calls its default if not given.
        meter: Gets all channels of what is decoded.

    Attributes:
        name: See above.
        source_rate: The file's own sample rate in hertz.
        length: Number of samples at 16 kHz.
        notes: What is odd about the file; complete when all of it has been read.

    Raises:
        AudioError: The file is missing, not audio, damaged, has no samples, or cannot be brought to 16 kHz.
    """

    name: str
    source_rate: int
    length: int
    notes: tuple[Note, ...]

    def __init__(
        self, source: Source, name: str | None = None, track: int | None = None, meter: ChannelMeter | None = None
    ) -> None:
        self.name = str(source) if name is None else name
        self.notes = ()
        self.meter = meter
        self._track = track
        self._source = source
        self._guarded: _Guarded | None = None
        self._whole: NDArray[np.float32] | None = None  # at 16 kHz
        self._sound: soundfile.SoundFile | None = None
        try:
            self._bring_into_memory()
            refused = self._open()
            if self._sound is not None:
                self.source_rate = int(self._sound.samplerate)
                self.length = _length_at_16_khz(self._sound.frames, self.source_rate)
            else:
                self._whole = self._decode_whole(refused)
                self.length = len(self._whole)
        except BaseException as error:
            self._close()
            self._tell_broken(error)
            raise

    def __enter__(self) -> "AudioReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._sound is not None:
            self._sound.close()
        if not isinstance(self._source, str | os.PathLike):
            self._source.close()

    def read(self, start: int = 0, samples: int | None = None) -> NDArray[np.float32]:
        """Decode the file, or the part of it that is needed: ``read()[start:start + samples]`` bit for bit.

        Args:
            start: The first sample wanted, counted at 16 kHz.
            samples: How many at most; to the end of the file if ``None``.

        Returns:
            (n,) float32 at 16 kHz, n >= 1; full scale is 1.

        Raises:
            AudioError: The file is damaged or cut short, has no sample from ``start`` on, has NaN or infinite samples,
                or is too long to be decoded as a whole where it must be.
        """
        if start < 0 or (samples is not None and samples < 1):
            raise ValueError(f"start must be >= 0 and samples >= 1, not {start} and {samples}")
        stop = None if samples is None else start + samples
        try:
            waveform = self._part(start, stop)
        except MemoryError:
            raise AudioError(f"cannot use {self.name}: too long for the memory; cut it into pieces") from None
        except AudioError as error:
            self._tell_broken(error)
            raise
        if len(waveform) == 0:
            raise AudioError(f"cannot use {self.name}: no sample from number {start} on")
        return self._finite(waveform)

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """The whole file, one block after another: joined, they are ``read()``, up to rounding at other rates.

        However long the file is, this takes some megabytes; more is needed only for what FFmpeg has decoded.

        Returns:
            (n,) float32 at 16 kHz, n >= 0; full scale is 1.

        Raises:
            AudioError: As for ``read``, but when the faulty place is reached.
        """
        try:
            for block in self._blocks():
                yield self._finite(block)
        except AudioError as error:
            self._tell_broken(error)
            raise

    def _blocks(self) -> Iterator[NDArray[np.float32]]:
        sound, given = self._sound, 0
        if self._whole is None:
            assert sound is not None
            resample = None if self.source_rate == SAMPLE_RATE else StreamingResampler(self.source_rate, SAMPLE_RATE)
            step = max(1, _AT_ONCE // sound.channels)
            try:
                for start in range(0, sound.frames, step):
                    stop = min(start + step, sound.frames)
                    frames = self._read_frames(sound, start, stop)
                    block = frames if resample is None else resample(frames, last=stop == sound.frames)
                    yield block
                    given += len(block)
                return
            except soundfile.SoundFileError as error:
                self._whole = self._decode_instead(error)
        for start in range(given, self.length, _AT_ONCE):
            yield self._whole[start : start + _AT_ONCE]

    def _finite(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        if not np.isfinite(waveform).all():
            raise AudioError(f"cannot use {self.name}: it has NaN or infinite samples")
        return waveform

    def _tell_broken(self, error: BaseException) -> None:
        """Raise what the storage said, if that is why decoding failed."""
        if isinstance(error, AudioError) and self._guarded is not None and self._guarded.error is not None:
            raise AudioError(f"cannot read {self.name}: {_reason(self._guarded.error)}") from None

    def _bring_into_memory(self) -> None:
        """Read a small file object, which is then closed; guard a large one."""
        source = self._source
        if isinstance(source, str | os.PathLike | io.BytesIO):
            return
        try:
            size = source.seek(0, os.SEEK_END)
            if size <= _IN_MEMORY:
                source.seek(0)
                with source:
                    self._source = io.BytesIO(source.read(size))
            else:
                self._guarded = _Guarded(source)
                self._source = cast(BinaryIO, io.BufferedReader(self._guarded))
        except Exception as reason:  # every kind of storage has errors of its own
            raise AudioError(f"cannot read {self.name}: {_reason(reason)}") from None

    def _open(self) -> str:
        """Open with libsndfile; what it says if it refuses."""
        if not isinstance(self._source, str | os.PathLike):
            self._source.seek(0)
        try:
            source = self._source
            if os.name == "posix" and isinstance(source, str | os.PathLike):
                sound = soundfile.SoundFile(os.fsencode(source))  # as text, names that are not UTF-8 are refused
            else:
                sound = soundfile.SoundFile(source)
        except (soundfile.SoundFileError, TypeError) as error:  # TypeError: headerless .raw
            self._check_there()
            return _reason(error)
        if sound.frames >= _LENGTH_UNKNOWN:
            sound.close()
            return "its header does not tell its length"
        self._sound = sound
        if sound.frames == 0:
            raise AudioError(f"cannot use {self.name}: it has zero samples")
        check_rate(self.name, int(sound.samplerate))
        self._check_end(sound)
        return ""

    def _check_there(self) -> None:
        path = self._source
        if not isinstance(path, str | os.PathLike):
            if path.seek(0, os.SEEK_END) == 0:
                raise AudioError(f"cannot decode {self.name}: the file is empty")
        elif not os.path.exists(path):
            raise AudioError(f"no such audio file: {self.name}")
        elif not os.path.isfile(path):
            raise AudioError(f"cannot decode {self.name}: this is a {'folder' if os.path.isdir(path) else 'device'}")
        elif not os.access(path, os.R_OK):
            raise AudioError(f"cannot decode {self.name}: no permission to read it")
        elif os.path.getsize(path) == 0:
            raise AudioError(f"cannot decode {self.name}: the file is empty")

    def _check_end(self, sound: soundfile.SoundFile) -> None:
        if sound.format in ("WAV", "WAVEX", "AIFF", "AU"):
            if (missing := missing_frames(sound)) > sound.samplerate * TOLERANCE:
                raise AudioError(f"cannot decode {self.name}: it ends {missing} samples early; is it truncated?")
        elif sound.format == "OGG":
            with self._file() as file:
                position = file.tell()
                if ogg_is_cut(file):
                    raise AudioError(f"cannot decode {self.name}: its last page is missing; is it truncated?")
                file.seek(position)

    def _file(self) -> AbstractContextManager[BinaryIO]:
        source = self._source
        return open(source, "rb") if isinstance(source, str | os.PathLike) else nullcontext(source)

    def _part(self, start: int, stop: int | None) -> NDArray[np.float32]:
        sound = self._sound
        if self._whole is None:
            assert sound is not None
            try:
                if self.source_rate == SAMPLE_RATE and _seeks_exactly(sound):
                    return self._read_frames(sound, start, self.length if stop is None else min(stop, self.length))
                self._whole = resampled(self._read_frames(sound, 0, sound.frames), self.source_rate)
            except soundfile.SoundFileError as error:
                self._whole = self._decode_instead(error)
        return self._whole[start:stop]

    def _decode_instead(self, error: soundfile.SoundFileError) -> NDArray[np.float32]:
        """Decode with FFmpeg what libsndfile has opened and then fails at."""
        if self.meter is not None:
            self.meter.clear()
        whole = self._decode_whole(_reason(error))
        if len(whole) != self.length:
            told = f"its header says {self.length} samples, and it has {len(whole)}"
            raise AudioError(f"cannot decode {self.name}: {told}; is it damaged?") from None
        return whole

    def _read_frames(self, sound: soundfile.SoundFile, start: int, stop: int) -> NDArray[np.float32]:
        """The frames [start, stop) at the file's own rate, channels averaged: (n,)."""
        if start >= stop:
            return np.empty(0, np.float32)
        if stop - start > MOST_FRAMES:
            raise AudioError(f"cannot use {self.name}: {stop - start:,} samples are too many; cut it into pieces")
        if sound.seekable() and sound.tell() != start:  # GSM is not; then all parts are read in their order
            sound.seek(start)
        frames = sound.read(stop - start, dtype="float32", always_2d=True)
        if len(frames) < stop - start:
            missing = stop - start - len(frames)
            raise AudioError(f"cannot decode {self.name}: it ends {missing} samples early; is it truncated?")
        return self._mono(frames)

    def _decode_whole(self, refused: str) -> NDArray[np.float32]:
        """Decode with FFmpeg what libsndfile refused: at 16 kHz and one channel, an hour takes 230 MB."""
        parts: list[NDArray[np.float32]] = []
        resample: StreamingResampler | None = None
        try:
            with self._file() as file:
                for frames, rate in decode(file):
                    if not parts:
                        check_rate(self.name, rate)
                        self.source_rate = rate
                        resample = None if rate == SAMPLE_RATE else StreamingResampler(rate, SAMPLE_RATE)
                    mono = self._mono(frames)
                    parts.append(mono if resample is None else resample(mono, last=False))
        except UndecodableError as error:
            told = f"{refused} (libsndfile), {error} (FFmpeg)"
            raise AudioError(f"cannot decode {self.name}: {told}; is it an audio file?") from None
        if resample is not None:
            parts.append(resample(np.empty(0, np.float32), last=True))
        return np.concatenate(parts)

    def _mono(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mean over channels of (n, channels): (n,)."""
        if self.meter is not None:
            self.meter.add(frames)
        mono: NDArray[np.float32] = frames[:, 0] if frames.shape[1] == 1 else frames.mean(axis=1)
        return mono


def read_audio(
    source: Source, start: int = 0, samples: int | None = None, name: str | None = None
) -> NDArray[np.float32]:
    """Decode an audio file or a part of it; see `AudioReader` and its ``read``."""
    with AudioReader(source, name) as sound:
        return sound.read(start, samples)


def audio_length(source: Source, name: str | None = None) -> int:
    """Number of samples that `read_audio` gives for the whole file; from its header alone if libsndfile reads it."""
    with AudioReader(source, name) as sound:
        return sound.length


def check_rate(name: str, rate: int) -> None:
    """Make sure that the sound that messages call ``name`` can be brought to 16 kHz from ``rate`` in hertz.

    Raises:
        AudioError: The rate is too low, or has too little in common with 16,000.
    """
    common = math.gcd(rate, SAMPLE_RATE)
    if rate < LOWEST_RATE or (rate // common) * (SAMPLE_RATE // common) > MOST_TAPS:
        problem = f"its sample rate of {rate} Hz cannot be brought to {SAMPLE_RATE} Hz; convert the file"
        raise AudioError(f"cannot use {name}: {problem}")


class _Guarded(ReadThrough):
    """A large file object that ends where reading fails, and keeps the error: none can be raised through the libraries
    that call back for more bytes."""

    error: Exception | None = None

    def failed(self, error: Exception) -> None:
        self.error = error


def _reason(error: Exception) -> str:
    text = str(getattr(error, "error_string", error))
    return " ".join(text.split()).removeprefix("Error : ").rstrip(".")


def _seeks_exactly(sound: soundfile.SoundFile) -> bool:
    # Decoders with memory (MP3, Vorbis, Opus) give other samples after a seek than in a run from the beginning.
    memoryless = sound.subtype.startswith("PCM_") or sound.subtype in ("FLOAT", "DOUBLE", "ULAW", "ALAW")
    return memoryless and sound.seekable()


def resampled(waveform: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """``waveform`` (n,), n >= 1, from ``rate`` in hertz to 16 kHz."""
    if rate == SAMPLE_RATE:
        return waveform
    # Trailing zeros change no sample; they make up for torchaudio's rounding of the length in float32.
    padded = torch.nn.functional.pad(torch.from_numpy(np.ascontiguousarray(waveform)), (0, rate // 100))
    at_16_khz: torch.Tensor = torchaudio.functional.resample(padded, rate, SAMPLE_RATE)
    return at_16_khz[: _length_at_16_khz(len(waveform), rate)].numpy()


def _length_at_16_khz(frames: int, rate: int) -> int:
    return math.ceil(frames * SAMPLE_RATE / rate)

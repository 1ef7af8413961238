"""Audio files -> 16 kHz mono float32: libsndfile first, FFmpeg for what libsndfile refuses or would decode wrongly."""

import io
from collections.abc import Iterable, Iterator
from functools import partial
from typing import BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from moelora_ad.audio.contents import Contents, contents_of, pieces_of
from moelora_ad.audio.ffmpeg import MOST_FRAMES, TOLERANCE, NoSuchTrackError, UndecodableError, decode, is_bare
from moelora_ad.audio.mpeg import Stretch, stretches_of
from moelora_ad.audio.notes import Note, silent_decoders
from moelora_ad.audio.quality import ChannelMeter, mixed
from moelora_ad.audio.source import AudioError, AudioSource, Source, TooLongError, reason_of
from moelora_ad.audio.streaming import SAMPLE_RATE, StreamingResampler, check_rate, length_at_16_khz, resampled_part

_LENGTH_UNKNOWN = 2**60  # what libsndfile reports for a FLAC stream whose header leaves the length open
_AT_ONCE = 2**20  # samples of all channels that are decoded at once for blocks


class AudioReader:
    """An open audio file, to be used in a ``with`` statement.

    Channels are averaged and other rates resampled. libsndfile decodes, or FFmpeg if libsndfile refuses the file or
    would trust a wrong header; FFmpeg reads the whole file first. Samples that a container declares to be the codec's
    padding are left out. A file that is cut short is an error if more than 0.1 s is missing; raw AAC and live
    recordings have no declared length. Joined files are all decoded; what else is behind the declared sound is noted.

    Args:
        source: A path, or a binary file object that can seek, which is closed in the end: FLAC, WAV, Ogg, MP3, M4A, the
            sound of MP4, ...
        name: Its name in messages; the path if not given.
        track: Which of several audio tracks, from 1 on; the one that the file calls its default if not given.
        meter: Measures all channels of what is decoded.
        longest: Largest duration in seconds; a longer file is an error, and little more than that is decoded.

    Attributes:
        name: The name in messages.
        source_rate: The file's own sample rate in hertz.
        length: Number of samples at 16 kHz.
        notes: Anomalies of the file; complete when all of it has been read.

    Raises:
        AudioError: The file is missing, not audio, damaged, without samples, too long, or cannot be brought to 16 kHz.
    """

    name: str
    source_rate: int
    length: int
    notes: tuple[Note, ...]

    def __init__(
        self,
        source: Source,
        name: str | None = None,
        track: int | None = None,
        meter: ChannelMeter | None = None,
        longest: float | None = None,
    ) -> None:
        self.name = str(source) if name is None else name
        self.notes = ()
        self.meter = meter
        self._track, self._longest = track, longest
        self._whole: NDArray[np.float32] | None = None  # at 16 kHz
        self._sound: soundfile.SoundFile | None = None
        self._source: AudioSource | None = None
        try:
            self._source = AudioSource(source, self.name)
            with self._source.opened() as file:
                self._prepare(file)
        except BaseException as error:
            self._close()
            self._tell_broken(error)
            raise

    def __enter__(self) -> "AudioReader":
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._sound is not None:
            self._sound.close()
        if self._source is not None:
            self._source.close()

    def _prepare(self, file: BinaryIO) -> None:
        contents = contents_of(file)
        if len(contents.starts) > 1:
            self._join(pieces_of(file, contents.starts))
            return
        if contents.fault:
            raise AudioError(f"cannot decode {self.name}: {contents.fault}")
        if contents.end is not None:
            file = io.BytesIO(next(pieces_of(file, (0, contents.end))))
            self._source = AudioSource(file, self.name)
        refused = contents.doubt or self._open()
        if contents.may_be_bare and (is_bare(file) if self._sound is None else self._sound.format == "MP3"):
            position = file.tell()
            file.seek(0)
            stretches = stretches_of(file.read())
            file.seek(position)
            if len(stretches) > 1:
                self._join(stretch.data for stretch in stretches)
                return
            if stretches:
                refused, file = self._judged(stretches[0], refused), io.BytesIO(stretches[0].data)
        if refused:
            self._whole = self._decode_whole(file, refused)
            self.length = len(self._whole)
        elif self._sound is not None:
            if self._track is not None and self._track > 1:
                raise AudioError(f"cannot use {self.name}: {NoSuchTrackError(self._track, 1)}")
            self.source_rate = int(self._sound.samplerate)
            self.length = length_at_16_khz(self._sound.frames, self.source_rate)
        self._allowed(self.length)
        self._compare(contents)

    @silent_decoders()
    def _open(self) -> str:
        """Open with libsndfile; returns why that cannot be used, empty if it can."""
        assert self._source is not None
        try:
            sound = soundfile.SoundFile(self._source.for_libsndfile())
        except (soundfile.SoundFileError, TypeError) as error:  # TypeError: headerless .raw
            return reason_of(error)
        if sound.frames >= _LENGTH_UNKNOWN or (sound.subtype.startswith("MPEG") and sound.format != "MP3"):
            sound.close()
            return "its header has no length"
        self._sound = sound
        if sound.frames == 0:
            raise AudioError(f"cannot use {self.name}: its header says that it has zero samples")
        check_rate(self.name, int(sound.samplerate))
        return ""

    def _judged(self, stretch: Stretch, refused: str) -> str:
        """Return why libsndfile cannot be used for a stream of frames; empty if it can."""
        if fault := stretch.fault(TOLERANCE):
            raise AudioError(f"cannot decode {self.name}: {fault}")
        sound = self._sound
        if sound is None or stretch.counted == (sound.frames if stretch.claimed is None else stretch.claimed):
            return refused
        sound.close()
        self._sound = None
        return "its header has no length"

    def _join(self, pieces: Iterable[bytes]) -> None:
        """Decode files that follow each other in this one."""
        parts: list[NDArray[np.float32]] = []
        notes: list[Note] = []
        for number, piece in enumerate(pieces):
            with AudioReader(io.BytesIO(piece), self.name, self._track, self.meter, self._longest) as part:
                parts.append(part.read())
                notes.extend(part.notes)
                if number == 0:
                    self.source_rate = part.source_rate
            if self._allowed(sum(map(len, parts))) > MOST_FRAMES:
                raise TooLongError(f"cannot use {self.name}: it is longer than {MOST_FRAMES:,} samples")
        self._whole = np.concatenate(parts)
        self.length = len(self._whole)
        first, all_of_it = len(parts[0]) / SAMPLE_RATE, self.length / SAMPLE_RATE
        detail = f"{len(parts)}, one behind the other, the first has {first:.2f} of {all_of_it:.2f} s"
        self.notes = tuple(dict.fromkeys([Note("joined files", detail), *notes]))

    def _compare(self, contents: Contents) -> None:
        """Compare the sound with what the header claims."""
        seconds = self.length / SAMPLE_RATE
        if (missing := round(contents.missing * seconds * self.source_rate)) > self.source_rate * TOLERANCE:
            raise AudioError(f"cannot decode {self.name}: it ends {missing} samples early; is it truncated?")
        if (behind := contents.behind * seconds) > TOLERANCE:
            self.notes += (Note("header shorter than file", f"header {seconds:.2f} s, file {seconds + behind:.2f} s"),)

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
        """The whole file, one block after another: joined, they are ``read()`` bit for bit.

        However long the file is, this takes some megabytes; more is needed only for what FFmpeg has decoded, and, at
        first, for the bytes of MP3 and Ogg.

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
            resample = StreamingResampler(self.source_rate)
            step = max(1, _AT_ONCE // sound.channels)
            try:
                for start in range(0, sound.frames, step):
                    stop = min(start + step, sound.frames)
                    block = resample(self._read_frames(sound, start, stop), last=stop == sound.frames)
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
        """Raise the storage's error instead, if that is why decoding failed."""
        if isinstance(error, AudioError) and self._source is not None:
            self._source.tell_broken()

    def _part(self, start: int, stop: int | None) -> NDArray[np.float32]:
        sound = self._sound
        if self._whole is None:
            assert sound is not None
            try:
                part = partial(resampled_part, partial(self._read_frames, sound), sound.frames, self.source_rate)
                # Decoders with memory (MP3, Vorbis, Opus) give other samples after a seek than in a run from the start.
                if sound.seekable() and sound.subtype.startswith(("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")):
                    return part(start, self.length if stop is None else min(stop, self.length))
                self._whole = part(0, self.length)
            except soundfile.SoundFileError as error:
                self._whole = self._decode_instead(error)
        return self._whole[start:stop]

    def _decode_instead(self, error: soundfile.SoundFileError) -> NDArray[np.float32]:
        """Decode with FFmpeg a file that libsndfile has opened but fails to decode."""
        assert self._source is not None
        if self.meter is not None:
            self.meter.clear()
        with self._source.opened() as file:
            whole = self._decode_whole(file, reason_of(error))
        if not 0 <= self.length - len(whole) <= SAMPLE_RATE * TOLERANCE:
            told = f"its header says {self.length} samples, and it has {len(whole)}"
            raise AudioError(f"cannot decode {self.name}: {told}; is it damaged?") from None
        self.length = len(whole)
        return whole

    @silent_decoders()
    def _read_frames(self, sound: soundfile.SoundFile, start: int, stop: int) -> NDArray[np.float32]:
        """The frames [start, stop) at the file's own rate, channels averaged: (n,)."""
        if start >= stop:
            return np.empty(0, np.float32)
        if stop - start > MOST_FRAMES:
            raise AudioError(f"cannot use {self.name}: {stop - start:,} samples are too many; cut it into pieces")
        if sound.seekable() and sound.tell() != start:  # GSM is not seekable: its parts are all read in order
            sound.seek(start)
        frames = sound.read(stop - start, dtype="float32", always_2d=True)
        if (missing := stop - start - len(frames)) > 0:
            raise AudioError(f"cannot decode {self.name}: it ends {missing} samples early; is it truncated?")
        return mixed(frames, self.meter)

    def _decode_whole(self, file: BinaryIO, refused: str) -> NDArray[np.float32]:
        """Decode with FFmpeg a file that libsndfile refused: at 16 kHz and one channel, an hour takes 230 MB."""
        parts: list[NDArray[np.float32]] = []
        resample = StreamingResampler(SAMPLE_RATE)  # until the rate is known
        try:
            for frames, rate, track, tracks in decode(file, self._track):
                if not parts:
                    check_rate(self.name, rate)
                    self.source_rate = rate
                    resample = StreamingResampler(rate)
                    self._tell_tracks(track, tracks)
                parts.append(resample(mixed(frames, self.meter), last=False))
                self._allowed(sum(map(len, parts)))
        except NoSuchTrackError as error:
            raise AudioError(f"cannot use {self.name}: {error}") from None
        except UndecodableError as error:
            told = f"{refused} (libsndfile), {error} (FFmpeg)"
            raise AudioError(f"cannot decode {self.name}: {told}; is it an audio file?") from None
        parts.append(resample(np.empty(0, np.float32), last=True))
        return np.concatenate(parts)

    def _allowed(self, samples: int) -> int:
        if self._longest is not None and samples > self._longest * SAMPLE_RATE:
            raise TooLongError(f"cannot use {self.name}: it is longer than {self._longest:g} s")
        return samples

    def _tell_tracks(self, track: int, tracks: int) -> None:
        if tracks > 1:
            which = f"track {track} of {tracks}" + (", FFmpeg's default," if self._track is None else "")
            self.notes += (Note("several audio tracks", f"{which} was scored"),)


def read_audio(
    source: Source, start: int = 0, samples: int | None = None, name: str | None = None
) -> NDArray[np.float32]:
    """Decode an audio file or a part of it; see `AudioReader` and its ``read``."""
    with AudioReader(source, name) as sound:
        return sound.read(start, samples)

"""Lossy codecs of telephony and of media platforms: a waveform is encoded and decoded again, in memory.

Every codec is a class of its own. `OneOf` picks among several, `Chain` transcodes. Default bit rates follow the
evaluation conditions of ASVspoof 2021: X. Liu et al., "ASVspoof 2021: towards spoofed and deepfake speech detection in
the wild", IEEE/ACM TASLP 31, 2023, https://arxiv.org/abs/2210.02437, as far as a codec takes them at 16 kHz and one
channel: LA has A-law, mu-law, G.722, GSM and Opus; DF has MP3, M4A (AAC) and Ogg (Vorbis), low and high.
"""

import io
from abc import abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import av
import numpy as np
import soundfile
import torch
import torchaudio.functional
from av.codec.context import Flags2
from numpy.typing import NDArray

from moelora_ad.audio.augmentation.base import Augmentation, check_limits, peak
from moelora_ad.audio.decoding import SAMPLE_RATE
from moelora_ad.errors import InputError

SHARPNESS = 64
"""Zero crossings of the resampling filter, so that a narrow band ends at 4 kHz."""
TAIL = 0.1
"""Seconds of silence that are encoded after the waveform, to get its last samples out of the codec."""
SAMPLES_AT_ONCE = 1 << 14
"""Samples that are encoded in one call: libsndfile overruns its stack when it encodes long stretches of Vorbis."""


@dataclass(frozen=True)
class LossyCodec(Augmentation):
    """What the codecs have in common.

    The result has as many samples as the waveform and is aligned with it: the codec's delay is removed. A waveform with
    a peak above 1 is divided by it first. A codec runs in one thread.

    Raises:
        InputError: when it is built: the installed library does not have the codec, or a value is out of range; when it
            is called: the library fails.
    """

    rate: ClassVar[int] = SAMPLE_RATE
    """The sampling rate of the codec in Hz; unless it is 16 kHz, waveforms are resampled to it and back."""

    def __call__(self, waveform: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """Encode and decode ``waveform``: see `Augmentation`."""
        sound = _resample(waveform / np.float32(max(1.0, peak(waveform))), SAMPLE_RATE, self.rate)
        silence = np.zeros(round(TAIL * self.rate), np.float32)
        coded = self._code(np.concatenate([sound, silence]), generator)[: len(sound)]
        return _resample(coded, self.rate, SAMPLE_RATE)[: len(waveform)]

    @abstractmethod
    def _code(self, sound: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """``sound`` (samples,) at the codec's rate, encoded and decoded: (samples or some more,), aligned."""


class FFmpegCodec(LossyCodec):
    """A codec of FFmpeg, through PyAV."""

    encoder: ClassVar[str]
    decoder: ClassVar[str]

    def __post_init__(self) -> None:
        if not _has_encoder(self.encoder):
            available = ", ".join(codec.__name__ for codec in FFMPEG_CODECS if _has_encoder(codec.encoder))
            raise InputError(
                f"{type(self).__name__}: the installed PyAV has no encoder {self.encoder}; it has those of {available}"
            )

    def _bit_rate(self, generator: np.random.Generator) -> int | None:
        """Bits per second; None for a codec that has only one rate."""
        return None

    def _code(self, sound: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        try:
            return self._through_ffmpeg(sound, self._bit_rate(generator))
        except av.error.FFmpegError as error:
            raise InputError(f"{type(self).__name__}: FFmpeg cannot code {len(sound)} samples: {error}") from None

    def _through_ffmpeg(self, sound: NDArray[np.float32], bit_rate: int | None) -> NDArray[np.float32]:
        encoder = av.CodecContext.create(self.encoder, "w")
        encoder.sample_rate, encoder.layout, encoder.format = self.rate, "mono", encoder.codec.audio_formats[0].name
        encoder.time_base = Fraction(1, self.rate)
        encoder.thread_count = 1
        if bit_rate is not None:
            encoder.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(sound[None], format="flt", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = self.rate, encoder.time_base, 0
        packets = [*encoder.encode(frame), *encoder.encode(None)]

        decoder = av.CodecContext.create(self.decoder, "r")
        decoder.sample_rate, decoder.layout = self.rate, "mono"
        decoder.extradata = encoder.extradata
        decoder.thread_count = 1
        decoder.flags2 |= Flags2.skip_manual  # some decoders would drop the delay, some not
        frames = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
        decoded = np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames])
        if decoded.dtype == np.int16:
            decoded = decoded.astype(np.float32) / 32_768
        delay = -packets[0].pts  # the encoder stamps its packets so that the waveform begins at 0
        return _resample(decoded, frames[0].sample_rate, self.rate)[delay:]


@dataclass(frozen=True)
class BitRateCodec(FFmpegCodec):
    """A codec of FFmpeg with a bit rate, drawn uniformly.

    Args:
        kbps: Lowest and highest bit rate in kbit/s.
    """

    kbps: tuple[float, float]

    supported: ClassVar[tuple[float, float]]
    """Bit rates that the encoder takes at 16 kHz and one channel, in kbit/s."""

    def __post_init__(self) -> None:
        check_limits(f"{type(self).__name__}: kbps", self.kbps, *self.supported, "kbit/s")
        super().__post_init__()

    def _bit_rate(self, generator: np.random.Generator) -> int:
        return round(1_000 * generator.uniform(*self.kbps))


@dataclass(frozen=True)
class MP3(BitRateCodec):
    """MPEG-2 layer III by LAME, constant bit rate.

    ASVspoof 2021 DF: about 80 to 120 and 220 to 260 kbit/s; at 16 kHz the format ends at 160.

    Args:
        kbps: Lowest and highest bit rate in kbit/s, within 8 to 160; the bit rate that is drawn is rounded to the
            nearest one that the format has.
    """

    kbps: tuple[float, float] = (80.0, 160.0)

    encoder: ClassVar[str] = "libmp3lame"
    decoder: ClassVar[str] = "mp3"
    supported: ClassVar[tuple[float, float]] = (8, 160)


@dataclass(frozen=True)
class AAC(BitRateCodec):
    """MPEG-4 AAC (low complexity) by FFmpeg's own encoder.

    ASVspoof 2021 DF: about 20 to 32 and 96 to 112 kbit/s; at 16 kHz and one channel the format ends at 96.

    Args:
        kbps: Lowest and highest bit rate in kbit/s, within 8 to 96.
    """

    kbps: tuple[float, float] = (20.0, 96.0)

    encoder: ClassVar[str] = "aac"
    decoder: ClassVar[str] = "aac"
    supported: ClassVar[tuple[float, float]] = (8, 96)


@dataclass(frozen=True)
class Opus(BitRateCodec):
    """Opus (RFC 6716) by libopus, wide-band, variable bit rate.

    ASVspoof 2021 LA: about 16 kbit/s.

    Args:
        kbps: Lowest and highest mean bit rate in kbit/s, within 6 to 256.
    """

    kbps: tuple[float, float] = (12.0, 20.0)

    encoder: ClassVar[str] = "libopus"
    decoder: ClassVar[str] = "opus"
    supported: ClassVar[tuple[float, float]] = (6, 256)


@dataclass(frozen=True)
class ALaw(FFmpegCodec):
    """ITU-T G.711 A-law: 8 kHz, 64 kbit/s."""

    rate: ClassVar[int] = 8_000
    encoder: ClassVar[str] = "pcm_alaw"
    decoder: ClassVar[str] = "pcm_alaw"


@dataclass(frozen=True)
class MuLaw(FFmpegCodec):
    """ITU-T G.711 mu-law: 8 kHz, 64 kbit/s."""

    rate: ClassVar[int] = 8_000
    encoder: ClassVar[str] = "pcm_mulaw"
    decoder: ClassVar[str] = "pcm_mulaw"


@dataclass(frozen=True)
class G722(FFmpegCodec):
    """ITU-T G.722: two bands up to 7 kHz, 64 kbit/s."""

    encoder: ClassVar[str] = "g722"
    decoder: ClassVar[str] = "g722"


FFMPEG_CODECS: tuple[type[FFmpegCodec], ...] = (MP3, AAC, Opus, ALaw, MuLaw, G722)


class SndfileCodec(LossyCodec):
    """A codec of libsndfile, for formats that PyAV's usual builds decode but do not encode."""

    container: ClassVar[str]
    subtype: ClassVar[str]

    def __post_init__(self) -> None:
        if self.subtype not in soundfile.available_subtypes(self.container):
            available = ", ".join(sorted(soundfile.available_subtypes(self.container)))
            raise InputError(
                f"{type(self).__name__}: the installed libsndfile has no {self.subtype} in {self.container}; "
                f"it has {available}"
            )

    def _compression(self, generator: np.random.Generator) -> float | None:
        """What libsndfile calls the compression level, from 0 to 1; None for a codec that has none."""
        return None

    def _code(self, sound: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        file = io.BytesIO()
        form = {"samplerate": self.rate, "channels": 1, "format": self.container, "subtype": self.subtype}
        try:
            with soundfile.SoundFile(file, "w", **form, compression_level=self._compression(generator)) as encoder:
                for first in range(0, len(sound), SAMPLES_AT_ONCE):
                    encoder.write(sound[first : first + SAMPLES_AT_ONCE])
            file.seek(0)
            decoded: NDArray[np.float32] = soundfile.read(file, dtype="float32")[0]
        except soundfile.SoundFileError as error:
            raise InputError(f"{type(self).__name__}: libsndfile cannot code {len(sound)} samples: {error}") from None
        return decoded


@dataclass(frozen=True)
class Vorbis(SndfileCodec):
    """Ogg Vorbis by libvorbis, variable bit rate.

    ASVspoof 2021 DF: about 80 to 96 and 256 to 320 kbit/s; speech at 16 kHz and one channel takes some 30 at quality 0
    and some 70 at quality 10.

    Args:
        quality: Lowest and highest quality, drawn uniformly, within 0 to 10.
    """

    quality: tuple[float, float] = (0.0, 10.0)

    container: ClassVar[str] = "OGG"
    subtype: ClassVar[str] = "VORBIS"

    def __post_init__(self) -> None:
        check_limits("Vorbis: quality", self.quality, 0, 10)
        super().__post_init__()

    def _compression(self, generator: np.random.Generator) -> float:
        return 1 - generator.uniform(*self.quality) / 10


@dataclass(frozen=True)
class GSM(SndfileCodec):
    """GSM 06.10 full rate: 8 kHz, 13 kbit/s."""

    rate: ClassVar[int] = 8_000
    container: ClassVar[str] = "WAV"
    subtype: ClassVar[str] = "GSM610"


def _has_encoder(name: str) -> bool:
    try:
        av.Codec(name, "w")
    except ValueError:
        return False
    return True


def _resample(sound: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """``sound`` (samples,) from ``rate`` to ``wanted`` Hz, without delay."""
    if rate == wanted:
        return sound
    resampled: NDArray[np.float32] = torchaudio.functional.resample(
        torch.from_numpy(sound), rate, wanted, lowpass_filter_width=SHARPNESS
    ).numpy()
    return resampled

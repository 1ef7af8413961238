"""All sound of a file is read, whatever its header claims: many kinds of files, whole, cut, joined and damaged."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
import scipy.signal
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from moelora_ad.audio import AudioError, AudioReader, read_audio
from moelora_ad.audio.contents import contents_of, pieces_of
from moelora_ad.audio.ffmpeg import decode
from moelora_ad.audio.mpeg import stretches_of

RATE = 16_000
SPEECH = sorted((Path(__file__).parents[2] / "experiments/quickstart/corpus").rglob("*.flac"))
VARIABLE = {"flags": "+qscale", "global_quality": "236"}  # variable bit rate


def speech(seconds, number=0):
    parts = [soundfile.read(path, dtype="float32")[0] for path in SPEECH[number : number + 8]]
    return np.concatenate(parts)[: round(seconds * RATE)]


FIRST, SECOND = speech(2.0), speech(2.6, 10)


class Pipe(io.RawIOBase):
    """A file that cannot seek, so that no header can be completed."""

    def __init__(self):
        self.data = bytearray()

    def writable(self):
        return True

    def write(self, data):
        self.data += bytes(data)
        return len(data)


def with_ffmpeg(sound, form, codec, rate=RATE, into_pipe=False, codec_options=None, **options):
    file = Pipe() if into_pipe else io.BytesIO()
    with av.open(file, "w", format=form, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono", options=codec_options or {})
        frame = av.AudioFrame.from_ndarray(sound[None], "fltp", "mono")
        frame.sample_rate = RATE
        for part in av.AudioResampler(stream.format, "mono", rate).resample(frame):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return bytes(file.data) if into_pipe else file.getvalue()


def with_libsndfile(sound, form, subtype, **options):
    file = io.BytesIO()
    soundfile.write(file, sound, RATE, subtype, format=form, **options)
    return file.getvalue()


def ffmpeg(form, codec, **options):
    return lambda sound: with_ffmpeg(sound, form, codec, **options)


def libsndfile(form, subtype, **options):
    return lambda sound: with_libsndfile(sound, form, subtype, **options)


# Files that mark their end: CHUNKED by a size in the header or in the chunks, the others in their own ways
CHUNKED = {
    **{f"wav {subtype}": libsndfile("WAV", subtype)
       for subtype in ("PCM_U8", "PCM_16", "PCM_24", "FLOAT", "ULAW", "ALAW", "MS_ADPCM", "IMA_ADPCM", "GSM610")},
    "wavex": libsndfile("WAVEX", "PCM_16"),
    "mp3 in wav": ffmpeg("wav", "libmp3lame"),
    "aiff": libsndfile("AIFF", "PCM_16"),
    "caf": libsndfile("CAF", "PCM_16"),
    "caf of ffmpeg": ffmpeg("caf", "pcm_s16le"),
    "au": libsndfile("AU", "PCM_16"),
    "rf64": libsndfile("RF64", "PCM_16"),
    "w64": libsndfile("W64", "PCM_16"),
    "sphere": libsndfile("NIST", "PCM_16"),
    "8svx": libsndfile("SVX", "PCM_16"),
}  # fmt: skip
ENDED = {
    **CHUNKED,
    "flac": libsndfile("FLAC", "PCM_16"),
    "flac of a pipe": ffmpeg("flac", "flac", into_pipe=True),
    "mp3 cbr": libsndfile("MP3", "MPEG_LAYER_III", bitrate_mode="CONSTANT"),
    "mp3 vbr": libsndfile("MP3", "MPEG_LAYER_III", bitrate_mode="VARIABLE"),
    "mp3 44.1 kHz": ffmpeg("mp3", "libmp3lame", rate=44_100),
    "ogg vorbis": libsndfile("OGG", "VORBIS"),
    "ogg opus": libsndfile("OGG", "OPUS"),
    "ogg opus of ffmpeg": ffmpeg("ogg", "libopus", rate=48_000),
    "m4a": ffmpeg("ipod", "aac", rate=48_000),
    "mp4": ffmpeg("mp4", "aac", rate=48_000),
    "mp4 in fragments": ffmpeg("mp4", "aac", rate=48_000, movflags="frag_keyframe+empty_moov", frag_duration="500000"),
    "mov": ffmpeg("mov", "aac", rate=48_000),
    "mkv": ffmpeg("matroska", "aac", rate=48_000),
    "webm": ffmpeg("webm", "libopus", rate=48_000),
    "flv": ffmpeg("flv", "aac", rate=44_100),
    "avi": ffmpeg("avi", "pcm_s16le"),
}
# Files that may end anywhere
ENDLESS = {
    "mp3 cbr without header": ffmpeg("mp3", "libmp3lame", write_xing="0"),
    "mp3 vbr without header": ffmpeg("mp3", "libmp3lame", write_xing="0", codec_options=VARIABLE),
    "mp3 44.1 kHz vbr without header": ffmpeg("mp3", "libmp3lame", rate=44_100, write_xing="0", codec_options=VARIABLE),
    "mp3 of a pipe": ffmpeg("mp3", "libmp3lame", into_pipe=True),
    "mp2": ffmpeg("mp2", "mp2"),
    "adts": ffmpeg("adts", "aac", rate=48_000),
    "mpeg transport stream": ffmpeg("mpegts", "aac", rate=48_000),
    "ac3": ffmpeg("ac3", "ac3", rate=48_000),
    "wav of a pipe": ffmpeg("wav", "pcm_s16le", into_pipe=True),
}
KINDS = {**ENDED, **ENDLESS}
UNMARKED = {"mkv", "webm", "avi", *ENDLESS}  # two joined files of these kinds look like one


def seconds_of(data, track=None):
    """The seconds of sound and the notes; the length, the whole and the blocks must agree."""
    with AudioReader(io.BytesIO(data), "a", track) as sound:
        read = len(sound.read())
    with AudioReader(io.BytesIO(data), "a", track) as sound:
        assert sum(map(len, sound.blocks())) == sound.length == read
        return sound.length / RATE, dict(sound.notes)


def refusal(data):
    with pytest.raises(AudioError) as error:
        seconds_of(data)
    (line,) = str(error.value).splitlines()
    assert line.startswith("cannot decode a: ")
    return line


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_file(kind):
    data = KINDS[kind](FIRST)
    seconds, notes = seconds_of(data)
    assert seconds == pytest.approx(2.0, abs=0.1)
    assert notes == {}
    if kind not in ("sphere", "8svx"):  # FFmpeg is never asked to read these
        parts = list(decode(io.BytesIO(data)))
        assert sum(len(part.frames) for part in parts) / parts[0].rate == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_short(kind):
    data = KINDS[kind](FIRST)
    data = data[: round(0.6 * len(data))]
    if kind in ENDED:
        refusal(data)
    elif "vbr" not in kind:
        assert seconds_of(data)[0] == pytest.approx(1.2, abs=0.1)
    else:
        assert 0.9 < seconds_of(data)[0] < 1.6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("garbage", ["zeros", "noise"])
def test_garbage_behind_a_file(kind, garbage):
    noise = np.random.default_rng(0).integers(256, size=20_000, dtype=np.uint8).tobytes()
    data = KINDS[kind](FIRST) + (bytes(20_000) if garbage == "zeros" else noise)
    if kind == "mpeg transport stream":
        refusal(data)
        return
    seconds, notes = seconds_of(data)
    if kind == "wav of a pipe":  # its sound goes on to the end of the file
        assert seconds == pytest.approx(2.0 + 10_000 / RATE, abs=0.1)
        return
    assert seconds == pytest.approx(2.0, abs=0.1)
    if kind in CHUNKED:
        assert list(notes) == ["header shorter than file"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("second", [FIRST, SECOND], ids=["alike", "longer"])
def test_two_files_joined(kind, second):
    one, two = KINDS[kind](FIRST), KINDS[kind](second)
    total = (len(FIRST) + len(second)) / RATE
    seconds, notes = seconds_of(one + two)
    assert seconds == pytest.approx(total, abs=0.2)
    whole = read_audio(io.BytesIO(one + two))
    match = scipy.signal.correlate(whole[-len(second) :], second) / np.linalg.norm(second) ** 2
    assert match.max() > 0.7
    np.testing.assert_array_equal(read_audio(io.BytesIO(one + two), 40_000, 5_000), whole[40_000:45_000])
    if kind not in UNMARKED:
        np.testing.assert_array_equal(whole, np.concatenate([read_audio(io.BytesIO(part)) for part in (one, two)]))
        first = len(read_audio(io.BytesIO(one))) / RATE
        assert notes == {"joined files": f"2, one behind the other, the first has {first:.2f} of {seconds:.2f} s"}


def test_joined_files_of_other_rates():
    parts = [with_ffmpeg(FIRST, "mp3", "libmp3lame", rate, write_xing="0") for rate in (16_000, 44_100, 8_000)]
    assert seconds_of(b"".join(parts))[0] == pytest.approx(6.0, abs=0.3)
    one, two = with_libsndfile(FIRST, "FLAC", "PCM_16"), io.BytesIO()
    soundfile.write(two, np.stack([SECOND, SECOND], axis=1), 48_000, format="FLAC")
    assert seconds_of(one + two.getvalue())[0] == pytest.approx(2.0 + len(SECOND) / 48_000, abs=1e-3)


def test_a_variable_bit_rate_without_header_that_begins_with_silence():
    sound = np.concatenate([np.zeros(RATE, np.float32), speech(7.0)])
    data = with_ffmpeg(sound, "mp3", "libmp3lame", write_xing="0", codec_options=VARIABLE)
    told = soundfile.info(io.BytesIO(data)).duration
    assert abs(told - 8.0) > 0.5  # libsndfile guesses wrong
    assert seconds_of(data)[0] == pytest.approx(8.0, abs=0.1)


def adts_frames(data):
    """The offsets at which the frames begin."""
    starts = [0]
    while starts[-1] < len(data):
        header = data[starts[-1] :][:7]
        starts.append(starts[-1] + ((header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5))
    return starts[:-1]


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_an_aac_stream_caught_in_its_middle(rate):
    data = with_ffmpeg(FIRST, "adts", "aac", rate)
    starts = adts_frames(data)
    for begin in range(1, len(data) // 2, 997):
        whole_frames = sum(start >= begin for start in starts)
        assert seconds_of(data[begin:])[0] == pytest.approx(whole_frames * 1_024 / rate, abs=0.1)


def test_an_mp3_stream_caught_in_its_middle():
    data = with_ffmpeg(FIRST, "mp3", "libmp3lame", write_xing="0", id3v2_version="0")
    frame = 576 // 8 * 24_000 // RATE  # bytes of a frame at FFmpeg's default bit rate
    assert len(data) % frame == 0
    for begin in range(1, len(data) // 2, 997):
        assert seconds_of(data[begin:])[0] == pytest.approx((len(data) - begin) // frame * 576 / RATE, abs=0.1)


@pytest.mark.parametrize("form", ["mp3", "adts"])
def test_a_hole_in_a_stream_of_frames(form):
    data = bytearray(KINDS["mp3 cbr without header" if form == "mp3" else "adts"](FIRST))
    third = len(data) // 3
    data[third : 2 * third] = bytes(third)
    assert "is it damaged?" in refusal(bytes(data))


@pytest.mark.parametrize("rate", [8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("kilobits", [8, 40, 64, 128])
def test_frames_of_every_rate_are_counted(rate, kilobits):
    data = with_ffmpeg(FIRST[:8_000], "mp3", "libmp3lame", rate, codec_options={"b": f"{kilobits}k"})
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.audio[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        truth = round(sum(packet.duration * packet.time_base for packet in packets) * stream.rate)
    (stretch,) = stretches_of(data)
    assert (stretch.counted, stretch.rate) == (truth, stream.rate)
    assert stretch.claimed == truth


def flac_that_tells(data, samples):
    """FLAC whose header states another number of samples."""
    data = bytearray(data)
    data[21] &= 0xF0
    data[22:26] = samples.to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_flac_whose_header_tells_too_little(monkeypatch, channels, subtype, rate):
    file = io.BytesIO()
    frames = np.random.default_rng(0).uniform(-1, 1, (20_001, channels))
    soundfile.write(file, frames, rate, subtype, format="FLAC")
    whole = read_audio(io.BytesIO(file.getvalue()))
    heard = read_audio(io.BytesIO(flac_that_tells(file.getvalue(), 1_000)))
    np.testing.assert_allclose(heard, whole, rtol=0, atol=0 if rate == RATE else 2e-6)
    monkeypatch.setattr("moelora_ad.audio.decoding.decode", None)  # libsndfile reads what has a right header
    np.testing.assert_array_equal(read_audio(io.BytesIO(file.getvalue())), whole)


def test_flac_that_lacks_little():
    file = io.BytesIO()
    soundfile.write(file, np.repeat(FIRST, 3), 48_000, format="FLAC")
    data = file.getvalue()
    assert seconds_of(flac_that_tells(data, 96_000 + 4_800))[0] == pytest.approx(2.0, abs=1e-3)
    assert "samples" in refusal(flac_that_tells(data, 96_000 + 4_900))
    seconds, _ = seconds_of(data[:-10])  # the last block is lost
    assert 1.9 <= seconds < 2.0


def test_wave_whose_header_tells_too_little():
    data = with_libsndfile(speech(8.0), "WAV", "PCM_16")
    begin = data.index(b"data")
    lying = data[: begin + 4] + (960).to_bytes(4, "little") + data[begin + 8 :]
    seconds, notes = seconds_of(lying)
    assert seconds == 0.03
    assert notes == {"header shorter than file": "header 0.03 s, file 8.00 s"}


@pytest.mark.parametrize("whole", [0, 36])  # what recorders write first, what Python's wave does
def test_a_wave_header_that_was_never_completed(whole):
    data = with_libsndfile(FIRST, "WAV", "PCM_16")
    begin = data.index(b"data")
    cut = data[:4] + whole.to_bytes(4, "little") + data[8 : begin + 4] + bytes(4) + data[begin + 8 :]
    np.testing.assert_array_equal(read_audio(io.BytesIO(cut), name="x.wav"), read_audio(io.BytesIO(data), name="x.wav"))
    assert seconds_of(cut) == (2.0, {})


def test_an_empty_recording_with_a_chunk_behind_it_has_no_sound():
    empty = with_libsndfile(FIRST[:0], "WAV", "PCM_16") + b"LIST" + (400).to_bytes(4, "little") + bytes(400)
    empty = empty[:4] + (len(empty) - 8).to_bytes(4, "little") + empty[8:]
    for data in (empty, with_libsndfile(FIRST[:0], "WAV", "PCM_16")):
        with pytest.raises(AudioError, match="zero samples"):
            seconds_of(data)


@pytest.mark.parametrize("samples", [31_999, 32_000])
def test_chunks_behind_the_sound_are_no_sound(samples):
    data = with_libsndfile(FIRST[:samples], "WAV", "PCM_U8")
    size = (50_000).to_bytes(4, "little")
    assert seconds_of(data + b"LIST" + size + bytes(50_000))[1] == {}
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", RATE, 1, "PCM_16", format="AIFF") as sound:
        sound.write(FIRST)
        sound.title = "t" * 60_000
    assert seconds_of(file.getvalue())[1] == {}


@pytest.mark.parametrize("samples", [31_999, 32_000])
def test_chunks_that_are_not_padded(samples):
    data = with_libsndfile(FIRST[:samples], "WAV", "PCM_U8")
    data = data[: data.index(b"data") + 8 + samples]  # without the padding byte
    behind = b"LIST" + (50_000).to_bytes(4, "little") + bytes(50_000)
    assert seconds_of(data + behind)[1] == {}
    assert seconds_of(data + data)[0] == pytest.approx(4.0, abs=1e-3)


def test_a_second_chunk_of_sound_is_told():
    data = with_libsndfile(FIRST, "WAV", "PCM_16")
    seconds, notes = seconds_of(data + data[data.index(b"data") :])
    assert seconds == 2.0
    assert notes == {"header shorter than file": "header 2.00 s, file 4.00 s"}


BEGUN = ("wav PCM_16", "aiff", "caf", "au", "w64", "rf64", "flac", "ogg vorbis", "mp4", "flv", "mp3 cbr", "adts")
BEGINNINGS = [KINDS[kind](FIRST[:2_000])[:90] for kind in BEGUN]


@settings(max_examples=200, deadline=None)
@given(
    parts=st.lists(st.sampled_from(BEGINNINGS) | st.binary(max_size=40), min_size=1, max_size=6),
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
)
def test_no_bytes_confuse_the_search_for_parts(parts, flips):
    data = bytearray(b"".join(parts))
    for position, value in flips:
        if position < len(data):
            data[position] = value
    contents = contents_of(io.BytesIO(data))
    assert list(contents.starts) == sorted(set(contents.starts))
    assert b"".join(pieces_of(io.BytesIO(data), contents.starts)) == data[contents.starts[0] :]
    assert contents.missing >= 0
    assert contents.behind >= 0
    for stretch in stretches_of(bytes(data)):
        assert stretch.data
        assert len(stretch.data) <= len(data)


def test_a_long_flac_file_is_searched_once(tmp_path, monkeypatch):
    monkeypatch.setattr("moelora_ad.audio.contents._SEARCHED", 10_000)
    one = with_libsndfile(FIRST, "FLAC", "PCM_16")
    (tmp_path / "one.flac").write_bytes(one)
    (tmp_path / "two.flac").write_bytes(one + one)
    for _ in range(2):
        assert len(read_audio(tmp_path / "one.flac")) == len(FIRST)
        assert len(read_audio(tmp_path / "two.flac")) == 2 * len(FIRST)
    (tmp_path / "two.flac").write_bytes(one)  # a different file under the same name
    assert len(read_audio(tmp_path / "two.flac")) == len(FIRST)


def tracks(form, codec, sounds, default):
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        streams = [container.add_stream(codec, rate=48_000, layout="mono") for _ in sounds]
        for number, stream in enumerate(streams):
            stream.disposition = av.stream.Disposition.default if number == default else av.stream.Disposition(0)
        for stream, sound in zip(streams, sounds, strict=True):
            frame = av.AudioFrame.from_ndarray(sound[None], "fltp", "mono")
            frame.sample_rate = RATE
            for part in av.AudioResampler(stream.format, "mono", 48_000).resample(frame):
                container.mux(stream.encode(part))
            container.mux(stream.encode(None))
    return file.getvalue()


SILENCE = np.zeros(RATE, np.float32)


@pytest.mark.parametrize(
    ("form", "codec"), [("matroska", "aac"), ("mp4", "aac"), ("mov", "aac"), ("matroska", "pcm_s16le")]
)
@pytest.mark.parametrize("default", [0, 1, 2])
def test_the_default_track_is_heard(form, codec, default):
    data = tracks(form, codec, [SILENCE, FIRST, SECOND], default)
    seconds, notes = seconds_of(data)
    assert seconds == pytest.approx([1.0, 2.0, 2.6][default], abs=0.1)
    assert notes == {"several audio tracks": f"track {default + 1} of 3, FFmpeg's default, was scored"}
    assert read_audio(io.BytesIO(data)).any() == (default > 0)


@pytest.mark.parametrize(("form", "codec"), [("matroska", "aac"), ("ogg", "libopus")])
def test_a_track_can_be_chosen(form, codec):
    data = tracks(form, codec, [SILENCE, FIRST, SECOND], 0)
    for track, truth in enumerate([1.0, 2.0, 2.6], 1):
        seconds, notes = seconds_of(data, track)
        assert seconds == pytest.approx(truth, abs=0.1)
        assert notes == {"several audio tracks": f"track {track} of 3 was scored"}
    with pytest.raises(AudioError, match=r"^cannot use a: it has 3 audio tracks, no track 4$"):
        seconds_of(data, 4)


def test_files_of_one_track():
    for data in (with_libsndfile(FIRST, "WAV", "PCM_16"), with_ffmpeg(FIRST, "mp4", "aac")):
        assert seconds_of(data, 1) == seconds_of(data)
        with pytest.raises(AudioError, match=r"^cannot use a: it has 1 audio track, no track 2$"):
            seconds_of(data, 2)

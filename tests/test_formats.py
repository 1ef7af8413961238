"""One list of endings: those that libsndfile and FFmpeg say they read, and no others."""

from collections import Counter

import av
import numpy as np
import pytest
import soundfile
from av.format import ContainerFormat

from moelora_ad.audio import AdditiveNoise, read_audio
from moelora_ad.audio.ffmpeg import _FORMATS
from moelora_ad.audio.probing import holds_sound
from moelora_ad.corpora import Folder
from moelora_ad.corpora.storage.archives import SUFFIXES as ARCHIVES
from moelora_ad.formats import AUDIO_SUFFIXES, UNSURE_SUFFIXES, ending, left_out_note, sounds_among
from moelora_ad.inference.sources import LISTS, find_sounds

# From libsndfile's documentation of its formats, and from the formats' publishers.
LIBSNDFILE = {
    "AIFF": ".aif .aiff .aifc",
    "AU": ".au .snd",
    "AVR": ".avr",
    "CAF": ".caf",
    "FLAC": ".flac",
    "IRCAM": ".sf",
    "MP3": ".mp1 .mp2 .mp3",
    "MPC2K": ".mpc",
    "NIST": ".nist .sph",
    "OGG": ".ogg .oga .opus",
    "PAF": ".paf",
    "PVF": ".pvf",
    "RF64": ".rf64",
    "SD2": ".sd2",
    "SDS": ".sds",
    "SVX": ".iff .svx .8svx",
    "VOC": ".voc",
    "W64": ".w64",
    "WAV": ".wav .wave .bwf",
    "WAVEX": ".wav",
    "WVE": ".wve",
    "XI": ".xi",
}
HEADERLESS = {"RAW"}
MOSTLY_NO_SOUND = {"HTK": ".htk", "MAT4": ".mat", "MAT5": ".mat"}
PICTURES_AND_SUBTITLES = {".avif", ".heic", ".heif", ".mks"}


def test_all_that_libsndfile_reads():
    assert set(soundfile.available_formats()) <= {*LIBSNDFILE, *HEADERLESS, *MOSTLY_NO_SOUND}
    assert {suffix for suffixes in LIBSNDFILE.values() for suffix in suffixes.split()} <= AUDIO_SUFFIXES
    assert set(MOSTLY_NO_SOUND.values()) <= set(UNSURE_SUFFIXES)


def test_all_that_ffmpeg_says_of_the_formats_that_it_may_read():
    for name in _FORMATS.split(","):
        if name != "m4a":  # only another name of mov
            claimed = {f".{extension}" for extension in ContainerFormat(name, "r").extensions}
            assert claimed - PICTURES_AND_SUBTITLES <= AUDIO_SUFFIXES, name


def test_nothing_else():
    others = ".txt .srt .ass .vtt .jpg .png .gif .pdf .json .yaml .py .md .npy .pt .lab .TextGrid .m3u .m3u8 .pls .cue"
    headerless = ".raw .pcm .al .ul .sln .g722"
    assert not AUDIO_SUFFIXES & {*others.lower().split(), *headerless.split(), *LISTS, *ARCHIVES, *UNSURE_SUFFIXES}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a.wav", ".wav"),
        ("a.b.WAV", ".wav"),
        ("x.d/a", ""),
        ("x.zip!/in/a.Flac", ".flac"),
        ("a", ""),
        ("", ""),
        ("spk.001", ""),
        ("a.", "."),
        (".DS_Store", ".ds_store"),
        ("a.3gp", ".3gp"),
        ("__MACOSX/x/._a.wav", "._* of macOS"),
        (".a.wav", ".wav"),
        ("s3://x/y.d/z", ""),
    ],
)
def test_endings(name, wanted):
    assert ending(name) == wanted


def test_what_is_left_out_is_counted():
    sounds, others = sounds_among(["b.wav", "a.txt", "c/README", "d.TXT", "e.json", "a.opus"])
    assert sounds == ["b.wav", "a.opus"]
    assert others == {".txt": 2, ".json": 1, "": 1}
    assert left_out_note(others) == "left out: 2 .txt, 1 without ending, 1 .json"
    assert left_out_note(sounds_among(["a.wav", "._a.wav", "__MACOSX/._b.wav"])[1]) == "left out: 2 ._* of macOS"
    many = Counter({f".x{number}": 1_000 + number for number in range(13)})
    assert left_out_note(many).startswith("left out: 1,012 .x12, 1,011 .x11, ")
    assert left_out_note(many).endswith(", 1,003 .x3, 3,003 with other endings")


def by_libsndfile(path, form, subtype=None):
    soundfile.write(path, tone(16_000), 16_000, subtype, format=form)


def by_ffmpeg(path, form, codec, rate=48_000):
    with av.open(str(path), "w", format=form) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 64_000
        frame = av.AudioFrame.from_ndarray(tone(rate)[None], "fltp", "mono")
        frame.sample_rate = rate
        for part in av.AudioResampler(stream.format, "mono", rate).resample(frame):
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))


def tone(rate):
    return (0.3 * np.sin(np.arange(rate // 2) * 2_000 / rate)).astype(np.float32)


FILES = {
    **{f"a.{suffix}": (by_libsndfile, form) for suffix, form in (("aifc", "AIFF"), ("caf", "CAF"), ("snd", "AU"))},
    **{f"a.{suffix}": (by_libsndfile, form) for suffix, form in (("sph", "NIST"), ("rf64", "RF64"), ("voc", "VOC"))},
    **{f"a.{suffix}": (by_ffmpeg, suffix, "aac") for suffix in ("mov", "flv", "3gp", "nut", "latm")},
    **{
        f"a.{suffix}": (by_ffmpeg, form, "aac")
        for suffix, form in (("mkv", "matroska"), ("m4v", "mp4"), ("ts", "mpegts"))
    },
    **{f"a.{suffix}": (by_ffmpeg, form, "mp2") for suffix, form in (("mp2", "mp2"), ("avi", "avi"), ("VOB", "vob"))},
    **{f"a.{suffix}": (by_ffmpeg, form, "ac3") for suffix, form in (("ac3", "ac3"), ("rm", "rm"))},
    **{f"a.{suffix}": (by_ffmpeg, suffix, suffix) for suffix in ("eac3", "tta")},
    "a.wv": (by_ffmpeg, "wv", "wavpack"),
    "a.wmv": (by_ffmpeg, "asf", "wmav2"),
    "a.mka": (by_ffmpeg, "matroska", "libopus"),
    "a.spx": (by_ffmpeg, "ogg", "libopus"),
}


def test_folders_corpora_and_noise_take_what_is_read_by_name(tmp_path):
    for name, (write, *form) in FILES.items():
        write(tmp_path / name, *form)
    (tmp_path / "notes.txt").write_text("no sound")
    for name in FILES:
        assert len(read_audio(tmp_path / name)) == pytest.approx(8_000, abs=2_000), name
        with open(tmp_path / name, "rb") as file:
            assert holds_sound(file), name
    wanted = sorted(str(tmp_path / name) for name in FILES)
    found, problems, left_out = find_sounds([str(tmp_path)], None)
    assert (sorted(found), problems, left_out) == (wanted, [], {".txt": 1})
    assert sorted(map(str, AdditiveNoise(tmp_path).files)) == wanted
    with pytest.warns(UserWarning, match=r"left out: 1 \.txt$"):
        assert sorted(trial.audio for trial in Folder(tmp_path).trials()) == wanted

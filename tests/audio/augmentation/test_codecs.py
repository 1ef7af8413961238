import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import soundfile

from moelora_ad.audio import AAC, G722, GSM, MP3, ALaw, MuLaw, Opus, Vorbis, keyed_generator, read_audio
from moelora_ad.audio.augmentation import codecs
from moelora_ad.errors import InputError

CODECS = [MP3(), AAC(), Opus(), Vorbis(), ALaw(), MuLaw(), G722(), GSM()]
NARROW = [ALaw(), MuLaw(), GSM()]
CORPUS = Path(__file__).parents[3] / "experiments" / "quickstart" / "corpus"
SIXTEEN_BITS = np.arange(-32_768, 32_768)


def name(codec):
    return type(codec).__name__


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def speech():
    file = sorted((CORPUS / "MiniLA" / "flac").glob("*.flac"))[3]
    return np.tile(read_audio(file), 6)[:64_600]


def lag(late, early):
    correlation = scipy.signal.correlate(late.astype(np.float64), early.astype(np.float64), method="fft")
    return int(correlation.argmax()) - (len(early) - 1)


def decibels_above(sound, hertz):
    frequency, density = scipy.signal.welch(sound, 16_000, nperseg=1_024)
    return 10 * np.log10(density[frequency > hertz].sum() / density.sum())


@pytest.mark.parametrize("codec", CODECS, ids=name)
def test_speech_stays_in_place_and_is_changed(codec, speech):
    before = speech.copy()
    coded = codec(speech, generator())
    assert coded.dtype == np.float32
    assert abs(lag(coded, speech)) <= 16_000 // codec.rate
    similarity = np.corrcoef(coded, speech)[0, 1]
    assert 0.8 < similarity < 1
    assert (coded != speech).mean() > 0.9
    np.testing.assert_array_equal(speech, before)


@pytest.mark.parametrize("codec", CODECS, ids=name)
def test_a_click_stays_where_it_is(codec):
    click = np.zeros(16_000, np.float32)
    click[9_001:9_005] = [0.4, 0.9, -0.9, -0.4]
    assert abs(int(np.abs(codec(click, generator())).argmax()) - 9_002) <= 6  # GSM codes every third sample at 8 kHz


@pytest.mark.parametrize("codec", CODECS, ids=name)
@pytest.mark.parametrize("samples", [1, 2, 100, 101, 64_600])
def test_any_length_is_kept(codec, samples, speech):
    coded = codec(speech[-samples:], generator())
    assert coded.shape == (samples,)
    assert np.isfinite(coded).all()


@pytest.mark.parametrize("codec", CODECS, ids=name)
def test_the_end_is_not_lost(codec):
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(16_001) / 16_000)).astype(np.float32)
    end = codec(tone, generator())[-400:]
    assert np.linalg.norm(end - tone[-400:]) < 0.6 * np.linalg.norm(tone[-400:])


@pytest.mark.parametrize("codec", CODECS, ids=name)
def test_silence_stays_silence(codec):
    assert np.abs(codec(np.zeros(5_000, np.float32), generator())).max() < 1e-3


@pytest.mark.parametrize("codec", CODECS, ids=name)
def test_above_full_scale_is_brought_to_it_first(codec, speech):
    full = speech[:16_000] / np.abs(speech[:16_000]).max()
    np.testing.assert_allclose(codec(full * 4, generator()), codec(full, generator()), atol=1e-3)


@pytest.mark.parametrize("codec", CODECS, ids=name)
def test_a_generator_decides_everything(codec, speech):
    clip = speech[:8_000]
    first, again = (pickle.loads(pickle.dumps(codec))(clip, keyed_generator(0, 1, "LA_T_1")) for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("codec", NARROW, ids=name)
def test_a_narrow_band_ends_at_4_kHz(codec, speech):
    noise = (0.1 * np.random.default_rng(0).standard_normal(32_000)).astype(np.float32)
    assert decibels_above(noise, 4_100) > -4
    assert decibels_above(codec(noise, generator()), 4_100) < -50
    assert decibels_above(codec(speech, generator()), 4_100) < -50


@pytest.mark.parametrize("codec", [MP3((64, 64)), AAC((64, 64)), Opus((64, 64)), Vorbis(), G722()], ids=name)
def test_a_wide_band_goes_beyond_4_kHz(codec):
    noise = (0.1 * np.random.default_rng(0).standard_normal(32_000)).astype(np.float32)
    assert decibels_above(codec(noise, generator()), 5_000) > -10


# G.711 against the recommendation


def mu_law_levels():
    size = [((2 * step + 33) << segment) - 33 for segment in range(8) for step in range(16)]  # levels of 14 bits
    return np.unique(np.multiply.outer([-4, 4], size))


def a_law_levels():
    size = [(2 * step + (33 if segment else 1)) << max(0, segment - 1) for segment in range(8) for step in range(16)]
    return np.unique(np.multiply.outer([-8, 8], size))  # levels of 13 bits


@pytest.mark.parametrize(
    ("codec", "levels", "subtype"), [(MuLaw(), mu_law_levels(), "ULAW"), (ALaw(), a_law_levels(), "ALAW")]
)
def test_g711_gives_the_nearest_level_of_the_recommendation(codec, levels, subtype):
    sound = (SIXTEEN_BITS / 32_768).astype(np.float32)
    coded = codec._code(sound, generator())[: len(sound)] * 32_768
    assert set(coded) == set(levels)
    nearest = np.abs(SIXTEEN_BITS[:, None] - levels).min(axis=1)
    assert (np.abs(coded - SIXTEEN_BITS) < nearest + 8).all()  # G.711 takes an input of 14 or 13 bits
    file = io.BytesIO()
    soundfile.write(file, SIXTEEN_BITS.astype(np.int16), 8_000, format="WAV", subtype=subtype)
    file.seek(0)
    peer = soundfile.read(file, dtype="int16")[0]
    assert set(peer) == set(levels)
    assert (coded == peer).mean() > 0.98  # libsndfile truncates to 14 or 13 bits where FFmpeg rounds


# Bit rates


@pytest.mark.parametrize(
    ("poor", "good"),
    [
        (MP3((8, 8)), MP3((64, 64))),
        (AAC((12, 12)), AAC((64, 64))),
        (Opus((6, 6)), Opus((48, 48))),
        (Vorbis((0, 0)), Vorbis((10, 10))),
    ],
    ids=lambda codec: type(codec).__name__,
)
def test_more_bits_change_less(poor, good, speech):
    clip = speech[:32_000]
    distance = [np.linalg.norm(codec(clip, generator()) - clip) for codec in (poor, good)]
    assert distance[1] < 0.5 * distance[0]


@pytest.mark.parametrize("codec", [MP3((8, 160)), AAC((8, 96)), Opus((6, 64)), Vorbis()], ids=name)
def test_rates_are_drawn(codec, speech):
    clip = speech[:4_000]
    assert len({codec(clip, generator(seed)).tobytes() for seed in range(4)}) > 1


def test_rates_are_drawn_uniformly(monkeypatch):
    rates = []
    monkeypatch.setattr(MP3, "_through_ffmpeg", lambda self, sound, bit_rate: rates.append(bit_rate) or sound)
    one = generator()
    for _ in range(500):
        MP3((32, 64))(np.ones(4, np.float32), one)
    assert scipy.stats.kstest(rates, scipy.stats.uniform(32_000, 32_000).cdf).pvalue > 0.01


def test_a_long_waveform_passes_through_vorbis():
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 2_000_000).astype(np.float32)  # in one piece, it would crash
    assert Vorbis((0, 0))(noise, generator()).shape == noise.shape


# Mistakes


@pytest.mark.parametrize(
    ("build", "limits"),
    [(MP3, (80, 320)), (MP3, (0, 80)), (AAC, (96, 20)), (AAC, (20, 112)), (Opus, (float("nan"), 20)), (Opus, (5, 20))],
)
def test_a_bit_rate_out_of_range_is_a_users_mistake(build, limits):
    with pytest.raises(InputError, match=f"^{build.__name__}: kbps must be"):
        build(limits)


def test_a_quality_out_of_range_is_a_users_mistake():
    with pytest.raises(InputError, match="Vorbis: quality"):
        Vorbis((0, 11))


def test_an_encoder_that_is_not_there_is_refused_with_those_that_are(monkeypatch):
    monkeypatch.setattr(MP3, "encoder", "libshine")
    with pytest.raises(InputError) as error:
        MP3()
    assert str(error.value) == (
        "MP3: the installed PyAV has no encoder libshine; it has those of AAC, Opus, ALaw, MuLaw, G722"
    )
    monkeypatch.setattr(GSM, "subtype", "GSM620")
    with pytest.raises(InputError, match=r"^GSM: the installed libsndfile has no GSM620 in WAV; it has .*GSM610"):
        GSM()


@pytest.mark.parametrize("codec", [AAC(), Vorbis()], ids=name)
def test_a_failure_of_the_library_is_one_line(codec, monkeypatch):
    def fail(*arguments, **options):
        raise codecs.av.error.InvalidDataError(1, "broken")

    def fail_too(*arguments, **options):
        raise soundfile.LibsndfileError(1)

    monkeypatch.setattr(codecs.av.CodecContext, "create", fail)
    monkeypatch.setattr(codecs.soundfile, "SoundFile", fail_too)
    with pytest.raises(InputError, match=f"^{name(codec)}: .* cannot code ") as error:
        codec(np.ones(10, np.float32), generator())
    assert len(str(error.value).splitlines()) == 1

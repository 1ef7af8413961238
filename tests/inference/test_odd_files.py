"""Five hundred broken and odd files through the verb: each is scored or reported once, and nothing else happens."""

import io
import json
import os
import subprocess
import sys
import wave
from collections import Counter

import av
import numpy as np
import pytest
import soundfile
import torch

from moelora_ad.adapters import LoRA
from moelora_ad.models import Detector, MeanPooling, WhisperBackbone

RATE = 16_000
RUN = """
import sys
from pathlib import Path
from moelora_ad.cli.main import main
peak = open(sys.argv.pop(1), "w")
code = main()
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0], file=peak, flush=True)
sys.exit(code)
"""


def tone(samples, rate=RATE, channels=1):
    clip = 0.3 * np.sin(np.arange(samples) * 1_382 / rate)
    return np.stack([clip * (number + 1) / channels for number in range(channels)], axis=1)


def encoded(form, rate=RATE, channels=1, subtype=None, samples=None):
    file = io.BytesIO()
    soundfile.write(file, tone(rate // 2 if samples is None else samples, rate, channels), rate, subtype, format=form)
    return file.getvalue()


def container(form, codec=None, rate=48_000, video=False):
    """A file that PyAV writes, with sound, pictures, or both."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as output:
        pictures = output.add_stream("mpeg4", rate=25, width=32, height=32) if video else None
        stream = output.add_stream(codec, rate=rate, layout="mono") if codec else None
        if pictures:
            output.mux(pictures.encode(av.VideoFrame(32, 32, "yuv420p")))
            output.mux(pictures.encode(None))
        if stream:
            frame = av.AudioFrame.from_ndarray(tone(rate // 2, rate).T.astype(np.float32), "fltp", "mono")
            frame.sample_rate = rate
            for part in av.AudioResampler(stream.format, "mono", rate).resample(frame):
                output.mux(stream.encode(part))
            output.mux(stream.encode(None))
    return file.getvalue()


def with_bytes(data, position, new):
    return data[:position] + new + data[position + len(new) :]


def eight_bits():
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(1)
        output.setframerate(8_000)
        output.writeframes(bytes(range(256)) * 20)
    return file.getvalue()


def good_files():
    """Odd but valid sounds: all of them get a score."""
    files = {
        f"rate_{rate}.wav": encoded("WAV", rate) for rate in (8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000)
    }
    files |= {f"channels_{count}.flac": encoded("FLAC", channels=count) for count in range(1, 9)}
    files |= {f"channels_{count}.wav": encoded("WAV", channels=count) for count in (3, 8, 32)}
    files |= {
        f"{kind}.wav": encoded("WAV", subtype=kind)
        for kind in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "GSM610")
    }
    files |= {
        "a.ogg": encoded("OGG"),
        "a.mp3": encoded("MP3"),
        "a.opus": encoded("OGG", subtype="OPUS"),
        "a.aiff": encoded("AIFF"),
        "a.au": encoded("AU"),
        "a.w64": encoded("W64"),
        "a.m4a": container("mp4", "aac"),
        "a.mp4": container("mp4", "aac", video=True),
        "a.webm": container("webm", "libopus"),
        "a.aac": container("adts", "aac"),
        "wave.flac": encoded("WAV"),  # the ending is wrong
        "flac.mp3": encoded("FLAC"),
        "m4a.wav": container("mp4", "aac"),
        "SHOUTED.WAV": encoded("WAV"),
        "eight bits.wav": eight_bits(),
        "one_sample.wav": encoded("WAV", samples=1),
        "one_sample.flac": encoded("FLAC", samples=1),
        "two_samples_192k.wav": encoded("WAV", 192_000, samples=2),
        "long.wav": encoded("WAV", samples=400_000),
        "a stream.wav": with_bytes(encoded("WAV"), 40, b"\xff\xff\xff\xff"),
        "\x1b[31mred\n;$(x) 'q' \"r\".wav": encoded("WAV"),
        os.fsdecode(b"\xff\xfe.wav"): encoded("WAV"),
        "日本語 ü.wav": encoded("WAV"),
        "-.wav": encoded("WAV"),
        "[a-z]*?.wav": encoded("WAV"),
    }
    for name, level in (("silence", 0.0), ("constant", 0.5), ("full_scale", 1.0)):
        file = io.BytesIO()
        soundfile.write(file, np.full(9_000, level), RATE, "FLOAT", format="WAV")
        files[f"{name}.wav"] = file.getvalue()
    return files


def bad_files():
    """Broken files: none of them can be scored."""
    generator = np.random.default_rng(0)
    files = {
        "empty.wav": b"",
        "empty.mp3": b"",
        "text.wav": b"This is no sound.\n" * 50,
        "script.mp3": b"#!/bin/sh\necho hello\n",
        "page.flac": b"<html><body>404 Not Found</body></html>",
        "playlist.m4a": b"#EXTM3U\n#EXTINF:9,\nlong.wav\n",
        "zip.ogg": b"PK\x03\x04" + bytes(200),
        "pickle.wav": b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
        "zero_samples.wav": encoded("WAV", samples=0),
        "zero_samples.flac": encoded("FLAC", samples=0),
        "only_a_header.wav": encoded("WAV")[:44],
        "video_without_sound.mp4": container("mp4", video=True),
        "slow.wav": with_bytes(encoded("WAV"), 24, (4).to_bytes(4, "little")),
        "prime_rate.wav": with_bytes(encoded("WAV"), 24, (99_991).to_bytes(4, "little")),
        "huge_length.flac": with_bytes(encoded("FLAC"), 22, b"\xff\xff\xff\xff"),
        "zeros.wav": bytes(5_000),
    }
    for value in (np.nan, np.inf):
        sound = tone(9_000)[:, 0]
        sound[8_000] = value
        file = io.BytesIO()
        soundfile.write(file, sound, RATE, "FLOAT", format="WAV")
        files[f"sample_{value}.wav"] = file.getvalue()
    for number in range(40):
        files[f"noise_{number}{('.wav', '.mp3', '.ogg', '.m4a')[number % 4]}"] = generator.bytes(1 << (number % 14))
    for form in ("WAV", "FLAC", "OGG"):
        data = encoded(form, samples=48_000)
        files |= {f"cut_{part}.{form.lower()}": data[: len(data) * part // 10] for part in range(1, 9)}
    return files


def any_files(count):
    """Sounds with random faults: each may be scored or reported."""
    whole = {
        form: encoded(name, samples=12_000)
        for form, name in (("wav", "WAV"), ("flac", "FLAC"), ("ogg", "OGG"), ("mp3", "MP3"), ("aiff", "AIFF"))
    }
    whole |= {"m4a": container("mp4", "aac"), "webm": container("webm", "libopus"), "aac": container("adts", "aac")}
    files = {}
    for number in range(count):
        generator = np.random.default_rng(number)
        form = sorted(whole)[number % len(whole)]
        data = np.frombuffer(whole[form], np.uint8).copy()
        kind = number // len(whole) % 4
        if kind == 0:
            data[generator.integers(len(data), size=8)] ^= generator.integers(1, 256, size=8, dtype=np.uint8)
        elif kind == 1:
            data[generator.integers(min(100, len(data)), size=4)] = generator.integers(256, size=4, dtype=np.uint8)
        elif kind == 2:
            data = data[: generator.integers(len(data))]
        else:
            first, second = np.sort(generator.integers(len(data), size=2))
            data = np.concatenate([data[:first], data[second:], data[first:second]])
        files[f"changed_{number}.{form}"] = data.tobytes()
    return files


@pytest.mark.slow
def test_five_hundred_files(small_whisper, tmp_path):
    torch.manual_seed(0)
    detector = Detector(WhisperBackbone(small_whisper), LoRA(2), MeanPooling).eval()
    detector.window = 8_000
    detector.save_pretrained(tmp_path / "model")
    folder = tmp_path / "files"
    (folder / "a folder.wav" / "deep").mkdir(parents=True)
    good, bad = good_files(), bad_files()
    good["a folder.wav/deep/in.wav"] = encoded("WAV")
    odd = any_files(500 - len(good) - len(bad) - 4)
    for name, data in (good | bad | odd).items():
        (folder / name).write_bytes(data)
    (folder / "loop.wav").symlink_to("loop.wav")
    (folder / "dangling.flac").symlink_to("nowhere.flac")
    (folder / "a folder.wav" / "up").symlink_to(folder)
    os.mkfifo(folder / "pipe.wav")
    gone = "gone/never.wav"
    bad |= dict.fromkeys(("loop.wav", "dangling.flac", "pipe.wav", gone), b"")
    wanted = {f"{folder}/{name}" for name in good | bad | odd}
    assert len(wanted) == 500

    peak = tmp_path / "peak"
    arguments = ["score", str(folder), f"{folder}/{gone}", "--model", str(tmp_path / "model"), "--format", "jsonl"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", RUN, str(peak), *arguments], capture_output=True, env=environment)
    told = done.stderr.decode("utf-8")
    assert done.returncode == 1, told[-2_000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert Counter(row["path"] for row in rows) == dict.fromkeys(wanted, 1)
    by_name = {row["path"].removeprefix(f"{folder}/"): row for row in rows}
    assert {name: row["error"] for name, row in by_name.items() if name in good and row["error"]} == {}
    assert [name for name in bad if by_name[name]["score"] is not None] == []
    assert all((row["score"] is None) == (row["error"] is not None) for row in rows)
    assert all(np.isfinite(row["score"]) and row["seconds"] > 0 for row in rows if row["score"] is not None)
    outcomes = Counter(by_name[name]["error"] is None for name in odd)
    assert min(outcomes.values()) > 50

    assert "Traceback" not in told
    assert "\x1b" not in told
    reasons = [row["error"] for row in rows if row["error"]]
    lines = told.splitlines()
    assert Counter(reasons) <= Counter(lines)
    assert f"{len(reasons)} of 500 inputs could not be scored" == lines[-1]
    unexpected = [reason for reason in reasons if not reason.startswith(("cannot ", "no such audio file"))]
    assert unexpected == []
    assert int(peak.read_text()) < 1_500 * 2**10  # kibibytes; ru_maxrss would include this process's own memory

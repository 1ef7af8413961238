"""Files with several tracks or parts: the sound that a person would hear is scored, or another one on request."""

import csv
import io
import sys

import av
import numpy as np
import pytest
import soundfile
import torch

from moelora_ad.adapters import LoRA
from moelora_ad.cli.main import main
from moelora_ad.models import Detector, MeanPooling, WhisperBackbone

RATE = 16_000


def noise(seconds, seed):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)


@pytest.fixture
def score(small_whisper, tmp_path, monkeypatch, capfd):
    """Runs the verb; returns its exit code, rows and standard error."""
    torch.manual_seed(0)
    detector = Detector(WhisperBackbone(small_whisper), LoRA(2), MeanPooling).eval()
    detector.window = RATE
    detector.save_pretrained(tmp_path / "model")

    def run(*arguments):
        command = ["moelora-ad", "score", *map(str, arguments), "--model", str(tmp_path / "model"), "--format", "csv"]
        monkeypatch.setattr(sys, "argv", command)
        try:
            code = main()
        except SystemExit as left:
            code = left.code
        out, err = capfd.readouterr()
        return code, list(csv.DictReader(io.StringIO(out))), err

    return run


@pytest.fixture
def film(tmp_path):
    """A film of three tracks; the second, two seconds long, is the default."""
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in range(3)]
        for number, stream in enumerate(streams):
            stream.disposition = av.stream.Disposition.default if number == 1 else av.stream.Disposition(0)
        for number, stream in enumerate(streams):
            samples = (noise(1 + number, number)[None] * 2**15).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples, "s16", "mono")
            frame.sample_rate = RATE
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


def test_a_track_is_scored_like_a_file_of_its_own(score, film, tmp_path):
    alone = []
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", (noise(1 + number, number) * 2**15).astype(np.int16), RATE)
        _, (row,), _ = score(tmp_path / f"{number}.wav")
        alone.append((row["score"], row["seconds"]))
    _, (row,), _ = score(film)
    assert (row["score"], row["seconds"]) == alone[1]
    for number in range(3):
        code, (row,), _ = score(film, "--track", number + 1)
        assert (code, row["score"], row["seconds"]) == (0, *alone[number])


def test_a_track_that_is_not_there(score, film):
    code, _, err = score(film, "--track", 4)
    assert code == 1
    assert f"cannot use {film}: it has 3 audio tracks, no track 4\n" in err
    code, _, err = score(film, "--track", 0)
    assert (code, err.splitlines()[-1]) == (2, "moelora-ad score: error: --track: must be at least 1, not 0")


def test_all_parts_of_a_joined_file_are_scored(score, tmp_path):
    joined = tmp_path / "joined.ogg"
    with joined.open("wb") as file:
        for number in range(2):
            part = io.BytesIO()
            soundfile.write(part, noise(1.5, number), RATE, format="OGG")
            file.write(part.getvalue())
    code, (row,), _ = score(joined)
    assert (code, float(row["seconds"])) == (0, 3.0)

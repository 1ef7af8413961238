"""A model as an ONNX file gives PyTorch's scores, by the verb score and without PyTorch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch

from moelora_ad import load
from moelora_ad.adapters import MoELoRA
from moelora_ad.errors import InputError
from moelora_ad.inference import Scorer
from moelora_ad.inference import onnx as running
from moelora_ad.models import Detector, MeanPooling, WhisperBackbone, export_onnx

PROJECT = Path(__file__).parents[2]
CALIBRATION = {"scale": 1.7, "offset": -0.3, "fitted_on": "dev.csv", "num_bona_fide": 44, "num_spoof": 66}


@pytest.fixture(scope="module")
def detector(whisper_tiny: Path) -> Detector:
    """A detector on the quickstart's encoder, with weights as after training."""
    generator = torch.Generator().manual_seed(1)
    detector = Detector(WhisperBackbone(whisper_tiny, hidden_states=1), MoELoRA(3, 8), MeanPooling)
    with torch.no_grad():
        for parameter in detector.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    detector.window, detector.fill, detector.calibration = 32_000, 8_000, CALIBRATION
    return detector.eval()


@pytest.fixture(scope="module")
def file(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    assert export_onnx(detector, path) is None
    return path


@pytest.fixture(scope="module")
def sounds(quickstart: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Real speech: shorter than a window, exactly one window, and several windows long."""
    folder = tmp_path_factory.mktemp("sounds")
    flacs = sorted((quickstart / "corpus").rglob("*.flac"))
    speech = np.concatenate([soundfile.read(path, dtype="float32")[0] for path in flacs[:40:4]])
    paths = []
    for samples in (5_001, 20_000, 32_000, 32_001, 70_000, 100_123):
        paths.append(str(folder / f"{samples}.wav"))
        soundfile.write(paths[-1], speech[samples : 2 * samples], 16_000, subtype="FLOAT")
    return paths


def test_the_scores_are_those_of_pytorch(detector, file, sounds):
    scorer = Scorer.from_pretrained(file, device="cpu")
    ours = Scorer(detector, device="cpu")
    assert (scorer.window, scorer.hop, scorer.precision) == (ours.window, ours.hop, ours.precision)
    assert scorer.fill == ours.fill == 8_000
    assert scorer.calibration == ours.calibration
    found, wanted = list(scorer.score_files(sounds)), list(ours.score_files(sounds))
    assert [len(one.windows) for one in found] == [1, 1, 1, 2, 4, 6]
    assert np.ptp([one.score for one in wanted]) > 0.01
    for one, other in zip(found, wanted, strict=True):
        assert one.is_calibrated
        for window, right in zip(one.windows, other.windows, strict=True):
            assert window.score == pytest.approx(right.score, abs=1e-4)
    # The logits also agree for lengths and batch sizes other than those of the trace.
    generator = torch.Generator().manual_seed(0)
    for rows, samples in ((1, 16_000), (5, 1_600), (2, 48_007), (1, 160_000)):
        clips = 0.1 * torch.randn(rows, samples, generator=generator)
        with torch.inference_mode():
            torch.testing.assert_close(scorer.detector(clips), detector(clips), rtol=0, atol=1e-4)


def test_the_verb_score_takes_the_file(detector, file, sounds, lightning):
    code, out, err = lightning("score", *sounds, "--model", file, "--format", "jsonl", "--device", "cpu")
    assert code == 0, err
    wanted = Scorer(detector, device="cpu").score_files(sounds)
    for line, right in zip(out.splitlines(), wanted, strict=True):
        assert json.loads(line)["score"] == pytest.approx(right.score, abs=1e-4)
    for option, told in (
        (("--precision", "bf16-mixed"), "an ONNX file computes in 32-true, not in bf16-mixed"),
        (("--backbone", "x"), "an ONNX file is complete: backbone has no effect"),
    ):
        code, _, err = lightning("score", sounds[0], "--model", file, *option)
        assert (code, err.count("\n")) == (2, 1)
        assert told in err


def test_the_example_needs_no_pytorch(detector, file, sounds):
    """``None`` in ``sys.modules`` makes an import fail."""
    names = ("torch", "transformers", "lightning", "moelora_ad")
    program = f"import runpy, sys; sys.modules.update(dict.fromkeys({names!r})); sys.argv = sys.argv[1:]; "
    program += "runpy.run_path(sys.argv[0])"
    example = PROJECT / "examples" / "score_onnx.py"
    command = [sys.executable, "-c", program, str(example), str(file), *sounds]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    wanted = Scorer(detector, device="cpu").score_files(sounds)
    for line, path, right in zip(printed.splitlines(), sounds, wanted, strict=True):
        name, _, score = line.rpartition(": ")
        assert name == path
        assert float(score) == pytest.approx(right.score, abs=1e-4)


def refusal(path: Path, **arguments: object) -> str:
    with pytest.raises(InputError) as caught:
        Scorer.from_pretrained(path, device="cpu", **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_are_none(file, tmp_path, monkeypatch):
    assert "no such file" in refusal(tmp_path / "absent.onnx")
    path = tmp_path / "model.onnx"
    path.write_bytes(file.read_bytes()[:1_000_000])
    assert "is not an ONNX file that can be run" in refusal(path)
    path.write_text("speech")
    assert "is not an ONNX file that can be run" in refusal(path)
    model = onnx.load(file)
    right = {entry.key: entry.value for entry in model.metadata_props}
    for name, value in (
        ("window", "0"),
        ("window", "[" * 10_000),
        ("hop", "32001"),
        ("labels", '["bonafide", "spoof"]'),
        ("sample_rate", "8000"),
        ("calibration", '{"scale": -1}'),
        ("calibration", "NaN"),
    ):
        onnx.helper.set_model_props(model, right | {name: value})
        onnx.save(model, str(path))
        assert f"model {path}: its metadata are faulty" in refusal(path)
    onnx.helper.set_model_props(model, {})
    onnx.save(model, str(path))
    assert "is not of a detector that moelora-ad exported" in refusal(path)
    assert "no effect" in refusal(file, revision="main")
    with pytest.raises(InputError, match="an ONNX file is for scoring alone"):
        load(file)
    monkeypatch.setattr(running.importlib.util, "find_spec", lambda _name: None)
    assert "needs the package onnxruntime: pip install 'moelora_ad[onnx]'" in refusal(file)

"""Python code of the README and the pages runs word for word, with a small random model and for a few steps."""

import re
from pathlib import Path

import lightning.pytorch
import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel

from moelora_ad import load
from moelora_ad.audio import read_audio

PROJECT = Path(__file__).parents[1]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
PYTHON = (PROJECT / "docs/howto/python.md").read_text(encoding="utf-8")


def test_a_model_that_is_not_ours_is_adapted_as_the_readme_does(monkeypatch, capsys):
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "AutoModel" in code]
    torch.manual_seed(0)
    bert = BertModel(BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=12, intermediate_size=32))
    monkeypatch.setattr(AutoModel, "from_pretrained", lambda _: bert)
    found: dict = {}
    exec(example, found)
    assert len([line for line in example.splitlines() if line]) == 8
    assert len(found["sites"]) == 24
    shown = capsys.readouterr().out
    gates = torch.tensor([float(number) for number in re.findall(r"\d\.\d+", shown)])
    torch.testing.assert_close(gates, found["routing"].sites()[found["sites"][0]].mean_gate, rtol=0, atol=1e-4)
    assert (gates > 0).sum() >= 2


def test_a_file_is_scored_as_the_readme_does(monkeypatch, capsys):
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "Scorer" in code]
    assert len([line for line in example.splitlines() if line]) == 3
    monkeypatch.chdir(PROJECT)
    exec(example, {})
    sound = re.search(r'"(experiments/.*?)"', example)[1]
    assert main_score(sound) == pytest.approx(float(capsys.readouterr().out), abs=1e-4)


def main_score(sound: str) -> float:
    """A sound's score by the detector itself: the calibrated log-odds of its only window."""
    detector = load("mini")
    clip = read_audio(sound)
    logits = detector(torch.from_numpy(clip).unsqueeze(0)).float()[0]
    assert detector.fill <= len(clip) <= detector.window
    return detector.calibration["scale"] * (logits[1] - logits[0]).item() + detector.calibration["offset"]


@pytest.mark.slow
def test_training_without_yaml_as_its_page_does(monkeypatch, tmp_path, capsys, quickstart):
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", PYTHON, re.DOTALL) if "DetectionModule(" in code]
    assert len([line for line in example.splitlines() if line]) <= 15
    shorter = {"accelerator": "cpu", "max_epochs": 1, "limit_train_batches": 2, "logger": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = lightning.pytorch.Trainer
    monkeypatch.setattr(lightning.pytorch, "Trainer", lambda **given: trainer(**given | shorter | quiet))
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "quickstart").symlink_to(quickstart)
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(example, found)
    checkpoint, eer = capsys.readouterr().out.split()[:2]
    assert Path(checkpoint).is_relative_to(tmp_path / "mine")
    assert found["module"].evaluated["dev"].eer == pytest.approx(float(re.findall(r"[\d.]+", eer)[0]), abs=1e-3)
    assert found["module"].evaluated["dev"].num_scored == 110

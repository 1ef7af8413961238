"""The sides that benchmarks/gpu.py compares on a GPU, checked here with a small encoder."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import Wav2Vec2Config

from moelora_ad.corpora import ASVspoof2019

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
gpu_data = pytest.importorskip("gpu_data")
gpu_sides = pytest.importorskip("gpu_sides")


@pytest.fixture
def source(tmp_path) -> str:
    Wav2Vec2Config(**gpu_sides.SMALL).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize("side", list(gpu_sides.METHODS))
def test_a_side_trains_what_it_says_and_nothing_else(source, side):
    width, layers, rank, experts = 64, 2, 8, 3
    detector = gpu_sides.module(side, source).detector
    before = {name: tensor.clone() for name, tensor in detector.backbone.encoder.state_dict().items()}
    trained = sum(p.numel() for p in detector.backbone.encoder.parameters() if p.requires_grad)
    low_rank = layers * 4 * 2 * width * rank
    gates = layers * 4 * 2 * experts * width
    whole = sum(tensor.numel() for name, tensor in before.items() if not name.startswith("feature_extractor."))
    wanted = {
        gpu_sides.OURS: experts * low_rank + gates,
        gpu_sides.PEFT: low_rank,
        gpu_sides.LOOP: experts * low_rank + gates,
        gpu_sides.FULL: whole - before["masked_spec_embed"].numel(),
    }
    assert trained == wanted[side]
    step = gpu_sides.TrainingStep(detector, 2, 16_000, compiled=False)
    for _ in range(2):
        step()
    changed = {
        name for name, tensor in detector.backbone.encoder.state_dict().items() if not torch.equal(before[name], tensor)
    }
    assert changed
    if side != gpu_sides.FULL:
        assert all("lora" in name or "gate" in name for name in changed)


def test_the_made_corpus_has_the_official_layout(tmp_path):
    gpu_data.asvspoof2019(tmp_path)
    trials = ASVspoof2019(tmp_path, "train").trials()
    assert (trials.num_bona_fide, trials.num_spoof) == (48, 48)
    assert all(Path(trial.audio).is_file() for trial in trials)

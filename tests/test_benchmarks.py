"""What benchmarks/gpu.py compares on a GPU, and operations.py counts without one, checked with a small encoder."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import Wav2Vec2Config

from moelora_ad.corpora import ASVspoof2019

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
gpu_data = pytest.importorskip("gpu_data")
gpu_sides = pytest.importorskip("gpu_sides")
operations = pytest.importorskip("operations")


@pytest.fixture
def source(tmp_path) -> str:
    Wav2Vec2Config(**gpu_sides.SMALL).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize("side", list(gpu_sides.METHODS))
def test_a_side_trains_what_it_says_and_nothing_else(source, side):
    width, layers, rank, experts = 64, 2, 8, 3
    detector = gpu_sides.module(side, source, torch.device("cpu")).detector
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
    step = gpu_sides.TrainingStep(detector, 2, 16_000)
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


def test_operations_and_their_bytes_are_counted_and_views_are_not():
    a, b, c = torch.ones(3, 4), torch.ones(4, 5), torch.ones(5, 3)
    with operations.Operations() as counted:
        torch.addmm(c.t(), a, b)
        a.view(12)[2:].relu_()
    assert counted.count == {"addmm": 1, "relu_": 1}
    assert counted.moved == {"addmm": 4 * (15 + 12 + 20 + 15), "relu_": 4 * (10 + 10)}


def test_a_mixtures_step_moves_less_than_a_lora_of_peft_and_asks_for_less(source):
    Wav2Vec2Config(**gpu_sides.SMALL | {"num_hidden_layers": 4}).save_pretrained(source)
    clips, samples = 8, 32_000  # long enough for activations to outweigh weights
    ours, peft, loop = (
        operations.step(side, clips, source, samples) for side in (gpu_sides.OURS, gpu_sides.PEFT, gpu_sides.LOOP)
    )
    assert ours.moved.total() < peft.moved.total() < loop.moved.total()
    assert ours.count.total() < peft.count.total() < loop.count.total()

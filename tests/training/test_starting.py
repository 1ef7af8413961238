"""Training that starts from trained LoRAs, through the command line."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from moelora_ad.adapters import LoRA, adapted_sites
from moelora_ad.models import Detector, MeanPooling, WhisperBackbone


@pytest.fixture
def loras(small_whisper: Path, tmp_path: Path) -> list[Path]:
    """Two detectors that were trained with a LoRA of rank 2 each."""
    folders = []
    for number in (1, 2):
        torch.manual_seed(number)
        detector = Detector(WhisperBackbone(small_whisper), LoRA(2), MeanPooling)
        for _, site in adapted_sites(detector):
            nn.init.normal_(site.experts[0].lora_B)
        detector.save_pretrained(tmp_path / f"lora{number}")
        folders.append(tmp_path / f"lora{number}")
    return folders


def fit(experiment, write_config, lightning, *arguments, **init_args):
    experiment["model"]["adaptation"]["init_args"] |= init_args
    config = write_config(experiment)
    limits = ("--trainer.max_steps", "1", "--test_after_fit", "false")
    return lightning("fit", "--config", config, *limits, *arguments)


def checkpoint(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    path = max((tmp_path / "runs").rglob("last*.ckpt"), key=lambda found: found.stat().st_mtime_ns)
    return path, torch.load(path, weights_only=True)["state_dict"]


SITE = "detector.backbone.encoder.layers.1.self_attn.v_proj"


def start(detector: Path, half: str) -> torch.Tensor:
    lora = Detector.from_pretrained(detector)
    return getattr(lora.backbone.encoder.layers[1].self_attn.v_proj.experts[0], half).detach()


def test_all_experts_start_from_one_lora(experiment, write_config, lightning, loras, tmp_path):
    code, _, err = fit(experiment, write_config, lightning, init_from=str(loras[0]))
    assert code == 0, err
    path, state = checkpoint(tmp_path)
    for number in (0, 1):
        # The wanted weights are those after one step of AdamW with learning rate 0.001.
        torch.testing.assert_close(
            state[f"{SITE}.experts.{number}.lora_B"], start(loras[0], "lora_B"), rtol=0, atol=0.0012
        )
    different = state[f"{SITE}.experts.0.lora_A"] - state[f"{SITE}.experts.1.lora_A"]
    assert 0 < different.abs().max() < 0.02
    # The starting LoRAs are not needed any more: neither to resume, nor to test, nor to export.
    for folder in loras:
        (folder / "model.safetensors").unlink()
    config = tmp_path / "config.yaml"
    code, _, err = lightning(
        *("fit", "--config", config, "--ckpt_path", path, "--trainer.max_steps", "2", "--test_after_fit", "false")
    )
    assert code == 0, err
    code, _, err = lightning("test", "--config", config, "--ckpt_path", path)
    assert code == 0, err
    code, _, err = lightning("export", "--checkpoint", path, "--to", tmp_path / "kept")
    assert code == 0, err
    kept = json.loads((tmp_path / "kept" / "config.json").read_text())
    assert not {"init_from", "perturbation"} & kept["adaptation"]["init_args"].keys()
    assert len(Detector.from_pretrained(tmp_path / "kept").sites) == 8


def test_each_expert_starts_from_its_lora_and_the_gates_are_trained_alone(
    experiment, write_config, lightning, loras, tmp_path
):
    code, out, err = fit(
        experiment, write_config, lightning, init_from=[str(folder) for folder in loras], freeze_experts=[0, 1]
    )
    assert code == 0, err
    _, state = checkpoint(tmp_path)
    for number, folder in enumerate(loras):
        for half in ("lora_A", "lora_B"):
            assert torch.equal(state[f"{SITE}.experts.{number}.{half}"], start(folder, half))
    assert "experts 0" in out or "gates" in out


def test_a_lora_goes_on_from_a_lora(experiment, write_config, lightning, loras, tmp_path):
    experiment["model"]["adaptation"] = {"class_path": "moelora_ad.adapters.LoRA", "init_args": {"rank": 2}}
    code, _, err = fit(experiment, write_config, lightning, init_from=str(loras[1]))
    assert code == 0, err
    _, state = checkpoint(tmp_path)
    torch.testing.assert_close(state[f"{SITE}.experts.0.lora_B"], start(loras[1], "lora_B"), rtol=0, atol=0.0012)


@pytest.mark.parametrize("what", ["missing", "rank"])
def test_a_start_that_does_not_fit_is_one_line(experiment, write_config, lightning, loras, tmp_path, what):
    arguments = {"init_from": "nowhere"} if what == "missing" else {"init_from": str(loras[0]), "rank": 3}
    code, _, err = fit(experiment, write_config, lightning, **arguments)
    assert code == 1
    line = err.strip().splitlines()[-1]
    wanted = "nowhere: no such folder with a LoRA" if what == "missing" else "the LoRA is (2, 32), (32, 2)"
    assert line.startswith("lightning: error: ")
    assert wanted in line
    assert "Traceback" not in err

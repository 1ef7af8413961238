"""Every configuration that we ship builds its classes, the full-size one on the meta device."""

import sys
from pathlib import Path

import pytest
import torch
import yaml

from moelora_ad.adapters import FrozenBackbone, LoRA, MoELoRA, adapted_sites
from moelora_ad.corpora import ASVspoof2019
from moelora_ad.training import MLDG, DetectionModule
from moelora_ad.training.command import DetectionCommand
from moelora_ad.training.data_module import AudioDeepfakeDataModule

PROJECT = Path(__file__).parents[1]
EXPERIMENTS = PROJECT / "experiments"


def build(monkeypatch, *configs: str) -> DetectionCommand:
    """Instantiate configurations as ``fit`` does, without running."""
    monkeypatch.chdir(PROJECT)
    arguments = [part for config in configs for part in ("--config", f"experiments/{config}")]
    # The machine's accelerator is not the configuration's business.
    monkeypatch.setattr(sys, "argv", ["lightning", "fit", *arguments, "--trainer.accelerator", "cpu"])
    monkeypatch.setattr(DetectionCommand, "_run_subcommand", lambda *_: None)
    return DetectionCommand(
        DetectionModule, AudioDeepfakeDataModule, auto_configure_optimizers=False, load_from_checkpoint_support=False
    )


def test_the_papers_model_has_its_published_size(monkeypatch):
    with torch.device("meta"):
        command = build(monkeypatch, "paper.yaml")
    trained = [p for p in command.model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 5_755_658
    sites = [site for _, site in adapted_sites(command.model.detector)]
    assert len(sites) == 96
    assert all(site.gate.policy.top_k is None and site.scaling == 1.0 for site in sites)
    assert isinstance(command.datamodule.train, ASVspoof2019)
    assert command.trainer.early_stopping_callback.monitor == "dev/eer"
    assert command.trainer.checkpoint_callback.monitor == "dev/eer"


def test_the_papers_test_sets(monkeypatch):
    with torch.device("meta"):
        command = build(monkeypatch, "paper.yaml", "corpora/paper_test_sets.yaml")
    test = command.datamodule.test
    assert list(test) == [
        "ASVspoof2019_LA",
        "ASVspoof2021_LA",
        "ASVspoof2021_DF",
        "ASVspoof5",
        "InTheWild",
        "FakeAVCeleb_all",
    ]
    assert [corpus.name for corpus in test.values()] == list(test)


@pytest.mark.parametrize(
    ("overlay", "method", "sites"),
    [(None, MoELoRA, 16), ("adapters/frozen.yaml", FrozenBackbone, 0), ("adapters/lora_r8.yaml", LoRA, 16)],
)
def test_the_quickstart_and_its_variants(monkeypatch, overlay, method, sites):
    command = build(monkeypatch, "quickstart.yaml", *([overlay] if overlay else []))
    assert len(command.model.detector.sites) == sites
    config = command.config.fit.model.adaptation.class_path
    assert config == f"moelora_ad.adapters.{method.__name__}"
    command.datamodule.setup("fit")
    command.datamodule.setup("test")
    counts = {name: (t.num_bona_fide, t.num_spoof) for name, t in command.datamodule.eval_trials.items()}
    assert counts == {"in_domain": (60, 84), "out_of_domain": (60, 88)}


def test_the_quickstart_with_meta_learning(monkeypatch):
    command = build(monkeypatch, "quickstart.yaml", "mldg.yaml")
    assert isinstance(command.model.meta_learning, MLDG)
    assert command.trainer.gradient_clip_val == 1.0


def test_every_configuration_is_one_of_these():
    names = {str(path.relative_to(EXPERIMENTS)) for path in EXPERIMENTS.rglob("*.yaml")}
    adapters = {"adapters/frozen.yaml", "adapters/lora_r8.yaml"}
    assert names == {"paper.yaml", "quickstart.yaml", "mldg.yaml", "corpora/paper_test_sets.yaml"} | adapters


def test_the_quickstarts_audio_is_all_there():
    config = yaml.safe_load((EXPERIMENTS / "quickstart.yaml").read_text())["data"]
    protocols = [config["train"], config["val"], *config["test"].values()]
    listed = set()
    for corpus in protocols:
        lines = (PROJECT / corpus["init_args"]["protocol"]).read_text().splitlines()
        listed |= {PROJECT / corpus["init_args"]["audio"] / f"{line.split()[1]}.flac" for line in lines}
    assert listed == set((EXPERIMENTS / "quickstart").rglob("*.flac"))

"""Small finished runs for the tests of the analyses, which only read them: two of a mixture and one of a LoRA."""

import csv
import logging
import sys
from pathlib import Path

import pytest
import yaml

from moelora_ad.cli.main import main


def write_set(folder: Path, name: str, protocol: Path, count: int) -> dict:
    """A manifest of the first ``count`` bona fide utterances and ``count`` of each attack; codecs alternate."""
    rows = [line.split() for line in protocol.read_text().splitlines()]
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "utterance", "label", "speaker", "attack", "codec"])
        for attack in sorted({row[3] for row in rows}):
            for number, row in enumerate([row for row in rows if row[3] == attack][:count]):
                path = protocol.parents[1] / "flac" / f"{row[1]}.flac"
                writer.writerow([path, row[1], row[4], row[0], row[3].strip("-"), f"codec{number % 2}"])
    init_args = {"path": str(folder / f"{name}.csv"), "name": name}
    return {"class_path": "moelora_ad.corpora.Manifest", "init_args": init_args}


@pytest.fixture(scope="session")
def fitted(tmp_path_factory, small_whisper, quickstart):
    """Folders of runs: "mixture" seeds 1 and 2, "lora" seed 1."""
    folder = tmp_path_factory.mktemp("fitted")
    protocols = quickstart / "corpus" / "MiniLA" / "protocols"
    ood = quickstart / "corpus" / "MiniOOD" / "protocols" / "MiniOOD.cm.eval.trl.txt"
    segment = {"samples": 8_000}
    config = {
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "num_sanity_val_steps": 0,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": str(folder / "runs"), "name": "mixture"},
            },
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "model": {
            "backbone": {
                "class_path": "moelora_ad.models.WhisperBackbone",
                "init_args": {"source": str(small_whisper)},
            },
            "adaptation": {"class_path": "moelora_ad.adapters.MoELoRA", "init_args": {"num_experts": 3, "rank": 2}},
            "classifier": "moelora_ad.models.MeanPooling",
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
        "data": {
            "train": write_set(folder, "train", protocols / "MiniLA.cm.train.trn.txt", 4),
            "val": write_set(folder, "dev", protocols / "MiniLA.cm.dev.trl.txt", 5),
            "test": {"other": write_set(folder, "other", ood, 4)},
            "batch_size": 4,
            "eval_batch_size": 4,
            "train_segment": segment,
            "eval_segment": segment,
        },
    }
    raised, logging.raiseExceptions = logging.raiseExceptions, False
    with pytest.MonkeyPatch.context() as patch:
        for name, seed, adaptation in (("mixture", 1, None), ("mixture", 2, None), ("lora", 1, "LoRA")):
            config["trainer"]["logger"]["init_args"]["name"] = name
            if adaptation is not None:
                method = {"class_path": f"moelora_ad.adapters.{adaptation}", "init_args": {"rank": 2, "alpha": 4.0}}
                config["model"]["adaptation"] = method
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
            options = ["--config", str(folder / "config.yaml"), "--seed_everything", str(seed), "--system", name]
            patch.setattr(sys, "argv", ["lightning", "fit", *options])
            assert main() == 0
    logging.raiseExceptions = raised
    runs = folder / "runs"
    return {
        ("mixture", 1): runs / "mixture" / "version_0",
        ("mixture", 2): runs / "mixture" / "version_1",
        ("lora", 1): runs / "lora" / "version_0",
    }


@pytest.fixture(autouse=True)
def narrow(monkeypatch, shown_tables):
    """A narrow terminal: no table of an analysis may be wider than it."""
    monkeypatch.setenv("COLUMNS", "40")

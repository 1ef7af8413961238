"""A tiny experiment on real speech: a few utterances, a small random encoder."""

import csv
import logging
import sys
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Trainer

from moelora_ad.audio import Segment
from moelora_ad.cli import main
from moelora_ad.corpora import Manifest
from moelora_ad.training import AudioDeepfakeDataModule

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart"


def write_manifest(path: Path, protocol: str, count: int) -> Path:
    """The first ``count`` bona fide and as many spoofed utterances of a quickstart protocol."""
    corpus = QUICKSTART / "corpus" / ("MiniOOD" if "OOD" in protocol else "MiniLA")
    rows = [line.split() for line in (corpus / "protocols" / protocol).read_text().splitlines()]
    chosen = [r for key in ("bonafide", "spoof") for r in [row for row in rows if row[4] == key][:count]]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "utterance", "label", "speaker", "attack"])
        writer.writerows([corpus / "flac" / f"{r[1]}.flac", r[1], r[4], r[0], r[3].strip("-")] for r in chosen)
    return path


@pytest.fixture
def experiment(tmp_path: Path, small_whisper: Path) -> dict:
    """The configuration of a fit that takes a few seconds; figures go to ``tmp_path / "runs"``."""
    corpora = {
        name: {
            "class_path": "moelora_ad.corpora.Manifest",
            "init_args": {"path": str(write_manifest(tmp_path / f"{name}.csv", protocol, count)), "name": name},
        }
        for name, protocol, count in (
            ("train", "MiniLA.cm.train.trn.txt", 6),
            ("dev", "MiniLA.cm.dev.trl.txt", 4),
            ("eval", "MiniLA.cm.eval.trl.txt", 4),
            ("ood", "MiniOOD.cm.eval.trl.txt", 3),
        )
    }
    segment = {"samples": 16_000}
    return {
        "seed_everything": 1,
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": str(tmp_path / "runs"), "name": "tiny"},
            },
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
        },
        "model": {
            "backbone": {
                "class_path": "moelora_ad.models.WhisperBackbone",
                "init_args": {"source": str(small_whisper)},
            },
            "adaptation": {"class_path": "moelora_ad.adapters.MoELoRA", "init_args": {"num_experts": 2, "rank": 2}},
            "classifier": "moelora_ad.models.MeanPooling",
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
        },
        "data": {
            "train": corpora["train"],
            "val": corpora["dev"],
            "test": {"in_domain": corpora["eval"], "out_of_domain": corpora["ood"]},
            "batch_size": 4,
            "eval_batch_size": 3,
            "train_segment": segment | {"position": "random"},
            "eval_segment": segment,
        },
    }


@pytest.fixture
def write_config(tmp_path: Path):
    """Writes a configuration as YAML and returns its path."""

    def write(config: dict, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture
def data(experiment):
    """The tiny experiment's data module."""

    def build(**arguments) -> AudioDeepfakeDataModule:
        corpora = experiment["data"]
        parts = {
            "train": Manifest(**corpora["train"]["init_args"]),
            "val": Manifest(**corpora["val"]["init_args"]),
            "test": {name: Manifest(**corpus["init_args"]) for name, corpus in corpora["test"].items()},
            "batch_size": 4,
            "train_segment": Segment(8_000, "random"),
            "eval_segment": Segment(8_000),
        }
        return AudioDeepfakeDataModule(**(parts | arguments))

    return build


@pytest.fixture
def trainer():
    """Makes a quiet trainer of one epoch on the CPU that keeps everything in a folder."""

    def build(folder: Path, **arguments) -> Trainer:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        once = {"max_epochs": 1, "num_sanity_val_steps": 0}
        return Trainer(accelerator="cpu", default_root_dir=folder, **(quiet | once | arguments))

    return build


@pytest.fixture
def lightning(monkeypatch, capsys):
    """Runs the command in this process; returns exit code, standard output and standard error."""

    # Log handlers made in an earlier call hold that call's captured stream.
    monkeypatch.setattr(logging, "raiseExceptions", False)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lightning", *map(str, arguments)])
        try:
            code = main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call

"""An offline W&B run, read back from its files."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from wandb.proto.wandb_internal_pb2 import Record

from moelora_ad.adapters import FullFineTuning, MoELoRA
from moelora_ad.models import Detector, MeanPooling, WhisperBackbone
from moelora_ad.training import DetectionModule
from moelora_ad.training.callbacks.routing_log import RoutingLog
from moelora_ad.training.callbacks.wandb import WandbRun, group_runs

BLOCK, HEADER = 32_768, 7


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """W&B keeps everything in the test's own folder, and its run ends with the test."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("DATA", "CACHE", "CONFIG", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB__DISABLE_STATS", "true")
    monkeypatch.setattr("moelora_ad.training.callbacks.wandb.git_commit", lambda: "abc")
    yield
    wandb.finish()


def records(path: Path) -> Iterator[Record]:
    """The records of a W&B file: LevelDB's log format (blocks of CRC, length, kind and data) with protocol buffers."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    place, whole = HEADER, b""
    while place + HEADER <= len(content):
        left = BLOCK - place % BLOCK
        if left < HEADER:  # padding
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + HEADER])
        if place + HEADER + length > len(content):  # the record is still being written
            return
        whole += content[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


class ReadBack:
    """The content of the only offline run below a folder, once it has ended."""

    def __init__(self, folder: Path) -> None:
        wandb.finish()
        (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        for _ in range(600):  # another process writes the file, and ends it after `finish` has returned
            if any(record.WhichOneof("record_type") == "exit" for record in records(path)):
                break
            time.sleep(0.1)
        self.files = path.parent / "files"
        self.rows: list[dict[str, Any]] = []
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.artifacts = []
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                self.rows.append(values(record.history.item))
            elif kind == "run":
                self.group, self.name = record.run.run_group, record.run.display_name
                self.config |= values(record.run.config.update)
            elif kind == "config":
                self.config |= values(record.config.update)
            elif kind == "summary":
                self.summary |= values(record.summary.update)
            elif kind == "artifact":
                self.artifacts.append(record.artifact)
            elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
                self.artifacts.append(record.request.log_artifact.artifact)

    def of(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows if name in row]


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.fixture
def fit(small_whisper, data, tmp_path):
    """Fits with an offline W&B run and tests the best checkpoint; returns the trainer and the model."""

    def run(adaptation=None, loggers=None, more=()) -> tuple[Trainer, DetectionModule]:
        torch.manual_seed(2)
        method = adaptation or MoELoRA(2, 2)
        model = DetectionModule(WhisperBackbone(small_whisper), method, MeanPooling)
        model.configuration = {"model": {"adaptation": {"class_path": "MoELoRA"}}, "data": {"batch_size": 4}}
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=loggers or WandbLogger(save_dir=tmp_path, project="ours", group="mixture", name="mixture-seed1"),
            callbacks=[
                RoutingLog(),
                WandbRun("mixture"),
                ModelCheckpoint(monitor="dev/eer", filename="epoch{epoch:02d}", auto_insert_metric_name=False),
                *more,
            ],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
        )
        module_data = data()
        trainer.fit(model, datamodule=module_data)
        trainer.test(model, datamodule=module_data, ckpt_path="best", weights_only=True, verbose=False)
        return trainer, model

    return run


def test_a_run_is_read_back(fit, tmp_path, small_whisper):
    trainer, model = fit()
    folder = tmp_path / "ours" / trainer.logger.version
    metrics = dict(trainer.callback_metrics)
    run = ReadBack(tmp_path)

    assert (run.group, run.name) == ("mixture", "mixture-seed1")
    assert (run.config["system"], run.config["seed"], run.config["git_commit"]) == ("mixture", 1, "abc")
    assert run.config["model"] == {"adaptation": {"class_path": "MoELoRA"}}
    assert run.config["data"] == {"batch_size": 4}
    assert run.config["parameters"] == model.detector.parameter_counts()

    content = json.loads((folder / "routing" / "epoch01.json").read_text())
    for name, value in content["overview"].items():
        assert len(run.of(name)) == 2
        assert run.of(name)[-1] == pytest.approx(value, rel=1e-5)
    fine = [row for row in run.rows if any(name.startswith("routing_by_site") for name in row)]
    assert len(fine) == 2
    assert fine[1]["trainer/global_step"] == next(
        row["trainer/global_step"] for row in reversed(run.rows) if "dev/eer" in row
    )
    for site, figures in content["sites"].items():
        for expert in (0, 1):
            for name in ("mean_gate", "top1_share", "output_norm", "largest_singular_value"):
                assert fine[1][f"routing_by_site/{name}/{site}/expert_{expert}"] == figures[name][expert]
        assert fine[1][f"routing_by_site/entropy/{site}"] == figures["entropy"]
    assert len(run.of("gradients/gates")) == 6
    assert run.of("gradients/expert_1")[-1] > 0

    pictures = [picture for row in run.of("routing/heatmaps/filenames") for picture in row]
    written = [(folder / "routing" / f"epoch{epoch:02d}.png").read_bytes() for epoch in (0, 1)]
    assert [(run.files / name).read_bytes() for name in pictures] == written

    for name in ("in_domain", "out_of_domain"):
        assert run.summary[f"test/{name}/eer"] == pytest.approx(float(metrics[f"test/{name}/eer"]))

    (artifact,) = run.artifacts
    assert (artifact.type, set(artifact.aliases)) == ("model", {"best", "latest"})
    of_encoder = {"backbone/config.json", "backbone/model.safetensors"}
    files = {"config.json", "model.safetensors", "README.md"} | of_encoder
    assert {entry.path for entry in artifact.manifest.contents} == files
    metadata = json.loads(artifact.metadata)
    assert metadata["dev_eer"] == pytest.approx(float(trainer.checkpoint_callback.best_model_score))
    assert metadata["checkpoint"] == Path(trainer.checkpoint_callback.best_model_path).name
    # The model tested above is that of the best checkpoint.
    kept = Detector.from_pretrained(folder / "model")
    assert kept.window == 8_000
    for name in model.detector.kept_names():
        assert torch.equal(kept.state_dict()[name], model.detector.state_dict()[name])


class AtTheEnd(Callback):
    """Keeps the weights of the last step."""

    def on_train_end(self, trainer, pl_module):
        self.weights = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}


def test_the_module_keeps_its_last_weights(fit, tmp_path, monkeypatch):
    """The best model of this run is that of its first epoch, which must not replace the module's last weights."""
    monkeypatch.setattr(Trainer, "test", lambda *_, **__: None)
    end = AtTheEnd()
    trainer, model = fit(more=[end])
    best = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)["state_dict"]
    kept = Detector.from_pretrained(next(tmp_path.rglob("config.json")).parent).state_dict()
    assert all(torch.equal(kept[name.removeprefix("detector.")], tensor) for name, tensor in best.items())
    assert not all(torch.equal(end.weights[name], tensor) for name, tensor in best.items())
    assert all(torch.equal(end.weights[name], tensor) for name, tensor in model.state_dict().items())


def test_a_whole_encoder_is_no_artifact(fit, tmp_path, capsys):
    fit(FullFineTuning())
    run = ReadBack(tmp_path)
    assert run.artifacts == []
    assert run.config["system"] == "mixture"
    assert run.of("dev/eer")
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: no model"))
    assert "moelora-ad export --checkpoint" in line


def test_without_wandb_nothing_is_saved(fit, tmp_path):
    fit(loggers=CSVLogger(tmp_path, name="csv"))
    assert not list(tmp_path.rglob("model"))
    assert wandb.run is None


def test_a_second_logger_gets_everything_too(fit, tmp_path):
    fit(loggers=[CSVLogger(tmp_path, name="csv"), WandbLogger(save_dir=tmp_path, project="ours")])
    run = ReadBack(tmp_path)
    assert len(run.of("routing/heatmaps/filenames")) == 2
    assert len(run.artifacts) == 1
    assert (tmp_path / "csv" / "version_0" / "model" / "config.json").is_file()


def test_runs_are_grouped_by_system():
    parser = ArgumentParser()
    parser.add_argument("--logger", type=Logger | list[Logger] | bool | None)
    ours = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "ours"}}
    own = {"class_path": "WandbLogger", "init_args": {"group": "mine", "name": "me"}}
    plain = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "runs"}}
    parsed = parser.parse_object({"logger": [ours, own, plain]}).logger
    group_runs(parsed, "mixture", 3)
    assert [(one.init_args.group, one.init_args.name) for one in parsed[:2]] == [
        ("mixture", "mixture-seed3"),
        ("mine", "me"),
    ]
    assert "group" not in parsed[2].init_args
    for given in (ours, plain, True, None):
        group_runs(parser.parse_object({"logger": given}).logger, "mixture", 3)

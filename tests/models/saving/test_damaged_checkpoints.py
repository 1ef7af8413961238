"""Damaged checkpoints, and files that are not checkpoints: one line each, and no command waits for them."""

import json
import os
import re
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.modules.module import register_module_parameter_registration_hook

from moelora_ad.cli.lightning_cli import inspection
from moelora_ad.errors import InputError
from moelora_ad.training import DetectionModule


@pytest.fixture
def run(run_of_experiment) -> Path:
    return run_of_experiment


def answers(lightning, run: Path, checkpoint: Path, first: int = 0) -> list[str]:
    """The one line of each command that takes a checkpoint, from command number ``first`` on."""
    commands = (
        ["test", "--config", run / "config.yaml", "--ckpt_path", checkpoint],
        ["fit", "--config", run / "config.yaml", "--ckpt_path", checkpoint],
        ["export", "--checkpoint", checkpoint, "--to", run / "model"],
        ["analyze", "singular-values", checkpoint],
    )
    lines = []
    for command in commands[first:]:
        code, out, err = lightning(*command)
        assert code in (1, 2)
        assert out == ""
        assert err.count("\n") == 1, err
        lines.append(err)
    return lines


def flip(path: Path, part: str) -> None:
    """Flip one bit in the middle of a part of a zip container, found by its local header (APPNOTE.TXT, 4.3.7)."""
    with zipfile.ZipFile(path) as container:
        info = next(one for one in container.infolist() if one.filename.endswith(part))
    data = bytearray(path.read_bytes())
    start = info.header_offset
    names = int.from_bytes(data[start + 26 : start + 28], "little") + int.from_bytes(
        data[start + 28 : start + 30], "little"
    )
    data[start + 30 + names + info.file_size // 2] ^= 4
    path.write_bytes(data)


def test_a_bit_that_flipped_in_a_tensor_is_found(lightning, run):
    checkpoint = run / "checkpoints" / "best.ckpt"
    assert lightning("export", "--checkpoint", checkpoint, "--to", run / "model")[0] == 0
    flip(checkpoint, "/data/0")
    torch.load(checkpoint, weights_only=True)  # PyTorch does not report the flipped bit
    for line in answers(lightning, run, checkpoint):
        assert "best.ckpt is damaged: archive/data/0 does not match its checksum" in line
    with pytest.raises(InputError, match=r"checkpoint_path: .* is damaged"):
        DetectionModule.load_from_checkpoint(checkpoint)


def test_a_bare_state_dict_is_no_checkpoint(lightning, run):
    checkpoint = run / "checkpoints" / "best.ckpt"
    torch.save(torch.load(checkpoint, weights_only=True)["state_dict"], checkpoint)
    for line in answers(lightning, run, checkpoint):
        assert "best.ckpt is not a checkpoint of a training run: it has no state_dict" in line
    with pytest.raises(InputError, match=r"checkpoint_path: .* has no state_dict"):
        DetectionModule.load_from_checkpoint(checkpoint)


def test_a_folder_is_no_checkpoint_and_the_line_names_those_in_it(lightning, run, tmp_path):
    checkpoints, empty = run / "checkpoints", tmp_path / "empty"
    empty.mkdir()
    (checkpoints / "last.ckpt").touch()
    its = f"its checkpoints: {checkpoints / 'last.ckpt'}, {checkpoints / 'best.ckpt'}"
    none = "give a file, RUN/checkpoints/NAME.ckpt"
    for verb, folder, told in (
        ("fit", run, its),
        ("validate", checkpoints, its),
        ("test", run.parent, its),
        ("predict", empty, none),
        ("export", run, its),
        ("export", empty, none),
    ):
        option = "--checkpoint" if verb == "export" else "--ckpt_path"
        more = ("--to", run / "model") if verb == "export" else ("--config", run / "config.yaml")
        code, _, err = lightning(verb, option, folder, *more)
        what = f"{option}: {folder} is a folder, and neither a checkpoint's file nor a model; {told}"
        assert (code, err.partition(" ")[2]) == (2, f"{verb}: error: {what}\n")
    with pytest.raises(InputError, match=r"checkpoint_path: .* is a folder, and neither"):
        DetectionModule.load_from_checkpoint(run)
    for name in "ab":
        (checkpoints / f"{name}.ckpt").touch()
    _, _, err = lightning("test", "--config", run / "config.yaml", "--ckpt_path", run)
    assert err.endswith(f"{its}, {checkpoints / 'b.ckpt'} and 1 more\n")


@pytest.mark.parametrize("name", ["meta.pt", "checkpoint/shard.pt"])  # what FSDP and DeepSpeed write
def test_shards_need_the_strategy_that_wrote_them(name, lightning, run, tmp_path):
    shards = tmp_path / "last.ckpt"
    (shards / name).parent.mkdir(parents=True)
    (shards / name).touch()
    code, _, err = lightning("test", "--config", run / "config.yaml", "--ckpt_path", shards)
    assert (code, "Traceback" in err) == (1, False)
    assert f"--ckpt_path: {shards} has a part of the model in each file: give its run's strategy\n" in err


def test_a_plugin_of_the_users_own_may_keep_checkpoints_in_folders(lightning, run, tmp_path, monkeypatch):
    (tmp_path / "own_folders.py").write_text(
        "from lightning.fabric.plugins import TorchCheckpointIO\n\n"
        "class Folders(TorchCheckpointIO):\n"
        "    def load_checkpoint(self, path, *given, **named):\n"
        "        return super().load_checkpoint(f'{path}/best.ckpt', *given, **named)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    given = ("validate", "--config", run / "config.yaml", "--ckpt_path", run / "checkpoints")
    plugin = {"class_path": "own_folders.Folders"}
    strategy = {"class_path": "lightning.pytorch.strategies.SingleDeviceStrategy"}
    strategy["init_args"] = {"device": "cpu", "checkpoint_io": plugin}
    for name, own in (("plugins", [plugin]), ("strategy", strategy)):
        code, _, err = lightning(*given, f"--trainer.{name}={json.dumps(own)}")
        assert code == 0, err


def test_nothing_waits_for_a_pipe(lightning, run):
    checkpoint = run / "checkpoints" / "pipe.ckpt"
    os.mkfifo(checkpoint)
    for line in answers(lightning, run, checkpoint):
        assert (
            "pipe.ckpt is not a regular file" in line
            or "pipe.ckpt is not a file" in line
            or "no such checkpoint" in line
        )
    for device in ("/dev/zero", "/dev/null"):
        for line in answers(lightning, run, Path(device))[:3]:
            assert f"{device} is no" in line


def test_a_compressed_container_is_not_unpacked(lightning, run):
    checkpoint = run / "checkpoints" / "best.ckpt"
    with zipfile.ZipFile(checkpoint) as container:
        parts = {name: container.read(name) for name in container.namelist()}
    with zipfile.ZipFile(checkpoint, "w", zipfile.ZIP_DEFLATED) as container:
        for name, content in parts.items():
            container.writestr(name, content)
    for line in answers(lightning, run, checkpoint):
        assert "best.ckpt is not a readable checkpoint" in line


@pytest.mark.parametrize(
    ("part", "field", "value", "told"),
    [
        ("adaptation", "num_experts", 1_000_000, "tensors is requested"),
        ("adaptation", "rank", 32, r"does not fit the configuration: .*lora_\w is"),
        ("classifier", "hidden", 10**9, "does not fit the configuration: it lacks"),
    ],
)
def test_a_run_that_asks_for_far_more_than_its_checkpoint_holds(part, field, value, told, lightning, run, experiment):
    experiment["model"]["classifier"] = {"class_path": "moelora_ad.models.MeanPooling", "init_args": {}}
    if part == "classifier":
        experiment["model"]["classifier"]["class_path"] = "moelora_ad.models.AttentiveStatistics"
    experiment["model"][part]["init_args"][field] = value
    (run / "config.yaml").write_text(yaml.safe_dump(experiment))
    checkpoint = run / "checkpoints" / "best.ckpt"
    numbers = 0

    def count(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
        nonlocal numbers
        numbers += 0 if parameter.is_meta else parameter.numel()

    handle = register_module_parameter_registration_hook(count)
    try:
        for line in answers(lightning, run, checkpoint, first=2):  # fit and test use the user's own configuration
            assert re.search(told, line)
        with pytest.raises(InputError, match=told):
            DetectionModule.load_from_checkpoint(checkpoint)
    finally:
        handle.remove()
    assert numbers == 0


def test_inspect_of_a_million_experts(lightning, run, experiment, monkeypatch):
    monkeypatch.setattr(inspection, "MOST_OF_DETECTOR", 2_000)  # the real limit takes seconds
    experiment["model"]["adaptation"]["init_args"]["num_experts"] = 1_000_000
    (run / "config.yaml").write_text(yaml.safe_dump(experiment))
    code, out, err = lightning("inspect", "--config", run / "config.yaml")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "tensors is requested" in err


@pytest.mark.parametrize("asked", [True, False], ids=["asked for", "found by Lightning"])
def test_the_checkpoint_of_a_cluster_is_checked_too(asked, lightning, run, tmp_path, monkeypatch):
    """SLURM's environment, as srun sets it for one task; a requeued job resumes without naming a checkpoint."""
    names = ("NTASKS", "JOB_ID", "JOB_NAME", "NTASKS_PER_NODE", "NNODES", "PROCID", "LOCALID", "NODEID", "NODELIST")
    for name in names if not asked else ():
        number = "1" if name.startswith("N") and name not in ("NODEID", "NODELIST") else "0"
        monkeypatch.setenv(f"SLURM_{name}", {"JOB_NAME": "train", "NODELIST": "localhost"}.get(name, number))
    cluster = tmp_path / "hpc_ckpt_1.ckpt"
    os.rename(run / "checkpoints" / "best.ckpt", cluster)
    flip(cluster, "/data/0")
    config = ["--config", run / "config.yaml", "--trainer.default_root_dir", tmp_path]
    code, _, err = lightning("fit", *config, *(("--ckpt_path", "hpc") if asked else ()))
    assert code == 1
    (line,) = (line for line in err.splitlines() if "error" in line)
    assert f"{cluster} is damaged: archive/data/0 does not match its checksum" in line
    assert "Traceback" not in err

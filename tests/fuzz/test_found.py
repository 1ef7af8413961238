"""Faults that fuzzing has found, each in the smallest file that causes it; all of them were tracebacks."""

import json
import shutil

import pytest
import soundfile
import torch
from safetensors.torch import save_file

from moelora_ad.adapters import AdapterError, read_lora
from moelora_ad.audio import AudioError, read_audio
from moelora_ad.cli.arguments import OneLineArgumentParser
from moelora_ad.configuration.building import detector_state
from moelora_ad.errors import InputError
from moelora_ad.models import WhisperBackbone
from moelora_ad.models.saving.checkpoints import check_readable
from moelora_ad.runs.checkpoints import CheckpointError
from moelora_ad.sweeps.planning import PlannedRun, plan_runs
from moelora_ad.sweeps.run_folder import read_notes
from moelora_ad.sweeps.sweep import read_sweep


def test_a_sphere_header_with_a_count_of_four_hundred_digits(tmp_path):
    path = tmp_path / "x.sph"
    soundfile.write(path, [0.1] * 8_000, 16_000, format="NIST")
    data = path.read_bytes()
    header = data[:1_024].replace(b"8000\n", b"9" * 400 + b"\n", 1)[:1_024]
    path.write_bytes(header + data[1_024:])
    with pytest.raises(AudioError, match="samples early"):
        read_audio(path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", lambda data: json.dumps(json.loads(data) | {"apply_spec_augment": "x"}).encode()),
        ("config.json", lambda data: json.dumps(json.loads(data) | {"activation_function": "x"}).encode()),
        ("model.safetensors", lambda data: data[:8] + b"[" + data[9:]),
        ("model.safetensors", lambda data: data[:5_000]),
    ],
)
def test_a_damaged_encoder(name, change, small_whisper, tmp_path):
    folder = shutil.copytree(small_whisper, tmp_path / "encoder")
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    with pytest.raises(InputError, match=str(folder)):
        WhisperBackbone(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"\x80\x02.",  # empty stack of the unpickler
        lambda data: b"\x80\x02hx.",  # missing entry in the unpickler's memo
        lambda data: data[: len(data) // 2],
    ],
)
def test_a_damaged_checkpoint(change, tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {"detector.a": torch.ones(2)}}, path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
        check_readable(str(path))
    with pytest.raises(InputError, match=r"is not a (readable )?checkpoint"):
        detector_state(str(path))


def test_a_zip_file_of_two_disks(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {}}, path)
    data = path.read_bytes()
    path.write_bytes(data[:-22] + b"PK\6\7" + bytes(12) + b"\2\0\0\0" + data[-22:])
    with pytest.raises(InputError, match="is not a readable checkpoint"):
        detector_state(str(path))


def test_control_characters_and_a_long_word_on_a_command_line(capsys):
    with pytest.raises(SystemExit):
        OneLineArgumentParser(prog="x").parse_args(["--\x1b[2J" + "a" * 10**6])
    told = capsys.readouterr().err
    assert told.removesuffix("\n").isprintable()
    assert len(told) < 3_000


def test_control_characters_and_a_long_word_in_an_adapter(tmp_path):
    for key in ("\x1b[2J\n", "x" * 10**6):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", key: 1}))
        with pytest.raises(AdapterError, match="is set: only plain LoRAs can be read") as refused:
            read_lora(tmp_path)
        assert str(refused.value).isprintable()
        assert len(str(refused.value)) < 3_000


@pytest.mark.parametrize(
    "change",
    [{"exit_code": []}, {"reason": 1}, {"identity": []}, {"identity": {"configs": {}}}, {"attempts": "1"}],
)
def test_damaged_notes_of_a_run(change, tmp_path):
    notes = {"format": 1, "identity": {"configs": {}, "options": {}}, "attempts": 1, "exit_code": 1, "reason": "r"}
    (tmp_path / "sweep.json").write_text(json.dumps(notes))
    assert read_notes(tmp_path).exit_code == 1
    (tmp_path / "sweep.json").write_text(json.dumps(notes | change))
    with pytest.raises(InputError, match="is damaged"):
        read_notes(tmp_path)


@pytest.mark.parametrize("text", ["1: a\nb: c\n", "a: &a [*a]\n", "[" * 3_000])
def test_a_configuration_of_a_sweep_that_has_no_hash(text, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=r"a\.yaml"):
        PlannedRun("a", 1, tmp_path, (str(tmp_path / "a.yaml"),)).identity()


def test_a_system_whose_name_no_folder_can_have(tmp_path):
    (tmp_path / "a.yaml").touch()
    path = tmp_path / "sweep.yaml"
    path.write_text(f"folder: runs\nconfigs: [{tmp_path}/a.yaml]\nsystems: {{{'a' * 300}: null}}\nseeds: [1]\n")
    with pytest.raises(InputError, match="is not a valid folder name"):
        plan_runs(read_sweep(path))
    path.write_text(path.read_text().replace("runs", "r" * 300).replace("a" * 300, "a"))
    with pytest.raises(InputError, match="not a valid folder name"):
        read_sweep(path)


def test_an_alpha_of_four_hundred_digits(tmp_path):
    save_file(
        {"base_model.model.q.lora_A.weight": torch.ones(2, 4)} | {"base_model.model.q.lora_B.weight": torch.ones(4, 2)},
        tmp_path / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 10**400, "init_lora_weights": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match="a whole number of 401 digits"):
        read_lora(tmp_path)

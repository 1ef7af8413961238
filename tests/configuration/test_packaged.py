"""Packaged configurations by name, from any folder, and the data that they refer to."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import yaml

from moelora_ad.configuration import packaged
from moelora_ad.configuration.files import read_configuration
from moelora_ad.configuration.packaged import (
    configuration_file,
    kind,
    packaged_configurations,
    packaged_data,
    with_packaged_paths,
)
from moelora_ad.errors import InputError
from moelora_ad.models.saving.packaged import packaged_models

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
BACKBONE = "experiments/quickstart/backbone"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_configuration_has_its_name():
    found = packaged_configurations()
    files = {str(path.relative_to(EXPERIMENTS)) for path in EXPERIMENTS.rglob("*.yaml")}
    assert {f"{name}.yaml" for name in found} == files - {"mini/about.yaml"}  # about.yaml describes a model
    assert list(found)[:3] == ["mldg", "paper", "quickstart"]
    kinds = {name: kind(path) for name, path in found.items()}
    assert {name for name, one in kinds.items() if one == "experiment"} == {"paper", "quickstart", "mini/mini"}
    sweeps = {name for name in found if name.startswith("sweeps/")}
    assert {"sweeps/quickstart", "sweeps/paper_table1", "sweeps/leave_one_attack_out"} < sweeps
    assert {name for name, one in kinds.items() if one == "sweep"} == sweeps


@pytest.mark.parametrize("given", ["adapters/lora_r8", "adapters/lora_r8.yaml", "experiments/adapters/lora_r8.yaml"])
def test_a_name_is_a_file_from_any_folder(given):
    assert Path(configuration_file(given)).samefile(EXPERIMENTS / "adapters" / "lora_r8.yaml")
    assert read_configuration(given)["system"] == "lora_r8"


def test_a_file_wins_over_a_name_and_a_folder_does_not(elsewhere):
    (elsewhere / "quickstart").mkdir()
    assert Path(configuration_file("quickstart")).samefile(EXPERIMENTS / "quickstart.yaml")
    (elsewhere / "paper").write_text("system: mine\n")
    assert configuration_file("paper") == "paper"
    assert configuration_file("/paper.yaml") == "/paper.yaml"  # its reader reports that there is no such file


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("quikstart", "did you mean quickstart or sweeps/quickstart?"),
        ("lora_r8", "did you mean adapters/lora_r8?"),
        ("zzz.yaml", "zzz.yaml: no such file, and no packaged configuration of that name; 'moelora-ad configs list'"),
    ],
)
def test_a_mistyped_name_gets_the_nearest_ones(given, told):
    with pytest.raises(InputError) as caught:
        configuration_file(given)
    assert told in str(caught.value)


def test_a_path_means_the_packages_file_unless_the_folder_has_it(elsewhere):
    others = ["experiments/quickstart", "experiments/quickstart/corpus2", "facebook/wav2vec2-base", 3, None]
    given = Namespace(a=BACKBONE, b={"c": [Path(BACKBONE), *others]})
    found = with_packaged_paths(given)
    assert found.a == str(EXPERIMENTS / "quickstart" / "backbone")
    assert found.b["c"] == [Path(found.a), *others]
    assert given.a == BACKBONE
    (elsewhere / BACKBONE).mkdir(parents=True)
    assert with_packaged_paths(given).a == BACKBONE


def test_an_installed_package_has_the_encoder_once(elsewhere, monkeypatch):
    ours = {path.name: path.read_bytes() for path in (EXPERIMENTS / "quickstart" / "backbone").iterdir()}
    mini = packaged_models()["mini"] / "backbone"
    assert ours == {path.name: path.read_bytes() for path in mini.iterdir()}
    monkeypatch.setattr(packaged, "_PACKAGE", elsewhere)  # the layout of the wheel
    (elsewhere / "experiments" / "quickstart" / "corpus").mkdir(parents=True)
    monkeypatch.chdir("/")
    assert with_packaged_paths(f"{BACKBONE}/config.json") == str(mini / "config.json")
    assert packaged_data() == {
        "quickstart/corpus": elsewhere / "experiments" / "quickstart" / "corpus",
        "quickstart/backbone": mini,
    }


def test_names_compose_and_what_is_kept_is_as_it_was_written(lightning):
    code, out, err = lightning("fit", "-c", "quickstart", "--config=adapters/lora_r8", "--print_config")
    assert code == 0, err
    config = yaml.safe_load(out)
    assert config["system"] == "lora_r8"
    assert config["model"]["adaptation"]["class_path"] == "moelora_ad.adapters.LoRA"
    assert config["model"]["backbone"]["init_args"]["source"] == BACKBONE


def test_the_quickstart_is_read_from_any_folder(lightning):
    code, out, err = lightning("inspect", "--config", "quickstart", "--format", "json")
    assert code == 0, err
    parameters = json.loads(out)["parameters"]
    assert parameters["total"] - parameters["backbone_frozen"] == 339_458
    code, _, err = lightning("corpus", "check", "--config", "quickstart", "--samples", "1")
    assert code == 0, err


def test_a_sweep_is_planned_from_any_folder(lightning):
    code, out, err = lightning("sweep", "sweeps/quickstart", "--dry-run")
    assert code == 0, err
    commands = [line for line in out.splitlines() if " fit " in line]
    assert len(commands) == 25
    assert all("--config experiments/recipes/quickstart_aasist.yaml" in line for line in commands)


def test_a_text_of_yaml_is_a_configuration_too(lightning):
    code, out, _ = lightning("fit", "--config", "quickstart", "--config", "system: mine", "--print_config")
    assert code == 0
    assert yaml.safe_load(out)["system"] == "mine"

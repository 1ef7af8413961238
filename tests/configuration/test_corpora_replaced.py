"""A corpus that replaces one of another class keeps none of its arguments; other parts keep those that both share."""

from pathlib import Path

import pytest
import yaml

from moelora_ad.configuration.data import data_of

MANIFEST = "moelora_ad.corpora.Manifest"


def written(path: Path, corpora: dict) -> Path:
    path.write_text(yaml.safe_dump({"data": corpora}))
    return path


@pytest.fixture
def manifest(tmp_path: Path) -> dict:
    (tmp_path / "calls.csv").write_text("path,label\na.wav,bonafide\nb.wav,spoof\n")
    return {"class_path": MANIFEST, "init_args": {"path": str(tmp_path / "calls.csv")}}


@pytest.fixture
def shown(lightning):
    """A function that returns the section ``data`` of the configuration that fit would use."""

    def call(*arguments) -> dict:
        code, out, err = lightning("fit", "--config", "quickstart", *arguments, "--print_config")
        assert code == 0, err
        return yaml.safe_load(out)["data"]

    return call


def test_a_corpus_of_another_class_has_its_own_name_and_split(shown, manifest, tmp_path):
    mine = written(tmp_path / "mine.yaml", {"train": manifest, "val": manifest, "test": {"in_domain": manifest}})
    data = shown("--config", mine)
    for corpus in (data["train"], data["val"], data["test"]["in_domain"]):
        assert corpus["class_path"] == MANIFEST
        assert {name: value for name, value in corpus["init_args"].items() if value is not None} == manifest[
            "init_args"
        ]
    assert list(data["test"]) == ["in_domain"]
    assert data["batch_size"] == 12  # from the quickstart


def test_so_does_one_that_the_command_line_names(shown, manifest):
    path = manifest["init_args"]["path"]
    for options in (
        ("--data.train", "Manifest", "--data.train.path", path),
        ("--data.train.class_path", MANIFEST, "--data.train.init_args.path", path),
        ("--data.train", yaml.safe_dump(manifest)),
    ):
        given = {name: value for name, value in shown(*options)["train"]["init_args"].items() if value is not None}
        assert given == {"path": path}, options


def test_single_arguments_of_the_same_class_are_changed(shown, tmp_path):
    before = shown()["train"]["init_args"]
    assert (before["name"], before["split"]) == ("MiniLA", "train")
    changed = {"class_path": "ASVspoof2019Protocol", "init_args": {"split": "all"}}
    file = written(tmp_path / "changed.yaml", {"train": changed, "val": {"init_args": {"split": "all"}}})
    data = shown("--config", file, "--data.train.name", "Other")
    assert data["train"]["init_args"] == before | {"split": "all", "name": "Other"}
    assert (data["val"]["init_args"]["name"], data["val"]["init_args"]["split"]) == ("MiniLA", "all")
    assert shown("--data.train.init_args.split", "all")["train"]["init_args"] == before | {"split": "all"}


def test_commands_that_read_corpora_alone_do_the_same(manifest, tmp_path, quickstart):
    mine = written(tmp_path / "mine.yaml", {"train": manifest, "test": {"in_domain": manifest}})
    selecting = written(tmp_path / "selecting.yaml", {"train": {"init_args": {"exclude_attacks": ["A01"]}}})
    data = data_of([str(quickstart.parent / "quickstart.yaml"), str(selecting), str(mine)])
    assert (data.train.name, data.train.split, data.train.selection_note) == ("calls", None, "")
    assert data.test["in_domain"].name == "calls"
    assert data.val.name == "MiniLA"
    assert len(data.train.trials()) == 2


def test_other_parts_keep_what_both_classes_have(lightning):
    """As jsonargparse documents it, and as the quickstart's comment on Weights & Biases relies on."""
    code, out, _ = lightning(
        *("fit", "--config", "quickstart", "--model.adaptation", "LoRA"),
        *("--model.optimizer", "torch.optim.SGD", "--print_config"),
    )
    assert code == 0
    model = yaml.safe_load(out)["model"]
    assert model["adaptation"]["init_args"]["rank"] == 8
    assert "num_experts" not in model["adaptation"]["init_args"]
    assert model["optimizer"]["init_args"]["lr"] == 3e-4

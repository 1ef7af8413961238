"""Configurations of runs: what may differ between seeds, and what may not."""

from pathlib import Path

import pytest
import yaml

from moelora_ad.configuration.differences import differences
from moelora_ad.configuration.files import read_configuration
from moelora_ad.errors import InputError

BASE = {
    "seed_everything": 1,
    "system": "lora",
    "ckpt_path": None,
    "trainer": {
        "max_epochs": 4,
        "default_root_dir": None,
        "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "runs", "version": "seed_1"}},
        "callbacks": [{"class_path": "Callback", "init_args": {"dirpath": "a", "every": 1}}],
    },
    "model": {"optimizer": {"init_args": {"lr": 0.001, "betas": [0.9, 0.999]}}},
    "data": {"seed": 1, "test": {"a": {"init_args": {"root": "a"}}}},
}


def changed(text: str) -> dict:
    """A copy of ``BASE`` with fields replaced, each given as ``dotted.name=YAML``."""
    copy = yaml.safe_load(yaml.safe_dump(BASE))
    for part in text.split(";"):
        name, _, value = part.partition("=")
        *above, last = name.split(".")
        place = copy
        for key in above:
            place = place[int(key) if isinstance(place, list) else key]
        place[last] = yaml.safe_load(value)
    return copy


@pytest.mark.parametrize(
    "text",
    [
        "seed_everything=2;data.seed=2",
        "trainer.logger={class_path: WandbLogger}",
        "trainer.logger=false",
        "trainer.default_root_dir=elsewhere",
        "ckpt_path=last.ckpt;system=null;score_folder=there",
        "trainer.callbacks.0.init_args.dirpath=b",
        "checkpoint={dirpath: there}",
    ],
)
def test_seeds_and_places_may_differ(text: str) -> None:
    assert differences(BASE, changed(text)) == []
    assert differences(changed(text), BASE) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("trainer.max_epochs=5", "trainer.max_epochs (4, 5)"),
        ("model.optimizer.init_args.lr=0.01", "model.optimizer.init_args.lr (0.001, 0.01)"),
        ("model.optimizer.init_args.betas=[0.9, 0.99]", "model.optimizer.init_args.betas.1 (0.999, 0.99)"),
        ("trainer.callbacks.0.init_args.every=2", "trainer.callbacks.0.init_args.every (1, 2)"),
        ("data.test.b={class_path: B}", "data.test.b.class_path (not set, B)"),
        ("data.seed_of_augmentation=3", "data.seed_of_augmentation (not set, 3)"),
        ("model.dirpath=a", "model.dirpath (not set, a)"),
        ("trainer.max_epochs=null", "trainer.max_epochs (4, None)"),
    ],
)
def test_everything_else_is_told(text: str, told: str) -> None:
    assert differences(BASE, changed(text)) == [told]


def test_a_list_that_becomes_empty_differs() -> None:
    assert differences(BASE, changed("trainer.callbacks=[]"))
    assert differences({"a": []}, {"a": {}}) != []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file or directory"),
        ("a: [", "is not YAML"),
        ("- 1", "has no fields"),
        ("a: !!python/object:os.x {}", "YAML"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as error:
        read_configuration(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)

"""YAML that would cost more than it is worth is refused; all other is read as PyYAML reads it."""

import itertools
from pathlib import Path

import pytest
import yaml

from moelora_ad.yaml_files import load_yaml

LETTERS = "abcdefghijkl"


def laughing(first: str, each: str) -> str:
    """Nine aliases of nine aliases, eleven times."""
    lines = [f"a: &a {first}"]
    lines += [f"{b}: &{b} " + each % ", ".join([f"*{a}"] * 9) for a, b in itertools.pairwise(LETTERS)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (laughing("[1, 2]", "[%s]"), "aliases stand for more than 1,000,000 values"),
        ("a: &a [*a]", "holds itself"),
        ("[" * 3_000, "nested too deeply"),
        ("a: " + "9" * 5_000, "4300 digits"),
        ("? [a]\n: 1", "unhashable key"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a" * 2**21, "more than 1,048,576 characters"),
    ],
)
def test_what_costs_too_much_or_is_none_is_refused_in_one_line(text, told):
    with pytest.raises(ValueError, match=told) as refused:
        load_yaml(text)
    assert str(refused.value).isprintable()


def test_merge_keys_of_merge_keys_are_read():
    assert load_yaml(laughing("{x: 1, y: 2}", "{<<: [%s], y: 3}"))["l"] == {"x": 1, "y": 3}


def test_other_files_are_read_as_ever():
    for path in (Path(__file__).parents[1] / "experiments").rglob("*.yaml"):
        assert load_yaml(path.read_text()) == yaml.safe_load(path.read_text())
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: {<<: [*b, *a, *a], z: 4}\nd: [*a, *a]"
    assert load_yaml(text) == yaml.safe_load(text)

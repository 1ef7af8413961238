"""Untrusted regular expressions: the same results as ``re``, in bounded time and memory."""

import json
import re
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from moelora_ad.adapters import AdapterError, LoRA, read_lora
from moelora_ad.adapters.patterns import bounded_pattern

ENDLESS = r"(.*\.)?((l|ll)+)+"
NAME = f"layers.0.{60 * 'l'}q"


@given(
    st.sampled_from(
        [r".*\.(q|v)_proj", "layers.[01]", r"(?i:Q)_PROJ", r"\w+", r"[^.]+\.\d{1,2}", "a|b.*", r"(.*\.)?k$"]
    ),
    st.lists(st.sampled_from(["layers", ".", "0", "12", "q", "k", "_proj", "b"]), max_size=6).map("".join),
)
def test_a_pattern_matches_as_re_does(pattern, name):
    assert bounded_pattern(pattern)(name) is (re.fullmatch(pattern, name) is not None)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "is not a regular expression"),
        ("(" * 20_000, "is not a regular expression"),
        ("(?R)*a", "is not a regular expression"),  # recursion
        ("a{e<=9}", "is not a regular expression"),  # fuzzy matching
        ("((((a{1000}){1000}){1000}){1000})", "is too long, or repeats too much"),
        ("a{1,99999999999999999999}", "is too long, or repeats too much"),
        ("a" * 200_000, "is too long, or repeats too much"),
    ],
)
def test_what_is_no_pattern_or_has_no_bounds_is_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        bounded_pattern(pattern)


def test_a_pattern_has_a_time_for_all_names_together():
    matches, start = bounded_pattern(ENDLESS, 0.2), time.monotonic()
    for _ in range(3):
        with pytest.raises(ValueError, match="takes too long"):
            matches(NAME)
    assert time.monotonic() - start < 60  # without the time limit, the match would take years


@pytest.fixture
def peft_folder(tmp_path):
    """A function that writes an adapter folder of peft with the endless pattern in the given field."""

    def make(field):
        site = f"base_model.model.{NAME}"
        save_file(
            {f"{site}.lora_A.weight": torch.ones(2, 4), f"{site}.lora_B.weight": torch.ones(4, 2)},
            tmp_path / "adapter_model.safetensors",
        )
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "init_lora_weights": True, field: {ENDLESS: 2}}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        return tmp_path

    return make


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_of_peft_that_never_ends_is_told(peft_folder, monkeypatch, field):
    monkeypatch.setattr("moelora_ad.adapters.peft.files.SECONDS", 0.2)
    with pytest.raises(AdapterError, match=f"{field} is not readable: the regular expression .* takes too long"):
        read_lora(peft_folder(field))


def test_too_many_patterns_of_peft_are_told(peft_folder, monkeypatch):
    monkeypatch.setattr("moelora_ad.adapters.peft.files.SECONDS", 0.01)
    folder = peft_folder("rank_pattern")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["rank_pattern"] = {f"layers.{number}": 2 for number in range(200_000)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=r"rank_pattern is not readable: its regular expressions take too long"):
        read_lora(folder)


def test_targets_that_never_end_are_told(monkeypatch):
    monkeypatch.setattr("moelora_ad.adapters.patterns.bounded_pattern.__defaults__", (0.2,))
    model = nn.ModuleDict({60 * "l" + "q": nn.Linear(4, 4)})
    with pytest.raises(AdapterError, match=r"targets: the regular expression .* takes too long"):
        LoRA(2, targets=ENDLESS).adapt(model)

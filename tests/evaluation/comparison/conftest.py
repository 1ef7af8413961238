"""Runs that held an attack out."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

SETS = {"dev": "MiniLA", "held_out": "MiniLA", "out_of_domain": "MiniOOD"}


@pytest.fixture
def held_out(make_run: Callable[..., Path]) -> Callable[..., Path]:
    """A function that makes the folder of a run with a held-out attack, named as a sweep names it."""

    def make(system: str, attack: str, seed: int, name: str | None = None, **changes) -> Path:
        configuration = {"seed_everything": seed, "data": {"seed": seed, "held_out_attack": attack}}
        name = name or f"{system}-without_{attack}"
        selections = {"train": f"without {attack}", "dev": f"without {attack}"}
        folder = make_run(name, seed, sets=SETS, configuration=configuration, selections=selections, **changes)
        for kind in ("held_out", "dev"):  # each held-out attack has its own trial list
            path = folder / f"scores/best/{kind}.json"
            about = json.loads(path.read_text())
            about["corpus"]["trial_list_sha256"] += attack
            path.write_text(json.dumps(about))
        return folder

    return make

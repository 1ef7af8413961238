"""Names in leave-one-attack-out: the test set of the held-out attack, and the systems trained without it."""

import re
from collections.abc import Mapping
from typing import Any

HELD_OUT = "held_out"
"""The test set of the attack that a run was trained and selected without."""


def held_out_attack(configuration: Mapping[str, Any]) -> str | None:
    """The attack that a run was trained and selected without; None for an ordinary run.

    Args:
        configuration: a run's ``config.yaml``.
    """
    data = configuration.get("data")
    attack = data.get("held_out_attack") if isinstance(data, dict) else None
    return None if attack is None else str(attack)


def name_without(system: str, attack: str) -> str:
    """Return the name that a sweep gives to a system trained without an attack; it is valid as a folder's name."""
    return f"{system}{_ending(attack)}"


def system_of(name: str, attack: str) -> str:
    """Return the system's own name, from the result of `name_without`; any other name is returned unchanged."""
    return name.removesuffix(_ending(attack))


def _ending(attack: str) -> str:
    return f"-without_{re.sub(r'[^A-Za-z0-9_.+=,-]', '_', attack)}"

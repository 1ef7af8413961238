"""The configuration of a sweep at Weights & Biases whose agents start the runs of a sweep of this package."""

from collections.abc import Sequence

import yaml

from moelora_ad.errors import InputError
from moelora_ad.sweeps.planning import PlannedRun
from moelora_ad.sweeps.sweep import Sweep


def agent_configuration(sweep: Sweep, runs: Sequence[PlannedRun]) -> str:
    """Return YAML for ``wandb sweep``: a grid over the runs; an agent calls ``sweep FILE --run=SYSTEM/seed_S``.

    Raises:
        InputError: the sweep has no ``wandb``, so that its runs would log nothing to Weights & Biases.
    """
    if sweep.wandb is None:
        raise InputError.at(sweep.path, "wandb is missing: name the project there, so that the runs log to it")
    place = {key: sweep.wandb[key] for key in ("project", "entity") if key in sweep.wandb}
    configuration = {
        **place,
        "name": sweep.folder.name,
        "method": "grid",
        "metric": {"name": "dev/eer", "goal": "minimize"},
        "parameters": {"run": {"values": [run.label for run in runs]}},
        "program": "moelora_ad",
        "command": ["${env}", "${interpreter}", "-m", "${program}", "sweep", str(sweep.path), "${args}"],
    }
    return yaml.safe_dump(configuration, sort_keys=False)

"""Which run of a sweep gets which GPU of this machine."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from moelora_ad.configuration.packaged import configuration_file
from moelora_ad.documents import read_yaml
from moelora_ad.errors import InputError, counted
from moelora_ad.sweeps.planning import PlannedRun

VARIABLE = "CUDA_VISIBLE_DEVICES"


class Gpus:
    """The GPUs that runs may use, each run as many as it has ``trainer.devices``, and first those that nobody uses.

    Args:
        runs: of a sweep.
        jobs: how many run at once. A run that runs alone may use all there are, like ``fit`` without a sweep.
    """

    def __init__(self, runs: Sequence[PlannedRun], jobs: int) -> None:
        self._jobs = min(jobs, len(runs))
        self._names = visible_gpus({**os.environ, **runs[0].environment}) if self._jobs > 1 else []
        self._users: Counter[str] = Counter()
        self._wanted = {run.label: min(_devices(run), len(self._names)) for run in runs} if self._names else {}

    def warning(self) -> str | None:
        """A line if runs have to share."""
        count, each = len(self._names), max(self._wanted.values(), default=0)
        if self._jobs * each <= count:
            return None
        return f"{self._jobs} runs at once share {counted(count, 'GPU')}: --jobs {count // each} gives each run its own"

    def given_to(self, run: PlannedRun) -> PlannedRun:
        """The run with its GPUs in its environment, until `take_back`."""
        if not self._names:
            return run
        chosen = sorted(self._names, key=lambda name: self._users[name])[: self._wanted[run.label]]
        self._users.update(chosen)
        return replace(run, environment={**run.environment, VARIABLE: ",".join(chosen)})

    def take_back(self, run: PlannedRun) -> None:
        """Of a run that `given_to` gave, when it has ended."""
        if self._names:
            self._users.subtract(run.environment[VARIABLE].split(","))


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that a process with these variables sees, by their names in the variable: numbers, or UUIDs
    of GPUs and MIG instances. As for CUDA, an invalid entry hides those behind it."""
    given = environment.get(VARIABLE)
    if given is None:
        import torch  # seconds, and only for this

        return [str(number) for number in range(torch.cuda.device_count())]
    names: list[str] = []
    for entry in map(str.strip, given.split(",")):
        if not re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", entry, re.ASCII) or entry in names:
            break
        names.append(entry)
    return names


def _devices(run: PlannedRun) -> int:
    """``trainer.devices`` of a run; 1 if it is not a number, or a file cannot be read, which its start will report."""
    found = None
    for path in run.configs:
        try:
            found = read_yaml(configuration_file(path))["trainer"].get("devices", found)
        except (OSError, InputError, KeyError, TypeError, AttributeError):
            continue
    found = run.options.get("trainer.devices", found)
    return found if isinstance(found, int) and found > 1 else 1

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
    """The GPUs of this machine, assigned to runs: to each as many as its ``trainer.devices``, the least used first.

    Args:
        runs: runs of a sweep.
        jobs: number of runs at once. A run that runs alone may use all GPUs, like ``fit`` without a sweep.
    """

    def __init__(self, runs: Sequence[PlannedRun], jobs: int) -> None:
        self._jobs = min(jobs, len(runs))
        self._names = visible_gpus({**os.environ, **runs[0].environment}) if self._jobs > 1 else []
        self._users: Counter[str] = Counter()
        self._wanted = {run.label: min(_devices(run), len(self._names)) for run in runs} if self._names else {}

    def warning(self) -> str | None:
        """Return a warning of one line if runs have to share GPUs, else None."""
        count, each = len(self._names), max(self._wanted.values(), default=0)
        if self._jobs * each <= count:
            return None
        return f"{self._jobs} runs at once share {counted(count, 'GPU')}: --jobs {count // each} gives each run its own"

    def given_to(self, run: PlannedRun) -> PlannedRun:
        """Return the run with GPUs in its environment, which are assigned to it until `take_back`."""
        if not self._names:
            return run
        chosen = sorted(self._names, key=lambda name: self._users[name])[: self._wanted[run.label]]
        self._users.update(chosen)
        return replace(run, environment={**run.environment, VARIABLE: ",".join(chosen)})

    def take_back(self, run: PlannedRun) -> None:
        """Release the GPUs of a run that `given_to` returned, after it has ended."""
        if self._names:
            self._users.subtract(run.environment[VARIABLE].split(","))


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Return the GPUs that a process with these environment variables sees, by their names in ``CUDA_VISIBLE_DEVICES``:
    numbers, or UUIDs of GPUs and MIG instances. As in CUDA, an invalid entry hides those after it."""
    given = environment.get(VARIABLE)
    if given is None:
        import torch  # takes seconds, and is only needed here

        return [str(number) for number in range(torch.cuda.device_count())]
    names: list[str] = []
    for entry in map(str.strip, given.split(",")):
        if not re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", entry, re.ASCII) or entry in names:
            break
        names.append(entry)
    return names


def _devices(run: PlannedRun) -> int:
    """``trainer.devices`` of a run; 1 if it is not a number. Unreadable files are skipped: fit reports them."""
    found = None
    for path in run.configs:
        try:
            found = read_yaml(configuration_file(path))["trainer"].get("devices", found)
        except (OSError, InputError, KeyError, TypeError, AttributeError):
            continue
    found = run.options.get("trainer.devices", found)
    return found if isinstance(found, int) and found > 1 else 1

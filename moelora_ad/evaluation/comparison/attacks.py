"""Systems times the attacks that they were trained without: equal error rates, and means over attacks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from moelora_ad.errors import InputError
from moelora_ad.evaluation.comparison.scored_runs import ScoredRun, ScoredSet
from moelora_ad.evaluation.metrics.averages import SeedSummary, over_seeds
from moelora_ad.evaluation.metrics.intervals import Interval
from moelora_ad.runs.held_out import system_of


class AttackMean(NamedTuple):
    """A system over held-out attacks.

    Args:
        mean: Over attacks of the means over seeds, a share of 1.
        interval: 95 %, Student's t over the attacks' means; None for one attack.
        seed_std: Standard deviation over the seeds of an attack, pooled over attacks; None for one seed each.
        num_attacks: Over how many attacks.
    """

    mean: float
    interval: Interval | None
    seed_std: float | None
    num_attacks: int


def over_attacks(eers: Sequence[Sequence[float]]) -> AttackMean:
    """Mean over attacks, and its uncertainty for attacks like these.

    Seeds are within attacks: an attack counts once, by the mean over its seeds, m_a, however many there are. Over A
    attacks the mean is M = mean(m_a), its 95 % interval M ± t(0.975; A - 1) sd(m_a) / sqrt(A), within [0, 1]. As the
    m_a differ by attack and by seed, the interval includes both.

    Args:
        eers: Of each attack those of its seeds, shares of 1.
    """
    means = np.array([np.mean(of_seeds) for of_seeds in eers])
    mean, num = float(means.mean()), len(means)
    interval = None
    if num > 1:
        reach = float(stats.t.ppf(0.975, num - 1) * means.std(ddof=1) / np.sqrt(num))
        interval = Interval(max(mean - reach, 0.0), min(mean + reach, 1.0))
    free = sum(len(of_seeds) - 1 for of_seeds in eers)
    squares = sum(float(np.sum((np.array(of_seeds) - np.mean(of_seeds)) ** 2)) for of_seeds in eers)
    return AttackMean(mean, interval, float(np.sqrt(squares / free)) if free else None, num)


class HeldOutRun(NamedTuple):
    """A run that held an attack out: the system's own name, and its scores of that attack."""

    system: str
    attack: str
    seed: int
    folder: Path
    scores: ScoredSet


@dataclass(frozen=True)
class AttackMatrix:
    """Systems times held-out attacks.

    Args:
        runs: Sorted by system and attack.

    Raises:
        InputError: Two runs have system, attack and seed in common, or an attack's trials are not the same.
    """

    runs: Sequence[HeldOutRun]

    def __post_init__(self) -> None:
        seen: dict[tuple[str, str, int], HeldOutRun] = {}
        first: dict[str, HeldOutRun] = {}
        for run in self.runs:
            other = seen.setdefault((run.system, run.attack, run.seed), run)
            if other is not run:
                raise InputError(
                    f"{other.folder} and {run.folder} are both system {run.system!r} without {run.attack} with seed "
                    f"{run.seed}: name one of them"
                )
            known = first.setdefault(run.attack, run)
            if run.scores.has_other_trials(known.scores):
                raise InputError(
                    f"{known.folder} and {run.folder} have other trials of the held-out attack {run.attack}, so their "
                    "figures do not compare: test both on one list"
                )

    @cached_property
    def _eers(self) -> Mapping[tuple[str, str], Mapping[int, float]]:
        found: dict[tuple[str, str], dict[int, float]] = {}
        for run in self.runs:
            found.setdefault((run.system, run.attack), {})[run.seed] = run.scores.eer
        return found

    @cached_property
    def systems(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(run.system for run in self.runs))

    @cached_property
    def attacks(self) -> tuple[str, ...]:
        return tuple(sorted({run.attack for run in self.runs}))

    @cached_property
    def common(self) -> tuple[str, ...]:
        """The attacks that every system was trained without: means are over these, so that they compare."""
        return tuple(one for one in self.attacks if all((system, one) in self._eers for system in self.systems))

    def cell(self, system: str, attack: str) -> SeedSummary | None:
        """Over seeds; None if no run of the system was trained without the attack."""
        values = self._eers.get((system, attack))
        return None if values is None else over_seeds(list(values.values()))

    def mean(self, system: str) -> AttackMean | None:
        """Over the attacks of `common`; None if there is none."""
        return over_attacks([[*self._eers[system, one].values()] for one in self.common]) if self.common else None


def attack_matrix(runs: Iterable[ScoredRun]) -> AttackMatrix | None:
    """Of the runs that held an attack out; None if no run did.

    Raises:
        InputError: See `AttackMatrix`.
    """
    found = []
    for run in runs:
        if run.attack is not None and run.held_out is not None:
            record = run.record
            system = system_of(record.system, run.attack)
            found.append(HeldOutRun(system, run.attack, record.seed, record.folder, run.held_out))
    return AttackMatrix(sorted(found, key=lambda run: run[:3])) if found else None

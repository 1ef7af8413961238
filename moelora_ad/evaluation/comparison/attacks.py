"""Equal error rates of systems on each attack of a test set, or on each held-out attack, and means over attacks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from moelora_ad.errors import InputError
from moelora_ad.evaluation.comparison.scored_runs import ScoredRun
from moelora_ad.evaluation.comparison.systems import Comparison
from moelora_ad.evaluation.metrics.averages import SeedSummary, over_seeds
from moelora_ad.evaluation.metrics.intervals import Interval
from moelora_ad.runs.held_out import HELD_OUT, system_of
from moelora_ad.runs.record import DEV


class AttackMean(NamedTuple):
    """The mean EER of a system over attacks.

    Args:
        mean: Mean over attacks of the means over seeds, a share of 1.
        interval: 95 % interval by Student's t over the attacks' means; None for one attack.
        seed_std: Standard deviation over the seeds of an attack, pooled over attacks; None for one seed each.
        num_attacks: Number of attacks.
    """

    mean: float
    interval: Interval | None
    seed_std: float | None
    num_attacks: int


def over_attacks(eers: Sequence[Sequence[float]]) -> AttackMean:
    """Return the mean over attacks, and its uncertainty for attacks like these.

    An attack counts once, by the mean over its seeds, m_a, however many there are. Over A attacks the mean is
    M = mean(m_a), its 95 % interval M ± t(0.975; A - 1) sd(m_a) / sqrt(A), within [0, 1]. Where each attack has runs of
    its own, the m_a differ by attack and by seed, and the interval includes both. Where the same runs are on all
    attacks, it does not include what a seed changes on all of them alike.

    Args:
        eers: The EERs of the seeds of each attack, shares of 1.
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


class AttackRun(NamedTuple):
    """A run on one attack: its system, and the EER of the bona fide trials against the attack's spoofs."""

    system: str
    attack: str
    seed: int
    folder: Path
    eer: float
    num_bona_fide: int
    num_spoof: int


@dataclass(frozen=True)
class AttackMatrix:
    """The EERs of systems on attacks.

    Args:
        set_name: Name of the test set.
        runs: Runs on each attack, sorted by system and attack.
        held_out: Whether each run was trained without its attack, so that the set differs from attack to attack.
        num_unnamed: Number of spoofs of the set that name no attack.
    """

    set_name: str
    runs: Sequence[AttackRun]
    held_out: bool = False
    num_unnamed: int = 0

    @cached_property
    def _eers(self) -> Mapping[tuple[str, str], Mapping[int, float]]:
        found: dict[tuple[str, str], dict[int, float]] = {}
        for run in self.runs:
            found.setdefault((run.system, run.attack), {})[run.seed] = run.eer
        return found

    @cached_property
    def systems(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(run.system for run in self.runs))

    @cached_property
    def attacks(self) -> tuple[str, ...]:
        return tuple(sorted({run.attack for run in self.runs}))

    @cached_property
    def common(self) -> tuple[str, ...]:
        """The attacks that every system has: means are over these, so that they are comparable."""
        return tuple(one for one in self.attacks if all((system, one) in self._eers for system in self.systems))

    def eers(self, system: str, attack: str) -> Mapping[int, float]:
        """Return the EERs of a system on an attack by seed; empty if no run of the system has the attack."""
        return self._eers.get((system, attack), {})

    def cell(self, system: str, attack: str) -> SeedSummary | None:
        """Return the EER of a system on an attack over seeds; None if no run of the system has the attack."""
        values = self.eers(system, attack)
        return over_seeds(list(values.values())) if values else None

    def mean(self, system: str) -> AttackMean | None:
        """Return the mean of a system over the attacks of `common`; None if there are none."""
        return over_attacks([[*self.eers(system, one).values()] for one in self.common]) if self.common else None


def attack_matrices(comparison: Comparison) -> list[AttackMatrix]:
    """Return a matrix for each test set that names several attacks, and last one of the attacks that runs held out.

    Raises:
        InputError: Two runs of one system with the same seed held out the same attack, or a held-out attack does not
            have the same trials in all runs.
    """
    of_sets = [_of_set(comparison, name) for name in comparison.sets if name != DEV]
    return [matrix for matrix in (*of_sets, _held_out(comparison.runs)) if matrix is not None]


def _held_out(runs: Iterable[ScoredRun]) -> AttackMatrix | None:
    first: dict[str, ScoredRun] = {}
    seen: dict[tuple[str, str, int], Path] = {}
    found = []
    for run in runs:
        attack, scores, record = run.attack, run.held_out, run.record
        if attack is None or scores is None:
            continue
        system, folder = system_of(record.system, attack), record.folder
        other = seen.setdefault((system, attack, record.seed), folder)
        if other is not folder:
            raise InputError(
                f"{other} and {folder} are both system {system!r} without {attack} with seed {record.seed}: name one "
                "of them"
            )
        known = first.setdefault(attack, run)
        if known.held_out is not None and scores.has_other_trials(known.held_out):
            raise InputError(
                f"{known.record.folder} and {folder} have other trials of the held-out attack {attack}, so their "
                "figures do not compare: test both on one list"
            )
        found.append(AttackRun(system, attack, record.seed, folder, scores.eer, scores.num_bona_fide, scores.num_spoof))
    return AttackMatrix(HELD_OUT, sorted(found), held_out=True) if found else None


def _of_set(comparison: Comparison, name: str) -> AttackMatrix | None:
    having = [(run.record, run.sets[name]) for run in comparison.runs if name in run.sets]
    if len({attack for _, scores in having for attack in scores.attacks}) < 2:
        return None
    runs = [
        AttackRun(record.system, attack, record.seed, record.folder, eer, scores.num_bona_fide, num_spoof)
        for record, scores in having
        for attack, (eer, num_spoof) in scores.attacks.items()
    ]
    unnamed = max(one.num_spoof - sum(attack.num_spoof for attack in one.attacks.values()) for _, one in having)
    return AttackMatrix(name, sorted(runs), num_unnamed=unnamed)

"""Systems and the results of their seeds: equal error rates of every set and averages over sets, as mean and spread."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moelora_ad.errors import InputError
from moelora_ad.evaluation.comparison.published import PublishedRow, published_row
from moelora_ad.evaluation.comparison.scored_runs import ScoredRun, ScoredSet
from moelora_ad.evaluation.metrics.averages import SeedSummary, over_seeds
from moelora_ad.runs.record import DEV

MACRO_OOD, MACRO_ALL = "macro_ood", "macro_all"


@dataclass(frozen=True)
class Comparison:
    """The runs of several systems.

    Args:
        runs: Sorted by system and seed.
        own: Sets of the training corpus, which ``macro_ood`` leaves out; None for the sets whose corpus some run was
            trained on.
        notes: Notes on the runs for the reader.

    Raises:
        InputError: A set has the name of an average.
    """

    runs: Sequence[ScoredRun]
    own: Collection[str] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        taken = {MACRO_OOD, MACRO_ALL} & self._of.keys()
        if taken:
            raise InputError(f"a set is named {min(taken)!r}, like an average: rename its score files")

    @cached_property
    def systems(self) -> Mapping[str, Sequence[ScoredRun]]:
        """The runs of each system, by seed."""
        found: dict[str, list[ScoredRun]] = {}
        for run in self.runs:
            found.setdefault(run.record.system, []).append(run)
        return found

    @cached_property
    def sets(self) -> tuple[str, ...]:
        """Names of all sets: the development set, those of the training corpus, and the others."""
        names = dict.fromkeys(name for run in self.runs for name in (*run.record.sets, *run.sets) if name in self._of)
        return tuple(sorted(names, key=lambda name: (name != DEV, name not in self.own_sets)))

    @cached_property
    def own_sets(self) -> frozenset[str]:
        if self.own is not None:
            return frozenset(self.own)
        trained_on = {corpus for run in self.runs for corpus in run.record.training_corpora}
        return frozenset(name for name, run in self._of.items() if run.sets[name].corpus in trained_on)

    @cached_property
    def averages(self) -> Mapping[str, tuple[str, ...]]:
        """The sets of ``macro_ood`` and ``macro_all``: those that every run has, so that all means are comparable."""
        common = [name for name in self.sets if name != DEV and all(name in run.sets for run in self.runs)]
        others = [name for name in common if name not in self.own_sets]
        return {name: tuple(sets) for name, sets in ((MACRO_OOD, others), (MACRO_ALL, common)) if sets}

    @property
    def columns(self) -> tuple[str, ...]:
        """Every set and every average."""
        return (*self.sets, *self.averages)

    def scored_set(self, name: str) -> ScoredSet:
        """Return a set of the first run that has it, with that run's EER."""
        return self._of[name].sets[name]

    @cached_property
    def _of(self) -> Mapping[str, ScoredRun]:
        return {name: run for run in reversed(self.runs) for name in run.sets}

    def eer(self, run: ScoredRun, column: str) -> float | None:
        """Return the EER of a run on a set, or its mean over the sets of an average, as a share of 1; None if the run
        does not have the set."""
        if column in self.averages:
            return float(np.mean([run.sets[name].eer for name in self.averages[column]]))
        return run.sets[column].eer if column in run.sets else None

    def eers(self, system: str, column: str) -> dict[int, float]:
        """Return the EERs by seed, of the runs that have one."""
        found = {run.record.seed: self.eer(run, column) for run in self.systems[system]}
        return {seed: value for seed, value in found.items() if value is not None}

    def summary(self, system: str, column: str) -> SeedSummary | None:
        """Return the mean and spread over seeds; None if no run has the set."""
        values = self.eers(system, column)
        return over_seeds(list(values.values())) if values else None

    def best(self, column: str) -> frozenset[str]:
        """Return the systems with the lowest mean as it is printed, in percent with two digits; none if there is only
        one system, and none for the development set."""
        means = {
            system: f"{100 * found.mean:.2f}" for system in self.systems if (found := self.summary(system, column))
        }
        if column == DEV or len(self.systems) < 2:
            return frozenset()
        return frozenset(system for system, mean in means.items() if float(mean) == min(map(float, means.values())))

    def published(self, system: str) -> PublishedRow | None:
        """Return the paper's row of a system; None if the paper has none."""
        first = self.systems[system][0]
        if any(place.partition(".")[0] == "train" for place in first.record.selections):
            return None  # trained on a part of the corpus
        return published_row(first.configuration, first.record.trained, first.record.training_corpora)

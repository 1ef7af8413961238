"""The results of an evaluation: score files with their figures, averages, comparisons and notes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from moelora_ad.evaluation.metrics.averages import MacroAverage, SeedSummary, over_seeds
from moelora_ad.evaluation.metrics.calibration import Calibration
from moelora_ad.evaluation.metrics.intervals import Difference
from moelora_ad.evaluation.metrics.options import FIGURES
from moelora_ad.evaluation.metrics.set_evaluation import Figures, SetEvaluation
from moelora_ad.evaluation.score_table import ScoreTable

HIGHER_IS_BETTER = ("auc", "accuracy")
OVER_RUNS = ("eer", "min_dcf", "auc")
"""Figures that are summed up over runs and compared in tables for people; CSV and JSON have all."""


class Uncalibrated(NamedTuple):
    """The costs of the scores before the calibration."""

    act_dcf: float
    cllr: float


@dataclass(frozen=True)
class EvaluatedFile:
    """One score file and its figures.

    Args:
        set_name: The name of its set.
        run: The run or seed that made it; empty if there is only one.
        path: The file; None for scores in memory.
        table: Its scores, after the calibration if there is one.
        evaluation: Its figures.
        before: The costs before the calibration; None without a calibration.
        provenance: The content of the JSON file beside it, as indented text; None without such a file.
        apart: Why the set is averaged only on request; empty for other sets.
    """

    set_name: str
    run: str
    path: Path | None
    table: ScoreTable
    evaluation: SetEvaluation
    before: Uncalibrated | None = None
    provenance: str | None = None
    apart: str = ""

    @property
    def title(self) -> str:
        return f"{self.set_name}, {self.run}" if self.run else self.set_name


@dataclass(frozen=True)
class RunSummary:
    """The averages over all sets of one run, and the figures of all sets pooled."""

    averages: tuple[MacroAverage, ...]
    pooled: SetEvaluation


@dataclass(frozen=True)
class SetComparison:
    """Two systems on the same trials of one set.

    Args:
        set_name: The set.
        differences: Differences by figure; ``difference`` is the first system's figure less the second's.
        sentences: What is shown at 95 %, in plain words.
        tables: The scores of both systems.
        notes: What a reader of the intervals must know.
    """

    set_name: str
    differences: Mapping[str, Difference]
    sentences: tuple[str, ...]
    tables: tuple[ScoreTable, ScoreTable]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Results:
    """The results of an evaluation: everything that is reported.

    Args:
        files: The score files, in the order of the command line.
        runs: Averages and pooled sets by run; empty for a single set.
        comparisons: The comparison of two systems on each set.
        systems: Names of the two compared systems.
        calibration: The calibration that was applied to the scores; None if none was.
        options: How the figures were computed, for the report.
        notes: What a reader must know, one sentence each.
    """

    files: tuple[EvaluatedFile, ...] = ()
    runs: Mapping[str, RunSummary] = field(default_factory=dict)
    comparisons: tuple[SetComparison, ...] = ()
    systems: tuple[str, str] = ("", "")
    calibration: Calibration | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def sets(self) -> dict[str, SetEvaluation]:
        """The figures of each file, by the name of its set, and of its run if there are several."""
        return {file.title: file.evaluation for file in self.files}

    @property
    def overall(self) -> Figures:
        """The figures of all trials of the only set.

        Raises:
            ValueError: There are several sets, which `sets` has, or none.
        """
        if len(self.files) != 1:
            raise ValueError(f"there are {len(self.files)} sets: take one of {', '.join(map(repr, self.sets))} by sets")
        return self.files[0].evaluation.overall

    def over_runs(self) -> dict[tuple[str, str], SeedSummary]:
        """Return summaries over runs, by set (or average) and figure, of all figures that more than one run has."""
        values: dict[tuple[str, str], list[float]] = {}
        for file in self.files:
            for figure, value in figure_values(file.evaluation.overall).items():
                values.setdefault((file.set_name, figure), []).append(value)
        for run in self.runs.values():
            for average in run.averages:
                values.setdefault((average.name, average.figure), []).append(average.value)
            for figure, value in figure_values(run.pooled.overall).items():
                values.setdefault(("pooled", figure), []).append(value)
        return {
            key: over_seeds(several, higher_is_better=key[1] in HIGHER_IS_BETTER)
            for key, several in values.items()
            if len(several) > 1
        }


def figure_values(figures: Figures) -> dict[str, float]:
    """Return the figures that are defined, by name."""
    found = {name: getattr(figures, name) for name in FIGURES}
    return {name: value for name, value in found.items() if value is not None}


def averages_by_name(averages: Iterable[MacroAverage]) -> dict[str, list[MacroAverage]]:
    """Group the averages of several figures by the name of the average."""
    found: dict[str, list[MacroAverage]] = {}
    for average in averages:
        found.setdefault(average.name, []).append(average)
    return found

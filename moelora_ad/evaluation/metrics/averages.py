"""Averages over sets, and over runs that differ in their seed."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from moelora_ad.evaluation.metrics.equal_error_rate import ScoreError
from moelora_ad.evaluation.metrics.options import FIGURES
from moelora_ad.evaluation.metrics.set_evaluation import SetEvaluation


class MacroAverage(NamedTuple):
    """An unweighted mean over sets.

    Attributes:
        name: ``macro_all``, or ``macro_ood`` without the sets of the training corpus.
        figure: The figure's name in `Figures`.
        value: The mean.
        sets: The sets that it is over.
    """

    name: str
    figure: str
    value: float
    sets: tuple[str, ...]


def macro_averages(evaluations: Mapping[str, SetEvaluation], own: Collection[str]) -> list[MacroAverage]:
    """Return ``macro_ood`` and ``macro_all`` of every figure that all their sets have.

    Args:
        evaluations: The evaluated sets by name.
        own: The sets of the training corpus; all others are out of domain. Without others there is no ``macro_ood``.
    """
    others = {name: one for name, one in evaluations.items() if name not in own}
    averages = []
    for name, sets in (("macro_ood", others), ("macro_all", evaluations)):
        for figure in FIGURES:
            values = [getattr(one.overall, figure) for one in sets.values()]
            if values and None not in values:
                averages.append(MacroAverage(name, figure, float(np.mean(values)), tuple(sets)))
    return averages


class SeedSummary(NamedTuple):
    """One figure over several runs; ``std`` is the standard deviation of a sample (n - 1), None for one run."""

    mean: float
    std: float | None
    best: float
    worst: float
    num: int


def over_seeds(values: Sequence[float], higher_is_better: bool = False) -> SeedSummary:
    """Return the mean, standard deviation, best and worst of a figure over runs.

    Raises:
        ScoreError: There is no value, or one is not finite.
    """
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        raise ScoreError(f"a summary over runs needs at least one figure, all finite, not {list(values)}")
    std = float(found.std(ddof=1)) if len(found) > 1 else None
    low, high = float(found.min()), float(found.max())
    best, worst = (high, low) if higher_is_better else (low, high)
    return SeedSummary(float(found.mean()), std, best, worst, len(found))

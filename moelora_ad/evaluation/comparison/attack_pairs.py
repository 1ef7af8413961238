"""Pairs of systems compared over attacks: the difference of their EERs on each attack that both have, and its mean."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean as mean
from typing import Any

import numpy as np
from scipy import stats

from moelora_ad.errors import printable
from moelora_ad.evaluation.comparison.attack_tables import matrix_title
from moelora_ad.evaluation.comparison.attacks import AttackMatrix
from moelora_ad.evaluation.comparison.pair_tables import points, share
from moelora_ad.evaluation.comparison.pairs import Pair
from moelora_ad.evaluation.metrics.intervals import Interval
from moelora_ad.evaluation.metrics.seed_differences import LEVEL, Variance, holm, total_variance
from moelora_ad.evaluation.reports.text_table import TextTable


@dataclass(frozen=True)
class AttackDifference:
    """The difference of the EERs of two systems over attacks, the first minus the second, as shares of 1.

    An attack counts once, by d_a, the difference of the systems' means over their seeds; M = mean(d_a) over A attacks.
    Where each attack has runs of its own (held-out attacks), the variance of M is var(d_a) / A: a paired t test with
    attacks as the sample. Where the same S seeds are on all attacks, what a seed changes on all of them alike is not in
    var(d_a), and var(d_s) / S is added, with d_s the difference of a seed's means over attacks. Degrees of freedom are
    A - 1, or Satterthwaite's of the sum.

    Args:
        pair: The names of the systems.
        by_attack: Differences by attack; at least one.
        by_seed: Differences by seed, of runs that are on all attacks; empty for held-out attacks, and if the systems
            have fewer than two seeds in common.
        corrected: The p value corrected by Holm's method; None if there is no p value, or it is not corrected yet.
    """

    pair: Pair
    by_attack: Mapping[str, float]
    by_seed: Mapping[int, float] = field(default_factory=dict)
    corrected: float | None = None

    @property
    def mean(self) -> float:
        return float(np.mean([*self.by_attack.values()]))

    @property
    def interval(self) -> Interval | None:
        """95 % interval; None for a single attack, and for differences that are all equal."""
        variance = self._variance
        if variance is None:
            return None
        reach = float(stats.t.ppf(0.975, variance.df)) * math.sqrt(variance.value)
        return Interval(self.mean - reach, self.mean + reach)

    @property
    def p_value(self) -> float | None:
        """Two-sided p value of no difference over attacks like these; None where there is no interval."""
        variance = self._variance
        return (
            None if variance is None else float(2 * stats.t.sf(abs(self.mean) / math.sqrt(variance.value), variance.df))
        )

    @property
    def _variance(self) -> Variance | None:
        """The variance of the mean; None where the spread over attacks is unknown."""
        if len(self.by_attack) < 2:
            return None
        samples = [np.array([*one.values()]) for one in (self.by_attack, self.by_seed) if one]
        found = total_variance([Variance(float(one.var(ddof=1)) / len(one), len(one) - 1) for one in samples])
        return found if found.value else None


OverAttacks = Sequence[tuple[AttackMatrix, Sequence[AttackDifference]]]
"""Matrices, each with the differences of pairs that it has."""


def compare_over_attacks(matrices: Iterable[AttackMatrix], pairs: Sequence[Pair]) -> OverAttacks:
    """Return each matrix that has pairs of systems, with their differences; p values are corrected over all of them."""
    found = [(matrix, [one for pair in pairs if (one := _difference(matrix, pair))]) for matrix in matrices]
    p_values = [one.p_value for _, differences in found for one in differences if one.p_value is not None]
    corrected = map(float, holm(np.array(p_values)))
    return [
        (matrix, [one if one.p_value is None else replace(one, corrected=next(corrected)) for one in differences])
        for matrix, differences in found
        if differences
    ]


def _difference(matrix: AttackMatrix, pair: Pair) -> AttackDifference | None:
    eers = {attack: (matrix.eers(pair[0], attack), matrix.eers(pair[1], attack)) for attack in matrix.attacks}
    both = {attack: of_pair for attack, of_pair in eers.items() if all(of_pair)}
    if not both:
        return None
    shared = set.intersection(*({*first} & {*second} for first, second in both.values()))
    if matrix.held_out or len(shared) < 2:
        by_attack = {one: mean(first.values()) - mean(second.values()) for one, (first, second) in both.items()}
        return AttackDifference(pair, by_attack)
    found = {one: {seed: first[seed] - second[seed] for seed in shared} for one, (first, second) in both.items()}
    by_seed = {seed: mean(of_seeds[seed] for of_seeds in found.values()) for seed in sorted(shared)}
    return AttackDifference(pair, {one: mean(of_seeds.values()) for one, of_seeds in found.items()}, by_seed)


def differences_table(matrix: AttackMatrix, differences: Sequence[AttackDifference]) -> TextTable:
    """Return a table with a row for each pair and a column for each attack; a mean with p below 0.05 is bold."""
    rows = []
    for one in differences:
        cells = [points(one.by_attack[attack], None) if attack in one.by_attack else "" for attack in matrix.attacks]
        rows.append((*map(printable, one.pair), *cells, points(one.mean, one.interval), share(one.corrected)))
    shown = {row for row, one in enumerate(differences) if one.corrected is not None and one.corrected < LEVEL}
    heading = ("A", "B", *map(printable, matrix.attacks), "mean [95 %]", "p (Holm)")
    title = f"A - B in points of EER, on {matrix_title(matrix)}"
    bold = frozenset((row, len(heading) - 2) for row in shown)
    return TextTable(title, heading, rows, 2, _notes(matrix, differences), bold)


def _notes(matrix: AttackMatrix, differences: Iterable[AttackDifference]) -> list[str]:
    found = [
        "Below 0: A is better. A difference is that of the means over seeds; mean: over the attacks that both have. p: "
        "corrected by Holm over all pairs and sets of these tables. Bold (* in plain text): p below 0.05"
    ]
    what = "The interval and p on {} hold for other attacks like these{}, but not for other trials: a {}"
    if matrix.held_out:
        test = "paired t test with the attacks as its sample, each of which has runs of its own"
        found.append(what.format(matrix_title(matrix), "", test))
    else:
        test = "t test with the spread over attacks and that over the seeds that both systems have"
        found.append(what.format("the attacks of a set", " and for other seeds", test))
        alone = [" and ".join(map(printable, one.pair)) for one in differences if not one.by_seed]
        if alone:
            found.append(f"Fewer than two seeds in common, so not for other seeds: {'; '.join(alone)}")
    return found


DIFFERENCE_ROW = (
    "set",
    "system_1",
    "system_2",
    "attack",
    "difference",
    "low",
    "high",
    "p",
    "p_holm",
    "num_attacks",
    "num_seeds",
)


def difference_rows(matrix: AttackMatrix, differences: Iterable[AttackDifference]) -> list[dict[str, Any]]:
    """Return a row for each pair and attack, and one for the mean over attacks, which names none; differences are
    shares of 1, at full precision."""
    rows: list[dict[str, Any]] = []
    for one in differences:
        about = {"set": matrix.set_name, "system_1": one.pair[0], "system_2": one.pair[1]}
        rows += [about | {"attack": attack, "difference": value} for attack, value in one.by_attack.items()]
        low, high = one.interval or (None, None)
        over = {"difference": one.mean, "low": low, "high": high, "p": one.p_value, "p_holm": one.corrected}
        over |= {"num_attacks": len(one.by_attack), "num_seeds": len(one.by_seed) or None}
        rows.append(about | {name: value for name, value in over.items() if value is not None})
    return rows

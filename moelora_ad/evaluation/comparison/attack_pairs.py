"""Pairs of systems compared over attacks: the difference of their EERs on each attack that both have, and its mean."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from moelora_ad.errors import printable
from moelora_ad.evaluation.comparison.attack_tables import matrix_title
from moelora_ad.evaluation.comparison.attacks import AttackMatrix
from moelora_ad.evaluation.comparison.pair_tables import share
from moelora_ad.evaluation.comparison.pairs import Pair
from moelora_ad.evaluation.metrics.intervals import Interval
from moelora_ad.evaluation.metrics.seed_differences import LEVEL, holm
from moelora_ad.evaluation.reports.text_table import TextTable


@dataclass(frozen=True)
class AttackDifference:
    """The difference of the EERs of two systems over attacks, the first minus the second, as shares of 1.

    An attack counts once, by d_a, the difference of the systems' means over their seeds. Over A attacks the mean is
    M = mean(d_a), its 95 % interval M ± t(0.975; A - 1) sd(d_a) / sqrt(A): that of a paired t test, with attacks as the
    sample.

    Args:
        pair: The names of the systems.
        by_attack: Differences by attack; at least one.
        corrected: The p value corrected by Holm's method; None if there is no p value, or it is not corrected yet.
    """

    pair: Pair
    by_attack: Mapping[str, float]
    corrected: float | None = None

    @property
    def mean(self) -> float:
        return float(np.mean([*self.by_attack.values()]))

    @property
    def interval(self) -> Interval | None:
        """95 % interval; None for a single attack, and for attacks that all have the same difference."""
        error = self._error
        if error is None:
            return None
        reach = float(stats.t.ppf(0.975, len(self.by_attack) - 1)) * error
        return Interval(self.mean - reach, self.mean + reach)

    @property
    def p_value(self) -> float | None:
        """Two-sided p value of no difference over attacks like these; None where there is no interval."""
        error = self._error
        return None if error is None else float(2 * stats.t.sf(abs(self.mean) / error, len(self.by_attack) - 1))

    @property
    def _error(self) -> float | None:
        """The standard error of the mean; None where the spread over attacks is unknown."""
        values = np.array([*self.by_attack.values()])
        error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
        return error or None


def compare_over_attacks(
    matrices: Iterable[AttackMatrix], pairs: Sequence[Pair]
) -> list[tuple[AttackMatrix, list[AttackDifference]]]:
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
    cells = {attack: [matrix.cell(system, attack) for system in pair] for attack in matrix.attacks}
    both = {attack: first.mean - second.mean for attack, (first, second) in cells.items() if first and second}
    return AttackDifference(pair, both) if both else None


def differences_table(matrix: AttackMatrix, differences: Sequence[AttackDifference]) -> TextTable:
    """Return a table with a row for each pair and a column for each attack; a mean with p below 0.05 is bold."""
    rows = []
    for one in differences:
        points = [f"{100 * one.by_attack[attack]:+.2f}" if attack in one.by_attack else "" for attack in matrix.attacks]
        low_high = "" if one.interval is None else " [{:+.2f}, {:+.2f}]".format(*(100 * end for end in one.interval))
        rows.append((*map(printable, one.pair), *points, f"{100 * one.mean:+.2f}{low_high}", share(one.corrected)))
    shown = {row for row, one in enumerate(differences) if one.corrected is not None and one.corrected < LEVEL}
    heading = ("A", "B", *map(printable, matrix.attacks), "mean [95 %]", "p (Holm)")
    title = f"A - B in points of EER, on {matrix_title(matrix)}"
    bold = frozenset((row, len(heading) - 2) for row in shown)
    return TextTable(title, heading, rows, 2, (_NOTE,), bold)


_NOTE = (
    "Below 0: A is better. A difference is that of the means over seeds; mean: over the attacks that both have, with "
    "the 95 % interval and the p value of a paired t test whose sample is the attacks: it holds for other attacks like "
    "these, not for other trials. p: corrected by Holm over all pairs and sets of these tables. Bold (* in plain "
    "text): p below 0.05"
)

DIFFERENCE_ROW = ("set", "system_1", "system_2", "attack", "difference", "low", "high", "p", "p_holm", "num_attacks")


def difference_rows(matrix: AttackMatrix, differences: Iterable[AttackDifference]) -> list[dict[str, Any]]:
    """Return a row for each pair and attack, and one for the mean over attacks, which names none; differences are
    shares of 1, at full precision."""
    rows: list[dict[str, Any]] = []
    for one in differences:
        about = {"set": matrix.set_name, "system_1": one.pair[0], "system_2": one.pair[1]}
        rows += [about | {"attack": attack, "difference": value} for attack, value in one.by_attack.items()]
        low, high = one.interval or (None, None)
        mean = {"difference": one.mean, "low": low, "high": high, "p": one.p_value, "p_holm": one.corrected}
        mean["num_attacks"] = len(one.by_attack)
        rows.append(about | {name: value for name, value in mean.items() if value is not None})
    return rows

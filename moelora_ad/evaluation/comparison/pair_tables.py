"""Compared pairs of systems as tables for people, and as rows for programs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from moelora_ad.errors import counted, printable
from moelora_ad.evaluation.comparison.pairs import ComparedPairs, PairFigures, SeedsOfPair
from moelora_ad.evaluation.metrics.intervals import Interval
from moelora_ad.evaluation.metrics.seed_differences import LEVEL, MOST_SEEDS, seeds_needed
from moelora_ad.evaluation.reports.text_table import TextTable

POINT = 0.01
"""The difference, as a share of 1, for which the number of seeds is given."""
_COLUMNS = (
    *("set", "EER % of A", "EER % of B", "A - B [95 %]", "effect size", "P(A better)"),
    *("p (Holm)", "seeds for 1 point"),
)


def pair_tables(compared: ComparedPairs) -> list[TextTable]:
    """Return a table for each pair with a row for each set and average; the last table has the notes on all."""
    tables = []
    for place, (pair, figures) in enumerate(compared.figures.items()):
        rows = [(printable(column), *_cells(one)) for column, one in figures.items()]
        is_last = place == len(compared.figures) - 1
        told = [*_seeds_notes(figures), *(how_compared(compared) if is_last else ())]
        shown = [one.corrected is not None and one.corrected < LEVEL for one in figures.values()]
        bold = {(at, 3) for at, is_shown in enumerate(shown) if is_shown}
        first, second = map(printable, pair)
        title = f"A = {first}, B = {second}: EER over seeds and trials"
        tables.append(TextTable(title, _COLUMNS, rows, 1, told, frozenset(bold)))
    return tables


def _cells(one: PairFigures) -> tuple[str, ...]:
    found = one.difference
    return (
        f"{100 * found.first:.2f}",
        f"{100 * found.second:.2f}",
        points(found.difference, found.interval),
        "" if found.effect_size is None else f"{found.effect_size:+.2f}",
        share(found.probability),
        share(one.corrected),
        _seeds_needed(one),
    )


def points(difference: float, interval: Interval | None) -> str:
    """Return a difference of rates and its interval as a cell of a table, in percentage points."""
    low_high = "" if interval is None else " [{:+.2f}, {:+.2f}]".format(*(100 * end for end in interval))
    return f"{100 * difference:+.2f}{low_high}"


def share(value: float | None) -> str:
    """Return a probability as a cell of a table; empty if it is unknown."""
    if value is None:
        return ""
    return f"{value:.3f}" if 0.0005 <= value < 0.9995 or value in (0, 1) else "<0.001" if value < 0.5 else ">0.999"


def _seeds_needed(one: PairFigures) -> str:
    if one.difference.of_one_seed is None:
        return ""
    needed = seeds_needed(one.difference, POINT)
    return "none" if needed is None else f"{needed:,}"


def _seeds_notes(figures: Mapping[str, PairFigures]) -> list[str]:
    """Return notes on which seeds were compared, and how: one for all columns with the same seeds."""
    columns: dict[SeedsOfPair, list[str]] = {}
    for column, one in figures.items():
        columns.setdefault(one.seeds, []).append(printable(column))
    notes = []
    for seeds, of in columns.items():
        where = "" if len(columns) == 1 else f"{', '.join(of)}: "
        notes.append(f"{where}{_seeds_note(seeds)}")
    return notes


def _seeds_note(seeds: SeedsOfPair) -> str:
    alone = " the interval does not cover other seeds"
    if seeds.is_paired and len(seeds.first) == 1:
        return f"one seed of each system ({seeds.first[0]}):{alone}"
    if seeds.is_paired:
        return f"{len(seeds.first)} seeds, paired: {_listed(seeds.first)}"
    several = f"not paired, as fewer than two seeds are in common: A {_listed(seeds.first)}; B {_listed(seeds.second)}"
    return f"{several}; of a system with one seed{alone}" if 1 in map(len, seeds[:2]) else several


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def how_compared(compared: ComparedPairs) -> tuple[str, ...]:
    """Return notes on how to read the tables."""
    of_sets, of_averages = compared.tests
    families = [
        f"{counted(number, 'test')} on {what}"
        for number, what in ((of_sets, "sets"), (of_averages, "averages"))
        if number
    ]
    return (
        "A - B below 0: A is better. Its interval holds for other seeds and for other trials of the same kinds: "
        f"Student's t with the spread over seeds and {compared.options.resamples:,} resamples of clusters of trials, "
        "the same for all runs. Bold (* in plain text): shown at 5 %, p below 0.05",
        "effect size: the difference in standard deviations over seeds (Hedges). P(A better): by the same t, for "
        "someone without prior knowledge. p: two-sided, corrected by Holm over "
        f"{' and, separately, '.join(families) or 'nothing'}, every pair of systems counted",
        f"seeds for 1 point: how many of each system would show a difference of {100 * POINT:g} point (power 80 %, "
        f"level 5 %) if the variances are as estimated; none: not even {MOST_SEEDS:,}, as more seeds leave what other "
        "trials would change",
        *compared.notes,
    )


PAIR_ROW = (
    *("system_1", "system_2", "set", "seeds_1", "seeds_2", "paired", "eer_1", "eer_2", "difference"),
    *("low", "high", "effect_size", "probability_1_better", "p", "p_holm", "seeds_for_1_point"),
    *("variance_of_one_seed", "variance_of_trials", "df_of_trials"),
)


def pair_rows(compared: ComparedPairs) -> list[dict[str, Any]]:
    """Return a row for each pair and each set or average, at full precision; rates are shares of 1."""
    rows = []
    for (first, second), figures in compared.figures.items():
        for column, one in figures.items():
            found = one.difference
            needed = None if found.of_one_seed is None else seeds_needed(found, POINT)
            row = {
                "system_1": first,
                "system_2": second,
                "set": column,
                "seeds_1": " ".join(map(str, one.seeds.first)),
                "seeds_2": " ".join(map(str, one.seeds.second)),
                "paired": one.seeds.is_paired,
                "eer_1": found.first,
                "eer_2": found.second,
                "difference": found.difference,
                "low": found.interval and found.interval.low,
                "high": found.interval and found.interval.high,
                "effect_size": found.effect_size,
                "probability_1_better": found.probability,
                "p": found.p_value,
                "p_holm": one.corrected,
                "seeds_for_1_point": needed,
                "variance_of_one_seed": found.of_one_seed,
                "variance_of_trials": found.of_trials.value,
                "df_of_trials": found.of_trials.df if math.isfinite(found.of_trials.df) else None,
            }
            rows.append({name: value for name, value in row.items() if value is not None})
    return rows

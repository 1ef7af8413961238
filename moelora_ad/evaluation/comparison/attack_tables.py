"""Matrices of systems and attacks as tables for people and as rows for programs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moelora_ad import __version__
from moelora_ad.errors import counted, printable
from moelora_ad.evaluation.comparison.attacks import AttackMatrix
from moelora_ad.evaluation.reports.tables import rounded
from moelora_ad.evaluation.reports.text_table import TextTable
from moelora_ad.runs.held_out import HELD_OUT

# --- for people


def matrix_table(matrix: AttackMatrix) -> TextTable:
    """Return a table with a row for each system and a column for each attack; the lowest mean of a column is bold."""
    rows, numbers = [], []
    for system in matrix.systems:
        cells = [matrix.cell(system, attack) for attack in matrix.attacks]
        mean = matrix.mean(system)
        numbers.append([None if one is None else one.mean for one in (*cells, mean)])
        eers = [rounded("eer", value) for value in numbers[-1][:-1]]
        rows.append((printable(system), *eers, "" if mean is None else rounded("eer", mean.mean, mean.interval)))
    bold = {(row, 1 + at) for at in range(len(matrix.attacks) + 1) for row in _lowest([line[at] for line in numbers])}
    heading = ("system", *map(printable, matrix.attacks), "mean [95 %]")
    return TextTable(f"EER % on {matrix_title(matrix)}", heading, rows, 1, matrix_notes(matrix), frozenset(bold))


def matrix_title(matrix: AttackMatrix) -> str:
    """Return the words for a matrix's attacks."""
    return "the held-out attack" if matrix.held_out else f"each attack of {printable(matrix.set_name)}"


def _lowest(values: Sequence[float | None]) -> list[int]:
    """Return the rows of the lowest value as printed; none if only one row has a value."""
    known = {row: round(100 * value, 2) for row, value in enumerate(values) if value is not None}
    return [row for row, value in known.items() if value == min(known.values())] if len(known) > 1 else []


def matrix_notes(matrix: AttackMatrix) -> tuple[str, ...]:
    """Return notes on how to read the matrix."""
    if matrix.held_out:
        first = (
            "A column's attack had no part in training nor in the selection of the checkpoint, and neither had the "
            f"bona fide trials that it is judged against (set {HELD_OUT}: development's)"
        )
    else:
        first = "A column is the EER of all bona fide trials of the set against the spoofs of one attack"
    found = [
        first,
        f"A figure is the mean over {_seeds(matrix)}. mean: over attacks, each of which counts once, by its mean over "
        "seeds; its 95 % interval is Student's t over these means (attacks - 1 degrees of freedom)",
        "The interval of a mean over held-out attacks includes the spread over attacks and that over their seeds, "
        "but not the choice of trials"
        if matrix.held_out
        else "The interval of a mean over the attacks of a set includes the spread over attacks, but neither what a "
        "seed changes on all of them alike nor the choice of trials",
    ]
    if len(matrix.systems) > 1:
        found.append("Bold (* in plain text): the lowest mean of a column, as printed")
    if left := [attack for attack in matrix.attacks if attack not in matrix.common]:
        listed = ", ".join(map(printable, left))
        why = "was trained without" if matrix.held_out else "has scores of"
        found.append(f"Not in the mean, as not every system {why}: {listed}")
    if matrix.num_unnamed:
        found.append(f"{printable(matrix.set_name)}: {counted(matrix.num_unnamed, 'spoof')} without an attack's name")
    return tuple(found)


def _seeds(matrix: AttackMatrix) -> str:
    cells = (matrix.cell(system, attack) for system in matrix.systems for attack in matrix.attacks)
    numbers = sorted({one.num for one in cells if one is not None})
    most = counted(numbers[-1], "seed")
    return most if len(numbers) == 1 else f"{numbers[0]} to {most}"


# --- for programs

MATRIX_ROW = (
    *("set", "system", "statistic", "attack", "seed", "eer", "eer_low", "eer_high", "num_bona_fide", "num_spoof"),
    *("num_seeds", "num_attacks", "seed_std", "folder"),
)


def matrix_rows(matrix: AttackMatrix) -> list[dict[str, Any]]:
    """Return a row for each run, for mean and std over the seeds of each attack, and for the mean over attacks, with
    its interval and the pooled standard deviation over the seeds of an attack; EERs are shares of 1, at full precision.
    ``statistic`` is run, mean, std or mean_over_attacks."""
    rows: list[dict[str, Any]] = []
    for run in matrix.runs:
        row = {"system": run.system, "statistic": "run", "attack": run.attack, "seed": run.seed, "eer": run.eer}
        trials = {"num_bona_fide": run.num_bona_fide, "num_spoof": run.num_spoof}
        rows.append(row | trials | {"folder": str(run.folder)})
    for system in matrix.systems:
        for attack in matrix.attacks:
            cell = matrix.cell(system, attack)
            found = {} if cell is None else {"mean": cell.mean, "std": cell.std}
            for statistic, eer in found.items():
                if cell is not None and eer is not None:
                    row = {"system": system, "statistic": statistic, "attack": attack, "eer": eer}
                    rows.append(row | {"num_seeds": cell.num})
        mean = matrix.mean(system)
        if mean is not None:
            row = {"system": system, "statistic": "mean_over_attacks", "eer": mean.mean}
            low_high = {} if mean.interval is None else dict(zip(("eer_low", "eer_high"), mean.interval, strict=True))
            rows.append(row | low_high | {"num_attacks": mean.num_attacks, "seed_std": mean.seed_std})
    return [{"set": matrix.set_name} | row for row in rows]


def matrices_json(matrices: Iterable[AttackMatrix]) -> str:
    """Return the rows of several matrices, and their description, as JSON."""
    content = {"moelora_ad": __version__, "matrices": [_content(matrix) for matrix in matrices]}
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _content(matrix: AttackMatrix) -> Mapping[str, Any]:
    return {
        "set": matrix.set_name,
        "held_out": matrix.held_out,
        "systems": matrix.systems,
        "attacks": matrix.attacks,
        "in_mean": matrix.common,
        "spoofs_without_attack": matrix.num_unnamed,
        "rows": matrix_rows(matrix),
        "notes": matrix_notes(matrix),
    }

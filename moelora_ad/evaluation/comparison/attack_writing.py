"""Matrices of systems and attacks as files in a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from moelora_ad.evaluation.comparison.attack_plot import attack_plot
from moelora_ad.evaluation.comparison.attack_tables import MATRIX_ROW, matrices_json, matrix_rows, matrix_table
from moelora_ad.evaluation.comparison.attacks import AttackMatrix
from moelora_ad.evaluation.reports.plots import Plot
from moelora_ad.evaluation.reports.rows import as_csv
from moelora_ad.evaluation.reports.text_table import TextTable, as_markdown, latex_file
from moelora_ad.files import unused_name, write_texts


class ShownMatrix(NamedTuple):
    """A matrix, its table and its heatmap, made once for the files and the page."""

    matrix: AttackMatrix
    table: TextTable
    heatmap: Plot

    @classmethod
    def of(cls, matrix: AttackMatrix) -> "ShownMatrix":
        return cls(matrix, matrix_table(matrix), attack_plot(matrix))


def write_matrices(shown: Sequence[ShownMatrix], folder: str | Path) -> list[Path]:
    """Write all matrices to attacks.csv and .json, at full precision, and to attacks.md and .tex, rounded; and the
    heatmap of each to attacks-SET.png and .svg. Each file appears whole or not at all; those of an earlier call that
    are not written again are removed.

    Args:
        shown: The matrices; without any, files are only removed.
        folder: The folder, created if it is missing.

    Returns:
        The files.
    """
    folder = Path(folder)
    tables = [one.table for one in shown]
    texts: dict[str, str | None] = {
        "attacks.csv": as_csv([row for one in shown for row in matrix_rows(one.matrix)], MATRIX_ROW),
        "attacks.json": matrices_json(one.matrix for one in shown),
        "attacks.md": "\n".join(map(as_markdown, tables)),
        "attacks.tex": latex_file(tables),
    }
    written: list[Path] = []
    taken: set[str] = set()
    for one in shown:
        written += one.heatmap.write(folder / unused_name(f"attacks-{one.matrix.set_name}", taken))
    for heatmap in {*folder.glob("attacks-*.svg")} - {*written}:
        if (beside := heatmap.with_suffix(".png")).exists():  # we write both
            beside.unlink()
            heatmap.unlink()
    return written + write_texts(folder, texts if shown else dict.fromkeys(texts))

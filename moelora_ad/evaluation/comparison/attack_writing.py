"""The matrix of systems and held-out attacks as files in a folder."""

from pathlib import Path

from moelora_ad.evaluation.comparison.attack_tables import MATRIX_ROW, matrix_json, matrix_rows, matrix_table
from moelora_ad.evaluation.comparison.attacks import AttackMatrix
from moelora_ad.evaluation.reports.plots import Plot
from moelora_ad.evaluation.reports.rows import as_csv
from moelora_ad.evaluation.reports.text_table import as_markdown, latex_file
from moelora_ad.files import written_whole


def write_matrix(matrix: AttackMatrix, heatmap: Plot, folder: str | Path) -> list[Path]:
    """Write attacks.csv and .json, at full precision, attacks.md and .tex, rounded, and the heatmap,
    attacks.png and .svg; each file appears whole or not at all.

    Args:
        matrix: The results.
        heatmap: See `attack_plot`.
        folder: Made if it is missing.

    Returns:
        The files.
    """
    folder = Path(folder)
    table = matrix_table(matrix)
    texts = {
        "attacks.csv": as_csv(matrix_rows(matrix), MATRIX_ROW),
        "attacks.json": matrix_json(matrix),
        "attacks.md": as_markdown(table),
        "attacks.tex": latex_file([table]),
    }
    written = heatmap.write(folder / "attacks")
    for name, text in texts.items():
        with written_whole(folder / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8", newline="")
        written.append(folder / name)
    return written

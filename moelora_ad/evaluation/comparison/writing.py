"""A comparison of systems as files in a folder and as one HTML page."""

from pathlib import Path

from moelora_ad.errors import printable
from moelora_ad.evaluation.comparison.attack_plot import attack_plot
from moelora_ad.evaluation.comparison.attack_tables import matrix_table
from moelora_ad.evaluation.comparison.attack_writing import write_matrix
from moelora_ad.evaluation.comparison.attacks import attack_matrix
from moelora_ad.evaluation.comparison.spread_plot import spread_plot
from moelora_ad.evaluation.comparison.systems import Comparison
from moelora_ad.evaluation.comparison.table_one import (
    ROW,
    against_table,
    comparison_json,
    comparison_rows,
    cost_table,
    published_rows,
    table_one,
)
from moelora_ad.evaluation.reports.pages import DARK_LINES, inline_svg, template
from moelora_ad.evaluation.reports.plots import LINES, Plot
from moelora_ad.evaluation.reports.rows import as_csv
from moelora_ad.evaluation.reports.tables import rounded
from moelora_ad.evaluation.reports.text_table import TextTable, as_latex, as_markdown
from moelora_ad.files import written_whole


def write_comparison(comparison: Comparison, folder: str | Path, reference: str | None = None) -> list[Path]:
    """Write tables, the plot and the report; each file appears whole or not at all.

    results.csv has a row for each system, seed and set, and for their means, at full precision, results.json the same
    and what it is about; table.md and table.tex (package booktabs) are the rounded table; spread.png and .svg are the
    plot; report.html has all in one page. Runs that held attacks out add what `write_matrix` writes.

    Args:
        comparison: What was found.
        folder: Made if it is missing.
        reference: The system that the others are compared with, if any.

    Returns:
        The files.
    """
    folder = Path(folder)
    plot = spread_plot(comparison)
    listed = [table_one(comparison), *([] if reference is None else [against_table(comparison, reference)])]
    texts = {
        "results.csv": as_csv(comparison_rows(comparison), ROW),
        "results.json": comparison_json(comparison, reference),
        "table.md": "\n".join(map(as_markdown, listed)),
        "table.tex": "\n".join(as_latex(table, booktabs=True) for table in listed),
        "report.html": comparison_page(comparison, plot, reference),
    }
    written = plot.write(folder / "spread")
    matrix = attack_matrix(comparison.runs)
    if matrix is not None:
        written += write_matrix(matrix, folder)
    for name, text in texts.items():
        with written_whole(folder / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8", newline="")
        written.append(folder / name)
    return written


def comparison_page(comparison: Comparison, plot: Plot, reference: str | None = None) -> str:
    """The page; names come from files and are not trusted."""
    systems, runs = len(comparison.systems), len(comparison.runs)
    matrix = attack_matrix(comparison.runs)
    return template("results.html.j2").render(
        title=f"{systems} system{'s' * (systems > 1)} over seeds" if runs > systems else f"{systems} systems",
        subtitle=f"Audio deepfake detection; {runs} runs; sets: {', '.join(map(printable, comparison.sets))}",
        notes=[printable(note) for note in comparison.notes],
        table_one=table_one(comparison),
        against=None if reference is None else against_table(comparison, reference),
        attacks=None if matrix is None else matrix_table(matrix),
        heatmap=None if matrix is None else inline_svg(attack_plot(matrix).svg, "attacks"),
        spread=inline_svg(plot.svg, "spread"),
        spread_text=_spread_text(comparison),
        cost=cost_table(comparison),
        runs=_runs(comparison),
        lines=list(zip(LINES, DARK_LINES, strict=True)),
    )


def _spread_text(comparison: Comparison) -> str:
    text = (
        "A dot is the EER of one seed, the bar its mean, the upright line one standard deviation to both sides. "
        "Each set has its own axis; all begin at 0."
    )
    return f"{text} Diamonds are published means." if published_rows(comparison) else text


def _runs(comparison: Comparison) -> TextTable:
    rows = []
    for run in comparison.runs:
        record = run.record
        eers = [rounded("eer", comparison.eer(run, column)) for column in comparison.columns]
        rows.append((printable(record.system), printable(str(record.folder)), str(record.seed), *eers))
    return TextTable("Runs", ("system", "folder", "seed", *map(printable, comparison.columns)), rows, 2)

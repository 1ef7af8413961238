"""Results as files in a folder."""

from collections.abc import Callable
from pathlib import Path

from moelora_ad.evaluation.reports.report import plots, report_page
from moelora_ad.evaluation.reports.results import Results
from moelora_ad.evaluation.reports.rows import DIFFERENCE_ROW, FIGURE_ROW, as_csv, as_json, difference_rows, figure_rows
from moelora_ad.evaluation.reports.tables import tables
from moelora_ad.evaluation.reports.text_table import as_markdown, latex_file
from moelora_ad.files import write_texts


def write_results(results: Results, folder: str | Path, tick: Callable[[str], None] = lambda what: None) -> list[Path]:
    """Write tables, plots and the report; each file appears whole or not at all.

    figures.csv has everything at full precision, figures.json the same and how it was computed; figures.md and
    figures.tex are rounded tables; comparison.csv is written for two systems; report.html has all in one page; plots
    are PNG and SVG files. A figures.csv or comparison.csv of an earlier call that is not written again is removed.

    Args:
        results: The evaluation.
        folder: The folder, created if it is missing.
        tick: Called before each plot.

    Returns:
        The files.
    """
    folder = Path(folder)
    drawn = plots(results, tick)
    listed = tables(results)
    texts = {
        "figures.csv": as_csv(figure_rows(results), FIGURE_ROW) if results.files else None,
        "comparison.csv": as_csv(difference_rows(results), DIFFERENCE_ROW) if results.comparisons else None,
        "figures.json": as_json(results),
        "figures.md": "\n".join(map(as_markdown, listed)),
        "figures.tex": latex_file(listed),
        "report.html": report_page(results, drawn),
    }
    return [path for one in drawn for path in one.plot.write(folder / one.stem)] + write_texts(folder, texts)

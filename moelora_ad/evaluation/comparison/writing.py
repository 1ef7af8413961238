"""A comparison of systems as files in a folder and as one HTML page."""

from collections.abc import Sequence
from pathlib import Path

from moelora_ad.errors import counted, printable
from moelora_ad.evaluation.comparison.attack_pairs import (
    DIFFERENCE_ROW,
    OverAttacks,
    difference_rows,
    differences_table,
)
from moelora_ad.evaluation.comparison.attack_writing import ShownMatrix, write_matrices
from moelora_ad.evaluation.comparison.attacks import AttackMatrix
from moelora_ad.evaluation.comparison.pair_tables import PAIR_ROW, pair_rows, pair_tables
from moelora_ad.evaluation.comparison.pairs import ComparedPairs
from moelora_ad.evaluation.comparison.spread_plot import spread_plot
from moelora_ad.evaluation.comparison.systems import Comparison
from moelora_ad.evaluation.comparison.table_one import (
    ROW,
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
from moelora_ad.evaluation.reports.text_table import TextTable, as_markdown, latex_file
from moelora_ad.files import write_texts


def write_comparison(
    comparison: Comparison,
    folder: str | Path,
    matrices: Sequence[AttackMatrix],
    compared: ComparedPairs | None = None,
    over_attacks: OverAttacks = (),
) -> list[Path]:
    """Write tables, the plot and the report; each file appears whole or not at all.

    results.csv has a row for each system, seed and set, and for their means, at full precision, results.json the same
    and its description; table.md and table.tex are the rounded tables; spread.png and .svg are the plot; report.html
    has all in one page. With held-out attacks, or test sets with several attacks, `write_matrices` adds its files.
    Files of an earlier call that this one does not write are removed.

    Args:
        comparison: The results.
        folder: The folder, created if it is missing.
        matrices: Its systems and attacks, see `attack_matrices`.
        compared: Compared pairs of its systems, if any; pairs.csv has them at full precision.
        over_attacks: Pairs compared over attacks, see `compare_over_attacks`; attack_pairs.csv has them at full
            precision.

    Returns:
        The files.
    """
    folder = Path(folder)
    plot = spread_plot(comparison)
    attacks = list(map(ShownMatrix.of, matrices))
    tables = [] if compared is None else pair_tables(compared)
    tables += [differences_table(*one) for one in over_attacks]
    listed = [table_one(comparison), *tables]
    texts = {
        "results.csv": as_csv(comparison_rows(comparison), ROW),
        "pairs.csv": None if compared is None else as_csv(pair_rows(compared), PAIR_ROW),
        "attack_pairs.csv": None
        if not over_attacks
        else as_csv([row for one in over_attacks for row in difference_rows(*one)], DIFFERENCE_ROW),
        "results.json": comparison_json(comparison, compared),
        "table.md": "\n".join(map(as_markdown, listed)),
        "table.tex": latex_file(listed),
        "report.html": comparison_page(comparison, plot, tables, attacks),
    }
    return plot.write(folder / "spread") + write_matrices(attacks, folder) + write_texts(folder, texts)


def comparison_page(
    comparison: Comparison,
    plot: Plot,
    pairs: Sequence[TextTable] = (),
    attacks: Sequence[ShownMatrix] = (),
) -> str:
    """Return the HTML page of a comparison; names in it come from files and are not trusted."""
    systems, runs = len(comparison.systems), len(comparison.runs)
    sets = ", ".join(map(printable, comparison.sets))
    return template("results.html.j2").render(
        title=counted(systems, "system") + (" over seeds" if runs > systems else ""),
        subtitle=f"Audio deepfake detection; {counted(runs, 'run')}; sets: {sets}",
        notes=[printable(note) for note in comparison.notes],
        table_one=table_one(comparison),
        pairs=pairs,
        attacks=[
            (one.matrix, one.table, inline_svg(one.heatmap.svg, f"attacks{number}"))
            for number, one in enumerate(attacks)
        ],
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

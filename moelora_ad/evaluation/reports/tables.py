"""Results as tables: rounded for people (terminal, Markdown, LaTeX), at full precision for programs (CSV, JSON)."""

import csv
import io
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from moelora_ad.errors import printable
from moelora_ad.evaluation.metrics.averages import MacroAverage
from moelora_ad.evaluation.metrics.intervals import Interval
from moelora_ad.evaluation.metrics.options import FIGURES
from moelora_ad.evaluation.metrics.set_evaluation import Figures
from moelora_ad.evaluation.reports.results import OVER_RUNS, EvaluatedFile, Results, figure_values

NAMES = {
    "eer": "EER %",
    "min_dcf": "minDCF",
    "auc": "AUC",
    "min_cllr": "minCllr",
    "act_dcf": "actDCF",
    "cllr": "Cllr",
    "accuracy": "accuracy %",
    "min_tdcf": "min t-DCF",
}
_RATES = ("eer", "accuracy")
_NARROWEST = 14  # characters of a column of words on a terminal
_MORE = "… and {} more in figures.csv"


@dataclass(frozen=True)
class TextTable:
    """A table for people; the first ``words`` columns are aligned to the left, the others are numbers.

    ``notes`` are lines that stand below it; ``bold`` has the places (row, column) of cells that stand out.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    notes: Sequence[str] = ()
    bold: Collection[tuple[int, int]] = ()

    def is_bold(self, row: int, column: int) -> bool:
        return (row, column) in self.bold


def rounded(figure: str, value: float | None, interval: Interval | None = None) -> str:
    """A figure for people, rates in percent, with its interval if there is one; empty if it is not defined."""
    if value is None:
        return ""
    text = _number(figure, value)
    return text if interval is None else f"{text} [{_number(figure, interval.low)}, {_number(figure, interval.high)}]"


def _number(figure: str, value: float) -> str:
    return f"{100 * value:.2f}" if figure in _RATES else f"{value:.4f}"


# --- tables for people


def tables(results: Results, most_groups: int | None = None) -> list[TextTable]:
    """Every table that has a row.

    Args:
        results: What was found.
        most_groups: How many attacks, codecs or speaker groups of a set are listed, those with the highest EER first.
    """
    found = [sets_table(results), over_runs_table(results), calibration_table(results), comparison_table(results)]
    for file in results.files:
        found += group_tables(file, most_groups).values()
    return [table for table in found if table.rows]


def sets_table(results: Results, brief: bool = False) -> TextTable:
    """A row for each score file, each average and each pool; ``brief`` leaves out what a terminal has no room for."""
    several = any(file.run for file in results.files)
    found = [file.evaluation.overall for file in results.files]
    figures = [name for name in FIGURES if any(getattr(one, name) is not None for one in found)]
    if brief and "cllr" not in figures:
        figures = [name for name in figures if name != "min_cllr"]
    intervals = [
        name for name in figures if any(name in one.intervals for one in found) and not (brief and name != "eer")
    ]

    def row(name: str, run: str, one: Figures) -> tuple[str, ...]:
        place = (printable(name), printable(run))[: 1 + several]
        return (*place, f"{one.num_bona_fide:,}", f"{one.num_spoof:,}", *_cells(one, figures, intervals))

    rows = [row(file.set_name, file.run, file.evaluation.overall) for file in results.files]
    notes = []
    for run, summary in results.runs.items():
        for name, averages in _by_name(summary.averages).items():
            values = {average.figure: average.value for average in averages}
            place = (name, printable(run))[: 1 + several]
            rows.append((*place, "", "", *(rounded(figure, values.get(figure)) for figure in figures)))
            notes.append(f"{name}: mean of {', '.join(map(printable, averages[0].sets))}")
        rows.append(row("pooled", run, summary.pooled.overall))
    columns = ("set", *(("run",) if several else ()), "bona fide", "spoof")
    headings = [_heading(name, name in intervals) for name in figures]
    return TextTable("Sets", (*columns, *headings), rows, 1 + several, tuple(dict.fromkeys(notes)))


def _heading(figure: str, has_interval: bool) -> str:
    return f"{NAMES[figure]} [95 %]" if has_interval else NAMES[figure]


def _cells(figures: Figures, names: Iterable[str], with_interval: Sequence[str]) -> list[str]:
    intervals = figures.intervals
    return [rounded(n, getattr(figures, n), intervals.get(n) if n in with_interval else None) for n in names]


def _by_name(averages: Iterable[MacroAverage]) -> dict[str, list[MacroAverage]]:
    found: dict[str, list[MacroAverage]] = {}
    for average in averages:
        found.setdefault(average.name, []).append(average)
    return found


def over_runs_table(results: Results, figures: Sequence[str] = OVER_RUNS) -> TextTable:
    """Mean, standard deviation, best and worst of each set that several runs have."""
    rows = [
        (printable(name), NAMES[figure], *(rounded(figure, value) for value in summary[:4]), str(summary.num))
        for (name, figure), summary in results.over_runs().items()
        if figure in figures
    ]
    return TextTable("Over runs", ("set", "figure", "mean", "std", "best", "worst", "runs"), rows, 2)


def group_tables(file: EvaluatedFile, most: int | None = None) -> dict[str, TextTable]:
    """The attacks, codecs and speaker groups of one file, the highest EER first; empty tables are left out."""
    found = {}
    for kind, groups in groups_of(file).items():
        ordered = by_eer(groups)
        figures = [name for name in FIGURES if any(getattr(row, name) is not None for row in groups.values())]
        intervals = [name for name in figures if any(name in row.intervals for row in groups.values())]
        rows = [
            (printable(name), f"{row.num_bona_fide:,}", f"{row.num_spoof:,}", *_cells(row, figures, intervals))
            for name, row in list(ordered.items())[:most]
        ]
        left_out = len(groups) - len(rows)
        if left_out:
            rows.append((_MORE.format(left_out), *[""] * (2 + len(figures))))
        headings = [_heading(name, name in intervals) for name in figures]
        found[kind] = TextTable(
            f"{kind.capitalize()} of {printable(file.title)}", (kind, "bona fide", "spoof", *headings), rows
        )
    return found


def groups_of(file: EvaluatedFile) -> dict[str, Mapping[str, Figures]]:
    """The parts of a set by what they are; kinds without any are left out."""
    evaluation = file.evaluation
    kinds = {"attacks": evaluation.attacks, "codecs": evaluation.codecs, "speaker groups": evaluation.speakers}
    return {kind: groups for kind, groups in kinds.items() if groups}


def by_eer(groups: Mapping[str, Figures]) -> dict[str, Figures]:
    """The same groups, those with the highest EER first."""
    return dict(sorted(groups.items(), key=lambda group: (-group[1].eer, group[0])))


def calibration_table(results: Results) -> TextTable:
    """What the calibration did to the two figures that need it; no calibration makes the two minima smaller."""
    rows = []
    for file in results.files:
        if file.before is not None:
            after = file.evaluation.overall
            costs = (file.before.act_dcf, after.act_dcf, after.min_dcf, file.before.cllr, after.cllr, after.min_cllr)
            rows.append((printable(file.title), *(rounded("cllr", cost) for cost in costs)))
    columns = ("set", "actDCF before", "actDCF after", "minDCF", "Cllr before", "Cllr after", "minCllr")
    return TextTable("Calibration", columns, rows)


def comparison_table(results: Results) -> TextTable:
    """Two systems, figure by figure, and the interval of the difference."""
    first, second = map(printable, results.systems)
    rows = [
        (
            printable(comparison.set_name),
            NAMES[figure],
            rounded(figure, found.first),
            rounded(figure, found.second),
            rounded(figure, found.difference, found.interval),
        )
        for comparison in results.comparisons
        for figure, found in comparison.differences.items()
        if figure in NAMES
    ]
    return TextTable("Comparison", ("set", "figure", first, second, "difference [95 %]"), rows, 2)


# --- the forms of a table


def as_rich(table: TextTable) -> Table:
    """For the terminal."""
    made = Table(title=table.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    made.padding = (0, 0)
    for number, column in enumerate(table.columns):
        longest = max(len(cells[number]) for cells in (table.columns, *table.rows))
        if number < table.words:
            made.add_column(Text(column), overflow="fold", min_width=min(longest, _NARROWEST))
        else:
            made.add_column(Text(column), justify="right", min_width=longest)  # figures are never cut
    for place, row in enumerate(table.rows):
        made.add_row(*(Text(cell, "bold" if table.is_bold(place, at) else "") for at, cell in enumerate(row)))
    return made


def as_markdown(table: TextTable) -> str:
    """A GitHub table with its title and notes."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rules = [":--" if number < table.words else "--:" for number in range(len(table.columns))]
    lines = [f"## {_markdown(table.title)}", "", line(map(_markdown, table.columns)), line(rules)]
    for place, row in enumerate(table.rows):
        cells = [
            f"**{_markdown(cell)}**" if table.is_bold(place, at) else _markdown(cell) for at, cell in enumerate(row)
        ]
        lines.append(line(cells))
    return "\n".join(lines + [f"\n{_markdown(note)}" for note in table.notes]) + "\n"


def as_latex(table: TextTable, booktabs: bool = False) -> str:
    """A ``tabular`` whose title and notes are comments.

    Args:
        table: What to write.
        booktabs: Whether the rules are those of the package booktabs; otherwise no package is needed.
    """
    layout = "l" * table.words + "r" * (len(table.columns) - table.words)
    heading = " & ".join(map(_latex, table.columns)) + r" \\"
    rows = []
    for place, row in enumerate(table.rows):
        cells = [
            rf"\textbf{{{_latex(cell)}}}" if table.is_bold(place, at) else _latex(cell) for at, cell in enumerate(row)
        ]
        rows.append(" & ".join(cells) + r" \\")
    top, middle, bottom = (r"\toprule", r"\midrule", r"\bottomrule") if booktabs else (r"\hline",) * 3
    lines = [f"% {_latex(words)}" for words in (table.title, *table.notes)]
    lines += [rf"\begin{{tabular}}{{{layout}}}", top, heading, middle, *rows, bottom, r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    if re.fullmatch(r"[\d\s.,\[\]-]*", text):  # a number and its interval read better as they are
        return text
    return re.sub(r"([\\`*_{}\[\]<>|#$~&])", r"\\\1", text)


_LATEX = {character: rf"\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "…": r"\ldots{}",
    "±": r"$\pm$",
}


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped  # or the row end before it would take it


# --- tables for programs


def figure_rows(results: Results) -> list[dict[str, Any]]:
    """Everything at full precision, a row for each set, each part of it, each average and each summary over runs.

    ``part`` says what a row is of: all, attack, codec, speaker, pooled, macro_all, macro_ood, or mean, std, best or
    worst over runs; ``group`` has the name of an attack, codec or speaker group, or the sets of an average.
    """
    rows = []
    for file in results.files:
        at = {"set": file.set_name, "run": file.run}
        rows.append({**at, "part": "all", "group": "", **_flat(file.evaluation.overall)})
        parts = {
            "attack": file.evaluation.attacks,
            "codec": file.evaluation.codecs,
            "speaker": file.evaluation.speakers,
        }
        for part, groups in parts.items():
            rows += [{**at, "part": part, "group": name, **_flat(row)} for name, row in groups.items()]
    for run, summary in results.runs.items():
        for name, averages in _by_name(summary.averages).items():
            values = {average.figure: average.value for average in averages}
            rows.append({"set": "", "run": run, "part": name, "group": " + ".join(averages[0].sets), **values})
        rows.append({"set": "", "run": run, "part": "pooled", "group": "", **_flat(summary.pooled.overall)})
    summaries: dict[str, dict[str, Any]] = {}
    for (name, figure), summary_of_one in results.over_runs().items():
        summaries.setdefault(name, {})[figure] = summary_of_one
    for name, by_figure in summaries.items():
        for part in ("mean", "std", "best", "worst"):
            values = {figure: getattr(summary_of_one, part) for figure, summary_of_one in by_figure.items()}
            rows.append({"set": name, "run": "", "part": part, "group": "", **values})
    return rows


def _flat(figures: Figures) -> dict[str, Any]:
    flat: dict[str, Any] = {
        "num_bona_fide": figures.num_bona_fide,
        "num_spoof": figures.num_spoof,
        "eer_threshold": figures.eer_threshold,
        "threshold": figures.threshold,
        **figure_values(figures),
    }
    for name, interval in figures.intervals.items():
        flat[f"{name}_low"], flat[f"{name}_high"] = interval
    return flat


def comparison_rows(results: Results) -> list[dict[str, Any]]:
    """Every figure of every compared set at full precision."""
    first, second = results.systems
    rows = []
    for comparison in results.comparisons:
        for figure, found in comparison.differences.items():
            values = (found.first, found.second, found.difference, *found.interval)
            rows.append(dict(zip(COMPARISON_ROW, (comparison.set_name, figure, first, second, *values), strict=True)))
    return rows


COMPARISON_ROW = (
    *("set", "figure", "system_1", "system_2", "value_1", "value_2"),
    *("difference", "difference_low", "difference_high"),
)
_FIGURE_COLUMNS = [column for name in FIGURES for column in (name, f"{name}_low", f"{name}_high")]
FIGURE_ROW = [
    "set",
    "run",
    "part",
    "group",
    "num_bona_fide",
    "num_spoof",
    "eer_threshold",
    "threshold",
    *_FIGURE_COLUMNS,
]


def as_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows under a header; what a row lacks is empty, numbers have their full precision."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: _plain(value) for column, value in row.items()} for row in rows)
    return text.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    return repr(float(value)) if isinstance(value, float) else value


def as_json(results: Results) -> str:
    """The same rows, and how they were made."""
    content = {
        "options": dict(results.options),
        "calibration": asdict(results.calibration) if results.calibration else None,
        "files": [{"set": file.set_name, "run": file.run, "path": str(file.path)} for file in results.files],
        "figures": [{k: v for k, v in row.items() if v is not None} for row in figure_rows(results)],
        "before_calibration": [
            {"set": file.set_name, "run": file.run, **file.before._asdict()} for file in results.files if file.before
        ],
        "comparison": comparison_rows(results),
        "conclusions": [sentence for comparison in results.comparisons for sentence in comparison.sentences],
        "notes": list(results.notes),
    }
    return json.dumps(content, indent=2, allow_nan=False, default=_number_of_numpy) + "\n"


def _number_of_numpy(value: Any) -> Any:
    return value.item()

"""A table for people, and its forms: terminal, Markdown, LaTeX."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

_NARROWEST = 14  # characters of a column of words on a terminal


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

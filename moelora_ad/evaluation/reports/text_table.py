"""A table for people, and its forms: terminal, Markdown, LaTeX."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from moelora_ad.files import unused_name

_WORDS = (24, 14, 10)
"""Least widths, in characters, of a column of words on a terminal: the first with which the table fits in one block is
used."""
_LEAST = 5
"""Least width, in characters, of a column of words before words are broken."""
_HEADING = 16
"""Most characters of a word for which a column is widened."""
_MARK = "*"


@dataclass(frozen=True)
class TextTable:
    """A table for people.

    Args:
        title: What the table shows, without a full stop.
        columns: Headings.
        rows: Cells, one for each column.
        words: The number of first columns that have words, are aligned to the left and name a row; or which columns
            have words. The other columns have numbers, which are broken only if there is no room for them.
        notes: Lines below the table.
        bold: The places (row, column) of cells in bold.
        styles: Styles of cells on a terminal, as rich names them, by place.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int | Collection[int] = 1
    notes: Sequence[str] = ()
    bold: Collection[tuple[int, int]] = ()
    styles: Mapping[tuple[int, int], str] = field(default_factory=dict)

    def is_bold(self, row: int, column: int) -> bool:
        return (row, column) in self.bold

    def is_word(self, column: int) -> bool:
        """Whether a column has words, aligned to the left."""
        return column < self.words if isinstance(self.words, int) else column in self.words


def as_rich(table: TextTable) -> "FittedTable":
    """Return a table for the terminal that adapts to its width.

    Nothing is cut. Headings and columns of words wrap, within words only if there is no other way; columns of numbers
    for which there is no room follow in further blocks, each with the same first columns. Where bold is not available,
    a star marks bold cells.
    """
    return FittedTable(table)


def blocks(table: TextTable, width: int) -> int:
    """Return how many blocks a table takes on a terminal of so many characters."""
    return len(_groups(_Widths(table, ""), width))


@dataclass(frozen=True)
class FittedTable:
    """A table that rich can show, fitted to the width that it is given."""

    table: TextTable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        table = self.table
        mark = "" if console.is_terminal else _MARK
        widths = _Widths(table, mark)
        for number, columns in enumerate(_groups(widths, options.max_width)):
            made = Table(
                title=Text(table.title) if table.title and number == 0 else None,
                title_justify="left",
                title_style="bold",
                box=box.SIMPLE_HEAD,
                pad_edge=False,
                padding=(0, 0),
                show_header=any(table.columns),
            )
            fitted = dict(zip(columns, widths.fitted(columns, options.max_width), strict=True))
            for at, wide in fitted.items():
                heading = Text(_broken(table.columns[at], wide))
                made.add_column(heading, justify=_side(table, at), overflow="fold", width=wide)
            for row in range(len(table.rows)):
                made.add_row(*(_cell(table, row, at, mark, wide) for at, wide in fitted.items()))
            yield made


def _side(table: TextTable, column: int) -> Literal["left", "right"]:
    return "left" if table.is_word(column) else "right"


def _cell(table: TextTable, row: int, at: int, mark: str, width: int) -> Text:
    text, style = table.rows[row][at], table.styles.get((row, at), "")
    if table.is_bold(row, at):
        text, style = f"{mark}{text}", f"bold {style}".strip()
    return Text(_broken(text, width) if table.is_word(at) else text, style)


def _broken(text: str, width: int) -> str:
    """Break long names such as moe_lora_e3_r8 or layers.2.k_proj into lines that end after their separators."""
    words = re.split(r"(\s+)", text)
    return "".join(word if cell_len(word) <= width else _lines(word, width) for word in words)


def _lines(name: str, width: int) -> str:
    lines = [""]
    for part in _parts(name):
        if lines[-1] and cell_len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _parts(name: str) -> list[str]:
    return re.findall(r"[^_/.-]*[_/.-]+|[^_/.-]+", name)


class _Widths:
    """The preferred widths of the columns of a table.

    Args:
        table: The table.
        mark: The mark before bold cells.
    """

    def __init__(self, table: TextTable, mark: str) -> None:
        places = range(len(table.columns))
        self.num = len(places)
        self.is_word = [table.is_word(at) for at in places]
        self.num_first = next((at for at in places if not self.is_word[at]), self.num)  # columns that name a row
        self.headings = [cell_len(heading) for heading in table.columns]
        self.natural: list[int] = []
        self.whole: list[int] = []  # least widths with which no word is broken
        for at in places:
            heading = max(map(cell_len, table.columns[at].split()), default=0)
            lengths = [min(heading, _HEADING), 1]
            for row, cells in enumerate(table.rows):
                marked = cell_len(mark) if table.is_bold(row, at) else 0
                lengths.append(marked + max(map(cell_len, cells[at].split("\n"))))
            self.natural.append(max(lengths))
            cells = " ".join(row[at] for row in table.rows).split()
            if self.is_word[at]:
                cells = [part for word in cells for part in _parts(word)]
            parts = [part for word in table.columns[at].split() for part in _parts(word)]
            longest = max(map(cell_len, [*cells, *parts]), default=0)
            self.whole.append(min(max(longest, _LEAST), _HEADING, self.natural[at]))

    def least(self, at: int, words: int) -> int:
        return min(self.natural[at], max(words, self.whole[at])) if self.is_word[at] else self.natural[at]

    def fitted(self, columns: Sequence[int], width: int) -> list[int]:
        """Return the widths of the columns of a block: their preferred ones as far as there is room. Prose is wrapped
        first, then other words, then numbers at their spaces; words and numbers are broken last."""
        room = width - len(columns) - 1  # a space before each column and one after the last
        found = {at: self.natural[at] for at in columns}
        words = [at for at in columns if self.is_word[at]]
        prose = [at for at in words if found[at] > _WORDS[0]]
        for giving, least in ((prose, _WORDS[1]), (words, 1), (columns, 1)):
            others = sum(found[at] for at in columns if at not in giving)
            floors = [min(found[at], max(least, self.whole[at])) for at in giving]
            if others + sum(floors) <= room:
                break
        else:
            found, floors = {at: self.whole[at] for at in columns}, [1] * len(columns)
        found |= dict(zip(giving, _shrunk([found[at] for at in giving], floors, room - others), strict=True))
        spare = room - sum(found.values())
        for at in columns:  # keep headings in one line if there is room
            more = self.headings[at] - found[at]
            if 0 < more <= spare:
                found[at], spare = self.headings[at], spare - more
        return [found[at] for at in columns]


def _shrunk(wanted: Sequence[int], floors: Sequence[int], room: int) -> list[int]:
    """Reduce widths until they fit into the room, the widest first; none becomes less than its floor."""
    limit = max(wanted, default=0) + 1
    found = [*wanted]
    while limit > 1 and sum(found) > room:
        limit -= 1
        found = [max(min(wide, limit), floor) for wide, floor in zip(wanted, floors, strict=True)]
    left = room - sum(found)  # less than the number of columns at the limit
    for at, wide in enumerate(wanted):
        if left > 0 and found[at] == limit < wide:
            found[at], left = limit + 1, left - 1
    return found


def _groups(widths: _Widths, width: int) -> list[list[int]]:
    """Return the columns of each block."""
    every = list(range(widths.num))
    for words in _WORDS:
        if sum(widths.least(at, words) + 1 for at in every) < width:
            return [every]
    first, rest = every[: widths.num_first], every[widths.num_first :]
    for words in _WORDS[1:]:
        taken = sum(widths.least(at, words) + 1 for at in first)
        if all(taken + widths.least(at, words) + 1 < width for at in rest):
            break
    found: list[list[int]] = []
    room = 0
    for at in rest:
        needed = widths.least(at, words) + 1
        if not found or needed >= room:
            found.append([*first])
            room = width - taken
        found[-1].append(at)
        room -= needed
    return found or [first]


def as_markdown(table: TextTable) -> str:
    """Return a table as GitHub Markdown, with its title and notes."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rules = [":--" if table.is_word(number) else "--:" for number in range(len(table.columns))]
    lines = [f"## {_markdown(table.title)}", "", line(map(_markdown, table.columns)), line(rules)]
    for place, row in enumerate(table.rows):
        cells = [
            f"**{_markdown(cell)}**" if table.is_bold(place, at) else _markdown(cell) for at, cell in enumerate(row)
        ]
        lines.append(line(cells))
    return "\n".join(lines + [f"\n{_markdown(note)}" for note in table.notes]) + "\n"


def as_latex(table: TextTable, label: str | None = None) -> str:
    """Return a floating table with the rules of booktabs, its title as caption, its notes below, and a label.

    A table wider than the page is scaled to its width. See `latex_file` for a file of several tables.

    Args:
        table: What to write.
        label: Its name for ``\\ref``; None for ``tab:`` and the title.
    """
    layout = "".join("l" if table.is_word(number) else "r" for number in range(len(table.columns)))
    rows = []
    for place, row in enumerate(table.rows):
        cells = [
            rf"\textbf{{{_latex(cell)}}}" if table.is_bold(place, at) else _latex(cell) for at, cell in enumerate(row)
        ]
        rows.append(_latex_row(cells))
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering",
            rf"\caption{{{_latex(table.title)}}}",
            rf"\label{{{label or _label(table)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{layout}}}",
            r"\toprule",
            _latex_row(map(_latex, table.columns)),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}}",
            *(rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {_latex(note)}}}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )


def latex_file(tables: Iterable[TextTable]) -> str:
    """Return a file of several tables with different labels, and a comment on the packages that they need."""
    taken: set[str] = set()
    texts = [as_latex(table, unused_name(_label(table), taken)) for table in tables]
    return "\n".join([r"% needs \usepackage{booktabs} and \usepackage{graphicx}", *texts])


def _label(table: TextTable) -> str:
    return f"tab:{re.sub(r'[^a-z0-9]+', '-', table.title.lower()).strip('-')}"


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _markdown(text: str) -> str:
    text = text.replace("\n", " ")
    if re.fullmatch(r"[\d\s.,\[\]+-]*", text):  # numbers and intervals need no escapes
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
    "\n": " ",
}


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in text)
    escaped = re.sub(r"(?<!\w)-(?=\d)", "$-$", escaped)
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped  # else an argument of the row end

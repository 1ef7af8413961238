"""Run the code of tutorials, one after another, and write what it prints into their pages.

    python docs/tutorials/run.py docs/tutorials/first_detector.md docs/tutorials/watch_the_experts.md

Run it in the project's folder, with first_detector.md before watch_the_experts.md, which uses its run. A cell is a
block of ``python`` or ``sh``; a block with a title is written to a file of that name. The block ``text`` after a cell
has its output.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

CELL = re.compile(
    r'^```(?P<language>python|sh|yaml)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```\n'
    r"(?:\n```text\n(?P<output>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)


class Cell(NamedTuple):
    """A block of code of a page.

    Attributes:
        language: ``python`` or ``sh``; for a file also ``yaml``.
        title: the name of the file that the block is written to; None for code that is run.
        code: the lines of the block.
        output: the output on the page; None if there is none.
        start: position on the page where the block begins.
        end: position on the page where the block and its output end.
    """

    language: str
    title: str | None
    code: str
    output: str | None
    start: int
    end: int


def cells(page: str) -> Iterator[Cell]:
    """The cells of a page, in order."""
    for found in CELL.finditer(page):
        if found["language"] != "yaml" or found["title"]:
            yield Cell(**found.groupdict(), start=found.start(), end=found.end())


def run(page: str, shell: Callable[[str], str]) -> Iterator[tuple[Cell, str]]:
    """Run the cells of a page in the current folder, and yield each with what it printed.

    Args:
        page: text of the page, in Markdown.
        shell: runs the lines of a cell ``sh``, and returns what they print.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells(page):
        if cell.title is not None:
            Path(cell.title).write_text(cell.code, encoding="utf-8")
            yield cell, ""
        elif cell.language == "sh":
            yield cell, shell(cell.code)
        else:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(cell.code, names)
            yield cell, printed.getvalue()


def with_outputs(page: str, shell: Callable[[str], str]) -> str:
    """Return the page with what its cells print now."""
    parts, end = [], 0
    for cell, printed in run(page, shell):
        language = cell.language if cell.title is None else f'{cell.language} title="{cell.title}"'
        lines = "".join(f"{line.rstrip()}\n" for line in printed.strip("\n").splitlines())
        output = f"\n```text\n{lines}```\n" if lines else ""
        parts += [page[end : cell.start], f"```{language}\n{cell.code}```\n{output}"]
        end = cell.end
    return "".join([*parts, page[end:]])


def _bash(code: str) -> str:
    wide = os.environ | {"COLUMNS": "100"}  # as the pages are, whatever the terminal
    return subprocess.run(["bash", "-ec", code], check=True, stdout=subprocess.PIPE, text=True, env=wide).stdout


if __name__ == "__main__":
    sys.path[0] = ""  # modules of the current folder, as in a notebook
    for path in map(Path, sys.argv[1:]):
        path.write_text(with_outputs(path.read_text(encoding="utf-8"), _bash), encoding="utf-8")

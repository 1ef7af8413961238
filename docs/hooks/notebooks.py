"""Generates notebooks of the tutorials for download: blocks of code become cells, everything else becomes text."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

FOLDER = "tutorials"
_spec = importlib.util.spec_from_file_location("run", Path(__file__).parents[1] / FOLDER / "run.py")
_runner = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_runner)


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Generate a notebook beside each tutorial."""
    for path in sorted(Path(config.docs_dir, FOLDER).glob("*.md")):
        if path.name != "index.md":
            text = path.read_text(encoding="utf-8")
            files.append(File.generated(config, f"{FOLDER}/{path.stem}.ipynb", content=json.dumps(notebook(text))))


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Begin a tutorial with the link to its notebook."""
    path = Path(page.file.src_uri)
    if path.parent.name != FOLDER or path.name == "index.md":
        return markdown
    title, _, rest = markdown.partition("\n")
    return f"{title}\n\n[As a notebook]({path.stem}.ipynb)\n{rest}"


def notebook(text: str) -> dict:
    """A notebook (nbformat 4.5) of a page in Markdown; the output that the page shows below a block is the cell's."""
    cells, end = [], 0
    for cell in _runner.cells(text):
        cells += _prose(text[end : cell.start])
        outputs = [{"output_type": "stream", "name": "stdout", "text": cell.output}] if cell.output else []
        source = f"{_magic(cell)}{cell.code}".rstrip("\n")
        cells.append({"cell_type": "code", "source": source, "outputs": outputs, "execution_count": None})
        end = cell.end
    cells += _prose(text[end:])
    numbered = [{"id": f"cell-{number}", "metadata": {}} | cell for number, cell in enumerate(cells)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": numbered}


def _magic(cell: Any) -> str:
    if cell.title is not None:
        return f"%%writefile {cell.title}\n"
    return "%%bash\n" if cell.language == "sh" else ""


def _prose(text: str) -> list[dict]:
    return [{"cell_type": "markdown", "source": text.strip()}] if text.strip() else []

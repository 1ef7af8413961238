"""Generates the table of all corpus classes, from the classes themselves, in place of ``{{ corpora }}`` on a page."""

from mkdocs.structure.pages import Page

from moelora_ad.cli.corpus import listed_corpora

MARK = "{{ corpora }}"


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Replace the mark on a page by the table."""
    if MARK not in markdown:
        return markdown
    rows = ["| Class | What it reads | Arguments | Trials in the official lists |", "|---|---|---|---|"]
    for row in listed_corpora():
        name = row["class_path"].rpartition(".")[2]
        what, trials = (row[key].replace("|", "\\|").replace("\n", "<br>") for key in ("what", "trials"))
        rows.append(f"| `{name}` | {what} | `{row['init_args']}` | {trials} |")
    return markdown.replace(MARK, "\n".join(rows))

"""The table of all corpus classes, from the classes themselves: ``{{ corpora }}`` on a page."""

from mkdocs.structure.pages import Page

from moelora_ad.cli.corpus import listed_corpora

MARK = "{{ corpora }}"


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Put the table in the place of its mark."""
    if MARK not in markdown:
        return markdown
    rows = ["| Class | What it reads | Arguments | Trials in the official lists |", "|---|---|---|---|"]
    for row in listed_corpora():
        name = row["class_path"].rpartition(".")[2]
        what, trials = (row[key].replace("|", "\\|").replace("\n", "<br>") for key in ("what", "trials"))
        rows.append(f"| `{name}` | {what} | `{row['init_args']}` | {trials} |")
    return markdown.replace(MARK, "\n".join(rows))

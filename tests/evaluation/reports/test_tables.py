"""Tables for people and programs have the same figures, and no name breaks them."""

import csv
import io
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from moelora_ad.errors import printable
from moelora_ad.evaluation import ScoreTable
from moelora_ad.evaluation.metrics.options import FigureOptions
from moelora_ad.evaluation.reports.evaluating import evaluate_files, summarise_runs
from moelora_ad.evaluation.reports.results import Results
from moelora_ad.evaluation.reports.rows import FIGURE_ROW, as_csv, as_json, figure_rows
from moelora_ad.evaluation.reports.tables import group_tables, rounded, sets_table, tables
from moelora_ad.evaluation.reports.text_table import TextTable, as_latex, as_markdown, as_rich, blocks, latex_file
from moelora_ad.evaluation.score_files.paths import ScoreFile


@pytest.fixture(scope="module")
def results(make_scores: Callable[..., ScoreTable]) -> Results:
    options = FigureOptions(resamples=20, threshold=0.5)
    names = {"In": ("A|1", "A_2", "50% & $x"), "Out": ("B1", "B2")}
    found = {
        ScoreFile(Path(f"{name}.csv"), name, ""): make_scores(number, name, attacks=attacks)
        for number, (name, attacks) in enumerate(names.items())
    }
    files = evaluate_files(found, options)
    return Results(files, summarise_runs(files, ["In"], options), options={"seed": 1}, notes=("a note",))


def test_csv_and_json_have_every_figure_at_full_precision(results: Results) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(figure_rows(results), FIGURE_ROW))))
    from_json = json.loads(as_json(results))
    assert from_json["notes"] == ["a note"]
    assert len(rows) == len(from_json["figures"]) == 2 + 5 + 4 + 3
    for row, figures in zip(rows, from_json["figures"], strict=True):
        assert {name: str(value) for name, value in figures.items() if value != ""} == {
            k: v for k, v in row.items() if v
        }
    for file in results.files:
        accuracy = ((file.table.scores >= 0.5) == (file.table.labels == 1)).mean()
        (row,) = [row for row in rows if (row["set"], row["part"]) == (file.set_name, "all")]
        assert float(row["accuracy"]) == pytest.approx(accuracy, abs=1e-12)
        assert float(row["threshold"]) == 0.5


def test_markdown_keeps_names_within_their_cells(results: Results) -> None:
    (attacks,) = [table for table in tables(results) if table.title == "Attacks of In"]
    lines = as_markdown(attacks).splitlines()
    cells = [line.replace("\\|", "").count("|") for line in lines if line.startswith("|")]
    assert set(cells) == {len(attacks.columns) + 1}
    assert any(line.startswith("| A\\|1 |") for line in lines)


def test_latex_is_escaped_and_has_whole_rows(results: Results) -> None:
    text = "\n".join(map(as_latex, tables(results)))
    assert r"50\% \& \$x & " in text
    assert r"A\_2 & " in text
    for row in text.splitlines():
        if row.endswith(r"\\"):
            assert row.replace(r"\&", "").count("&") >= 5
    bracket = as_latex(TextTable("t", ("a", "b"), [("x", "1"), ("[y]", "2"), ("*", "3")]))
    assert "\n{}[y] & 2" in bracket  # LaTeX would read a bracket after a row's end as an argument
    assert "\n{}* & 3" in bracket


def test_the_terminal_has_rows_for_sets_averages_and_pool(results: Results) -> None:
    console = Console(width=120, file=io.StringIO(), force_terminal=False)
    brief = sets_table(results, brief=True)
    console.print(as_rich(brief))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert [row[0] for row in brief.rows] == ["In", "Out", "macro_ood", "macro_all", "pooled"]
    for row in brief.rows:
        assert all(cell in printed for cell in row)
    assert set(brief.notes) == {"macro_all: mean of In, Out", "macro_ood: mean of Out"}


def test_long_lists_are_cut_and_say_so(results: Results) -> None:
    table = group_tables(results.files[0], most=2)["attacks"]
    eers = [float(row[3].split()[0]) for row in table.rows[:2]]
    assert eers == sorted(eers, reverse=True)
    assert table.rows[2][0] == "… and 1 more in figures.csv"
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_figures_are_rounded_for_people() -> None:
    assert rounded("eer", 0.123456) == "12.35"
    assert rounded("min_dcf", 0.123456) == "0.1235"
    assert rounded("cllr", None) == ""


@given(st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_any_name_can_stand_in_any_table(names: list[str]) -> None:
    table = TextTable("t", ("name", "number"), [(printable(name), "1.0") for name in names])
    rows = as_markdown(table).split("\n")[2:-1]
    assert len(rows) == len(names) + 2
    assert all(printable(name).isprintable() for name in names)
    latex = as_latex(table).split("\n")
    assert len([line for line in latex if line.endswith(r"\\")]) == len(names) + 1
    console = Console(width=200, file=io.StringIO())
    console.print(as_rich(table))
    assert console.file.getvalue().count("1.0") >= len(names)  # type: ignore[attr-defined]
    rows_of_csv = [{"set": name, "eer": 0.1} for name in names]
    read = list(csv.DictReader(io.StringIO(as_csv(rows_of_csv, ("set", "eer")))))
    assert [row["set"] for row in read] == [printable(name) for name in names]


CELLS = st.text("abcdefgh123456789._/-", max_size=30)


@st.composite
def text_tables(draw: st.DrawFn) -> TextTable:
    number = draw(st.integers(1, 6))
    row = st.lists(CELLS, min_size=number, max_size=number)
    rows = draw(st.lists(row, max_size=4))
    words = draw(st.one_of(st.integers(0, 2), st.sets(st.integers(0, number - 1))))
    places = st.tuples(st.integers(0, max(len(rows) - 1, 0)), st.integers(0, number - 1))
    return TextTable("title", draw(row), rows, words, bold=draw(st.sets(places)))


@given(text_tables(), st.integers(16, 120))
@example(  # two stars, which need a block more than on a terminal
    TextTable("", [""] * 6, [["", "11", "1111", "", "", ""], ["11111", *[""] * 5]], {0}, bold={(0, 1), (0, 2)}), 16
)
def test_on_any_terminal_a_table_is_narrow_enough_and_whole(table: TextTable, width: int) -> None:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(as_rich(table))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in printed.splitlines())
    # Every cell occurs once; cells of the first columns occur once in each block.
    num_blocks = printed.count("\n ─") or sum(1 for _ in as_rich(table).__rich_console__(console, console.options))
    first = next((at for at in range(len(table.columns)) if not table.is_word(at)), len(table.columns))
    expected = Counter(table.title)
    for number, row in enumerate([table.columns, *table.rows], -1):
        for at, cell in enumerate(row):
            is_bold = number >= 0 and table.is_bold(number, at)
            times = num_blocks if at < first else 1
            expected.update({c: times * n for c, n in Counter(("*" if is_bold else "") + cell).items()})
    found = Counter(re.sub(r"[\s─]", "", printed))
    assert {c: n for c, n in found.items() if c != "*"} == {c: n for c, n in expected.items() if c != "*" and n}
    assert found["*"] >= bool(expected["*"])


def test_numbers_are_not_broken_and_blocks_repeat_the_first_column() -> None:
    columns = ("system", *(f"set{number}" for number in range(6)))
    table = TextTable("t", columns, [("a_name", *["12.34 ± 5.67"] * 6), ("b", *["1.00 ± 0.10"] * 6)])
    for width, num_blocks in ((120, 1), (80, 2), (40, 3)):
        console = Console(width=width, file=io.StringIO())
        console.print(as_rich(table))
        printed = console.file.getvalue()  # type: ignore[attr-defined]
        assert printed.count("12.34 ± 5.67") == 6
        assert printed.count("a_name") == blocks(table, width) == num_blocks


def test_a_long_name_is_broken_behind_its_own_separators() -> None:
    table = TextTable("t", ("system", "mean [95 %]"), [("moe_lora_load_balance", "34.5 [12.90, 44.59]")] * 2)
    console = Console(width=36, file=io.StringIO())
    console.print(as_rich(table))
    lines = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert [line[0] for line in lines if line and line[0][0].isalpha()][2:] == ["moe_lora_load_", "balance"] * 2


@pytest.mark.parametrize("width", [40, 50, 60, 80])
def test_whole_words_are_kept_where_the_terminal_has_room(width: int) -> None:
    scores = [("in_domain", "EER %", "12.34", "-11.11 [-12.00, -10.00]"), ("out", "minDCF", "0.1", "-0.1 [-0.2, -0.1]")]
    sites = [(f"layers.2.self_attn.{name}", "1", "0.333", "0.50") for name in ("k_proj", "out_proj")]
    for table in (
        TextTable("t", ("set", "figure", "a/scores/epoch01_last", "difference [95 %]"), scores, 2),
        TextTable("t", ("site", "expert", "mean gate", "top-1 share"), sites, 2),
    ):
        console = Console(width=width, file=io.StringIO())
        console.print(as_rich(table))
        printed = set(console.file.getvalue().split())  # type: ignore[attr-defined]
        parts = {part for line in (table.columns, *table.rows) for text in line for part in re.split(r"[\s._/-]", text)}
        ends = {part for text in printed for part in re.split(r"[._/-]", text)}
        assert parts <= ends


def test_latex_tables_have_caption_label_and_rules_and_no_label_twice(results: Results) -> None:
    listed = tables(results)
    text = latex_file([*listed, listed[0]])
    assert text.startswith(r"% needs \usepackage{booktabs} and \usepackage{graphicx}")
    labels = re.findall(r"\\label\{(.*?)\}", text)
    assert len(labels) == len(set(labels)) == len(listed) + 1
    assert labels[0] == "tab:sets"
    for rule in ("toprule", "midrule", "bottomrule", "caption{", "begin{table}", "end{table}", "end{tabular}"):
        assert text.count(f"\\{rule}") == len(listed) + 1
    assert "hline" not in text
    assert r"$-$1.5 [$-$2, +0.5]" in as_latex(TextTable("t", ("a-1", "b"), [("e3-r8", "-1.5 [-2, +0.5]")]))
    assert "e3-r8" in as_latex(TextTable("t", ("a-1", "b"), [("e3-r8", "-1.5 [-2, +0.5]")]))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(results: Results, tmp_path: Path) -> None:
    odd = TextTable("_ & % $ # { } ~ ^ \\ < >", ("a", "b_"), [("[x] ± …", "*"), ("* y", "-1")], notes=["100 % & more_"])
    preamble = r"\documentclass{article}\usepackage{booktabs}\usepackage{graphicx}\begin{document}"
    (tmp_path / "a.tex").write_text(f"{preamble}\n{latex_file([*tables(results), odd])}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2_000:]
    assert "Overfull" not in done.stdout

"""The command analyze around its analyses: files, help and errors."""

import csv
import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from moelora_ad.analysis import Report
from moelora_ad.analysis.reports.report import decimals
from moelora_ad.cli import analyze as analyze_command
from moelora_ad.evaluation.reports.text_table import TextTable


def made(**changes) -> Report:
    fields = {
        "name": "count",
        "finding": "there are 2",
        "tables": [TextTable("Counted", ("what", "number"), [("experts", "2")])],
        "rows": [{"what": "a", "value": np.float64(1 / 3)}, {"what": "b", "more": 2}],
        "data": {"array": np.array([1.0, np.nan]), "nested": {"inf": [float("inf")], "count": np.int64(3)}},
        "figures": {"empty": Figure},
        "notes": ["by eye"],
    }
    return Report(**(fields | changes))


@pytest.fixture
def analysis(monkeypatch):
    """A function that puts an analysis of a test's own in the place of routing."""

    def use(run) -> None:
        ours = analyze_command.Analysis("what it tells", lambda parser: None, run)
        monkeypatch.setitem(analyze_command.ANALYSES, "routing", ours)

    return use


def test_an_analysis_is_printed_and_written(analysis, run_verb, tmp_path):
    analysis(lambda given: made())
    code, printed, err = run_verb(analyze_command, "routing", "--to", tmp_path)
    assert (code, err) == (0, "")
    assert [word for word in ("Counted", "experts", "note: by eye", "there are 2") if word not in printed] == []
    content = json.loads((tmp_path / "count.json").read_text())
    assert content == {
        "analysis": "count",
        "finding": "there are 2",
        "notes": ["by eye"],
        "array": [1.0, None],
        "nested": {"inf": [None], "count": 3},
        "rows": [{"what": "a", "value": 1 / 3}, {"what": "b", "more": 2}],
    }
    with (tmp_path / "count.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"what": "a", "value": repr(1 / 3), "more": ""}, {"what": "b", "value": "", "more": "2"}]
    assert "| experts | 2 |" in (tmp_path / "count.md").read_text()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"count.json", "count.csv", "count.md", "count-empty.png", "count-empty.svg"}


def test_what_was_found_is_shown_even_if_it_cannot_be_written(analysis, run_verb, tmp_path):
    (tmp_path / "file").write_text("")
    analysis(lambda given: made())
    code, printed, err = run_verb(analyze_command, "routing", "--to", tmp_path / "file" / "inside")
    assert code == 1
    assert "there are 2" in printed
    assert "cannot be written: Not a directory" in err


def test_an_interrupted_analysis(analysis, run_verb):
    def interrupt(given):
        raise KeyboardInterrupt

    analysis(interrupt)
    code, _, err = run_verb(analyze_command, "routing")
    assert (code, err) == (130, "moelora-ad analyze: interrupted\n")


def test_zero_has_no_sign():
    values = (-1e-9, np.float64(-0.00004), -0.00006, 0.00006, -2.0)
    assert [decimals(value, 4) for value in values] == ["0.0000", "0.0000", "-0.0001", "0.0001", "-2.0000"]


def test_help_names_every_analysis(run_verb):
    for arguments in ((), ("--help",)):
        code, printed, _ = run_verb(analyze_command, *arguments)
        assert code == 0
        assert all(name in printed for name in analyze_command.ANALYSES)
    for name in analyze_command.ANALYSES:
        code, printed, _ = run_verb(analyze_command, name, "--help")
        assert code == 0
        assert "--to DIR" in printed
        if analyze_command.ANALYSES[name].reads_audio:  # in every precision that score and serve compute in
            assert "--precision {32-true,16-mixed,bf16-mixed,16-true,bf16-true,bf16,tf32}" in " ".join(printed.split())


def test_too_little_memory_is_told_in_a_line(analysis, run_verb):
    def full(given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    analysis(full)
    code, printed, err = run_verb(analyze_command, "routing")
    assert (code, printed) == (1, "")
    assert "cpu has too little memory: give a smaller --batch-size" in err

    def wrong(given):
        raise RuntimeError("shapes do not match")

    analysis(wrong)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run_verb(analyze_command, "routing")

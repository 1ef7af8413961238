"""The HTML report: complete, self-contained, and safe whatever names the files contain."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from moelora_ad.evaluation import ScoreTable
from moelora_ad.evaluation.metrics.calibration import Calibration
from moelora_ad.evaluation.metrics.intervals import Difference, Interval
from moelora_ad.evaluation.metrics.options import FigureOptions
from moelora_ad.evaluation.reports.evaluating import conclusion, evaluate_files, summarise_runs
from moelora_ad.evaluation.reports.plots import INK, LINES
from moelora_ad.evaluation.reports.report import NamedPlot, number_of_plots, plots, report_page
from moelora_ad.evaluation.reports.results import Results, SetComparison, Uncalibrated
from moelora_ad.evaluation.score_files.paths import ScoreFile

_EVIL = '<script>alert("x")</script>{{ 7 * 191 }}'
_VOID = ("meta", "br", "hr", "img", "input", "link")


class Page(HTMLParser):
    """Parses a page, whose tags must balance, and keeps its tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def results(make_scores: Callable[..., ScoreTable]) -> Results:
    """Results with every part that a page can have, and names that try to break it."""
    options = FigureOptions(resamples=20, calibrated=True)
    found = {
        ScoreFile(Path(f"{name}.csv"), name, run): make_scores(number, name, attacks=(_EVIL, "A2", f"url(#{INK}"))
        for number, (name, run) in enumerate((s, r) for s in ("In", f"Out {_EVIL}") for r in ("seed1", _EVIL))
    }
    files = evaluate_files(found, options, raw=found)
    tables = (files[0].table, files[1].table)
    difference = Difference(0.1, 0.2, -0.1, Interval(-0.15, -0.05))
    comparison = SetComparison(_EVIL, {"eer": difference}, (conclusion(("A", _EVIL), difference),), tables)
    return Results(
        files=files,
        runs=summarise_runs(files, ["In"], options),
        comparisons=(comparison,),
        systems=("A", _EVIL),
        calibration=Calibration(1.5, -0.5, _EVIL, 10, 20),
        options={"resamples": 20, "seed": 1, "calibrated": True, "key": _EVIL},
        notes=(f"a note on {_EVIL}",),
    )


@pytest.fixture(scope="module")
def drawn(results: Results) -> list[NamedPlot]:
    return plots(results)


@pytest.fixture(scope="module")
def page(results: Results, drawn: list[NamedPlot]) -> str:
    return report_page(results, drawn)


def test_the_page_is_whole(page: str) -> None:
    parsed = Page(page)
    assert page.startswith("<!DOCTYPE html>")
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        "Sets",
        "Over runs",
        "Errors against each other (DET)",
        "Distribution of scores",
        "Attacks",
        "Codecs",
        "Calibration",
        "Comparison",
        "Where the figures come from",
        "How to read this",
    ]
    # DET of all sets and of the pair; histogram, attacks and codecs of each set's first run.
    assert parsed.tags.count("svg") == 2 + 2 + 2 + 2


def test_nothing_is_loaded_and_nothing_runs(page: str) -> None:
    parsed = Page(page)
    assert "http://" not in page
    assert "https://" not in page
    assert "script" not in parsed.tags
    assert not any(name in ("src", "srcset", "onload", "onclick") for name, _ in parsed.attributes)
    assert all((value or "").startswith("#") for name, value in parsed.attributes if name.endswith("href"))
    assert not re.search(r"@import|url\((?!#)", re.sub(r">[^<]*<", "><", page))


def test_names_are_text(page: str) -> None:
    text = "".join(Page(page).text)
    assert text.count(_EVIL) > 10
    assert "1337" not in text


def test_ids_are_unique_and_every_reference_has_its_target(page: str) -> None:
    ids = [value for name, value in Page(page).attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 20
    tags = re.findall(r"<[^>]*>", page)
    used = {name for tag in tags for name in re.findall(r'(?:url\(|href=")#([^)"]*)', tag)}
    assert used
    assert used <= set(ids)


def test_every_colour_of_a_plot_is_the_pages_own(page: str) -> None:
    styles = " ".join(re.findall(r'style="([^"]*)"', page.partition("</style>")[2]))
    assert not re.search(r"#[0-9a-f]{6}", styles)
    for name in set(re.findall(r"var\(--([\w-]+)\)", page)):
        assert f"--{name}:" in page


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("number", [0, 1])
def test_text_has_contrast_in_light_and_dark(page: str, number: int) -> None:
    """WCAG 2.1 demands a contrast of 4.5 for text and of 3 for the lines of a plot."""
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", re.findall(r":root \{(.*?)\}", page, re.DOTALL)[number]))

    def contrast(one: str, other: str) -> float:
        light, dark = sorted((_luminance(colours[one]), _luminance(colours[other])), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    for text in ("ink", "muted", "accent"):
        for ground in ("paper", "panel", "warn"):
            assert contrast(text, ground) >= 4.5
    for line in range(1, len(LINES) + 1):
        assert contrast(f"line-{line}", "paper") >= 3


def test_plots_have_files_of_their_own(results: Results, drawn: list[NamedPlot]) -> None:
    stems = [plot.stem for plot in drawn]
    assert len({stem.lower() for stem in stems}) == len(stems) == number_of_plots(results)
    assert all(re.fullmatch(r"[\w.-]+", stem, re.ASCII) for stem in stems)


def test_cards_show_averages_with_their_sets(make_scores: Callable[..., ScoreTable]) -> None:
    options = FigureOptions(resamples=20)
    found = {ScoreFile(Path(name), name, ""): make_scores(number, name) for number, name in enumerate(("In", "Out"))}
    files = evaluate_files(found, options)
    runs = summarise_runs(files, ["In"], options)
    page = report_page(Results(files, runs), [])
    cards = re.findall(r'<div class="card"><span class="name">(.*?)</span><b>(.*?)</b>(.*?)</div>', page)
    own, out = (file.evaluation.overall.eer for file in files)
    assert cards[0] == ("EER, macro_ood", f"{100 * out:.2f} %", "<span>mean of Out</span>")
    assert cards[1] == ("EER, macro_all", f"{50 * (own + out):.2f} %", "<span>mean of In, Out</span>")
    interval = runs[""].pooled.overall.intervals["eer"]
    assert f"95 % interval {100 * interval.low:.2f} to {100 * interval.high:.2f} %" in cards[2][2]
    without_own = summarise_runs(files, [], options)
    assert {average.name for average in without_own[""].averages} == {"macro_all"}


def test_provenance_and_calibration_are_shown(make_scores: Callable[..., ScoreTable], tmp_path: Path) -> None:
    (tmp_path / "In.json").write_text(json.dumps({"checkpoint": "<b>best</b>"}))
    options = FigureOptions(resamples=0, calibrated=True)
    found = {ScoreFile(tmp_path / "In.csv", "In", ""): make_scores(1, "In")}
    (file,) = evaluate_files(found, options, raw=found)
    assert isinstance(file.before, Uncalibrated)
    page = report_page(Results((file,), calibration=Calibration(2.0, -0.25, "dev.csv", 10, 20)), [])
    assert "&#34;checkpoint&#34;: &#34;&lt;b&gt;best&lt;/b&gt;&#34;" in page
    assert "2 · score - 0.25" in page
    assert f"<td>{file.before.cllr:.4f}</td>" in page


def test_conclusions_are_plain() -> None:
    better = Difference(0.05, 0.08, -0.03, Interval(-0.04, -0.02))
    assert conclusion(("A", "B"), better) == (
        "A is better than B: its EER is 3.00 points lower (95 % interval 2.00 to 4.00)."
    )
    worse = Difference(0.08, 0.05, 0.03, Interval(0.02, 0.04))
    assert conclusion(("A", "B"), worse) == (
        "B is better than A: its EER is 3.00 points lower (95 % interval 2.00 to 4.00)."
    )
    open_ended = Difference(0.08, 0.05, 0.03, Interval(-0.01, 0.04))
    assert conclusion(("A", "B"), open_ended) == (
        "no difference is shown between A and B (EER: 3.00 points, 95 % interval -1.00 to 4.00)."
    )

"""The command results: what it prints and writes, and what it refuses."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moelora_ad.cli.results import run
from moelora_ad.evaluation import ScoreTable
from moelora_ad.evaluation.comparison.scored_runs import read_runs
from moelora_ad.evaluation.comparison.systems import Comparison
from moelora_ad.evaluation.comparison.table_one import comparison_rows, table_one
from moelora_ad.evaluation.reports.text_table import as_latex, as_markdown
from moelora_ad.runs.record import find_records

Call = Callable[..., int]
MakeRun = Callable[..., Path]
PAPER_SETS = {
    "dev": "ASVspoof2019_LA",
    "la19": "ASVspoof2019_LA",
    "la21": "ASVspoof2021_LA",
    "df21": "ASVspoof2021_DF",
    "wild": "InTheWild",
    "video": "FakeAVCeleb_all",
    "v5": "ASVspoof5",
}
DENSE = {
    "model": {
        "backbone": {"class_path": "moelora_ad.models.Wav2Vec2Backbone", "init_args": {"source": "there/xlsr"}},
        "adaptation": {"class_path": "moelora_ad.adapters.MoELoRA", "init_args": {"num_experts": 3, "rank": 8}},
    }
}
OF_THE_PAPER = {
    "configuration": DENSE,
    "training_corpora": ["ASVspoof2019_LA"],
    "parameters": {"experts": 4_718_592, "gates": 589_824, "classifier": 447_242, "total": 321_194_378},
}


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> Call:
    def call(*arguments: object) -> int:
        try:
            return run(["results", *map(str, arguments)])
        except SystemExit as ended:
            return int(ended.code or 0)

    return call


def comparison_of(path: Path) -> Comparison:
    return Comparison(read_runs(find_records([path]))[0])


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def eer_of(folder: Path, name: str) -> float:
    return ScoreTable.read(folder / "scores/best" / f"{name}.csv").equal_error_rate().eer


def cells(text: str, name: str) -> list[str]:
    """The cells of one row of a Markdown table."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_form_has_the_means_of_the_score_files(
    results: Call, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    systems = ("lora", "moe")
    folders = {system: [make_run(system, seed) for seed in (1, 2, 3)] for system in systems}
    to = tmp_path / "to"
    assert results(tmp_path / "runs", "--to", to) == 0
    printed = capsys.readouterr().out
    rows = rows_of(to / "results.csv")
    markdown, latex = (to / "table.md").read_text(), (to / "table.tex").read_text()
    page = (to / "report.html").read_text()
    means = {}
    for system in systems:
        for name in ("dev", "in_domain", "out_of_domain"):
            eers = np.array([eer_of(folder, name) for folder in folders[system]])
            means[system, name] = (eers.mean(), eers.std(ddof=1))
            of_set = [row for row in rows if (row["system"], row["set"]) == (system, name)]
            runs = [row for row in of_set if row["statistic"] == "run"]
            assert [float(row["eer"]) for row in runs] == eers.tolist()  # in full precision
            assert [row["folder"] for row in runs] == [str(folder) for folder in folders[system]]
            assert [row["seed"] for row in runs] == ["1", "2", "3"]
            by_statistic = {row["statistic"]: float(row["eer"]) for row in of_set if row["statistic"] != "run"}
            assert by_statistic == {"mean": pytest.approx(eers.mean()), "std": pytest.approx(eers.std(ddof=1))}
            text = f"{100 * eers.mean():.2f} ± {100 * eers.std(ddof=1):.2f}"
            assert text in printed
            assert text in markdown
            assert text in page
            assert text.replace("±", r"$\pm$") in latex
        every = np.array([[eer_of(f, name) for name in ("in_domain", "out_of_domain")] for f in folders[system]])
        macro = every.mean(axis=1)
        (row,) = [r for r in rows if (r["system"], r["set"], r["statistic"]) == (system, "macro_all", "std")]
        assert float(row["eer"]) == pytest.approx(macro.std(ddof=1))
    first = [row for row in rows if row["statistic"] == "mean" and row["system"] == "lora"]
    assert {row["seconds"] for row in first} == {"200.0"}
    assert {row["peak_host_bytes"] for row in first} == {str(2**31)}
    assert {row["trained_parameters"] for row in first} == {"463626"}
    assert {row["set"]: row["in_domain"] for row in first} == {
        "dev": "",
        "in_domain": "True",
        "out_of_domain": "False",
        "macro_ood": "",
        "macro_all": "",
    }
    for text in (printed, markdown, page):
        assert "463,626" in text
        assert "0.46 M" in text
        assert "3 seeds of each system (1, 2, 3)" in text
        assert "arXiv" not in text.split("How to read")[0]  # no figures of the paper beside these sets
    content = json.loads((to / "results.json").read_text())
    assert [row["eer"] for row in content["rows"]] == [float(row["eer"]) for row in rows]
    assert content["systems"]["lora"]["cost"]["seconds"] == 200
    assert content["averages"] == {"macro_ood": ["out_of_domain"], "macro_all": ["in_domain", "out_of_domain"]}
    assert {path.name for path in to.iterdir()} == {
        *("results.csv", "results.json", "table.md", "table.tex", "report.html", "spread.png", "spread.svg"),
        *("attacks.csv", "attacks.json", "attacks.md", "attacks.tex"),
        *(f"attacks-{name}.{ending}" for name in ("in_domain", "out_of_domain") for ending in ("png", "svg")),
    }
    of_mean = {(row["system"], row["set"]): row for row in rows if row["statistic"] == "mean"}
    assert {row["num_seeds"] for row in of_mean.values()} == {"3"}
    # The best mean of each column is marked, except in the column of dev.
    for at, name in enumerate(("dev", "in_domain", "out_of_domain"), 3):
        best = min(systems, key=lambda system: means[system, name][0])
        for system in systems:
            is_marked = cells(markdown, system)[at].startswith("**")
            assert of_mean[system, name]["best"] == str(is_marked)
            assert is_marked == (name != "dev" and system == best), (system, name)
            mean, std = (100 * value for value in means[system, name])
            assert (rf"\textbf{{{mean:.2f} $\pm$ {std:.2f}}}" in latex) == is_marked
            assert (f"*{mean:.2f} ± {std:.2f}" in printed) == is_marked
            assert (f"<strong>{mean:.2f} ± {std:.2f}</strong>" in page) == is_marked


def test_latex_is_escaped_and_its_rows_have_one_width(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("lora_r8 & 50%", 1)
    latex = as_latex(table_one(comparison_of(tmp_path)))
    assert r"lora\_r8 \& 50\%" in latex
    assert r"\caption{EER \%, one seed each}" in latex
    assert r"\label{tab:eer-one-seed-each}" in latex
    start, end = latex.index(r"\begin{tabular}"), latex.index(r"\end{tabular}")
    body = latex[start:end].splitlines()
    assert (body[1], body[3], body[-1]) == (r"\toprule", r"\midrule", r"\bottomrule")
    columns = len(re.findall("[lr]", body[0].split("}{")[1]))
    for line in body:
        if line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) == columns - 1
        assert "_" not in re.sub(r"\\_", "", line)


def test_published_figures_stand_where_they_belong(
    results: Call, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2):
        make_run("ours", seed, sets=PAPER_SETS, **OF_THE_PAPER)
        make_run("other", seed, sets=PAPER_SETS, training_corpora=["ASVspoof2019_LA"])
    assert results(tmp_path / "runs") == 0
    comparison = comparison_of(tmp_path)
    markdown = as_markdown(table_one(comparison))
    heading = cells(markdown, "system")
    row = dict(zip(heading, cells(markdown, "published: MoE-LoRA 3 x r8 dense"), strict=True))
    assert row["trained parameters"] == "5.76 M"
    expected = {"dev": "", "la19": "?", "la21": "?", "df21": "?", "wild": "1.77", "video": "?", "v5": "18.81"}
    assert {name: row[name] for name in PAPER_SETS} == expected
    assert (row["macro\\_ood"], row["macro\\_all"], row["seeds"]) == ("6.08", "", "?")
    lines = [line.split(" | ")[0] for line in markdown.splitlines() if line.startswith("| ")]
    assert lines[2:] == ["| other", "| ours", "| published: MoE-LoRA 3 x r8 dense"]
    assert "arXiv 2509.13878" in capsys.readouterr().out
    published = [row for row in comparison_rows(comparison) if row["statistic"] == "published"]
    found = {(row["system"], row["set"]): row["eer"] for row in published}
    assert found == {("ours", "wild"): 0.0177, ("ours", "v5"): 0.1881, ("ours", "macro_ood"): 0.0608}


def test_published_mean_needs_the_same_sets(make_run: MakeRun, tmp_path: Path) -> None:
    sets = {name: corpus for name, corpus in PAPER_SETS.items() if name != "df21"}
    make_run("ours", 1, sets=sets, **OF_THE_PAPER)
    markdown = as_markdown(table_one(comparison_of(tmp_path)))
    row = dict(zip(cells(markdown, "system"), cells(markdown, "published: MoE-LoRA 3 x r8 dense"), strict=True))
    assert (row["wild"], row["macro\\_ood"]) == ("1.77", "")


def test_the_papers_system_on_other_sets_has_no_published_row(
    results: Call, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("ours", 1, **OF_THE_PAPER)
    assert results(tmp_path / "runs", "--to", tmp_path / "to") == 0
    for text in (capsys.readouterr().out, (tmp_path / "to/report.html").read_text()):
        assert "published" not in text


def test_one_seed_has_no_spread(
    results: Call, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run("lora", 4)
    assert results(folder) == 0
    printed = capsys.readouterr().out
    assert "One seed of each system" in printed
    assert f"{100 * eer_of(folder, 'out_of_domain'):.2f}" in printed
    assert "±" not in printed
    assert not any(row["statistic"] == "std" for row in comparison_rows(comparison_of(folder)))


def test_own_sets_can_be_chosen(results: Call, make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert results(make_run("lora", 1), "--own", "out_of_domain") == 0
    assert "macro_ood: mean of the sets that are not of the training corpus, seed by seed: in_domain\n" in (
        capsys.readouterr().out
    )


def test_pairs_are_printed_and_written(
    results: Call, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {(system, seed): make_run(system, seed) for system in ("a", "b") for seed in (1, 2, 3)}
    make_run("c", 9)
    to = tmp_path / "to"
    assert results(tmp_path / "runs", "--compare", "a", "b", "--resamples", 50, "--to", to) == 0
    printed = capsys.readouterr().out
    eers = np.array([[eer_of(folders[s, seed], "out_of_domain") for seed in (1, 2, 3)] for s in ("a", "b")])
    apart = eers[0] - eers[1]
    (row,) = [row for row in rows_of(to / "pairs.csv") if row["set"] == "out_of_domain"]
    assert (row["system_1"], row["system_2"], row["seeds_1"], row["seeds_2"]) == ("a", "b", "1 2 3", "1 2 3")
    assert float(row["difference"]) == pytest.approx(apart.mean(), abs=1e-12)
    assert float(row["variance_of_one_seed"]) == pytest.approx(apart.var(ddof=1))
    low, high = float(row["low"]), float(row["high"])
    assert low < apart.mean() < high
    texts = (printed, (to / "table.md").read_text(), (to / "report.html").read_text())
    for text in texts:
        assert f"{100 * apart.mean():+.2f} [{100 * low:+.2f}," in text
        assert "A = a, B = b: EER over seeds and trials" in text
        assert "3 seeds, paired: 1, 2, 3" in text
        assert "Holm over 2 tests on sets and, separately, 2 tests on averages" in text
    content = json.loads((to / "results.json").read_text())["pairs"]
    assert [one["set"] for one in content["rows"]] == ["in_domain", "out_of_domain", "macro_ood", "macro_all"]
    (out,) = [one for one in content["rows"] if one["set"] == "out_of_domain"]
    assert [out["low"], out["high"], content["resamples"]] == [low, high, 50]
    assert "a, B = b" in (to / "table.tex").read_text()
    # With --against b, every other system is compared with b, however they are named.
    assert results(tmp_path / "runs", "--against", "b", "--resamples", 50) == 0
    printed = capsys.readouterr().out
    assert [line.rstrip() for line in printed.splitlines() if line.startswith("A = ")] == [
        "A = a, B = b: EER over seeds and trials",
        "A = c, B = b: EER over seeds and trials",
    ]
    assert "not paired, as fewer than two seeds are in common: A 9; B 1, 2, 3" in printed
    assert "of a system with one seed the interval does not cover other seeds" in printed
    assert "Holm over 4 tests on sets" in printed


def test_nothing_of_an_earlier_call_stays_beside_its_results(results: Call, make_run: MakeRun, tmp_path: Path) -> None:
    """What a call writes into the folder of another one is what it writes into a new folder."""
    first = [make_run(system, 1, sets={"in_domain": "MiniLA"}) for system in ("a", "b")]
    other, of_one_attack = (make_run(system, 1, sets={"elsewhere": "MiniLA"}) for system in ("c", "d"))
    path = of_one_attack / "scores/best/elsewhere.csv"
    path.write_text(path.read_text().replace("A2", "A1"))
    to = tmp_path / "to"
    assert results(*first, "--compare", "a", "b", "--resamples", 20, "--to", to) == 0
    assert {"pairs.csv", "attack_pairs.csv", "attacks-in_domain.svg"} <= {path.name for path in to.iterdir()}
    (to / "attacks-mine.svg").write_text("by hand, without the PNG that we write beside it")
    for runs, has_attacks in ((other, True), (of_one_attack, False)):
        new = tmp_path / f"new_{runs.parent.name}"
        assert results(runs, "--to", to) == results(runs, "--to", new) == 0
        names = {path.name for path in new.iterdir()}
        assert ("attacks.csv" in names) == has_attacks
        assert {path.name for path in to.iterdir()} == names | {"attacks-mine.svg"}


def test_unfinished_runs_are_told(
    results: Call, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("lora", 1)
    make_run("moe", 1, state="failed", reason="out of memory")
    assert results(tmp_path / "runs", "--to", tmp_path / "to") == 0
    words = "moe, seed 1) is left out: it has failed: out of memory"
    assert words in capsys.readouterr().out
    assert words in (tmp_path / "to/report.html").read_text()
    assert words in (tmp_path / "to/results.json").read_text()


def test_names_from_files_do_nothing_on_a_page(results: Call, make_run: MakeRun, tmp_path: Path) -> None:
    make_run("x", 1, sets={"<b>set": "<i>corpus"}, system="<script>alert(1)</script>\u001b[31m")
    assert results(tmp_path / "runs", "--to", tmp_path / "to") == 0
    page = (tmp_path / "to/report.html").read_text()
    assert "<script" not in page
    assert "<b>set" not in page
    assert "\u001b" not in page
    # The page loads nothing from elsewhere; the colour scale of a heatmap is an image within the page.
    assert not re.search(r"(?:src|href)=\"(?!#|data:image/png;base64,)", page)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "RUNS"),
        (("nowhere",), "nowhere: no such folder"),
        (("runs", "--own", "elsewhere"), "--own: no set is named 'elsewhere'; there are dev, in_domain"),
        (("runs", "--against", "moe"), "--against: no system is named 'moe'; there are lora"),
        (("runs", "--against", "lora"), "--against: there is no system other than 'lora'"),
        (("runs", "--compare", "lora"), "--compare: name at least two systems"),
        (("runs", "--compare", "lora", "moe"), "--compare: no system is named 'moe'; there are lora"),
        (("runs", "--compare", "a", "b", "--resamples", "19"), "--resamples: 19 is too few for an interval; give 20"),
        (("runs", "--compare", "a", "b", "--resamples", "0"), "--resamples: 0 is too few to compare systems"),
        (("runs", "--cluster", "voice"), "--cluster: no field 'voice'"),
        (("runs", "--to", "file"), "--to: file is not a folder"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    results: Call,
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    make_run("lora", 1)
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    assert results(*arguments) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.startswith("moelora-ad results: error: ")
    assert told.count("\n") == 1


def test_faulty_runs_are_one_line(
    results: Call, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run("lora", 1)
    (folder / "scores/best/dev.csv").write_text("utterance,score\nx,1\n")
    assert results(folder) == 1
    assert "dev.csv" in capsys.readouterr().err
    (folder / "run.json").write_text("{")
    assert results(folder) == 1
    told = capsys.readouterr().err
    assert told.startswith("moelora-ad results: error: ")
    assert told.count("\n") == 1


def test_a_full_disk_still_shows_the_figures(
    results: Call, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run("lora", 1)
    (tmp_path / "to/table.md").mkdir(parents=True)  # a file cannot be written there
    assert results(folder, "--to", tmp_path / "to") == 1
    told = capsys.readouterr()
    assert "lora" in told.out
    assert "cannot be written" in told.err

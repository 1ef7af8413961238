"""Tables of systems by attacks: EERs, means and intervals against other implementations, output, and refused runs."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_curve

from moelora_ad.cli.results import run
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable
from moelora_ad.evaluation.comparison.attack_plot import attack_plot
from moelora_ad.evaluation.comparison.attack_tables import matrix_table
from moelora_ad.evaluation.comparison.attacks import AttackMatrix, AttackRun, attack_matrices, over_attacks
from moelora_ad.evaluation.comparison.scored_runs import read_runs
from moelora_ad.evaluation.comparison.systems import Comparison
from moelora_ad.runs.record import find_records

MakeRun = Callable[..., Path]


def eer_of(folder: Path) -> float:
    return ScoreTable.read(folder / "scores/best/held_out.csv").equal_error_rate().eer


def matrices_of(*folders: Path) -> dict[str, AttackMatrix]:
    """The attack matrix of each set, with the matrix of held-out attacks among them."""
    return {matrix.set_name: matrix for matrix in attack_matrices(Comparison(read_runs(find_records(folders))[0]))}


def matrix_of(*folders: Path) -> AttackMatrix:
    matrix = matrices_of(*folders)["held_out"]
    assert matrix.held_out
    return matrix


def by_sklearn(path: Path, attack: str) -> float:
    """EER of a file's bona fide trials against one attack, where scikit-learn's two error rates are closest."""
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] == "bonafide" or row["attack"] == attack]
    labels, scores = [row["label"] == "bonafide" for row in rows], [float(row["score"]) for row in rows]
    false_alarm, hit, _ = roc_curve(labels, scores, drop_intermediate=False)
    at = np.argmin(abs(false_alarm - (1 - hit)))
    return float((false_alarm[at] + 1 - hit[at]) / 2)


def test_the_mean_is_over_attacks_each_by_the_mean_of_its_seeds():
    eers = [[0.1, 0.2], [0.3], [0.2, 0.3, 0.4]]
    found = over_attacks(eers)
    means = [0.15, 0.3, 0.3]
    assert found.mean == pytest.approx(0.25)
    assert found.interval == pytest.approx(tuple(stats.ttest_1samp(means, 0).confidence_interval(0.95)))
    assert found.seed_std == pytest.approx(np.sqrt((0.05**2 * 2 + 0.1**2 * 2) / (1 + 2)))  # degrees of freedom 1, 0, 2
    assert found.num_attacks == 3


def test_an_interval_is_of_rates_and_of_several_attacks():
    assert over_attacks([[0.0], [0.4]]).interval == (0.0, 1.0)
    assert over_attacks([[0.1, 0.3]]) == (0.2, None, pytest.approx(np.sqrt(0.02)), 1)
    assert over_attacks([[0.1], [0.3]]).seed_std is None


def test_the_interval_covers_the_mean_of_all_attacks():
    """With 6 attacks and 3 seeds of each, coverage is 95 % within three standard errors of 2,000 draws."""
    draw = np.random.default_rng(1)
    attacks = draw.normal(0.3, 0.04, (2_000, 6, 1))
    eers = attacks + draw.normal(0.0, 0.03, (2_000, 6, 3))
    intervals = [over_attacks(one).interval for one in eers]
    covered = np.mean([low <= 0.3 <= high for low, high in intervals])
    assert abs(covered - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 2_000)


def test_a_matrix_of_score_files(held_out: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = {
        (system, attack, seed): held_out(system, attack, seed)
        for system in ("lora", "moe")
        for attack in ("A01", "A02")
        for seed in (1, 2)
    }
    eers = {key: eer_of(folder) for key, folder in folders.items()}
    to = tmp_path / "to"
    assert run(["results", str(tmp_path / "runs"), "--to", str(to)]) == 0
    printed = capsys.readouterr().out
    assert "EER % on the held-out attack" in printed
    assert "selected on different trials" not in printed  # expected: each held-out attack has its own trials
    means = {
        (system, attack): np.mean([eers[system, attack, seed] for seed in (1, 2)]) for system, attack, _ in folders
    }
    over_a01_and_a02 = np.mean([means["moe", "A01"], means["moe", "A02"]])
    (row,) = [words for line in printed.splitlines() if (words := line.split())[:1] == ["moe"]]
    figures = [f"{100 * one:.2f}" for one in (means["moe", "A01"], means["moe", "A02"], over_a01_and_a02)]
    assert [cell.removeprefix("*") for cell in row[1:4]] == figures

    with open(to / "attacks.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["set"] == "held_out"]
    of_runs = {(r["system"], r["attack"], int(r["seed"])): float(r["eer"]) for r in rows if r["statistic"] == "run"}
    assert of_runs == eers
    assert {(r["system"], r["attack"]): float(r["eer"]) for r in rows if r["statistic"] == "mean"} == pytest.approx(
        means
    )
    stds = {(r["system"], r["attack"]): float(r["eer"]) for r in rows if r["statistic"] == "std"}
    assert stds == pytest.approx(
        {key: np.std([eers[(*key, seed)] for seed in (1, 2)], ddof=1) for key in means}, abs=1e-12
    )
    (over,) = [r for r in rows if r["system"] == "lora" and r["statistic"] == "mean_over_attacks"]
    low, high = stats.ttest_1samp([means["lora", "A01"], means["lora", "A02"]], 0).confidence_interval(0.95)
    assert (float(over["eer_low"]), float(over["eer_high"])) == pytest.approx((max(low, 0), min(high, 1)))
    pooled = np.sqrt(np.mean([stds["lora", "A01"] ** 2, stds["lora", "A02"] ** 2]))
    assert float(over["seed_std"]) == pytest.approx(pooled)
    assert [one["set"] for one in json.loads((to / "attacks.json").read_text())["matrices"]] == [
        *("out_of_domain", "held_out")
    ]
    content = json.loads((to / "attacks.json").read_text())["matrices"][1]
    assert (content["systems"], content["attacks"]) == (["lora", "moe"], ["A01", "A02"])
    assert len(content["rows"]) == len(rows)
    for name in ("attacks.md", "attacks.tex", "report.html"):
        text = (to / name).read_text()
        assert f"{100 * means['lora', 'A02']:.2f}" in text
        assert "Student's t" in text or "Student&#39;s t" in text
    assert (to / "attacks-held_out.png").read_bytes().startswith(b"\x89PNG")
    svg = (to / "attacks-held_out.svg").read_text()
    assert all(f">{100 * mean:.2f}<" in svg for mean in means.values())


def test_averages_over_sets_leave_the_held_out_set_out(
    held_out: MakeRun, make_run: MakeRun, tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    held_out("lora", "A01", 1)
    held_out("lora", "A02", 1)
    make_run("lora", 1)  # a run without a held-out attack
    assert run(["results", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert ["lora-without_A01", "463,626"] in [line[:2] for line in lines]
    (heading,) = [line for line in lines if line[:2] == ["system", "trained"]]
    assert "held_out" not in heading
    # One row in each of four tables: systems, held-out attacks, and the attacks of the two sets.
    assert len([line for line in lines if line[:1] == ["lora"]]) == 4


def test_a_matrix_with_gaps(held_out: MakeRun):
    folders = [held_out("a", "A01", 1), held_out("a", "A02", 1), held_out("b", "A02", 1)]
    matrix = matrix_of(*folders)
    table = matrix_table(matrix)
    of_b = f"{100 * eer_of(folders[2]):.2f}"
    assert tuple(table.rows[1]) == ("b", "", of_b, of_b)
    assert "A figure is the mean over 1 seed." in table.notes[1]
    assert "Not in the mean, as not every system was trained without: A01" in table.notes
    attack_plot(matrix)
    apart = matrix_of(folders[0], folders[2])
    assert apart.common == ()
    assert [row[-1] for row in matrix_table(apart).rows] == ["", ""]
    attack_plot(apart)


def test_what_does_not_compare(held_out: MakeRun, make_run: MakeRun):
    first = held_out("lora", "A01", 1)
    same = held_out("lora", "A01", 1, name="lora")  # run by hand, under the system's own name
    with pytest.raises(InputError, match="are both system 'lora' without A01 with seed 1: name one of them"):
        matrix_of(first, same)
    other = held_out("moe", "A01", 1)
    about = other / "scores/best/held_out.json"
    about.write_text(about.read_text().replace("MiniLA 60A01", "MiniLA 60 of others"))
    with pytest.raises(InputError, match="have other trials of the held-out attack A01"):
        matrix_of(first, other)
    assert "held_out" not in matrices_of(make_run("lora", 3))


def test_each_attack_of_a_test_set(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = {(system, seed): make_run(system, seed, num=240) for system in ("lora", "moe") for seed in (1, 2, 3)}
    to = tmp_path / "to"
    assert run(["results", str(tmp_path / "runs"), "--to", str(to)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("Student's t over these means") == 1  # a note that holds for all tables is printed once
    with open(to / "attacks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["set"] for row in rows} == {"in_domain", "out_of_domain"}  # not dev: it selects checkpoints
    content = {one["set"]: one for one in json.loads((to / "attacks.json").read_text())["matrices"]}
    page, markdown, latex = ((to / name).read_text() for name in ("report.html", "attacks.md", "attacks.tex"))
    for name in ("in_domain", "out_of_domain"):
        eers = {
            (system, attack): [
                by_sklearn(folders[system, seed] / f"scores/best/{name}.csv", attack) for seed in (1, 2, 3)
            ]
            for system in ("lora", "moe")
            for attack in ("A1", "A2")
        }
        of_set = [row for row in rows if row["set"] == name]
        of_runs = {(r["system"], r["attack"], int(r["seed"])): r for r in of_set if r["statistic"] == "run"}
        assert {key: float(row["eer"]) for key, row in of_runs.items()} == pytest.approx(
            {(*key, seed): eer for key, found in eers.items() for seed, eer in enumerate(found, 1)}
        )
        assert {(row["num_bona_fide"], row["num_spoof"]) for row in of_runs.values()} == {("80", "80")}
        means = {(r["system"], r["attack"]): float(r["eer"]) for r in of_set if r["statistic"] == "mean"}
        assert means == pytest.approx({key: np.mean(found) for key, found in eers.items()})
        for system in ("lora", "moe"):
            of_attacks = [np.mean(eers[system, attack]) for attack in ("A1", "A2")]
            low, high = stats.ttest_1samp(of_attacks, 0).confidence_interval(0.95)
            (over,) = [r for r in of_set if r["system"] == system and r["statistic"] == "mean_over_attacks"]
            assert float(over["eer"]) == pytest.approx(np.mean(of_attacks))
            assert (float(over["eer_low"]), float(over["eer_high"])) == pytest.approx((max(low, 0), min(high, 1)))
            shown = f"{100 * np.mean(of_attacks):.2f} [{100 * max(low, 0):.2f}, {100 * min(high, 1):.2f}]"
            assert shown in printed
            assert shown in markdown
            assert shown in latex
            assert shown.replace(", ", ",\u00a0") in page or f"<strong>{shown}</strong>" in page
        title = f"EER % on each attack of {name}"
        assert title in printed
        assert title in page
        assert len(content[name]["rows"]) == len(of_set)
        assert (to / f"attacks-{name}.png").read_bytes().startswith(b"\x89PNG")
        svg = (to / f"attacks-{name}.svg").read_text()
        assert all(f">{100 * mean:.2f}<" in svg for mean in means.values())


def test_a_set_of_one_attack_has_no_matrix_and_spoofs_without_a_name_are_counted(make_run: MakeRun):
    folder = make_run("lora", 1, num=90)
    in_domain, out_of_domain = (folder / f"scores/best/{name}.csv" for name in ("in_domain", "out_of_domain"))
    in_domain.write_text(in_domain.read_text().replace(",A2,", ",A1,"))
    lines = out_of_domain.read_text().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if ",A2," in line)
    lines[first] = lines[first].replace(",A2,", ",,")
    out_of_domain.write_text("".join(lines))
    (matrix,) = matrices_of(folder).values()
    assert (matrix.set_name, matrix.attacks, matrix.num_unnamed) == ("out_of_domain", ("A1", "A2"), 1)
    assert {one.attack: one.num_spoof for one in matrix.runs} == {"A1": 30, "A2": 29}
    assert {one.attack: one.eer for one in matrix.runs} == pytest.approx(
        {attack: by_sklearn(out_of_domain, attack) for attack in ("A1", "A2")}
    )
    assert "out_of_domain: 1 spoof without an attack's name" in matrix_table(matrix).notes


def test_a_hundred_attacks_are_all_on_the_heatmap_which_stays_as_wide_as_a_page():
    attacks = [f"Task1-team{number:02}" for number in range(100)]
    runs = [AttackRun("lora", attack, 1, Path(), n / 1000, 1, 1) for n, attack in enumerate(attacks)]
    svg = attack_plot(AttackMatrix("df21", runs)).svg
    assert all(f">{attack}<" in svg and f">{n / 10:.2f}<" in svg for n, attack in enumerate(attacks))
    assert ">4.95<" in svg  # the mean over attacks
    assert (found := re.search(r'viewBox="0 0 ([\d.]+) ', svg))
    assert float(found[1]) < 12 * 72  # 12 inches in points

"""Systems times held-out attacks: means and intervals by other means, what is printed and written, what is refused."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from moelora_ad.cli.results import run
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable
from moelora_ad.evaluation.comparison.attack_plot import attack_plot
from moelora_ad.evaluation.comparison.attack_tables import matrix_table
from moelora_ad.evaluation.comparison.attacks import AttackMatrix, attack_matrix, over_attacks
from moelora_ad.evaluation.comparison.scored_runs import read_runs
from moelora_ad.runs.record import find_records

MakeRun = Callable[..., Path]
SETS = {"dev": "MiniLA", "held_out": "MiniLA", "out_of_domain": "MiniOOD"}


def held_out(make_run: MakeRun, system: str, attack: str, seed: int, name: str | None = None, **changes) -> Path:
    """The folder of a run that held an attack out, as a sweep calls it."""
    configuration = {"seed_everything": seed, "data": {"seed": seed, "held_out_attack": attack}}
    name = name or f"{system}-without_{attack}"
    selections = {"train": f"without {attack}", "dev": f"without {attack}"}
    folder = make_run(name, seed, sets=SETS, configuration=configuration, selections=selections, **changes)
    for kind in ("held_out", "dev"):  # of every attack other trials
        path = folder / f"scores/best/{kind}.json"
        about = json.loads(path.read_text())
        about["corpus"]["trial_list_sha256"] += attack
        path.write_text(json.dumps(about))
    return folder


def eer_of(folder: Path) -> float:
    return ScoreTable.read(folder / "scores/best/held_out.csv").equal_error_rate().eer


def matrix_of(*folders: Path) -> AttackMatrix:
    matrix = attack_matrix(read_runs(find_records(folders))[0])
    assert matrix is not None
    return matrix


def test_the_mean_is_over_attacks_each_by_the_mean_of_its_seeds():
    eers = [[0.1, 0.2], [0.3], [0.2, 0.3, 0.4]]
    found = over_attacks(eers)
    means = [0.15, 0.3, 0.3]
    assert found.mean == pytest.approx(0.25)
    assert found.interval == pytest.approx(tuple(stats.ttest_1samp(means, 0).confidence_interval(0.95)))
    assert found.seed_std == pytest.approx(np.sqrt((0.05**2 * 2 + 0.1**2 * 2) / (1 + 2)))  # free: 1, 0 and 2
    assert found.num_attacks == 3


def test_an_interval_is_of_rates_and_of_several_attacks():
    assert over_attacks([[0.0], [0.4]]).interval == (0.0, 1.0)
    assert over_attacks([[0.1, 0.3]]) == (0.2, None, pytest.approx(np.sqrt(0.02)), 1)
    assert over_attacks([[0.1], [0.3]]).seed_std is None


def test_the_interval_covers_the_mean_of_all_attacks():
    """6 attacks of many, 3 seeds of each: 95 % within three standard errors of 2,000 draws."""
    draw = np.random.default_rng(1)
    attacks = draw.normal(0.3, 0.04, (2_000, 6, 1))
    eers = attacks + draw.normal(0.0, 0.03, (2_000, 6, 3))
    intervals = [over_attacks(one).interval for one in eers]
    covered = np.mean([low <= 0.3 <= high for low, high in intervals])
    assert abs(covered - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 2_000)


def test_a_matrix_of_score_files(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = {
        (system, attack, seed): held_out(make_run, system, attack, seed)
        for system in ("lora", "moe")
        for attack in ("A01", "A02")
        for seed in (1, 2)
    }
    eers = {key: eer_of(folder) for key, folder in folders.items()}
    to = tmp_path / "to"
    assert run(["results", str(tmp_path / "runs"), "--to", str(to)]) == 0
    printed = capsys.readouterr().out
    assert "EER % on the held-out attack" in printed
    assert "selected on different trials" not in printed  # of course
    means = {
        (system, attack): np.mean([eers[system, attack, seed] for seed in (1, 2)]) for system, attack, _ in folders
    }
    over_a01_and_a02 = np.mean([means["moe", "A01"], means["moe", "A02"]])
    (row,) = [words for line in printed.splitlines() if (words := line.split())[:1] == ["moe"]]
    figures = [f"{100 * one:.2f}" for one in (means["moe", "A01"], means["moe", "A02"], over_a01_and_a02)]
    assert [cell.removeprefix("*") for cell in row[1:4]] == figures

    with open(to / "attacks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
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
    content = json.loads((to / "attacks.json").read_text())
    assert (content["systems"], content["attacks"]) == (["lora", "moe"], ["A01", "A02"])
    assert len(content["rows"]) == len(rows)
    for name in ("attacks.md", "attacks.tex", "report.html"):
        text = (to / name).read_text()
        assert f"{100 * means['lora', 'A02']:.2f}" in text
        assert "Student's t" in text or "Student&#39;s t" in text
    assert (to / "attacks.png").read_bytes().startswith(b"\x89PNG")
    svg = (to / "attacks.svg").read_text()
    assert all(f">{100 * mean:.2f}<" in svg for mean in means.values())


def test_averages_over_sets_leave_the_held_out_set_out(make_run: MakeRun, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    held_out(make_run, "lora", "A01", 1)
    held_out(make_run, "lora", "A02", 1)
    make_run("lora", 1)  # an ordinary run beside them
    assert run(["results", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert ["lora-without_A01", "463,626"] in [line[:2] for line in lines]
    (heading,) = [line for line in lines if line[:2] == ["system", "trained"]]
    assert "held_out" not in heading
    assert len([line for line in lines if line[:1] == ["lora"]]) == 2  # of the matrix, and of the ordinary run


def test_a_matrix_with_gaps(make_run: MakeRun):
    folders = [held_out(make_run, "a", "A01", 1), held_out(make_run, "a", "A02", 1), held_out(make_run, "b", "A02", 1)]
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


def test_what_does_not_compare(make_run: MakeRun):
    first = held_out(make_run, "lora", "A01", 1)
    same = held_out(make_run, "lora", "A01", 1, name="lora")  # by hand, with the system's own name
    with pytest.raises(InputError, match="are both system 'lora' without A01 with seed 1: name one of them"):
        matrix_of(first, same)
    other = held_out(make_run, "moe", "A01", 1)
    about = other / "scores/best/held_out.json"
    about.write_text(about.read_text().replace("MiniLA 60A01", "MiniLA 60 of others"))
    with pytest.raises(InputError, match="have other trials of the held-out attack A01"):
        matrix_of(first, other)
    assert attack_matrix(read_runs(find_records([make_run("lora", 3)]))[0]) is None

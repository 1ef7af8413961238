"""Systems compared over attacks: a paired t test by scipy, what is written, and which systems do not compare."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from moelora_ad.cli.results import run
from moelora_ad.evaluation import ScoreTable
from moelora_ad.evaluation.comparison.attack_pairs import AttackDifference, compare_over_attacks
from moelora_ad.evaluation.comparison.attacks import AttackMatrix, AttackRun

MakeRun = Callable[..., Path]


def test_differences_over_attacks_are_a_paired_t_test():
    eers = {"a": [0.10, 0.22, 0.35, 0.31], "b": [0.12, 0.30, 0.36, 0.44], "c": [0.11, 0.21, 0.40, 0.30]}
    runs = [
        AttackRun(system, f"A{number}", seed, Path(), eer + shift, 1, 1)
        for system, values in eers.items()
        for number, eer in enumerate(values)
        for seed, shift in ((1, 0.02), (2, -0.02))  # the mean over seeds is that above
        if (system, number) != ("c", 3)
    ]
    matrix = AttackMatrix("held_out", runs, held_out=True)
    ((_, found),) = compare_over_attacks([matrix], [("a", "b"), ("a", "c"), ("b", "d")])
    tests = [stats.ttest_rel(eers["a"][:num], eers[other][:num]) for other, num in (("b", 4), ("c", 3))]
    assert [one.pair for one in found] == [("a", "b"), ("a", "c")]
    assert [one.p_value for one in found] == pytest.approx([test.pvalue for test in tests])
    for one, test in zip(found, tests, strict=True):
        assert one.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
    # Holm's method for two tests: twice the smaller p value, and at least that for the other.
    small, large = sorted(test.pvalue for test in tests)
    assert sorted(one.corrected for one in found) == pytest.approx([2 * small, max(2 * small, large)])


def crossed(differences: np.ndarray) -> AttackDifference:
    """The comparison of two systems whose EERs differ by (attacks, seeds) on a set."""
    runs = [
        AttackRun(system, f"A{attack}", seed, Path(), 0.3 + (value if system == "a" else 0.0), 1, 1)
        for (attack, seed), value in np.ndenumerate(differences)
        for system in ("a", "b")
    ]
    ((_, (found,)),) = compare_over_attacks([AttackMatrix("in_domain", runs)], [("a", "b")])
    return found


def test_seeds_on_all_attacks_add_their_own_variance():
    differences = np.array([[0.01, 0.03], [0.02, 0.06], [-0.01, 0.01]])
    found = crossed(differences)
    over_attacks, over_seeds = differences.mean(1).var(ddof=1) / 3, differences.mean(0).var(ddof=1) / 2
    df = (over_attacks + over_seeds) ** 2 / (over_attacks**2 / 2 + over_seeds**2 / 1)  # Satterthwaite
    test = stats.t(df, loc=0.02, scale=np.sqrt(over_attacks + over_seeds))
    assert found.mean == pytest.approx(0.02)
    assert found.interval == pytest.approx(test.interval(0.95))
    assert found.p_value == pytest.approx(2 * test.cdf(0.0))


def test_the_interval_covers_the_difference_over_all_attacks_and_seeds():
    """6 attacks and 5 seeds on all of them: 95 % or a little more, even if seeds matter more than attacks."""
    draw = np.random.default_rng(1)
    for of_attack, of_seed in ((0.02, 0.005), (0.005, 0.02)):
        attacks, seeds = draw.normal(0, of_attack, (500, 6, 1)), draw.normal(0, of_seed, (500, 1, 5))
        drawn = 0.01 + attacks + seeds + draw.normal(0, 0.005, (500, 6, 5))
        intervals = [crossed(one).interval for one in drawn]
        covered = np.mean([low <= 0.01 <= high for low, high in intervals])
        assert 0.95 - 3 * np.sqrt(0.95 * 0.05 / 500) < covered <= 0.99


def test_one_attack_or_equal_differences_show_nothing():
    for by_attack in ({"A01": 0.1}, {"A01": 0.0, "A02": 0.0}, {"A01": 0.1, "A02": 0.1}):
        one = AttackDifference(("a", "b"), by_attack)
        assert (one.interval, one.p_value) == (None, None)


def test_systems_compared_over_held_out_attacks(held_out: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = {(system, attack): held_out(system, attack, 1) for system in ("lora", "moe") for attack in ("A1", "A2")}
    eers = {
        key: ScoreTable.read(folder / "scores/best/held_out.csv").equal_error_rate().eer
        for key, folder in folders.items()
    }
    runs, to = str(tmp_path / "runs"), tmp_path / "to"
    assert run(["results", runs, "--compare", "lora", "moe", "--to", str(to)]) == 0
    printed = capsys.readouterr().out
    assert "A - B in points of EER, on the held-out attack" in printed
    by_attack = [eers["lora", attack] - eers["moe", attack] for attack in ("A1", "A2")]
    low, high = stats.ttest_1samp(by_attack, 0).confidence_interval(0.95)
    shown = f"{100 * np.mean(by_attack):+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
    with open(to / "attack_pairs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["difference"]) for row in rows] == pytest.approx([*by_attack, np.mean(by_attack)])
    assert (rows[-1]["attack"], float(rows[-1]["low"]), float(rows[-1]["high"])) == (
        "",
        *map(pytest.approx, (low, high)),
    )
    assert not (to / "pairs.csv").exists()  # over trials there is nothing to compare: no two systems hold out the same
    assert shown in (to / "table.md").read_text()
    assert f"{100 * np.mean(by_attack):+.2f}".strip("+-") in (to / "table.tex").read_text()
    assert "A - B in points of EER, on the held-out attack" in (to / "report.html").read_text()

    with pytest.raises(SystemExit):
        run(["results", runs, "--compare", "lora", "moe-without_A1"])
    assert "--compare: 'lora' has a held-out attack in each run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(["results", runs, "--against", "mo"])
    assert "--against: no system is named 'mo'; there are lora, moe, lora-without_A1," in capsys.readouterr().err
    assert run(["results", runs, "--against", "moe"]) == 0
    assert shown in " ".join(capsys.readouterr().out.split())


def test_systems_compared_over_the_attacks_of_a_set(make_run: MakeRun, tmp_path: Path):
    folders = {system: make_run(system, 1, num=240) for system in ("lora", "moe")}
    to = tmp_path / "to"
    assert run(["results", str(tmp_path / "runs"), "--against", "lora", "--resamples", "20", "--to", str(to)]) == 0
    with open(to / "attack_pairs.csv", newline="") as file:
        rows = {(row["set"], row["attack"]): float(row["difference"]) for row in csv.DictReader(file)}
    for name in ("in_domain", "out_of_domain"):
        for attack in ("A1", "A2"):
            moe, lora = (
                ScoreTable.read(folders[one] / f"scores/best/{name}.csv").attack_error_rates()[attack].eer
                for one in ("moe", "lora")
            )
            assert rows[name, attack] == pytest.approx(moe - lora)

"""The command evaluate: what it prints, what it writes, and what it refuses."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moelora_ad import evaluation
from moelora_ad.cli.main import main
from moelora_ad.evaluation import (
    ScoreCurve,
    ScoreTable,
    TandemCosts2019,
    TandemCosts2021,
    equal_error_rate,
    read_asv_error_rates,
)
from moelora_ad.evaluation.reports.rows import figure_rows

Evaluate = Callable[..., int]


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["moelora-ad", "evaluate", *map(str, arguments)])
        try:
            return main()
        except SystemExit as ended:
            return int(ended.code or 0)

    return call


@pytest.fixture
def runs(tmp_path: Path, make_scores: Callable[..., ScoreTable]) -> Path:
    """Three runs with two sets each, a development set, a list of failures and provenance."""
    for seed in (1, 2, 3):
        folder = tmp_path / f"runs/seed{seed}/scores"
        make_scores(seed, "In", shift=2.0).write(folder / "in_domain.csv")
        make_scores(seed + 10, "Out", shift=1.0).write(folder / "out_of_domain.csv")
        make_scores(seed + 20, "Dev", shift=2.0).write(folder / "dev.csv")
    folder = tmp_path / "runs/seed1/scores"
    (folder / "in_domain.failed.csv").write_text("utterance,reason\nx,broken\ny,broken\n")
    (folder / "in_domain.json").write_text('{"seed": 4711}')
    return tmp_path / "runs"


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_figures_are_those_of_the_scores_in_every_form(
    evaluate: Evaluate, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores, to = runs / "seed1/scores", tmp_path / "to"
    assert evaluate(scores, "--own", "in_domain", "--resamples", 20, "--to", to) == 0
    printed = capsys.readouterr().out
    rows = rows_of(to / "figures.csv")
    from_json = json.loads((to / "figures.json").read_text())
    markdown, latex = (to / "figures.md").read_text(), (to / "figures.tex").read_text()
    page = (to / "report.html").read_text()
    eers = {}
    for name in ("in_domain", "out_of_domain"):
        table = ScoreTable.read(scores / f"{name}.csv")
        eers[name], threshold = table.equal_error_rate()
        (row,) = [row for row in rows if (row["set"], row["part"]) == (name, "all")]
        assert (float(row["eer"]), float(row["eer_threshold"])) == (eers[name], threshold)
        assert float(row["eer_low"]) <= eers[name] <= float(row["eer_high"])
        (figures,) = [one for one in from_json["figures"] if (one["set"], one["part"]) == (name, "all")]
        assert figures["eer"] == eers[name]
        for text in (printed, markdown, latex, page):
            assert f"{100 * eers[name]:.2f} [" in text
        is_a1 = np.array([trial.attack == "A1" for trial in table.trials])
        kept = (table.labels == 1) | is_a1
        (attack,) = [r for r in rows if (r["set"], r["part"], r["group"]) == (name, "attack", "A1")]
        assert float(attack["eer"]) == equal_error_rate(table.scores[kept], table.labels[kept]).eer
    by_part = {row["part"]: row for row in rows if not row["set"]}
    assert float(by_part["macro_all"]["eer"]) == pytest.approx(sum(eers.values()) / 2, abs=1e-12)
    assert by_part["macro_all"]["group"] == "in_domain + out_of_domain"
    assert (float(by_part["macro_ood"]["eer"]), by_part["macro_ood"]["group"]) == (
        eers["out_of_domain"],
        "out_of_domain",
    )
    assert "macro_ood: mean of out_of_domain" in printed
    assert "dev is left out" in printed
    assert "2 trials could not be scored (in_domain.failed.csv)" in printed
    assert "4711" in page
    stems = {path.stem for path in to.iterdir() if path.suffix in (".png", ".svg")}
    assert stems >= {"det", "scores-in_domain", "attacks-out_of_domain", "codecs-in_domain"}
    assert all((to / f"{stem}.png").read_bytes()[:4] == b"\x89PNG" for stem in stems)


def test_neither_the_development_set_nor_a_held_out_attack_is_averaged(
    evaluate: Evaluate, runs: Path, tmp_path: Path, make_scores: Callable[..., ScoreTable], capsys
) -> None:
    scores, to = runs / "seed1/scores", tmp_path / "to"
    make_scores(40, "Out", shift=0.0).write(scores / "held_out.csv")
    of_run = {"set": "held_out", "set_of_run": True, "configuration": {"data": {"held_out_attack": "A04"}}}
    (scores / "held_out.json").write_text(json.dumps(of_run))
    names = ("in_domain", "out_of_domain", "held_out", "dev")
    files = [scores / f"{name}.csv" for name in names]
    eers = [ScoreTable.read(file).equal_error_rate().eer for file in files]

    def averages(rows: list[dict[str, Any]]) -> dict[str, tuple[str, float]]:
        chosen = [row for row in rows if row["part"].startswith("macro")]
        return {row["part"]: (row["group"], float(row["eer"])) for row in chosen}

    def by_default() -> dict[str, tuple[str, float]]:
        return averages(figure_rows(evaluation.evaluate(files, own=["in_domain"], resamples=0)))

    options = ("--own", "in_domain", "--resamples", 0)
    assert evaluate(*files, *options) == 0
    printed = capsys.readouterr().out
    assert "macro_ood: mean of out_of_domain" in printed
    assert "dev: models are selected on the development set: in no average unless --average names it" in printed
    assert "held_out: development's trials of the attack that its run held out: in no average" in printed
    assert by_default() == {
        "macro_all": ("in_domain + out_of_domain", pytest.approx(np.mean(eers[:2]))),
        "macro_ood": ("out_of_domain", eers[1]),
    }
    assert evaluate(*files, *options, "--to", to, "--average", *names) == 0
    assert averages(rows_of(to / "figures.csv"))["macro_all"] == (" + ".join(names), pytest.approx(np.mean(eers)))
    of_run["configuration"] = {"data": {"held_out_attack": None}}  # a test set of this name
    (scores / "held_out.json").write_text(json.dumps(of_run))
    assert by_default()["macro_ood"] == ("out_of_domain + held_out", pytest.approx(np.mean(eers[1:3])))


@pytest.mark.parametrize("name", ["macro_ood", "macro_all", "pooled"])
def test_a_set_with_the_name_of_an_average_is_refused(evaluate: Evaluate, runs: Path, capsys, name: str) -> None:
    """Over runs it would be summed up with the average."""
    files = [runs / f"seed1/scores/{one}_domain.csv" for one in ("in", "out_of")]
    assert evaluate(*files, "--names", f"{name},other", "--resamples", 0) == 2
    assert f"a set is named {name!r}, like an average: give other --names" in one_line(capsys)
    assert evaluate(files[0], "--names", name, "--resamples", 0) == 0  # alone, there is no average


def test_the_same_input_gives_the_same_bytes(evaluate: Evaluate, runs: Path, tmp_path: Path) -> None:
    for to in ("a", "b"):
        assert evaluate(runs / "seed1/scores/in_domain.csv", "--resamples", 20, "--to", tmp_path / to) == 0
    first = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert {"report.html", "det.svg", "det.png"} <= set(first)


def test_runs_are_summed_up(evaluate: Evaluate, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [runs / f"seed{seed}/scores/in_domain.csv" for seed in (1, 2, 3)]
    assert evaluate(*files, "--resamples", 0, "--to", tmp_path / "to") == 0
    eers = [ScoreTable.read(file).equal_error_rate().eer for file in files]
    rows = {(row["run"], row["part"]): row for row in rows_of(tmp_path / "to/figures.csv") if row["set"] == "in_domain"}
    assert [float(rows[f"seed{seed}", "all"]["eer"]) for seed in (1, 2, 3)] == eers
    assert float(rows["", "mean"]["eer"]) == pytest.approx(np.mean(eers), abs=1e-12)
    assert float(rows["", "std"]["eer"]) == pytest.approx(np.std(eers, ddof=1), abs=1e-12)
    assert (float(rows["", "best"]["eer"]), float(rows["", "worst"]["eer"])) == (min(eers), max(eers))
    assert float(rows["", "best"]["auc"]) == max(float(rows[f"seed{seed}", "all"]["auc"]) for seed in (1, 2, 3))
    assert f"{100 * np.mean(eers):.2f}" in capsys.readouterr().out.partition("Over runs")[2]


def test_two_systems_are_compared_on_the_same_trials(
    evaluate: Evaluate, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (runs / f"seed{seed}/scores" for seed in (1, 2))
    one_set = first / "in_domain.csv"
    assert evaluate(one_set, "--resamples", 0, "--to", tmp_path / "to") == 0  # its figures.csv does not stay
    assert (tmp_path / "to/figures.csv").exists()
    assert evaluate("--compare", first, second, "--resamples", 50, "--to", tmp_path / "to") == 0
    printed = capsys.readouterr().out
    rows = {(row["set"], row["figure"]): row for row in rows_of(tmp_path / "to/comparison.csv")}
    for name in ("in_domain", "out_of_domain"):
        one, other = (ScoreTable.read(folder / f"{name}.csv").equal_error_rate().eer for folder in (first, second))
        row = rows[name, "eer"]
        assert (row["system_1"], row["system_2"]) == ("seed1", "seed2")
        assert (float(row["value_1"]), float(row["value_2"])) == (one, other)
        assert float(row["difference"]) == pytest.approx(one - other, abs=1e-12)
        assert float(row["difference_low"]) <= float(row["difference_high"])
        assert f"{name}: " in printed
    assert "clusters" not in printed
    assert not (tmp_path / "to/figures.csv").exists()
    page = (tmp_path / "to/report.html").read_text()
    assert "seed1 against seed2" in page
    assert evaluate("--compare", first, second, "--resamples", 20, "--cluster", "codec") == 0
    printed = capsys.readouterr().out
    assert "in_domain; out_of_domain: all bona fide trials are in 2 clusters: intervals are rough" in printed


def test_a_system_is_no_better_than_itself(evaluate: Evaluate, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = runs / "seed1/scores/in_domain.csv"
    assert evaluate("--compare", path, path, "--resamples", 50) == 0
    printed = capsys.readouterr().out
    assert "0.00 [0.00, 0.00]" in printed
    assert "no difference is shown between in_domain (first) and in_domain (second)" in printed


def test_a_clearly_better_system_is_called_better(
    evaluate: Evaluate, tmp_path: Path, make_scores: Callable[..., ScoreTable], capsys: pytest.CaptureFixture[str]
) -> None:
    make_scores(1, num=600, shift=4.0).write(tmp_path / "good.csv")
    make_scores(2, num=600, shift=0.5).write(tmp_path / "bad.csv")
    assert evaluate("--compare", tmp_path / "bad.csv", tmp_path / "good.csv", "--resamples", 100) == 0
    assert "good is better than bad: its EER is" in capsys.readouterr().out


def test_other_trials_are_not_compared(
    evaluate: Evaluate, tmp_path: Path, make_scores: Callable[..., ScoreTable], capsys: pytest.CaptureFixture[str]
) -> None:
    make_scores(1, num=60).write(tmp_path / "a.csv")
    make_scores(1, num=63).write(tmp_path / "b.csv")
    assert evaluate("--compare", tmp_path / "a.csv", tmp_path / "b.csv", "--to", tmp_path / "to") == 1
    assert one_line(capsys).startswith("moelora-ad evaluate: error: ")
    assert not (tmp_path / "to").exists()


def test_calibration_is_fitted_on_development_scores_and_reported(
    evaluate: Evaluate, runs: Path, tmp_path: Path
) -> None:
    scores = runs / "seed1/scores"
    # The scores are far too confident and have an offset: calibrated scores must cost less.
    for name in ("dev", "in_domain"):
        table = ScoreTable.read(scores / f"{name}.csv")
        ScoreTable(table.trials, 8 * table.scores + 3).write(tmp_path / f"{name}.csv")
    arguments = (tmp_path / "in_domain.csv", "--calibration", tmp_path / "dev.csv", "--resamples", 0)
    assert evaluate(*arguments, "--to", tmp_path / "to") == 0
    content = json.loads((tmp_path / "to/figures.json").read_text())
    (before,) = content["before_calibration"]
    raw = ScoreTable.read(tmp_path / "in_domain.csv")
    bona_fide, spoof = raw.scores[raw.labels == 1], raw.scores[raw.labels == 0]
    cllr = (np.logaddexp(0, -bona_fide).mean() + np.logaddexp(0, spoof).mean()) / (2 * np.log(2))
    assert before["cllr"] == pytest.approx(cllr, abs=1e-12)
    (after,) = [row for row in content["figures"] if row["part"] == "all"]
    assert after["cllr"] < before["cllr"]
    assert after["min_cllr"] <= after["cllr"]
    assert after["eer"] == raw.equal_error_rate().eer
    assert content["calibration"]["fitted_on"] == "dev.csv"
    assert "dev.csv" in (tmp_path / "to/report.html").read_text()


def test_a_set_is_never_calibrated_on_itself(
    evaluate: Evaluate, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = runs / "seed1/scores/in_domain.csv"
    assert evaluate(path, "--calibration", path, "--to", tmp_path / "to") == 1
    assert str(path) in one_line(capsys)
    assert not (tmp_path / "to").exists()


def test_a_calibration_of_another_model_is_refused(
    evaluate: Evaluate, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores, dev = runs / "seed1/scores/in_domain.csv", runs / "seed1/scores/dev.csv"

    def call(of_dev: dict[str, Any], of_scores: dict[str, Any]) -> int:
        for path, origin in ((dev, of_dev), (scores, of_scores)):
            path.with_suffix(".json").write_text(json.dumps({"origin": origin}))
        return evaluate(scores, "--calibration", dev, "--resamples", 0)

    one, other = ({"weights": weights, "precision": "32-true"} for weights in ("a", "b"))
    assert call(one, other) == 1
    assert f"{scores}: is of another model than {dev}: a calibration is for one model" in one_line(capsys)
    assert call(one, one) == 0
    # Weights that are rounded in another precision have another hash, and before there were hashes none was recorded.
    rounded = other | {"precision": "bf16-true"}
    assert call(one, rounded) == 0
    assert call(one, {}) == 0
    # Settings are recorded in every precision alike.
    top_1, top_2 = ({"settings": {"adaptation.top_k": top_k}} for top_k in (1, 2))
    assert call(one | top_1, rounded | top_1) == 0
    assert call(one | top_1, rounded | top_2) == 1


def test_scores_without_labels_need_a_key(
    evaluate: Evaluate,
    tmp_path: Path,
    make_scores: Callable[..., ScoreTable],
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = make_scores()
    table.write(tmp_path / "key.csv")
    lines = [f"{trial.utterance} {score!r}" for trial, score in zip(table.trials, table.scores.tolist(), strict=True)]
    (tmp_path / "scores.txt").write_text("\n".join(lines) + "\n")
    assert evaluate(tmp_path / "scores.txt") == 1
    assert "--key" in one_line(capsys)
    assert evaluate(tmp_path / "scores.txt", "--key", tmp_path / "key.csv", "--resamples", 0) == 0
    assert f"{100 * table.equal_error_rate().eer:.2f}" in capsys.readouterr().out
    (tmp_path / "scores.txt").write_text("\n".join(lines[:-5]) + "\n")
    assert evaluate(tmp_path / "scores.txt", "--key", tmp_path / "key.csv") == 1
    assert "5" in one_line(capsys)
    partial = ("--key", tmp_path / "key.csv", "--allow-partial", "--resamples", 0)
    assert evaluate(tmp_path / "scores.txt", *partial) == 0
    assert "the figures are of 115 trials only: 5 of the key without a score" in capsys.readouterr().out


def test_the_simplest_tables_and_the_keys_of_other_people(
    evaluate: Evaluate,
    tmp_path: Path,
    make_scores: Callable[..., ScoreTable],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = make_scores()
    labels, scores = table.labels.tolist(), list(map(repr, table.scores.tolist()))
    words = [("spoof", "bona-fide")[label] for label in labels]
    kinds = [
        ("RealVideo-FakeAudio", "B", "rtvc") if label == 0 else ("RealVideo-RealAudio", "A", "real") for label in labels
    ]
    rows = range(len(table))
    written = {
        "simple.csv": ["utterance,label,score", *(f"u{i},{words[i]},{scores[i]}" for i in rows)],
        "simple_semicolons.csv": ["utterance;label;score", *(f"u{i};{words[i]};{scores[i]}" for i in rows)],
        "simple_tabs.csv": ["utterance\tlabel\tscore", *(f"u{i}\t{words[i]}\t{scores[i]}" for i in rows)],
        "list.csv": ["path,label", *(f"calls/{i}.wav,{words[i]}" for i in rows)],
        "scored.csv": ["path,score,scale,notes,error", *(f"calls/{i}.wav,{scores[i]},log_odds,," for i in rows)],
        "scored.jsonl": [f'{{"path": "calls/{i}.wav", "score": {scores[i]}, "error": null}}' for i in rows],
        "meta.csv": ["file,speaker,label", *(f'{i}.wav,"Smith, J. {i % 5}",{words[i]}' for i in rows)],
        "with_ending.txt": [f"{i}.wav {scores[i]}" for i in rows],
        "without_ending.txt": [f"{i} {scores[i]}" for i in rows],
        "six.txt": [f"- {i}.wav - - - {words[i]}" for i in rows],
        "meta_data.csv": [
            "source,target1,target2,method,category,type,race,gender,filename,path",
            *(f"id,-,-,{m},{c},{t},x,y,{i}.mp4,FakeAVCeleb_v1.2/{t}/x/y/id" for i, (t, c, m) in enumerate(kinds)),
        ],
        "videos.txt": [f"FakeAVCeleb_v1.2/{kind[0]}/x/y/id/{i}.mp4 {scores[i]}" for i, kind in enumerate(kinds)],
    }
    for name, lines in written.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    (tmp_path / "elsewhere").mkdir()
    eer = f" {100 * table.equal_error_rate().eer:.2f} "
    for folder in (".", "elsewhere"):
        monkeypatch.chdir(tmp_path / folder)
        for given, key, told in (
            ("simple.csv", None, None),
            ("simple_semicolons.csv", None, None),
            ("simple_tabs.csv", None, None),
            ("scored.csv", "list.csv", "calls/0.wav to calls/0"),
            ("scored.jsonl", "list.csv", "calls/0.wav to calls/0"),
            ("with_ending.txt", "meta.csv", "0.wav to 0"),
            ("without_ending.txt", "meta.csv", None),
            ("with_ending.txt", "six.txt", None),
            ("without_ending.txt", "six.txt", "without the endings of their ids, one to one: 0 to 0.wav"),
            ("videos.txt", "meta_data.csv", "0.mp4 to RealVideo-RealAudio/x/y/id/0"),
        ):
            assert evaluate(tmp_path / given, *(["--key", tmp_path / key] if key else []), "--resamples", 0) == 0, given
            printed = capsys.readouterr().out
            assert eer in printed
            assert (f"{Path(given).stem}: {len(table)} scores matched to the key" in printed) == (told is not None)
            assert told is None or told in printed


def test_files_that_could_not_be_scored_are_told(
    evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scored.csv").write_text("path,score,error\na.wav,1,\nb.wav,-1,\nc.wav,,c.wav: no audio\n")
    (tmp_path / "list.csv").write_text("path,label\na.wav,real\nb.wav,fake\nc.wav,fake\n")
    arguments = (tmp_path / "scored.csv", "--key", tmp_path / "list.csv", "--resamples", 0)
    assert evaluate(*arguments) == 1
    line = one_line(capsys)
    assert "1 of 3 trials of the key without a score: c; give --allow-partial" in line
    assert line.endswith("1 trial could not be scored (column 'error'), in no figure")
    assert evaluate(*arguments, "--allow-partial") == 0
    assert "scored: 1 trial could not be scored (column 'error')" in capsys.readouterr().out


def test_what_is_in_no_known_format_says_how_to_name_one(
    evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("u1;0.5\nu2;1\n")
    assert evaluate(tmp_path / "a.csv") == 1
    assert "--format-in; the first line of a table names its columns" in one_line(capsys)


def test_a_run_is_enough(evaluate: Evaluate, make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run_folder = make_run("lora", 1)
    (run_folder / "metrics.csv").write_text("epoch,loss\n0,1.0\n")
    assert evaluate(run_folder, "--own", "in_domain", "--resamples", 0) == 0
    printed = capsys.readouterr().out
    for name in ("in_domain", "out_of_domain"):
        eer = ScoreTable.read(run_folder / "scores/best" / f"{name}.csv").equal_error_rate().eer
        assert f"{100 * eer:.2f}" in printed
    assert "the scores of its best checkpoint" in printed


def test_every_faulty_file_is_named_and_nothing_is_written(
    evaluate: Evaluate, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = ScoreTable.read(runs / "seed1/scores/in_domain.csv")
    (tmp_path / "empty.csv").write_text("")
    table.select(np.flatnonzero(table.labels == 1)).write(tmp_path / "one_class.csv")
    good = runs / "seed1/scores/in_domain.csv"
    assert evaluate(tmp_path / "empty.csv", good, tmp_path / "one_class.csv", "--to", tmp_path / "to") == 1
    first, second = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "empty.csv") in first
    assert str(tmp_path / "one_class.csv") in second
    assert not (tmp_path / "to").exists()


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "name score files"),
        (("nosuch.csv",), "nosuch.csv: no such file or folder"),
        (("S", "--own", "in_domian"), "no set is named 'in_domian'"),
        (("S", "--cluster", "speaker,attac"), "no field 'attac'"),
        (("S", "--names", "a"), "1 name for 2 score files"),
        (("S", "--resamples", "-1"), "-1 is too few"),
        (("--compare", "S", "S", "--resamples", "1"), "--resamples: 1 is too few for an interval; give 20 or more"),
        (("S", "--resamples", "many"), "many"),
        (("S", "--threshold", "nan"), "not finite"),
        (("S", "--tandem", "2019"), "--tandem needs --asv"),
        (("S", "--asv", "nosuch"), "--asv: no such file"),
        (("S", "--key", "nosuch"), "--key: no such file"),
        (("S", "--allow-partial"), "--allow-partial needs --key"),
        (("S", "--calibrated", "--calibration", "x"), "not allowed with"),
        (("S", "S"), "given more than once"),
        (("S", "--to", "S/in_domain.csv"), "is not a folder"),
        (("--compare", "S", "S/in_domain.csv"), "only one has out_of_domain"),
        (("--compare", "S"), "expected 2 arguments"),
        (("..",), "no score files"),
        (("S", "--format-in", "nosuch"), "invalid choice"),
    ],
)
def test_usage_errors(
    evaluate: Evaluate,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    told: str,
) -> None:
    monkeypatch.chdir(runs / "seed1")
    (runs / "seed1/S").symlink_to("scores")
    assert evaluate(*arguments) == 2
    line = one_line(capsys)
    assert line.startswith("moelora-ad evaluate: error: ")
    assert told in line


def test_control_characters_of_names_do_not_reach_the_terminal(
    evaluate: Evaluate, tmp_path: Path, make_scores: Callable[..., ScoreTable], capsys: pytest.CaptureFixture[str]
) -> None:
    make_scores(attacks=("\x1b[31mA1", "A2")).write(tmp_path / "\x1b[31mred.csv")
    assert evaluate(tmp_path / "\x1b[31mred.csv", "--resamples", 0, "--to", tmp_path / "to") == 0
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    for path in (tmp_path / "to").iterdir():
        if path.suffix != ".png":
            assert "\x1b" not in path.read_text(), path.name


def test_a_folder_that_cannot_be_written_is_one_line_after_the_table(
    evaluate: Evaluate, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert evaluate(runs / "seed1/scores/in_domain.csv", "--resamples", 0, "--to", tmp_path / "file/to") == 1
    printed = capsys.readouterr()
    assert "in_domain" in printed.out
    (line,) = printed.err.splitlines()
    assert "cannot be written: Not a directory" in line


def test_files_are_written_whoever_reads_the_table(runs: Path, tmp_path: Path) -> None:
    scores, to = runs / "seed1/scores/in_domain.csv", tmp_path / "to"
    command = [sys.executable, "-m", "moelora_ad", "evaluate", str(scores), "--resamples", "0", "--to", str(to)]
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does when it has read enough
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert (to / "report.html").exists()
    assert (to / "figures.json").exists()


def test_a_narrow_terminal_loses_no_figure(
    evaluate: Evaluate, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (runs / "seed1/scores", "--calibrated", "--threshold", 0, "--resamples", 20)
    assert evaluate(*arguments) == 0
    wide = capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "50")
    assert evaluate(*arguments) == 0
    narrow = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", capsys.readouterr().out)
    figures = re.findall(r"\d+\.\d+", wide)
    assert len(figures) > 20
    assert sorted(re.findall(r"\d+\.\d+", narrow)) == sorted(figures)  # columns without room are shown below
    assert max(map(len, narrow.splitlines()[:12])) <= 50


def test_an_interruption_is_told_in_one_line(
    evaluate: Evaluate, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moelora_ad.evaluation.reports.evaluate.evaluate_files", interrupted)
    assert evaluate(runs / "seed1/scores") == 130
    assert one_line(capsys) == "moelora-ad evaluate: interrupted"


def test_asv_scores_give_the_tandem_cost_of_the_year(
    evaluate: Evaluate, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(1)
    kinds = {"target": 3.0, "nontarget": -3.0, "spoof": 2.0}
    lines = [f"x {kind} {score!r}" for kind, mean in kinds.items() for score in draw.normal(mean, 1, 200).tolist()]
    (tmp_path / "asv.txt").write_text("\n".join(lines) + "\n")
    path = runs / "seed1/scores/in_domain.csv"
    rates, table = read_asv_error_rates(tmp_path / "asv.txt"), ScoreTable.read(path)
    for year, costs in (("2019", TandemCosts2019()), ("2021", TandemCosts2021())):
        options = ("--asv", tmp_path / "asv.txt", "--tandem", year, "--resamples", 0, "--to", tmp_path / year)
        assert evaluate(path, *options) == 0
        (row,) = [row for row in rows_of(tmp_path / year / "figures.csv") if row["part"] == "all"]
        expected = ScoreCurve(table.scores, table.labels).min_tdcf(rates, costs).cost
        assert float(row["min_tdcf"]) == expected
        assert f" {expected:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["hidden", "hidden_track"])
def test_asv_scores_of_the_hidden_phase(evaluate: Evaluate, runs: Path, tmp_path: Path, word: str) -> None:
    folder = tmp_path / "keys/LA/ASV/ASVTorch_Kaldi"
    folder.mkdir(parents=True)
    scores, keys = [], []
    for phase, shift in ((word, 0.0), ("eval", 1.0)):
        for kind, value in (("target", 3.0 + shift), ("nontarget", -3.0), ("spoof", 4.0 - 9 * shift)):
            utterance = f"LA_E_{len(keys)}"
            scores.append(f"LA_0001 {utterance} {value}\n")
            keys.append(f"LA_0001 {utterance} none loc_tx bonafide {kind} notrim {phase}\n")
    (folder / "score.txt").write_text("".join(scores))
    (folder.parent / "trial_metadata.txt").write_text("".join(keys))
    table = ScoreTable.read(runs / "seed1/scores/in_domain.csv")
    rates = read_asv_error_rates(folder / "score.txt", "hidden")
    expected = ScoreCurve(table.scores, table.labels).min_tdcf(rates, TandemCosts2021()).cost
    options = ("--asv", folder / "score.txt", "--phase", "hidden", "--resamples", 0, "--to", tmp_path / "to")
    assert evaluate(runs / "seed1/scores/in_domain.csv", *options) == 0
    (row,) = [row for row in rows_of(tmp_path / "to/figures.csv") if row["part"] == "all"]
    assert float(row["min_tdcf"]) == expected

"""Files and folders on the command line: sets, runs, and what is left out."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from moelora_ad.evaluation.provenance import provenance_of
from moelora_ad.evaluation.score_files.paths import PathError, failed_note, find_pairs, find_score_files


def made(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("")
    return folder


def test_a_folder_has_sets_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    folder = made(
        tmp_path / "scores",
        *("b.csv", "a.tsv", "c.parquet", "d.txt", "e.jsonl", "f.CSV", "dev.csv"),
        *("a.failed.csv", "a.json", ".hidden.csv", "figures.csv", "comparison.csv", "report.html"),
    )
    found = find_score_files([str(folder)])
    assert [(file.set_name, file.run) for file in found.files] == [(name, "") for name in "abcdef"]
    (note,) = found.notes
    assert f"{folder / 'dev'} is left out" in note
    named = find_score_files([str(folder), str(folder / "dev.csv")])
    assert [file.set_name for file in named.files] == [*"abcdef", "dev"]


def test_a_folder_without_scores_points_to_the_one_that_has_them(tmp_path: Path) -> None:
    made(tmp_path / "scores/best", "a.csv")
    with pytest.raises(PathError, match=r"no score files.*its folder 'best' has some"):
        find_score_files([str(tmp_path / "scores")])


def test_a_run_gives_the_scores_of_its_best_checkpoint(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run("lora", 1)
    made(run / "scores/other", "in_domain.csv")
    made(run, "metrics.csv")
    found = find_score_files([str(run)])
    assert [file.path for file in found.files] == [
        run / "scores/best" / f"{s}.csv" for s in ("in_domain", "out_of_domain")
    ]
    assert found.notes[0] == f"{run}: the scores of its best checkpoint, {run / 'scores/best'}"
    assert "dev is left out" in found.notes[1]
    other = make_run("lora", 2)
    assert [file.run for file in find_score_files([str(run), str(other)]).files] == ["seed_1"] * 2 + ["seed_2"] * 2
    assert find_pairs(str(run), str(other)).systems == ("lora (seed 1)", "lora (seed 2)")


def test_systems_are_called_by_the_records_of_their_runs(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    lora, moe, other = make_run("lora", 1), make_run("moe", 1), make_run("moe", 2, system="lora", seed=1)

    def called(first: Path, second: Path) -> tuple[str, str]:
        return find_pairs(str(first), str(second)).systems

    assert called(lora, moe) == ("lora (seed 1)", "moe (seed 1)")
    of_sets = called(lora / "scores/best/in_domain.csv", moe / "scores/best/in_domain.csv")
    assert of_sets == called(lora / "scores/best", moe) == ("lora (seed 1)", "moe (seed 1)")
    # The same system and seed twice: the names differ by what differs in their paths.
    assert called(lora, other) == ("lora (seed 1, lora/seed_1)", "lora (seed 1, moe/seed_2)")
    shutil.copytree(lora / "scores/best", lora / "scores/last")
    assert called(lora / "scores/best", lora / "scores/last") == ("lora (seed 1, best)", "lora (seed 1, last)")
    assert called(lora, lora) == ("lora (seed 1) (first)", "lora (seed 1) (second)")
    # A folder that is not a run, or a run with an unreadable record.
    bare = made(tmp_path / "bare", "in_domain.csv", "out_of_domain.csv")
    assert called(lora, bare)[0] == "lora (seed 1)"
    assert called(bare, lora)[0].endswith("bare")
    (moe / "run.json").write_text("{")
    assert called(lora / "scores/best", moe / "scores/best") == ("lora (seed 1)", "moe")


def test_a_folder_of_runs_points_to_the_verb_for_them(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    make_run("lora", 1)
    with pytest.raises(PathError, match="it has runs: name one of them, or compare their systems by results --compare"):
        find_score_files([str(tmp_path / "runs")])


def test_scores_that_cannot_be_listed_are_not_taken_for_none(
    tmp_path: Path, make_run: Callable[..., Path], shut: Callable[[Path], None]
) -> None:
    run = make_run("lora", 1, scores=None)
    shut(run / "scores/best")
    with pytest.raises(PathError, match="seed_1: cannot be read: Permission denied"):
        find_score_files([str(run)])


def test_a_run_whose_record_names_no_scores_gives_the_newest(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run("lora", 1, scores=None)
    (file, *_), notes = find_score_files([str(run)])
    assert file.path.parent == run / "scores/best"
    assert notes[0].endswith(f"using the only ones, {run / 'scores/best'}")
    made(run / "scores/later", "x.csv")
    os.utime(run / "scores/later/x.csv", (4e9, 4e9))
    (file,), notes = find_score_files([str(run)])
    assert file.path == run / "scores/later/x.csv"
    assert notes[0].endswith(f"using the newest of 2, {run / 'scores/later'}")
    # A run may lack its record, as with another logger, or its folder of scores.
    (run / "run.json").unlink()
    assert find_score_files([str(run)]).files == [file]
    shutil.rmtree(run / "scores/later")
    shutil.rmtree(run / "scores/best")
    with pytest.raises(PathError, match=r"seed_1: the run has no scores; moelora-ad test --config .*config\.yaml"):
        find_score_files([str(run)])
    (run / "run.json").write_text("{")
    with pytest.raises(PathError, match=r"run\.json: is not JSON"):
        find_score_files([str(run)])


def test_runs_are_told_apart_by_what_differs_in_their_paths(tmp_path: Path) -> None:
    folders = [made(tmp_path / f"x/{run}/scores/best", "a.csv", "b.csv") for run in ("seed1", "seed2", "deep/seed3")]
    found = find_score_files(list(map(str, folders)))
    assert [file.run for file in found.files] == ["seed1"] * 2 + ["seed2"] * 2 + ["deep/seed3"] * 2
    one_set = find_score_files([str(folders[0] / "a.csv"), str(folders[1] / "a.csv")])
    assert [(file.set_name, file.run) for file in one_set.files] == [("a", "seed1"), ("a", "seed2")]


def test_different_sets_of_different_folders_are_one_run(tmp_path: Path) -> None:
    folders = [made(tmp_path / name, f"{name}.csv") for name in ("p", "q")]
    assert [file.run for file in find_score_files(list(map(str, folders))).files] == ["", ""]


def test_names_replace_the_files_names(tmp_path: Path) -> None:
    folder = made(tmp_path, "a.csv", "b.csv", "c.txt")
    paths = [str(folder / name) for name in ("a.csv", "b.csv", "c.txt")]
    assert [file.set_name for file in find_score_files(paths, ("X", "Y", "Z")).files] == ["X", "Y", "Z"]
    same = find_score_files(paths, ("X", "X", "X"))
    assert [(file.set_name, file.run) for file in same.files] == [("X", "a.csv"), ("X", "b.csv"), ("X", "c.txt")]
    with pytest.raises(PathError, match="2 names for 3 score files"):
        find_score_files(paths, ("X", "Y"))
    with pytest.raises(PathError, match="empty name"):
        find_score_files(paths, ("X", "", "Z"))


def test_a_file_given_twice_is_refused_by_any_path(tmp_path: Path) -> None:
    folder = made(tmp_path / "s", "a.csv")
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(PathError, match="more than once"):
        find_score_files([str(folder / "a.csv"), str(tmp_path / "link/a.csv")])


def test_pairs_match_by_set(tmp_path: Path) -> None:
    one, other = made(tmp_path / "one/scores", "a.csv", "b.csv"), made(tmp_path / "two/scores", "b.csv", "a.tsv")
    compared = find_pairs(str(one), str(other))
    assert compared.systems == ("one", "two")
    names = [(pair.set_name, *(file.path.name for file in pair.files)) for pair in compared.pairs]
    assert names == [("a", "a.csv", "a.tsv"), ("b", "b.csv", "b.csv")]
    made(other, "c.csv")
    with pytest.raises(PathError, match="only one has c"):
        find_pairs(str(one), str(other))
    (pair,) = find_pairs(str(one / "a.csv"), str(one / "b.csv")).pairs
    assert pair.set_name == "a / b"


def test_failures_and_provenance_beside_the_scores(tmp_path: Path) -> None:
    path = made(tmp_path, "a.csv") / "a.csv"
    assert failed_note(path) is None
    assert provenance_of(path) == (None, None, True)
    (tmp_path / "a.failed.csv").write_text('utterance,reason\nx,"two\nlines"\ny,broken\n')
    (tmp_path / "a.json").write_text(json.dumps({"seed": 7, "name": "\x1b[31m"}))
    note = failed_note(path)
    assert note is not None
    assert note.startswith("2 trials could not be scored")
    text, note, of_run = provenance_of(path)
    assert note is None
    assert of_run
    assert text is not None
    assert json.loads(text) == {"seed": 7, "name": "\x1b[31m"}
    assert "\x1b" not in text
    (tmp_path / "a.json").write_text(json.dumps({"set_of_run": False, "untrained": True}))
    assert provenance_of(path)[1:] == (
        "these are scores of untrained weights, not of a trained detector",
        False,
    )
    for faulty in (b"{", b"\xff", b"[" * 100_000):
        (tmp_path / "a.json").write_bytes(faulty)
        assert provenance_of(path) == (None, "a.json beside the scores cannot be read", True)

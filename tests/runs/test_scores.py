"""Scores on disk: which ones are found again, which ones are refused, and what is left unchanged."""

import json
import stat
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moelora_ad.corpora import Trial, TrialList
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable
from moelora_ad.runs.scores import KeptScores, _read_part

ORIGIN = {"weights": "abc", "eval_batch_size": "2"}
TRIALS = TrialList([Trial(f"u{index}", f"{index}.wav", index % 2) for index in range(6)])
ABOUT = {"corpus": {"name": "x"}, "failed": 0}


def kept(folder: Path, origin: dict = ORIGIN, **arguments) -> KeptScores:
    return KeptScores(folder, "eval", TRIALS, origin, **arguments)


def finish(scores: KeptScores, indices: list[int], values: list[float], about: dict = ABOUT) -> None:
    scores.close()
    scores.finish(ScoreTable(TRIALS.select(np.array(indices)), values), np.array(indices), about)


def found(scores: KeptScores) -> dict[int, float]:
    return dict(zip(scores.known.indices.tolist(), scores.known.scores.tolist(), strict=True))


def parts(folder: Path) -> list[Path]:
    return list((folder / ".eval.parts").glob("*"))


def test_what_processes_appended_is_found_at_full_precision(tmp_path):
    one, two = kept(tmp_path), kept(tmp_path)
    one.append([4, 0], [1 / 3, -1e-300])
    two.append([5, 1], [0.1 + 0.2, 1e6])
    one.append([2], [7.0])
    assert len(parts(tmp_path)) == 2
    again = kept(tmp_path)
    assert again.find() == ["eval: 5 of 6 scores are already computed"]
    assert found(again) == {0: -1e-300, 1: 1e6, 2: 7.0, 4: 1 / 3, 5: 0.1 + 0.2}


def test_failed_trials_and_what_is_not_finite_are_computed_again(tmp_path):
    kept(tmp_path).append([0, 1, 2], [float("nan"), 2.0, float("inf")])
    again = kept(tmp_path)
    again.find()
    assert found(again) == {1: 2.0}


@given(st.data())
def test_a_file_that_was_cut_anywhere_gives_whole_scores_or_none(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cut")
    wanted = {0: -1.25, 1: 1 / 3, 4: 12345.678, 5: -9e-12}
    writer = kept(folder)
    for index, score in wanted.items():
        writer.append([index], [score])
    (part,) = parts(folder)
    whole = part.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    part.write_bytes(whole[:cut] + data.draw(st.sampled_from([b"", b"\0" * 40, b"\n\n3,"])))
    lines = whole[:cut].count(b"\n") - 1
    again = kept(folder)
    again.find()
    kept_lines = dict(list(wanted.items())[: max(0, lines)])
    # An end of line that is written right after the cut may complete a line.
    assert kept_lines.items() <= found(again).items() <= wanted.items()


@given(st.data())
def test_a_flipped_bit_never_changes_a_score(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flipped")
    wanted = {0: -1.25, 1: 1 / 3, 4: 12345.678, 5: -9e-12}
    kept(folder).append(list(wanted), list(wanted.values()))
    (part,) = parts(folder)
    content = bytearray(part.read_bytes())
    at = data.draw(st.integers(content.index(b"\n") + 1, len(content) - 2))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    part.write_bytes(content)
    again = kept(folder)
    told = again.find()
    assert found(again).items() < wanted.items()
    assert len(found(again)) >= 2  # a bit that splits or joins lines takes another line with it
    assert len(told) == 2
    assert "computed again" in told[1]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("2,nan", "'nan' is not a finite number"),
        ("2,inf", "'inf' is not a finite number"),
        ("2,-Infinity", "'-Infinity' is not a finite number"),
        ("2,1e999", "'1e999' is not a finite number"),
        ("2,1_0", "'1_0' is not a finite number"),
        ("2, 1.0", "' 1.0' is not a finite number"),
        ("2,", "'' is not a finite number"),
        ("1_0,1.0", "'1_0' is not the index of a trial"),
        ("-2,1.0", "'-2' is not the index of a trial"),
        ("", "'' is not the index of a trial"),
        ("2," + "9" * 400, "is not a finite number"),
    ],
)
@pytest.mark.parametrize("signed", [True, False])
def test_a_line_that_no_evaluation_writes_is_told_and_computed_again(tmp_path, line, why, signed):
    kept(tmp_path).append([0, 1, 3], [1.0, 2.0, 3.0])
    (part,) = parts(tmp_path)
    lines = part.read_text().splitlines()
    lines[2:2] = [f"{line},{zlib.crc32(line.encode()):08x}" if signed else line]
    part.write_text("\n".join([*lines, ""]))
    again = kept(tmp_path)
    told = again.find()
    assert found(again) == {0: 1.0, 1: 2.0, 3: 3.0}
    assert told[0] == "eval: 3 of 6 scores are already computed"
    (damage,) = told[1:]
    assert damage.startswith(f"eval: {part}, line 3: ")
    assert why in damage
    assert damage.endswith("; its score is computed again")


def test_a_score_that_was_changed_by_hand_has_not_its_checksum(tmp_path):
    kept(tmp_path).append([0, 1, 3], [1.0, 2.0, 3.0])
    (part,) = parts(tmp_path)
    part.write_text(part.read_text().replace("1,2.0,", "1,2.5,").replace("3,3.0,", "3,3.5,"))
    again = kept(tmp_path)
    (_, damage) = again.find()
    assert found(again) == {0: 1.0}
    crc = f"{zlib.crc32(b'1,2.0'):08x}"
    assert f"line 3: it does not match its checksum {crc!r}; its score is computed again" in damage
    assert damage.endswith(" (2 lines are damaged)")


@given(st.binary(max_size=200))
def test_any_bytes_as_a_part_are_no_crash(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "x.csv"
    path.write_bytes(json.dumps(ORIGIN).encode() + b"\n" + content)
    origin, _, _ = _read_part(path)
    assert origin == ORIGIN
    path.write_bytes(content)
    _read_part(path)


@pytest.mark.parametrize("origin", [ORIGIN | {"weights": "x"}, ORIGIN | {"precision": "16"}, {"weights": "abc"}])
def test_scores_of_another_origin_are_never_used(tmp_path, origin):
    kept(tmp_path).append([0, 1], [1.0, 2.0])
    other = kept(tmp_path, origin)
    (line,) = other.find()
    (name,) = (key for key in ORIGIN | origin if ORIGIN.get(key) != origin.get(key))
    assert line == f"eval: an unfinished run was made with different {name.replace('_', ' ')}; its scores are not used"
    assert found(other) == {}
    assert parts(tmp_path) == []

    finish(kept(tmp_path), [0, 1, 2, 3, 4, 5], [1.0] * 6)
    (line,) = other.find()
    assert "eval.csv was made with different" in line
    assert found(other) == {}


def test_a_finished_file_is_taken_with_its_provenance_and_left_as_it_is(tmp_path):
    writer = kept(tmp_path)
    writer.append([0], [0.5])
    finish(writer, list(range(6)), [0.5, -1.0, 1 / 3, 2.0, 3.0, 4.0])
    assert {path.name for path in tmp_path.iterdir()} == {"eval.csv", "eval.json"}
    provenance = json.loads((tmp_path / "eval.json").read_text())
    assert provenance["complete"] is True
    assert (provenance["trials"], provenance["scored"], provenance["set"]) == (6, 6, "eval")
    again = kept(tmp_path)
    assert again.find() == [f"eval: all scores are already in {tmp_path / 'eval.csv'}"]
    assert found(again) == dict(enumerate([0.5, -1.0, 1 / 3, 2.0, 3.0, 4.0]))
    (tmp_path / "eval.csv").chmod(stat.S_IRUSR)
    before = [(path.stat().st_ino, path.read_bytes()) for path in sorted(tmp_path.iterdir())]
    finish(again, list(range(6)), list(found(again).values()))
    assert [(path.stat().st_ino, path.read_bytes()) for path in sorted(tmp_path.iterdir())] == before
    # If the information on the trials changes, the scores remain, and the file is written again.
    finish(again, list(range(6)), list(found(again).values()), {"corpus": {"name": "y"}})
    assert json.loads((tmp_path / "eval.json").read_text())["corpus"] == {"name": "y"}


def test_a_file_that_lacks_failed_trials_is_completed(tmp_path):
    finish(kept(tmp_path), [0, 2, 5], [1.0, 2.0, 3.0])
    assert json.loads((tmp_path / "eval.json").read_text())["complete"] is False
    again = kept(tmp_path)
    assert again.find() == ["eval: 3 of 6 scores are already computed"]
    finish(again, list(range(6)), [1.0, 9.0, 2.0, 9.0, 9.0, 3.0])
    assert len(ScoreTable.read(tmp_path / "eval.csv")) == 6


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"origin": 1}', "[" * 100_000])
def test_a_file_without_its_provenance_is_not_trusted(tmp_path, content):
    finish(kept(tmp_path), list(range(6)), [1.0] * 6)
    (tmp_path / "eval.json").write_text(content)
    again = kept(tmp_path)
    again.find()
    assert found(again) == {}


def test_a_file_that_was_changed_by_hand_is_not_trusted(tmp_path):
    finish(kept(tmp_path), list(range(6)), [1.0] * 6)
    path = tmp_path / "eval.csv"
    path.write_text(path.read_text().replace("1.0", "2.0", 1))
    again = kept(tmp_path)
    assert again.find() == [f"eval: {path} was changed since it was written; it is computed again"]
    assert found(again) == {}


def test_a_run_over_a_part_uses_nothing_and_replaces_nothing_that_has_more(tmp_path):
    kept(tmp_path).append([3], [3.0])
    part = kept(tmp_path, resumes=False)
    assert part.find() == []
    part.append([0, 1], [1.0, 2.0])
    finish(part, [0, 1], [1.0, 2.0])
    assert found(part) == {}
    assert len(parts(tmp_path)) == 1
    assert len(ScoreTable.read(tmp_path / "eval.csv")) == 2
    less = kept(tmp_path, resumes=False)
    assert "remains unless this run has more scores" in less.find()[0]
    finish(less, [0], [1.0])
    assert len(ScoreTable.read(tmp_path / "eval.csv")) == 2
    # A run over all trials continues from the scores of both.
    whole = kept(tmp_path)
    whole.find()
    assert found(whole) == {0: 1.0, 1: 2.0, 3: 3.0}


def test_a_folder_that_cannot_be_written_is_one_line_and_told_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for attempt in (lambda scores: scores.find(), lambda scores: scores.append([0], [1.0])):
        with pytest.raises(
            InputError, match=r"file.*: scores cannot be written: .*; set another folder with --score_folder"
        ) as caught:
            attempt(kept(tmp_path / "file"))
        assert "\n" not in str(caught.value)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(
        InputError, match=r"scores cannot be written: Permission denied; set another folder with --score_folder"
    ):
        kept(tmp_path).find()


def test_no_trial_that_could_be_read_leaves_no_score_file(tmp_path):
    finish(kept(tmp_path), list(range(6)), [1.0] * 6)
    other = kept(tmp_path, ORIGIN | {"weights": "new"})
    other.finish(None, np.array([], np.int64), ABOUT)
    assert list(tmp_path.iterdir()) == []

"""Records of runs: written records are read, and damaged ones are reported in one line."""

import json
from pathlib import Path

import pytest

from moelora_ad.corpora import Trial, TrialList
from moelora_ad.errors import InputError
from moelora_ad.runs.record import find_records, read_record, trials_hash

CONTENT = {
    "format": 1,
    "state": "finished",
    "reason": None,
    "system": "lora_r8",
    "seed": 3,
    "started": "2026-01-01T00:00:00+00:00",
    "updated": "2026-01-01T00:10:00+00:00",
    "seconds": 600.5,
    "attempts": 1,
    "epoch": 4,
    "max_epochs": 4,
    "step": 68,
    "max_steps": 68,
    "dev_eer": 0.25,
    "best_dev_eer": 0.2,
    "parameters": {"experts": 10, "gates": 2, "classifier": 3, "backbone": 0, "total": 100},
    "training_corpora": ["MiniLA"],
    "sets": {"dev": {"corpus": "MiniLA", "eer": 0.2, "num_bona_fide": 5, "num_spoof": 6}},
    "checkpoint": "checkpoints/a.ckpt",
    "scores": "scores/a",
    "peak_memory_bytes": {"host": 7, "cuda": None},
    "versions": {"python": "3.11.7"},
    "git_commit": None,
    "command": ["fit"],
    "configured_sets": {"dev": {"corpus": "MiniLA", "trials": "0a1b"}},
    "init_weights": {"source": "mini", "sha256": "c2d3", "loaded": 5, "begun_anew": 2, "not_used": 0},
    "selections": {"train": "exclude_attacks A04"},
}


def write(folder: Path, **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(CONTENT | changes))
    return folder


def test_what_is_read_is_what_was_written(tmp_path):
    folder = write(tmp_path / "run")
    record = read_record(folder)
    assert record.as_dict() == CONTENT | {"training_corpora": ("MiniLA",), "command": ("fit",)}
    assert json.loads(json.dumps(record.as_dict())) == CONTENT
    assert record.trained == 15
    assert record.checkpoint_path == folder / "checkpoints/a.ckpt"
    assert record.score_folder == folder / "scores/a"
    assert record.sets["dev"].num_spoof == 6
    assert read_record(write(folder, scores=None)).score_folder is None


def test_the_sets_that_a_run_is_configured_with(tmp_path):
    """Configured sets are compared by name and trials, in any order; an earlier version's record accepts any set."""
    trials = TrialList([Trial("a", "a.wav", 1), Trial("b", "b.wav", 0)])
    other = TrialList([Trial("b", "b.wav", 0), Trial("a", "elsewhere/a.wav", 1)])
    sets = {"calls": {"corpus": "c", "trials": trials_hash(trials)}, "unread": {"corpus": "c", "trials": None}}
    record = read_record(write(tmp_path / "run", configured_sets=sets))
    assert record.is_configured("calls", other)
    assert not record.is_configured("calls", TrialList([Trial("a", "a.wav", 0), Trial("b", "b.wav", 1)]))
    assert not record.is_configured("others", trials)
    assert record.is_configured("unread", trials)
    earlier = {name: value for name, value in CONTENT.items() if name not in ("configured_sets", "init_weights")}
    (tmp_path / "run" / "run.json").write_text(json.dumps(earlier))
    assert read_record(tmp_path / "run").is_configured("others", trials)


def test_runs_are_found_below_folders_each_once_and_in_order(tmp_path):
    for system, seed in (("b", 1), ("a", 10), ("a", 2)):
        write(tmp_path / system / f"seed_{seed}", system=system, seed=seed)
    found = find_records([tmp_path, tmp_path / "a", tmp_path / "a" / "seed_2"])
    assert [(record.system, record.seed) for record in found] == [("a", 2), ("a", 10), ("b", 1)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("", "the record is damaged: move it away to leave the run out, or resume it"),
        ("[]", "is not a record of a run in format 1"),
        (json.dumps(CONTENT | {"format": 2}), "is not a record of a run in format 1"),
        (json.dumps({k: v for k, v in CONTENT.items() if k != "seed"}), "'seed'"),
        (json.dumps({k: v for k, v in CONTENT.items() if k != "sets"}), "'sets'"),
        (json.dumps(CONTENT | {"more": 1}), "'more'"),
        (json.dumps(CONTENT | {"seed": "3"}), "seed is '3'"),
        (json.dumps(CONTENT | {"state": "lost"}), "state is 'lost'"),
        (json.dumps(CONTENT | {"sets": {"dev": {"eer": 1}}}), "damaged"),
        (json.dumps(CONTENT | {"sets": [1]}), "damaged"),
        (json.dumps(CONTENT | {"init_weights": "mini"}), "damaged"),
        (json.dumps(CONTENT | {"init_weights": CONTENT["init_weights"] | {"loaded": "5"}}), "init_weights is"),
    ],
)
def test_a_damaged_record_is_one_line(tmp_path, content, words):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError) as error:
        read_record(tmp_path)
    assert words in str(error.value)
    assert str(tmp_path / "run.json") in str(error.value)
    assert "\n" not in str(error.value)


ODD = [
    None,
    True,
    7,
    -1.5,
    "text",
    "a\0b",
    [],
    [1],
    [None],
    {},
    {"a": None},
    {"a": [1]},
    {"total": "x"},
    10**400,
    [[[]]],
]
# The values of ODD that each field may have, written by hand from the class.
TEXT, NUMBER = ["text", "a\0b"], [7, -1.5]
ALLOWED = {
    "reason": [None, *TEXT],
    "system": TEXT,
    "seed": [7],
    "started": TEXT,
    "updated": TEXT,
    "seconds": NUMBER,
    "attempts": [7],
    "epoch": [7],
    "max_epochs": [None, 7],
    "step": [7],
    "max_steps": [None, 7],
    "dev_eer": [None, *NUMBER],
    "best_dev_eer": [None, *NUMBER],
    "parameters": [{}],
    "training_corpora": [[]],
    "sets": [{}],
    "checkpoint": [None, "text"],
    "scores": [None, "text"],
    "peak_memory_bytes": [{}, {"a": None}],
    "versions": [{}, {"total": "x"}],
    "git_commit": [None, *TEXT],
    "command": [[]],
    "configured_sets": [None, {}],
    "init_weights": [None],
    "selections": [{}, {"total": "x"}],
}
ALLOWED_IN_SETS = {"corpus": TEXT, "eer": [None, *NUMBER], "num_bona_fide": [7], "num_spoof": [7]}


def is_refused(folder: Path) -> bool:
    try:
        read_record(folder)
    except InputError as error:
        line = str(error)
    else:
        return False
    assert line.startswith(f"{folder / 'run.json'}: is ")
    assert len(line.splitlines()) == 1
    return True


def among(value: object, allowed: list) -> bool:
    return any(type(one) is type(value) and one == value for one in allowed)


@pytest.mark.parametrize("name", [name for name in CONTENT if name not in ("format", "state")])
def test_a_field_of_another_type_is_refused(tmp_path, name):
    for value in ODD:
        assert is_refused(write(tmp_path, **{name: value})) != among(value, ALLOWED[name]), value


@pytest.mark.parametrize("name", ALLOWED_IN_SETS)
def test_a_field_of_a_set_of_another_type_is_refused(tmp_path, name):
    for value in ODD:
        sets = {"dev": CONTENT["sets"]["dev"] | {name: value}}
        assert is_refused(write(tmp_path, sets=sets)) != among(value, ALLOWED_IN_SETS[name]), value


@pytest.mark.parametrize("content", ["[" * 100_000, "{" * 5_000, '{"format": 1, "folder": "/"}', "7", "null", '"x"'])
def test_odd_json_is_one_line(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    assert is_refused(tmp_path)


def test_folders_without_runs_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no run in it or below it"):
        find_records([tmp_path])
    with pytest.raises(InputError, match=r"no such folder"):
        find_records([tmp_path / "none"])
    with pytest.raises(InputError, match=r"it is not the folder of a run"):
        read_record(tmp_path)


@pytest.mark.parametrize("closed", ["", "seed_3", "seed_3/checkpoints"])
def test_a_folder_that_cannot_be_read_is_refused_and_not_left_out(tmp_path, shut, closed):
    for seed in (1, 2, 3):
        write(tmp_path / f"seed_{seed}" / "checkpoints", seed=seed)
        write(tmp_path / f"seed_{seed}", seed=seed)
    shut(tmp_path / closed)
    with pytest.raises(InputError) as error:
        find_records([tmp_path])
    assert str(error.value).startswith(f"{tmp_path / closed}: cannot be read: Permission denied")

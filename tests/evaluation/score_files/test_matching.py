"""Ids of scores and of keys that call the same file by different names."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moelora_ad.evaluation.score_files.matching import match_ids


def matched(trials, scores, audio=None):
    places, note = match_ids(trials, audio or [""] * len(trials), scores)
    return {trials[i]: scores[j] for i, j in enumerate(places.tolist()) if j >= 0}, note


@pytest.mark.parametrize(
    ("trials", "scores", "pairs", "way"),
    [
        (["a", "b"], ["b", "a"], {"a": "a", "b": "b"}, None),
        (["a.wav", "b.wav"], ["b", "a"], {"a.wav": "a", "b.wav": "b"}, "endings"),
        (["a", "b"], ["a.FLAC", "b.wav"], {"a": "a.FLAC", "b": "b.wav"}, "endings"),
        (
            ["spk.001", "spk.002"],
            ["spk.002.wav", "spk.001"],
            {"spk.001": "spk.001", "spk.002": "spk.002.wav"},
            "endings",
        ),
        # A name that could stand for two files is not matched.
        (["a"], ["a.wav", "a.mp3"], {}, None),
        (["a.wav", "a.mp3"], ["a"], {}, None),
        (
            ["a.wav", "a.mp3", "b"],
            ["a.wav", "a.mp3", "b.wav"],
            {"a.wav": "a.wav", "a.mp3": "a.mp3", "b": "b.wav"},
            "endings",
        ),
        (["a.wav", "a.mp3"], ["a.wav", "a"], {"a.wav": "a.wav"}, None),
        (["0", "1"], ["itw/0.wav", "itw/1.wav"], {"0": "itw/0.wav", "1": "itw/1.wav"}, "folders"),
        (["x/0", "y/0"], ["d/x/0", "d/y/0"], {"x/0": "d/x/0", "y/0": "d/y/0"}, "folders"),
        (["d/x/0.mp4"], ["x/0"], {"d/x/0.mp4": "x/0"}, "folders"),
        (["x/0"], ["y/0"], {}, None),
        (["x/0", "y/0"], ["0"], {}, None),
        # A match of whole ids shows that folders are part of the ids.
        (["0", "1"], ["0", "other/1"], {"0": "0"}, None),
    ],
)
def test_one_name_stands_for_one_file(trials, scores, pairs, way):
    found, note = matched(trials, scores)
    assert found == pairs
    assert (note is None) if way is None else f"without the {way} of their ids, one to one: " in note


def test_the_path_of_the_audio_says_it_whatever_the_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The ids alone would give the opposite pairs.
    found, note = matched(
        ["a", "b"], ["calls/a.wav", str(tmp_path / "calls/b.wav")], ["calls/b.wav", "calls/../calls/a.wav"]
    )
    assert found == {"a": str(tmp_path / "calls/b.wav"), "b": "calls/a.wav"}
    assert note.startswith("2 scores matched to the key by the paths of their files, one to one: ")
    assert matched(["a", "b"], ["x.wav"], ["x.wav", "x.wav"]) == ({}, None)


NAMES = st.lists(
    st.sampled_from([""]) | st.text("ab/.", max_size=6) | st.sampled_from(["a.wav", "b/a.wav", "a.mp3"]),
    min_size=1,
    unique=True,
)


@given(NAMES, NAMES)
def test_no_score_has_two_trials_and_equal_ids_are_always_matched(trials, scores):
    places, note = match_ids(trials, [""] * len(trials), scores)
    used = places[places >= 0].tolist()
    assert len(set(used)) == len(used)
    for trial, place in zip(trials, places.tolist(), strict=True):
        if trial in scores:
            assert scores[place] == trial
        elif place >= 0:
            assert note is not None
    # Swapping the key and the scores gives the same pairs.
    other, _ = match_ids(scores, [""] * len(scores), trials)
    assert {(i, j) for i, j in enumerate(places) if j >= 0} == {(j, i) for i, j in enumerate(other) if j >= 0}


@given(st.lists(st.text("abc01", min_size=1, max_size=4), min_size=1, unique=True), st.randoms())
def test_endings_and_folders_are_seen_through(names, random):
    shuffled = random.sample(names, len(names))
    for trials, scores in (
        (names, [f"{name}.flac" for name in shuffled]),
        (names, [f"x/y/{name}.wav" for name in shuffled]),
    ):
        found, _ = matched(trials, scores)
        assert found == {name: next(s for s in scores if s.split("/")[-1].split(".")[0] == name) for name in names}
        assert np.all(match_ids(trials, [""] * len(trials), scores).places >= 0)

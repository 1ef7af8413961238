"""Which trials are resampled together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moelora_ad.corpora.trial import Trial, TrialList
from moelora_ad.evaluation.metrics.clusters import clusters_of, default_clusters, without_gaps


def listed(**fields: list[str | None]) -> TrialList:
    """Trials with these fields; the corpus is Mini unless it is given."""
    columns = {"corpus": ["Mini"] * len(next(iter(fields.values()))), **fields}
    rows = zip(*columns.values(), strict=True)
    return TrialList(Trial(f"u{i}", "", **dict(zip(columns, row, strict=True))) for i, row in enumerate(rows))


def together(codes: NDArray[np.int64]) -> list[list[int]]:
    """The indices of each cluster's trials, with clusters in the order of their first trials."""
    found: dict[int, list[int]] = {}
    for place, code in enumerate(codes.tolist()):
        found.setdefault(code, []).append(place)
    assert sorted(found) == list(range(len(found)))
    return list(found.values())


def test_speaker_and_attack_by_default() -> None:
    trials = listed(speaker=["a", "b", "a", "a", "b", "a"], attack=[None, None, "A1", "A2", "A1", "A1"])
    assert together(default_clusters(trials)) == [[0], [1], [2, 5], [3], [4]]
    assert clusters_of(trials).notes == []


def test_a_whole_speaker_if_no_attack_is_known() -> None:
    trials = listed(speaker=["a", "b", "a"], label=[1, 0, 0])
    assert together(default_clusters(trials)) == [[0, 2], [1]]


def test_source_clips_in_fakeavceleb() -> None:
    trials = listed(
        corpus=["FakeAVCeleb_all"] * 4 + ["Mini"] * 2,
        source=["id1", "id2", "id1", None, "x", "x"],
        attack=[None, None, "rtvc", "rtvc", None, None],
        speaker=[None, None, None, None, "a", "b"],
    )
    found = clusters_of(trials)
    assert together(found.codes) == [[0, 2], [1], [3], [4], [5]]
    (note,) = found.notes
    assert note.startswith("1 of 4 trials without a known source: ")


def test_the_fields_that_are_asked_for() -> None:
    trials = listed(
        speaker=["a", "a", "b", "b"],
        source=["x", "y", "x", "x"],
        attack=[None, None, "A1", "A1"],
        corpus=["FakeAVCeleb_all"] * 4,
    )
    assert together(clusters_of(trials, ("speaker",)).codes) == [[0, 1], [2, 3]]
    assert together(clusters_of(trials, ("source",)).codes) == [[0, 2, 3], [1]]
    assert together(clusters_of(trials, ("speaker", "source")).codes) == [[0], [1], [2, 3]]
    # Bona fide trials have no attack, so nothing says that they belong together.
    by_attack = clusters_of(trials, ("attack",))
    assert together(by_attack.codes) == [[0], [1], [2, 3]]
    assert by_attack.notes[0].startswith("2 of 4 trials without a known attack: ")


def test_the_same_name_in_two_corpora_is_not_the_same_speaker() -> None:
    trials = listed(corpus=["LA", "DF", "LA"], speaker=["a", "a", "a"])
    assert together(default_clusters(trials)) == [[0, 2], [1]]


def test_trials_of_unknown_speakers_stand_alone_and_it_is_said() -> None:
    nobody = clusters_of(listed(attack=["A1", "A1", None]))
    assert together(nobody.codes) == [[0], [1], [2]]
    assert nobody.notes == [
        "no trial has a known speaker: each is resampled on its own, so intervals are too narrow where trials are alike"
    ]
    some = clusters_of(listed(speaker=["a", None, "a", None], attack=["A1"] * 4))
    assert together(some.codes) == [[0, 2], [1], [3]]
    assert some.notes[0].startswith("2 of 4 trials without a known speaker: each is resampled on its own")


@given(
    st.lists(
        st.tuples(*(st.sampled_from([None, "x", "y"]) for _ in range(3)), st.sampled_from(["Mini", "FakeAVCeleb_all"])),
        min_size=1,
        max_size=30,
    )
)
def test_two_trials_share_a_cluster_as_the_definition_says(rows: list[tuple[str | None, ...]]) -> None:
    speaker, attack, source, corpus = map(list, zip(*rows, strict=True))
    codes = default_clusters(listed(speaker=speaker, attack=attack, source=source, corpus=corpus))
    for i in range(len(rows)):
        for j in range(i):
            if corpus[i] == "Mini":
                same = speaker[i] is not None and (speaker[i], attack[i]) == (speaker[j], attack[j])
            else:
                same = source[i] is not None and source[i] == source[j]
            assert (codes[i] == codes[j]) == (same and corpus[i] == corpus[j])


@pytest.mark.parametrize(
    "codes",
    [
        np.array([7]),
        np.array([4, -3, 4, 9, 4]),
        np.array([127, -128, 0, 127], np.int8),
        np.array([255, 0, 1], np.uint8),
        np.array([2**63 - 1, -(2**63), 0]),
        np.array([-(2**63), -(2**63) + 2]),
        np.array([2**64 - 1, 0, 2**63], np.uint64),
        np.array([0.5, -1.0, 0.5]),
        np.array(["s2", "s1", "s10", "s1"]),
        np.random.default_rng(0).integers(-50, 10_000, 4_000),
    ],
    ids=str,
)
def test_numbers_without_gaps_are_those_of_a_sort(codes: NDArray[np.generic]) -> None:
    found = without_gaps(codes)
    assert found.dtype == np.int64
    assert found.tolist() == np.unique(codes, return_inverse=True)[1].tolist()

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moelora_ad.corpora import Trial, TrialList
from moelora_ad.corpora.combined import joined_trials
from moelora_ad.errors import InputError

words = st.text(min_size=1, max_size=6)
unknown = st.none() | st.sampled_from(["A01", "A02", "\N{GREEK SMALL LETTER BETA}", ""])


@st.composite
def lists(draw):
    utterances = draw(st.lists(words, min_size=1, max_size=8, unique=True))
    return TrialList(
        Trial(u, draw(words), draw(st.sampled_from([0, 1, None])), draw(unknown), draw(unknown)) for u in utterances
    )


@given(st.dictionaries(st.sampled_from(["one", "two", "three"]), lists(), min_size=1))
def test_all_trials_come_one_list_after_another_under_new_ids(parts):
    joined = joined_trials(parts)
    wanted = [(f"{name}/{trial.utterance}", trial) for name, trials in parts.items() for trial in trials]
    assert len(joined) == len(wanted)
    for trial, (utterance, original) in zip(joined, wanted, strict=True):
        assert trial.utterance == utterance
        for field in ("audio", "label", "speaker", "attack", "codec", "corpus", "source"):
            assert getattr(trial, field) == getattr(original, field)
    assert len({trial.utterance for trial in joined}) == len(joined)


def test_the_same_corpus_can_be_joined_twice():
    once = TrialList([Trial("u", "/a/u.flac", 1)])
    assert [trial.utterance for trial in joined_trials({"a": once, "b": once})] == ["a/u", "b/u"]


def test_many_different_values_keep_their_numbers():
    """More values than one byte can number, in a different order in each list."""
    parts = {
        name: TrialList(Trial(f"u{i}", "", speaker=f"s{i}") for i in order)
        for name, order in (("up", range(300)), ("down", range(299, -1, -1)))
    }
    joined = joined_trials(parts)
    assert [trial.speaker for trial in joined] == [f"s{i}" for i in [*range(300), *range(299, -1, -1)]]
    np.testing.assert_array_equal(joined.labels, np.full(600, -1))


@pytest.mark.parametrize("name", ["", "a/b"])
def test_a_name_that_could_make_ids_equal_is_refused(name):
    with pytest.raises(InputError, match="cannot name a list of trials"):
        joined_trials({name: TrialList([Trial("u", "")])})


def test_nothing_cannot_be_joined():
    with pytest.raises(InputError, match="no lists"):
        joined_trials({})

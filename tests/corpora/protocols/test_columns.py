import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moelora_ad.corpora import Trial, TrialList
from moelora_ad.corpora.protocols.columns import CategoryPool, TextPool, Texts

TEXT = st.text(st.characters(), max_size=5)  # includes lone surrogates, which file names may have
SLICES = st.slices(8)


def categories(values, absent=()):
    pool = CategoryPool(absent)
    pool.extend(values)
    return pool.packed()


@given(st.lists(TEXT, min_size=1, max_size=8), SLICES)
def test_texts_are_the_sequence_they_were_made_from(texts, part):
    packed = Texts.of(texts)
    assert list(packed) == texts
    assert [packed[index] for index in range(-len(texts), len(texts))] == texts + texts
    assert list(packed[part]) == texts[part]
    assert list(packed[part][::-1]) == texts[part][::-1]


@given(st.lists(TEXT, min_size=1, max_size=8), TEXT, TEXT, SLICES)
def test_texts_between_two_others(texts, before, after, part):
    around = Texts.of(texts).around(before, after)
    expected = [before + text + after for text in texts]
    assert list(around) == [around[index] for index in range(len(texts))] == expected
    assert list(around[part]) == expected[part]


@given(st.lists(st.lists(TEXT, max_size=4), min_size=1, max_size=4))
def test_texts_come_in_parts(parts):
    pool = TextPool()
    for part in parts:
        pool.extend(part)
    assert list(pool.packed()) == [text for part in parts for text in part]


@pytest.mark.parametrize("index", [3, -4])
def test_an_index_beyond_the_ends(index):
    with pytest.raises(IndexError):
        Texts.of(["a", "b", "c"])[index]
    with pytest.raises(IndexError):
        categories(["a", "b", "c"])[index]


@given(st.lists(TEXT | st.none(), min_size=1, max_size=8), SLICES)
def test_categories_are_the_sequence_they_were_made_from(values, part):
    packed = categories(values)
    assert list(packed) == values
    assert [packed[index] for index in range(-len(values), len(values))] == values + values
    assert list(packed[part]) == values[part]
    assert sorted(map(repr, packed.values)) == sorted(map(repr, set(values)))


def test_absent_words_are_none_and_a_value_may_be_repeated():
    pool = CategoryPool({"", "-"})
    pool.extend(["A01", "-", "", None, "A02"])
    pool.repeat("A02", 2)
    pool.repeat("-", 1)
    pool.repeat("A03", 1)
    assert list(pool.packed()) == ["A01", None, None, None, "A02", "A02", "A02", None, "A03"]
    assert sorted(map(str, pool.packed().values)) == ["A01", "A02", "A03", "None"]


@pytest.mark.parametrize(("different", "size"), [(1, 1), (200, 1), (300, 2), (70_000, 4)])
def test_a_category_costs_as_few_bytes_as_it_can(different, size):
    values = [f"speaker{n}" for n in range(different)]
    pool = CategoryPool()
    for start in range(0, different, 1000):  # the first parts need fewer bytes than the last
        pool.extend(values[start : start + 1000])
    packed = pool.packed()
    assert packed.codes.itemsize == size
    assert list(packed) == values


def test_pickle_is_compact():
    texts = Texts.of([f"E_{n:010d}" for n in range(10_000)])
    data = pickle.dumps(texts.around("/data/flac/", ".flac"))
    assert len(data) < 10_000 * (12 + 8) + 1000
    assert list(pickle.loads(data)) == [f"/data/flac/E_{n:010d}.flac" for n in range(10_000)]
    data = pickle.dumps(categories(["a", "b", None, "c"] * 2500))
    assert len(data) < 10_000 + 1000
    assert pickle.loads(data).codes.dtype == np.uint8


def test_selecting_trials_keeps_their_order_and_every_field():
    trials = TrialList(
        Trial(f"ü{i}" * i, f"{i}.flac", (1, 0, None)[i % 3], speaker=f"s{i % 2}" if i else None) for i in range(1, 9)
    )
    chosen = trials.select(np.array([5, 0, 3]))
    assert list(chosen) == [trials[5], trials[0], trials[3]]
    assert list(chosen.column("speaker")) == [trials[i].speaker for i in (5, 0, 3)]
    assert list(trials.columns.utterance) == [trial.utterance for trial in trials]

import pytest

from moelora_ad.corpora import Corpus, Few, Joined, Trial, TrialList
from moelora_ad.errors import InputError


class Listed(Corpus):
    name = "Listed"

    def trials(self) -> TrialList:
        return TrialList(Trial(f"u{i:02}", f"/{i}.flac", label=int(i % 3 == 0)) for i in range(30))


def test_a_few_of_each_class_and_the_rest():
    drawn, rest = Few(Listed(), 4, seed=2).trials(), Few(Listed(), 4, seed=2, rest=True).trials()
    assert (drawn.num_bona_fide, drawn.num_spoof) == (4, 4)
    names = [trial.utterance for trial in drawn], [trial.utterance for trial in rest]
    assert sorted([*names[0], *names[1]]) == [trial.utterance for trial in Listed().trials()]
    assert list(Few(Listed(), 4, seed=2).trials()) == list(drawn)
    assert list(Few(Listed(), 4, seed=3).trials()) != list(drawn)
    assert {one.utterance for one in drawn} < {one.utterance for one in Few(Listed(), 5, seed=2).trials()}


def test_of_a_class_with_fewer_all_are_taken():
    assert Few(Listed(), 15).trials().num_bona_fide == 10
    with pytest.raises(InputError, match="num is 0"):
        Few(Listed(), 0)


class Unlabelled(Corpus):
    name = "Unlabelled"

    def trials(self) -> TrialList:
        return TrialList([Trial("u", "/u.flac")])


def test_a_draw_that_leaves_nothing_is_told():
    assert len(Few(Listed(), 19, rest=True).trials()) == 1
    with pytest.raises(InputError, match="Few: Listed has no trial to take: num 20 takes all of its trials"):
        Few(Listed(), 20, rest=True).trials()
    with pytest.raises(InputError, match="Few: Unlabelled has no trial to take: none of its trials has a label"):
        Few(Unlabelled(), 1).trials()
    with pytest.raises(InputError, match="Few: seed is -1"):
        Few(Listed(), 1, seed=-1)


def test_corpora_joined_where_one_is_wanted():
    joined = Joined({"all": Listed(), "few": Few(Listed(), 1)})
    assert joined.name == "Listed"
    assert len(joined.trials()) == 32
    assert {trial.utterance.partition("/")[0] for trial in joined.trials()} == {"all", "few"}

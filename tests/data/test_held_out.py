"""An attack held out of the quickstart's protocols: training and selection see nothing of its test set."""

from pathlib import Path

import numpy as np
import pytest

from moelora_ad.corpora import BONA_FIDE, SPOOF, ASVspoof2019Protocol, Corpus, Trial, TrialList
from moelora_ad.data.data_module import AudioDeepfakeDataModule
from moelora_ad.data.held_out import bona_fide_of_test
from moelora_ad.data.resuming import check_training_data, training_data
from moelora_ad.errors import InputError
from moelora_ad.training.mldg import attacks_of


@pytest.fixture
def protocol(quickstart: Path):
    def read(part: str, **arguments) -> ASVspoof2019Protocol:
        corpus = quickstart / "corpus/MiniLA"
        return ASVspoof2019Protocol("MiniLA", corpus / f"protocols/MiniLA.cm.{part}.txt", corpus / "flac", **arguments)

    return read


def lines(corpus: ASVspoof2019Protocol) -> list[list[str]]:
    """The fields of each line of the protocol: speaker, utterance, -, attack, label."""
    return [line.split() for line in Path(corpus.protocol).read_text().splitlines()]


def ids(trials: TrialList, label: int | None = None) -> set[str]:
    return {trial.utterance for trial in trials if label in (None, trial.label)}


@pytest.fixture
def without_a04(protocol) -> AudioDeepfakeDataModule:
    sets = {"in_domain": protocol("eval.trl")}
    data = AudioDeepfakeDataModule(protocol("train.trn"), protocol("dev.trl"), sets, held_out_attack="A04")
    data.read_trials("fit", test=True)
    return data


def test_training_and_selection_have_no_trial_of_the_attack(without_a04, protocol):
    rows = lines(protocol("train.trn"))
    assert ids(without_a04.train_trials) == {row[1] for row in rows if row[3] != "A04"}
    assert ids(without_a04.trials_by_set["dev"], SPOOF) == {
        row[1] for row in lines(protocol("dev.trl")) if row[4] == "spoof" and row[3] != "A04"
    }
    assert attacks_of(without_a04.train_trials)[1] == [f"A0{number} of MiniLA" for number in (2, 5, 6, 3, 1)]
    assert without_a04.train.left_out == (21, 0, 21)


def test_the_test_is_of_the_attack_and_of_speakers_whose_bona_fide_trials_nobody_saw(without_a04, protocol):
    sets = without_a04.trials_by_set
    rows = lines(protocol("dev.trl"))
    assert ids(sets["held_out"], SPOOF) == {row[1] for row in rows if row[3] == "A04"}
    bona_fide = {row[1]: row[0] for row in rows if row[4] == "bonafide"}
    tested, selecting = ids(sets["held_out"], BONA_FIDE), ids(sets["dev"], BONA_FIDE)
    assert tested | selecting == bona_fide.keys()
    assert not {bona_fide[one] for one in tested} & {bona_fide[one] for one in selecting}
    assert (len(tested), len(selecting)) == (22, 22)
    assert ids(sets["in_domain"]) == {row[1] for row in lines(protocol("eval.trl"))}
    assert list(without_a04.test) == ["held_out", "in_domain"]


def test_the_same_bona_fide_trials_for_every_attack(protocol, without_a04):
    other = AudioDeepfakeDataModule(protocol("train.trn"), protocol("dev.trl"), held_out_attack="A01", seed=7)
    other.read_trials("test")
    assert ids(other.trials_by_set["held_out"], BONA_FIDE) == ids(without_a04.trials_by_set["held_out"], BONA_FIDE)


def test_joined_and_confined_corpora(protocol):
    train = {
        "all": protocol("train.trn", exclude_attacks=["A01"]),
        "known": protocol("dev.trl", attacks=["A02"]),  # has no A04, which is allowed
    }
    data = AudioDeepfakeDataModule(
        train, protocol("dev.trl"), train_weights={"all": 1, "known": 1}, held_out_attack="A04"
    )
    data.read_trials("fit")
    found = [(trial.utterance.partition("/")[0], trial.attack) for trial in data.train_trials]
    assert {one for one in found if one[0] == "all"} == {("all", name) for name in (None, "A02", "A03", "A05", "A06")}
    assert {one for one in found if one[0] == "known"} == {("known", None), ("known", "A02")}
    assert data.train["all"].left_out == (42, 0, 42)
    assert data.train["all"].selection_note == "exclude_attacks A01; without A04"


def test_what_is_refused(protocol):
    train, dev = protocol("train.trn"), protocol("dev.trl")
    with pytest.raises(InputError, match=r"needs data\.val"):
        AudioDeepfakeDataModule(train, held_out_attack="A04")
    with pytest.raises(InputError, match=r"'held_out' is the set that data\.held_out_attack makes"):
        AudioDeepfakeDataModule(train, dev, {"held_out": dev}, held_out_attack="A04")
    data = AudioDeepfakeDataModule(train, dev, held_out_attack="A09")
    with pytest.raises(InputError, match=r"has no spoof of 'A09' to test on; it has A01, A02, A03, A04, A05, A06$"):
        data.read_trials("fit", test=True)


def test_a_training_without_the_attack_is_not_gone_on_with_all_of_them(protocol, without_a04):
    whole = AudioDeepfakeDataModule(protocol("train.trn"), protocol("dev.trl"))
    whole.read_trials("fit")
    kept = {"training_data": training_data(whole.train, whole.train_trials)}
    check_training_data(kept, training_data(whole.train, whole.train_trials))
    with pytest.raises(
        InputError, match=r"was trained on MiniLA \(210 trials\) and .* trains on MiniLA \(189 trials\)"
    ):
        check_training_data(kept, training_data(without_a04.train, without_a04.train_trials))


@pytest.mark.parametrize(
    ("speakers", "expected"),
    [
        (["a", "a", "a", "b", "b", "c"], [0, 0, 0, 1, 1, 1]),  # 3 trials against 2 + 1
        (["x", "x", "x", "x"], [0, 1, 0, 1]),  # one speaker: every second trial
        (["a", None, "a", "b"], [0, 1, 0, 1]),
        (["b", "a"], [1, 0]),
    ],
)
def test_half_of_the_speakers(speakers, expected):
    trials = TrialList([Trial(f"u{number}", "", BONA_FIDE, speaker=one) for number, one in enumerate(speakers)])
    assert bona_fide_of_test(trials).tolist() == [bool(one) for one in expected]
    assert not bona_fide_of_test(TrialList([*trials, Trial("s", "", SPOOF, speaker="a")]))[-1]


def test_one_bona_fide_trial_cannot_be_divided():
    with pytest.raises(InputError, match="1 bona fide trial of the development corpus cannot be divided"):
        bona_fide_of_test(TrialList([Trial("u", "", BONA_FIDE), Trial("s", "", SPOOF)]))


def test_a_users_own_corpus_holds_an_attack_out():
    class Own(Corpus):
        name = "Own"

        def trials(self) -> TrialList:
            kinds = np.repeat([None, "x y", "z"], 4).tolist()
            return TrialList(
                [Trial(f"u{i}", "", SPOOF if kind else BONA_FIDE, attack=kind) for i, kind in enumerate(kinds)]
            )

    data = AudioDeepfakeDataModule(Own(), Own(), held_out_attack="x y")
    data.read_trials("fit", test=True)
    assert [trial.attack for trial in data.train_trials] == [None] * 4 + ["z"] * 4
    assert [trial.attack for trial in data.trials_by_set["held_out"]] == [None] * 2 + ["x y"] * 4

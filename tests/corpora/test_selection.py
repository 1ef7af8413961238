"""A corpus restricted to some of its trials: what stays, is counted and is refused, for any class of corpus."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelora_ad.corpora import BONA_FIDE, SPOOF, Corpus, Manifest, Trial, TrialList
from moelora_ad.corpora.checking import check_corpus
from moelora_ad.corpora.corpus import ClassCounts
from moelora_ad.errors import InputError

FIELDS = {"attacks": "attack", "codecs": "codec", "speakers": "speaker", "languages": "language"}
NAMES = st.sampled_from([None, "a", "b", "c"])


class Given(Corpus):
    """A user's own class with the given trials and no code for selecting among them."""

    name = "Given"

    def __init__(self, trials: list[Trial]) -> None:
        self.given = trials

    def trials(self) -> TrialList:
        return TrialList(self.given)


TRIALS = [
    Trial("u1", "", BONA_FIDE, speaker="s1"),
    Trial("u2", "", SPOOF, speaker="s1", attack="A01", codec="opus"),
    Trial("u3", "", SPOOF, speaker="s2", attack="A02"),
    Trial("u4", "", SPOOF, speaker="s2"),
    Trial("u5", "", BONA_FIDE, speaker="s2", codec="opus"),
]


def ids(corpus: Corpus) -> list[str]:
    return [trial.utterance for trial in corpus.trials()]


def wanted(trial: Trial, selection: dict[str, list[str]]) -> bool:
    for argument, names in selection.items():
        plural = argument.removeprefix("exclude_")
        has_one = getattr(trial, FIELDS[plural]) in names
        if has_one == argument.startswith("exclude_") and not (plural == "attacks" and trial.label == BONA_FIDE):
            return False
    return True


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([BONA_FIDE, SPOOF, None]), NAMES, NAMES, NAMES, NAMES), min_size=1, max_size=12),
    st.dictionaries(
        st.sampled_from([*FIELDS, *(f"exclude_{plural}" for plural in FIELDS)]),
        st.lists(st.sampled_from(["a", "b", "c"]), max_size=3),
    ),
)
def test_what_stays_is_what_each_trial_says(rows, selection):
    trials = [
        Trial(f"u{number}", f"{number}.wav", label, speaker=speaker, attack=attack, codec=codec, language=language)
        for number, (label, speaker, attack, codec, language) in enumerate(rows)
    ]
    corpus = Given(trials, **selection)
    expected = [trial for trial in trials if wanted(trial, selection)]
    present = {plural: {getattr(trial, field) for trial in trials} for plural, field in FIELDS.items()}
    unknown = any(set(names) - present[argument.removeprefix("exclude_")] for argument, names in selection.items())
    if unknown or not expected:
        with pytest.raises(InputError):
            corpus.trials()
        return
    found = corpus.trials()
    assert list(found) == expected
    assert all(
        set(found.column(field).values) == {getattr(one, field) for one in expected} for field in FIELDS.values()
    )
    if not selection:
        assert corpus.left_out is None
        return
    lost = [trial.label for trial in trials if trial not in expected]
    assert corpus.left_out == (len(lost), lost.count(BONA_FIDE), lost.count(SPOOF))


def test_bona_fide_trials_stay_where_attacks_are_chosen():
    assert ids(Given(TRIALS, attacks=["A02"])) == ["u1", "u3", "u5"]
    assert ids(Given(TRIALS, exclude_attacks=["A02"])) == ["u1", "u2", "u4", "u5"]
    assert ids(Given(TRIALS, attacks=[])) == ["u1", "u5"]
    assert ids(Given(TRIALS, codecs=["opus"])) == ["u2", "u5"]
    assert ids(Given(TRIALS, attacks=["A01", "A02"], exclude_attacks=["A01"], speakers=["s2"])) == ["u3", "u5"]


@pytest.mark.parametrize(
    ("selection", "told"),
    [
        ({"attacks": ["A01", "A03"]}, "Given: attacks: there is no attack 'A03'; it has A01, A02"),
        ({"exclude_speakers": ["x"]}, "Given: exclude_speakers: there is no speaker 'x'; it has s1, s2"),
        ({"languages": ["de"]}, "Given: languages: there is no language 'de'; its trials have no language"),
        ({"codecs": ["opus"], "speakers": []}, "Given: codecs opus; speakers none: none of its 5 trials remains"),
    ],
)
def test_a_name_that_is_not_there_is_one_line_with_those_that_are(selection, told):
    with pytest.raises(InputError) as error:
        Given(TRIALS, **selection).trials()
    assert str(error.value) == told


@pytest.mark.parametrize("names", ["A01", [1], 5, {"A01": 1}])
def test_what_is_no_list_of_names_is_refused(names):
    with pytest.raises(InputError, match=r"attacks must be a list of names, like \[A01, A02\]"):
        Given(TRIALS, attacks=names)


def test_a_mistyped_argument_is_no_selection():
    with pytest.raises(TypeError, match="atacks"):
        Given(TRIALS, atacks=["A01"])


class Plain(Corpus):
    """A class without a constructor."""

    name = "Plain"

    def trials(self) -> TrialList:
        return TrialList(TRIALS)


class Longer(Given):
    """Calls the constructor and ``trials`` of a class that already applies the selection."""

    def __init__(self) -> None:
        super().__init__(TRIALS)

    def trials(self) -> TrialList:
        return TrialList([*super().trials(), Trial("u6", "", SPOOF, attack="A03")])


class Inherited(Given):
    """A subclass with nothing of its own."""


class Fixed(Given):
    """A class that sets a selection itself."""

    def __init__(self) -> None:
        super().__init__(TRIALS, attacks=["A01"])


class Numbered(Given):
    """A class whose own argument has the name of a selection's argument."""

    def __init__(self, attacks: int = 3) -> None:
        super().__init__(TRIALS)
        self.attacks = attacks


class HandingOn(Corpus):
    """Hands all arguments on to the constructor of `Corpus`."""

    name = "HandingOn"

    def __init__(self, **arguments) -> None:
        super().__init__(**arguments)

    def trials(self) -> TrialList:
        return TrialList(TRIALS)


class Keeping(Plain):
    """Keeps all arguments that it does not know for itself."""

    def __init__(self, path: str, **options) -> None:
        self.path, self.options = path, options


class Adding(Given):
    """Hands arguments on with something added."""

    def __init__(self, **arguments) -> None:
        left_out = [*arguments.pop("exclude_attacks", []), "A01"]
        super().__init__(TRIALS, exclude_attacks=left_out, **arguments)


class HandingOnItsOwn(Numbered):
    """Hands on an argument of its base class that has the name of a selection's argument."""

    def __init__(self, **arguments) -> None:
        super().__init__(**arguments)


class Mixin:
    """Gives a corpus its trials and its constructor without being a corpus."""

    def __init__(self, name: str) -> None:
        self.name = name

    def trials(self) -> TrialList:
        return TrialList(TRIALS)


class Mixed(Mixin, Corpus):
    pass


def test_any_class_can_be_confined():
    assert ids(Mixed("mixed", attacks=["A02"])) == ids(Mixed(name="mixed", exclude_attacks=["A01"], attacks=["A02"]))
    assert ids(Mixed("mixed", attacks=["A02"])) == ["u1", "u3", "u5"]
    assert ids(Plain(attacks=["A02"])) == ids(HandingOn(attacks=["A02"])) == ["u1", "u3", "u5"]
    assert ids(Inherited(TRIALS, attacks=["A02"])) == ["u1", "u3", "u5"]
    assert ids(Fixed()) == ["u1", "u2", "u5"]
    longer = Longer(exclude_attacks=["A01"])  # selects only once: a second time, A01 would be unknown
    assert ids(longer) == ids(longer) == ["u1", "u3", "u4", "u5", "u6"]
    assert longer.left_out == (1, 0, 1)
    assert ids(Fixed(speakers=["s2"])) == ["u5"]
    assert ids(Keeping("p", exclude_attacks=["A01"])) == ["u1", "u3", "u4", "u5"]
    assert ids(Keeping("p", attacks=["A02"], speakers=None, encoding="utf-8")) == ["u1", "u3", "u5"]
    assert ids(Adding(exclude_attacks=["A02"], speakers=["s2"])) == ["u4", "u5"]
    assert Keeping("p", encoding="utf-8").options == {"encoding": "utf-8"}
    own = HandingOnItsOwn(attacks=5, exclude_attacks=["A02"])
    assert (own.attacks, ids(own)) == (5, ["u1", "u2", "u4", "u5"])
    own = Numbered(attacks=5, exclude_attacks=["A02"])
    assert (own.attacks, ids(own)) == (5, ["u1", "u2", "u4", "u5"])


def test_a_class_that_keeps_its_arguments_is_told_of_names_that_are_not_there():
    with pytest.raises(InputError, match="there is no attack 'A09'; it has A01, A02"):
        Keeping("p", exclude_attacks=["A09"]).trials()


@pytest.mark.parametrize("given", [TRIALS, tuple(TRIALS), None])
def test_trials_that_are_no_trial_list_are_told(given):
    class Listed(Corpus):
        name = "Listed"

        def trials(self):
            return given

    with pytest.raises(InputError, match=r"^Listed\.trials gives a (list|tuple|NoneType), not a TrialList"):
        Listed().trials()


def test_official_counts_are_those_of_the_whole(tmp_path: Path):
    class Official(Given):
        def official_counts(self) -> ClassCounts:
            return ClassCounts(5, 2, 3)

    def quiet(indices, what, total):
        return indices

    for trial in TRIALS:
        (tmp_path / trial.utterance).touch()
    trials = [Trial(one.utterance, str(tmp_path / one.utterance), one.label, attack=one.attack) for one in TRIALS]
    report = check_corpus(Official(trials, exclude_attacks=["A01"]), 1, quiet)
    assert (report.found, report.left_out) == ((4, 2, 2), (1, 0, 1))
    assert not [problem for problem in report.problems if "expected" in problem]
    assert report.as_dict()["left_out"] == {"total": 1, "bona_fide": 0, "spoof": 1}
    report = check_corpus(Official(trials[1:], exclude_attacks=["A01"]), 1, quiet)
    assert report.problems[:2] == ["trials: 5 expected, 4 found", "bona fide: 2 expected, 1 found"]


def test_the_documentation_of_a_class_stays():
    assert Manifest.__init__.__doc__ is None
    assert Manifest.trials.__doc__ == "See `Corpus.trials`."

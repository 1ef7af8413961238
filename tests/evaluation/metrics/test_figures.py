"""Figures of sets against figures of lists filtered by hand."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from moelora_ad.corpora.trial import Trial
from moelora_ad.evaluation.metrics.clusters import default_clusters
from moelora_ad.evaluation.metrics.costs import AsvErrorRates, DetectionCosts
from moelora_ad.evaluation.metrics.curve import ScoreCurve
from moelora_ad.evaluation.metrics.equal_error_rate import ScoreError
from moelora_ad.evaluation.metrics.figures import evaluate_set, pooled
from moelora_ad.evaluation.metrics.intervals import bootstrap
from moelora_ad.evaluation.metrics.options import FigureOptions
from moelora_ad.evaluation.metrics.set_evaluation import Figures
from moelora_ad.evaluation.score_table import ScoreTable

NONE = FigureOptions(resamples=0)
GENDERS, LANGUAGES, RACES = ("female", "male"), ("de", "en", None), ("x", "y", "z", None)


def made(seed: int = 1, num: int = 240, **other: object) -> ScoreTable:
    """A score table: a third of the trials is bona fide; values of fields alternate, and some are unknown."""
    draw = np.random.default_rng(seed)
    trials = []
    for i in range(num):
        is_bona_fide = i % 3 == 0
        fields = {
            "speaker": f"s{i % 12}",
            "attack": None if is_bona_fide else (None, "A1", "A2", "A3")[i % 4],
            "codec": ("opus", "mp3", None, "spoofs only" if not is_bona_fide else "opus")[i % 4],
            "gender": GENDERS[i // 3 % 2],
            "language": LANGUAGES[i // 3 % 3],
            "race": RACES[i // 3 % 4],
            "corpus": "Mini",
        }
        trials.append(Trial(f"u{i}", "", label=int(is_bona_fide), **{**fields, **other}))
    return ScoreTable(trials, [float(draw.normal(1.5 * trial.label)) for trial in trials])


def plain(figures: Figures) -> Figures:
    return replace(figures, intervals={})


def by_hand(table: ScoreTable, keep: Callable[[Trial], bool]) -> Figures:
    """Figures with default options of the trials that ``keep`` accepts."""
    kept = [(score, trial.label) for trial, score in zip(table.trials, table.scores, strict=True) if keep(trial)]
    curve = ScoreCurve(*zip(*kept, strict=True))
    eer = curve.equal_error_rate()
    return Figures(
        num_bona_fide=sum(label == 1 for _, label in kept),
        num_spoof=sum(label == 0 for _, label in kept),
        eer=eer.eer,
        eer_threshold=eer.threshold,
        min_dcf=curve.min_dcf().cost,
        auc=curve.auc(),
        min_cllr=curve.min_cllr(),
    )


def test_overall_figures_are_those_of_the_curve() -> None:
    table = made()
    options = FigureOptions(
        DetectionCosts(0.2), calibrated=True, threshold=0.7, resamples=0, asv=AsvErrorRates(0.01, 0.02, 0.5)
    )
    curve = ScoreCurve(table.scores, table.labels)
    found = evaluate_set("mini", table, options)
    assert found.name == "mini"
    assert found.overall == Figures(
        num_bona_fide=80,
        num_spoof=160,
        eer=curve.equal_error_rate().eer,
        eer_threshold=curve.equal_error_rate().threshold,
        min_dcf=curve.min_dcf(options.costs).cost,
        auc=curve.auc(),
        min_cllr=curve.min_cllr(),
        act_dcf=curve.act_dcf(options.costs),
        cllr=curve.cllr(),
        threshold=0.7,
        accuracy=curve.accuracy(0.7),
        min_tdcf=curve.min_tdcf(options.asv).cost,
    )
    assert evaluate_set("mini", table, NONE).overall == by_hand(table, lambda trial: True)


def test_an_attack_is_against_all_bona_fide_trials() -> None:
    table = made()
    attacks = evaluate_set("mini", table, NONE).attacks
    assert list(attacks) == ["A1", "A2", "A3"]
    for name, figures in attacks.items():
        assert figures == by_hand(table, lambda trial, name=name: trial.label == 1 or trial.attack == name)
        assert (figures.num_bona_fide, figures.num_spoof) == (80, 40)


def test_a_codec_is_against_itself_and_one_of_one_class_is_left_out() -> None:
    table = made()
    found = evaluate_set("mini", table, NONE)
    assert list(found.codecs) == ["mp3", "opus"]
    for name, figures in found.codecs.items():
        assert figures == by_hand(table, lambda trial, name=name: trial.codec == name)
    assert found.notes == ["left out, as they have trials of one class only: codec spoofs only"]


def test_groups_of_speakers_are_against_themselves() -> None:
    table = made()
    groups = evaluate_set("mini", table, NONE).speakers
    names = ("gender: female", "gender: male", "language: de", "language: en", "race: x", "race: y", "race: z")
    assert tuple(groups) == names
    for name, figures in groups.items():
        field, value = name.split(": ")
        assert figures == by_hand(table, lambda trial, field=field, value=value: getattr(trial, field) == value)


def test_nothing_known_makes_no_groups() -> None:
    unknown: dict[str, object] = dict.fromkeys(("attack", "codec", "gender", "language", "race"))
    found = evaluate_set("mini", made(**unknown), NONE)
    assert (found.attacks, found.codecs, found.speakers, found.notes) == ({}, {}, {}, [])


def test_intervals_are_those_of_the_bootstrap_over_speakers_and_attacks() -> None:
    table = made()
    options = FigureOptions(resamples=40, calibrated=True, threshold=0.5, seed=3)
    found = evaluate_set("mini", table, options)
    wanted = bootstrap(table.scores, table.labels, default_clusters(table.trials), options)
    assert set(wanted) == set(options.figures)
    assert found.overall.intervals == wanted
    of_codec = np.flatnonzero([trial.codec == "mp3" for trial in table.trials])
    clusters = default_clusters(table.trials)[of_codec]
    wanted = bootstrap(table.scores[of_codec], table.labels[of_codec], clusters, options, ("eer", "min_dcf"))
    assert found.codecs["mp3"].intervals == wanted
    for group in (*found.attacks.values(), *found.codecs.values(), *found.speakers.values()):
        assert set(group.intervals) == {"eer", "min_dcf"}
        assert group.intervals["eer"].low <= group.eer <= group.intervals["eer"].high
    assert plain(found.overall) == evaluate_set("mini", table, replace(options, resamples=0)).overall
    assert evaluate_set("mini", table, options) == found


def test_clusters_that_are_asked_for_are_used() -> None:
    table = made()
    options = FigureOptions(resamples=300)
    by_speaker = evaluate_set("mini", table, replace(options, clusters=("speaker",)))
    alone = evaluate_set("mini", made(speaker=None), options)
    assert by_speaker.overall.intervals != alone.overall.intervals
    assert any(note.startswith("no trial has a known speaker") for note in alone.notes)
    assert not any(note.startswith("no trial has a known speaker") for note in by_speaker.notes)


def test_few_clusters_are_noted() -> None:
    notes = evaluate_set("mini", made(speaker="the only one"), FigureOptions(resamples=20)).notes
    assert "all bona fide trials are in 1 cluster: intervals are rough, and rather too narrow" in notes
    assert "all spoofs are in 4 clusters: intervals are rough, and rather too narrow" in notes


def test_a_single_cluster_gives_figures_without_intervals_and_it_is_said() -> None:
    options = FigureOptions(resamples=20, clusters=("speaker",))
    table = made(speaker="the only one", codec=None)
    found = evaluate_set("mini", table, options)
    assert found == replace(evaluate_set("mini", table, NONE), notes=found.notes)
    assert found.notes == [
        "no intervals: the trials of each class are in a single cluster, so that resamples do not differ"
    ]
    assert pooled({"mini": table}, options).overall == found.overall
    (note,) = [one for one in pooled({"mini": table}, options).notes if "interval" in one]
    assert note == found.notes[0]
    reversed_table = ScoreTable(table.trials, -table.scores)
    assert evaluate_set("mini", reversed_table, options).notes[0].startswith("EER above 50 %")


def test_reversed_scores_are_noted() -> None:
    table = made()
    found = evaluate_set("mini", ScoreTable(table.trials, -table.scores), NONE)
    assert found.overall.eer > 0.5
    assert found.notes[0].startswith(f"EER above 50 % ({100 * found.overall.eer:.2f} %): the scores look reversed")
    assert not any("reversed" in note for note in evaluate_set("mini", table, NONE).notes)


@pytest.mark.parametrize("resamples", [0, 1000])
def test_scores_look_reversed_only_if_the_interval_excludes_chance(resamples: int) -> None:
    draw = np.random.default_rng(5)
    # Of twenty trials a class, 10 errors are chance; 11 are not significantly more, 18 are.
    for wrong, is_told in ((11, False), (18, True)):
        ranks = [1.0] * wrong + [3.0] * (20 - wrong) + [2.0] * wrong + [0.0] * (20 - wrong)
        trials = [Trial(f"u{i}", "", label=int(i < 20), speaker=f"s{i}") for i in range(40)]
        table = ScoreTable(trials, np.array(ranks) + draw.uniform(0, 0.5, 40))
        options = FigureOptions(resamples=resamples)
        for found in (evaluate_set("mini", table, options), pooled({"mini": table}, options)):
            assert found.overall.eer == wrong / 20
            assert any("reversed" in note for note in found.notes) == is_told


def test_trials_without_a_label_are_refused() -> None:
    table = made(num=12)
    trials = [replace(trial, label=None) if i in (4, 7) else trial for i, trial in enumerate(table.trials)]
    unlabelled = ScoreTable(trials, table.scores)
    for act in (lambda: evaluate_set("mini", unlabelled, NONE), lambda: pooled({"mini": unlabelled}, NONE)):
        with pytest.raises(ScoreError, match=r"^mini: 2 of 12 trials without a label, the first is 'u4'; give a key"):
            act()


def one_class(table: ScoreTable, label: int) -> tuple[Sequence[Trial], list[float]]:
    kept = [i for i, trial in enumerate(table.trials) if trial.label == label]
    return [table.trials[i] for i in kept], table.scores[kept].tolist()


def test_a_set_of_one_class_is_refused_but_not_in_a_pool() -> None:
    spoofs, bona_fide = (ScoreTable(*one_class(made(), label)) for label in (0, 1))
    with pytest.raises(ScoreError, match="both classes"):
        evaluate_set("spoofs", spoofs, NONE)
    found = pooled({"spoofs": spoofs, "bona fide": bona_fide}, FigureOptions(resamples=20))
    assert plain(found.overall) == by_hand(made(), lambda trial: True)
    with pytest.raises(ScoreError, match="no set to pool"):
        pooled({}, NONE)


def test_a_pool_is_all_trials_at_once() -> None:
    # Both sets have the same utterance and speaker ids, but count as different trials.
    first, second = made(1), made(2, 90)
    found = pooled({"one": first, "two": second}, FigureOptions(resamples=50))
    scores = np.concatenate([first.scores, second.scores])
    curve = ScoreCurve(scores, np.concatenate([first.labels, second.labels]))
    assert (found.overall.eer, found.overall.num_spoof) == (curve.equal_error_rate().eer, 220)
    assert (found.name, found.attacks, found.codecs, found.speakers) == ("pooled", {}, {}, {})
    low, high = found.overall.intervals["auc"]
    assert low < curve.auc() < high


def test_notes_of_a_pool_name_the_set() -> None:
    found = pooled({"one": made(1, speaker=None), "two": made(2)}, FigureOptions(resamples=20))
    (note,) = found.notes
    assert note.startswith("one: no trial has a known speaker")

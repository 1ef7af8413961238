"""Systems over seeds: means, spreads, averages, marks and paired differences by hand; refused runs and notes."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable
from moelora_ad.evaluation.comparison.scored_runs import ScoredRun, ScoredSet, read_runs
from moelora_ad.evaluation.comparison.systems import Comparison
from moelora_ad.evaluation.comparison.table_one import table_one
from moelora_ad.runs.record import RunRecord, find_records

MakeRun = Callable[..., Path]


def scored(system: str, seed: int, eers: Mapping[str, float], trained_on: Sequence[str] = ("in",)) -> ScoredRun:
    """A scored run in memory; each set belongs to a corpus of the same name."""
    record = RunRecord(
        folder=Path(system, str(seed)),
        state="finished",
        reason=None,
        system=system,
        seed=seed,
        started="",
        updated="",
        seconds=1.0,
        attempts=1,
        epoch=1,
        max_epochs=1,
        step=1,
        max_steps=1,
        dev_eer=None,
        best_dev_eer=None,
        parameters={"experts": 1, "total": 2},
        training_corpora=tuple(trained_on),
        sets={},
        checkpoint=None,
        scores=None,
        peak_memory_bytes={},
        versions={},
        git_commit=None,
        command=(),
    )
    sets = {name: ScoredSet(name, (), eer, 1, 1, True, "", None) for name, eer in eers.items()}
    return ScoredRun(record, {}, sets)


EER = st.floats(0, 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(EER, EER, EER, EER), min_size=1, max_size=6))
def test_means_and_spreads_are_over_seeds_and_averages_over_sets_come_first(figures: list[tuple[float, ...]]) -> None:
    names = ("dev", "in", "out1", "out2")
    runs = [scored("a", seed, dict(zip(names, row, strict=True))) for seed, row in enumerate(figures)]
    comparison = Comparison(runs)
    values = np.array(figures)
    expected = {name: values[:, at] for at, name in enumerate(names)}
    expected["macro_ood"] = values[:, 2:].mean(axis=1)
    expected["macro_all"] = values[:, 1:].mean(axis=1)
    assert comparison.columns == tuple(expected)
    for column, by_seed in expected.items():
        found = comparison.summary("a", column)
        assert found is not None
        assert found.mean == pytest.approx(by_seed.mean(), abs=1e-12)
        assert found.num == len(figures)
        if len(figures) == 1:
            assert found.std is None
        else:
            assert found.std == pytest.approx(np.sqrt(((by_seed - by_seed.mean()) ** 2).sum() / (len(by_seed) - 1)))


def test_own_sets_are_those_of_the_training_corpora_of_any_run() -> None:
    eers = {"in": 0.1, "out1": 0.2, "out2": 0.4}
    one = Comparison([scored("a", 1, eers), scored("b", 1, eers)])
    assert one.averages == {"macro_ood": ("out1", "out2"), "macro_all": ("in", "out1", "out2")}
    other = Comparison([scored("a", 1, eers), scored("b", 1, eers, trained_on=["in", "out2"])])
    assert other.averages["macro_ood"] == ("out1",)
    assert Comparison(one.runs, own=["out1"]).averages["macro_ood"] == ("in", "out2")
    assert "macro_ood" not in Comparison(one.runs, own=["in", "out1", "out2"]).averages


def test_a_set_that_a_run_lacks_is_in_no_average() -> None:
    runs = [scored("a", 1, {"in": 0.1, "out": 0.2}), scored("a", 2, {"in": 0.3})]
    comparison = Comparison(runs)
    assert comparison.averages == {"macro_all": ("in",)}
    assert comparison.eers("a", "out") == {1: 0.2}
    assert comparison.summary("a", "out") == (0.2, None, 0.2, 0.2, 1)


def test_the_best_is_what_reads_best_and_ties_are_shared() -> None:
    runs = [
        scored("a", 1, {"dev": 0.1, "in": 0.10001, "out": 0.2}),
        scored("b", 1, {"dev": 0.2, "in": 0.10004, "out": 0.1002}),
        scored("c", 1, {"dev": 0.3, "in": 0.11, "out": 0.0999}),
    ]
    comparison = Comparison(runs)
    assert comparison.best("in") == {"a", "b"}
    assert comparison.best("out") == {"c"}
    assert comparison.best("dev") == frozenset()
    assert Comparison(runs[:1]).best("in") == frozenset()


def test_reading_runs_takes_eers_from_the_score_files(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("lora", 1)
    path = folder / "scores/best/in_domain.csv"
    table = ScoreTable.read(path)
    table.with_scores(-table.scores).write(path)  # the EER in the record is now out of date
    make_run("lora", 2)
    runs, notes = read_runs(find_records([tmp_path]))
    assert [run.record.seed for run in runs] == [1, 2]
    expected, recorded = table.with_scores(-table.scores).equal_error_rate().eer, runs[0].record.sets["in_domain"].eer
    assert runs[0].sets["in_domain"].eer == expected != recorded
    (note,) = notes  # as they may be of a later test, with another segment
    told = f"EER {100 * expected:.2f} %, and {100 * recorded:.2f} % in the run's own test"
    assert note.startswith(f"lora, seed 1, in_domain: {told}")
    assert runs[0].sets["in_domain"].corpus == "MiniLA"


def test_sets_that_were_tested_later_count(make_run: MakeRun, make_scores: Callable[..., ScoreTable]) -> None:
    folder = make_run("lora", 1)
    make_scores(5, "Later").write(folder / "scores/best/later.csv")
    (run,), notes = read_runs(find_records([folder]))
    assert notes == []
    assert run.sets["later"].corpus == "Later"
    assert Comparison([run]).averages["macro_ood"] == ("out_of_domain", "later")


def test_what_is_not_finished_is_noted_and_left_out(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("lora", 1)
    make_run("lora", 2, state="running")
    make_run("lora", 3, state="failed", reason="out of memory")
    make_run("lora", 4, state="interrupted", reason="SIGTERM")
    make_run("lora", 5, scores=None)
    make_run("lora", 6, scores="scores/moved")
    runs, notes = read_runs(find_records([tmp_path]))
    assert [run.record.seed for run in runs] == [1]
    assert len(notes) == 5
    for seed, words in ((2, "running"), (3, "out of memory"), (4, "SIGTERM"), (5, "not tested"), (6, "scores/moved")):
        (note,) = [note for note in notes if f"seed_{seed} " in note]
        assert words in note


def test_nothing_finished_is_refused(make_run: MakeRun) -> None:
    folder = make_run("lora", 1, state="failed", reason="out of memory")
    with pytest.raises(InputError, match=r"none of 1 run is finished.*out of memory"):
        read_runs(find_records([folder]))


def test_incomplete_scores_are_noted(make_run: MakeRun) -> None:
    folder = make_run("lora", 1)
    scores = folder / "scores/best"
    (scores / "in_domain.failed.csv").write_text("utterance,reason\nx,broken\n")
    provenance = json.loads((scores / "dev.json").read_text())
    (scores / "dev.json").write_text(json.dumps(provenance | {"complete": False, "trials": 70}))
    (scores / "out_of_domain.csv").unlink()
    (run,), notes = read_runs(find_records([folder]))
    assert "lora, seed 1: the score file of out_of_domain is missing" in notes
    assert "lora, seed 1, dev: only 60 of 70 trials with a score" in notes
    assert any("in_domain: 1 trial could not be scored (in_domain.failed.csv)" in note for note in notes)
    assert len(notes) == 3
    assert set(run.sets) == {"dev", "in_domain"}


def test_a_seed_twice_names_both_folders(make_run: MakeRun, tmp_path: Path) -> None:
    first = make_run("lora", 1)
    second = make_run("lora", 2, seed=1)
    with pytest.raises(InputError) as error:
        read_runs(find_records([tmp_path]))
    assert str(first) in str(error.value)
    assert str(second) in str(error.value)
    assert "\n" not in str(error.value)
    make_run("lora", 2, seed=1, state="failed", reason="x")  # a failed run does not count as a duplicate
    assert len(read_runs(find_records([tmp_path]))[0]) == 1


def test_runs_of_one_system_with_other_configurations_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("lora", 1)
    make_run("lora", 2, configuration={"model": {"adaptation": "lora", "lr": 0.1}})
    with pytest.raises(InputError, match=r"seed_1 and .*seed_2 .* differ in model\.lr \(not set, 0\.1\)"):
        read_runs(find_records([tmp_path]))


@pytest.mark.parametrize("has_provenance", [True, False])
def test_other_trials_are_refused(make_run: MakeRun, tmp_path: Path, has_provenance: bool) -> None:
    make_run("a", 1)
    make_run("b", 1, num=66)
    if not has_provenance:
        for path in tmp_path.rglob("scores/best/*.json"):
            path.unlink()
    with pytest.raises(InputError, match=r"a/seed_1 and .*b/seed_1 have other trials in the set 'in_domain'"):
        read_runs(find_records([tmp_path]))


def test_the_same_trials_are_known_without_provenance(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", 1)
    (make_run("b", 1) / "scores/best/in_domain.json").unlink()
    runs, notes = read_runs(find_records([tmp_path]))
    assert (len(runs), notes) == (2, [])


def test_systems_may_have_been_selected_on_other_trials(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", 1, sets={"dev": "OneDev", "out": "MiniOOD"})
    make_run("b", 1, sets={"dev": "OtherDev", "out": "MiniOOD"})
    runs, notes = read_runs(find_records([tmp_path]))
    assert len(runs) == 2
    assert notes == ["b and a were selected on different trials of dev"]


def test_a_set_called_like_an_average_is_refused() -> None:
    with pytest.raises(InputError, match="macro_ood"):
        Comparison([scored("a", 1, {"macro_ood": 0.1})])


def test_a_part_of_the_papers_corpus_is_not_the_papers(make_run: MakeRun) -> None:
    model = {
        "backbone": {"class_path": "moelora_ad.models.Wav2Vec2Backbone"},
        "adaptation": {"class_path": "moelora_ad.adapters.MoELoRA", "init_args": {"num_experts": 3, "rank": 8}},
    }
    common = {
        "sets": {"wild": "InTheWild"},
        "configuration": {"model": model},
        "training_corpora": ["ASVspoof2019_LA"],
        "parameters": {"experts": 5_755_658, "total": 321_194_378},
    }

    def rows_of(seed: int, selections: dict[str, str]) -> list[str]:
        folder = make_run("moe", seed, **common, selections=selections)
        return [row[0] for row in table_one(Comparison(read_runs(find_records([folder]))[0])).rows]

    assert len(rows_of(1, {})) == 2
    assert rows_of(2, {"train": "exclude_attacks A04"}) == rows_of(3, {"wild": "speakers x"}) == ["moe"]

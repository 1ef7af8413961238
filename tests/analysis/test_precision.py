"""Analyses compute in the precision that the run was evaluated in: their scores are those of its score files."""

import shutil
from functools import cache

import numpy as np
import pytest
import yaml

from moelora_ad.analysis import analyze_ensemble, analyze_experts, analyze_routing, experts_report
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable

HERE = {"device": "cpu", "workers": 0}


@pytest.fixture(scope="module")
def judged(fitted, tmp_path_factory):
    """A function that tests a copy of a fitted run in another precision; returns its folder and scores of "other"."""
    from moelora_ad.cli.fit import run

    @cache
    def copy(system: str, precision: str):
        folder = tmp_path_factory.mktemp("judged") / system
        shutil.copytree(fitted[system, 1], folder)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["trainer"]["precision"] = precision
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (checkpoint,) = [path for path in (folder / "checkpoints").glob("*.ckpt") if path.name != "last.ckpt"]
        scores = folder.parent / "scores"
        options = ["--config", folder / "config.yaml", "--ckpt_path", checkpoint, "--score_folder", scores]
        assert run(["test", *map(str, options)]) == 0
        return folder, ScoreTable.read(scores / "other.csv").scores

    return copy


@pytest.fixture(scope="module")
def plain(fitted):
    """The analysis of the run as it is."""
    return analyze_experts(fitted["mixture", 1], resamples=20, **HERE)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_scores_are_those_of_the_run(plain, judged, precision):
    folder, expected = judged("mixture", precision)
    analysis = analyze_experts(folder, resamples=20, **HERE)
    np.testing.assert_allclose(analysis.scores["other"]["all experts"].scores, expected, rtol=1e-6, atol=1e-6)
    assert analysis.notes == (f"computed in {precision}, as the model was evaluated; --precision sets another one",)
    assert experts_report(analysis).notes[-1] == analysis.notes[0]

    # The precision makes a difference and can be chosen; there is no note where it is the run's own.
    single = analyze_experts(folder, resamples=20, precision="32-true", **HERE)
    assert 1e-5 < np.abs(single.scores["other"]["all experts"].scores - expected).max() < 0.1
    (note,) = single.notes
    assert note.startswith(f"computed in 32-true; the model was evaluated in {precision}")
    assert plain.notes == ()
    for variant, table in plain.scores["other"].items():
        np.testing.assert_array_equal(single.scores["other"][variant].scores, table.scores)


def test_averaged_weights_are_not_rounded_into_the_encoder(judged, fitted):
    """The average of two copies of one LoRA is that LoRA; merging into weights of bfloat16 would change it."""
    folder, expected = judged("lora", "bf16-true")
    shutil.copytree(folder, folder.parent / "again")
    (folder.parent / "again" / "run.json").unlink()  # without this file, the run is named after its folder
    analysis = analyze_ensemble([folder, folder.parent / "again"], sets=["other"], resamples=20, **HERE)
    scores = analysis.scores["other"]
    assert analysis.members == ("lora, seed 1", "again, seed 1")
    for variant in (*analysis.members, "scores averaged", "weights averaged"):
        np.testing.assert_allclose(scores[variant].scores, expected, rtol=1e-6, atol=1e-6)


def test_routing_in_half_precision(judged, fitted):
    folder, _ = judged("mixture", "bf16-mixed")
    half, single = (analyze_routing(run, permutations=19, **HERE) for run in (folder, fitted["mixture", 1]))
    assert half.notes
    difference = np.abs(half.overall.mean_gate - single.overall.mean_gate).max()
    assert 0 < difference < 0.02
    np.testing.assert_allclose(half.overall.mean_gate.sum(1), 1, atol=1e-5)


def test_mistakes(fitted):
    with pytest.raises(InputError, match="resamples: must be at least 20, not 19"):
        analyze_experts(fitted["mixture", 1], resamples=19)
    for given, words in (
        ({"precision": "64-true"}, "precision: '64-true' is not one of"),
        ({"batch_size": 0}, "batch size: must be at least 1, not 0"),
        ({"permutations": 18}, "permutations: must be at least 19, not 18"),
        ({"draws": 18}, "draws: must be at least 19, not 18"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
    ):
        with pytest.raises(InputError, match=words):
            analyze_routing(fitted["mixture", 1], **({"workers": 0} | given))

"""Experts removed, experts left alone and LoRAs averaged, against models changed by hand."""

import itertools
import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from moelora_ad.adapters import adapted_sites
from moelora_ad.analysis import ensemble, ensemble_report, experts, routing
from moelora_ad.analysis.passes import AudioPasses
from moelora_ad.analysis.scoring import eers_by_attack, scores_of_variants
from moelora_ad.analysis.trained import load_trained, trials_of
from moelora_ad.cli import analyze as analyze_command
from moelora_ad.evaluation import ScoreTable, equal_error_rate

READING = {"batch_size": 16, "workers": 0, "device": "cpu"}


def score(trained, name="other") -> np.ndarray:
    passes = AudioPasses(**READING)
    return scores_of_variants(trained, trials_of(trained, name), {"it": nullcontext}, passes, "")["it"].scores


def test_variants_are_models_without_these_experts(fitted):
    """With dense gates, removing an expert removes its column of the softmax, and the others share its weight."""
    trained = load_trained(fitted["mixture", 1])
    trials = trials_of(trained, "other")
    variants = experts.variants_of(trained, keep_gates=False)
    scored = scores_of_variants(trained, trials, variants, AudioPasses(**READING), "")
    assert list(scored) == ["all experts", "without 0", "without 1", "without 2", "0 alone", "1 alone", "2 alone"]
    (path,) = (trained.folder / "scores").glob("*/other.csv")
    np.testing.assert_allclose(scored["all experts"].scores, ScoreTable.read(path).scores, atol=1e-5)
    sites = [site for _, site in adapted_sites(trained.detector.backbone.encoder)]
    kept = [[expert.lora_B.detach().clone() for expert in site.experts] for site in sites]
    with torch.no_grad():
        for site in sites:  # an expert left alone has weight 1: here 3 times its update at a weight of 1 / 3
            site.experts[0].lora_B.zero_()
            site.experts[2].lora_B.zero_()
            site.experts[1].lora_B.mul_(3.0)
            site.gate.weight.zero_()  # all weights are 1 / 3
    np.testing.assert_allclose(scored["1 alone"].scores, score(trained), atol=1e-5)
    assert abs(scored["1 alone"].scores - scored["all experts"].scores).max() > 1e-4
    fresh = load_trained(fitted["mixture", 1])
    with torch.no_grad():
        for _, site in adapted_sites(fresh.detector.backbone.encoder):
            site.experts[2].lora_B.zero_()
    by_hand = score(fresh)
    trained = load_trained(fitted["mixture", 1])
    kept_gates = experts.variants_of(trained, keep_gates=True)
    only = {"without 2": kept_gates["without 2"]}
    without = scores_of_variants(trained, trials, only, AudioPasses(**READING), "")["without 2"].scores
    np.testing.assert_allclose(without, by_hand, atol=1e-6)
    assert len(kept) == len(sites)


def test_eers_of_attacks(fitted):
    trained = load_trained(fitted["mixture", 1])
    table = ScoreTable(trials_of(trained, "other"), score(trained))
    found = eers_by_attack(table)
    attacks = np.array([trial.attack or "" for trial in table.trials])
    assert set(found) == set(attacks[table.labels == 0])
    for attack, eer in found.items():
        chosen = (table.labels == 1) | (attacks == attack)
        assert eer == pytest.approx(equal_error_rate(table.scores[chosen], table.labels[chosen]).eer)


def test_averaged_weights_are_those_of_a_dense_merge(fitted):
    """Seed 1 of the LoRA, averaged with a copy whose trained parameters all differ."""
    first, second = load_trained(fitted["lora", 1]), load_trained(fitted["lora", 1])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in second.detector.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    pairs = [ensemble._updates(one) for one in (first, second)]
    heads = [ensemble._classifier(one) for one in (first, second)]
    before = score(first)
    with ensemble.averaged(first, pairs, heads):
        averaged = score(first)
    np.testing.assert_array_equal(score(first), before)
    by_hand = load_trained(fitted["lora", 1])
    others = dict(adapted_sites(second.detector.backbone.encoder))
    with torch.no_grad():
        for site, layer in adapted_sites(by_hand.detector.backbone.encoder):
            deltas = [one.scaling * one.experts[0].lora_B @ one.experts[0].lora_A for one in (layer, others[site])]
            layer.base.weight += sum(deltas) / 2
            layer.experts[0].lora_B.zero_()
        heads = zip(by_hand.detector.classifier.parameters(), second.detector.classifier.parameters(), strict=True)
        for mine, other in heads:
            mine.copy_((mine + other) / 2)
    np.testing.assert_allclose(averaged, score(by_hand), atol=1e-5)
    assert abs(averaged - before).max() > 1e-3


def test_the_verbs(fitted, run_verb, tmp_path, monkeypatch):
    mixture, lora = fitted["mixture", 1], fitted["lora", 1]
    code, out, _ = run_verb(analyze_command, "experts", mixture, "--resamples", 50, "--to", tmp_path)
    assert code == 0
    assert "without 2" in out
    told = json.loads((tmp_path / "experts.json").read_text())
    assert out.rstrip().splitlines()[-2] == told["finding"]
    base = next(row for row in told["rows"] if row["variant"] == "all experts" and not row["attack"])
    (path,) = (mixture / "scores").glob("*/other.csv")
    assert base["eer"] == pytest.approx(ScoreTable.read(path).equal_error_rate().eer)
    assert (tmp_path / "experts-other.png").stat().st_size > 1000
    code, _, err = run_verb(analyze_command, "experts", lora)
    assert code == 2
    assert "the model has no gates" in err
    code, _, err = run_verb(analyze_command, "ensemble", lora, mixture)
    assert code == 2
    assert "is not a run of a LoRA; give a mixture with --against" in err
    code, _, err = run_verb(analyze_command, "ensemble", lora)
    assert code == 2
    assert "at least two LoRA runs" in err
    last = lora / "checkpoints" / "last.ckpt"
    code, _, err = run_verb(analyze_command, "ensemble", lora, last)
    assert code == 2
    assert "given twice" in err
    monkeypatch.setattr(ensemble, "scores_of_variants", None)  # the mixture is checked before any audio is read
    code, _, err = run_verb(analyze_command, "ensemble", lora, last, "--against", lora)
    assert code == 2
    assert "has no gates; give a run that was adapted with MoELoRA" in err


def test_an_ensemble_of_two_seeds_against_a_mixture(fitted, monkeypatch):
    """The second seed is the first run under another seed number, with the sign of its head turned."""
    original = ensemble.load_trained

    def load(path, backbone=None, allow=()):
        trained = original(path, backbone)
        if path == "second":
            raise AssertionError
        return trained

    runs = []

    def load_second(path, backbone=None, allow=()):
        trained = load(fitted["lora", 1] if path == "second" else path, backbone)
        if path == "second":
            trained = trained._replace(seed=2)
            with torch.no_grad():
                for parameter in trained.detector.classifier.parameters():
                    parameter.mul_(-1.0)
        runs.append(trained)
        return trained

    monkeypatch.setattr(ensemble, "load_trained", load_second)
    analysis = ensemble_report(
        ensemble.analyze_ensemble(
            [fitted["lora", 1], "second"], against=fitted["mixture", 1], resamples=50, seed=1, **READING
        )
    )
    eers = {row["variant"]: row["eer"] for row in analysis.rows}
    assert list(eers) == [
        "lora, seed 1",
        "lora, seed 2",
        "scores averaged",
        "weights averaged",
        "mixture",
        "mixture with constant gates",
    ]
    one = score(original(fitted["lora", 1]))
    labels = trials_of(original(fitted["lora", 1]), "other").labels
    assert eers["lora, seed 1"] == pytest.approx(equal_error_rate(one, labels).eer)
    # The second head is the first with its sign turned: the mean of the scores, and of the heads, is zero.
    assert eers["scores averaged"] == pytest.approx(equal_error_rate(0 * one, labels).eer)
    assert eers["weights averaged"] == pytest.approx(equal_error_rate(0 * one, labels).eer)
    passes = {row["variant"]: row["forward_passes"] for row in analysis.rows}
    assert passes["scores averaged"] == 2
    assert passes["weights averaged"] == 1
    assert all(f"{variant} on other: " in analysis.finding for variant in ("weights averaged", "scores averaged"))
    note = "mixture with constant gates: the mean gates of dev for every token"
    assert note in analysis.notes
    alone = ensemble.analyze_ensemble([fitted["lora", 1], "second"], resamples=20, seed=1, **READING)
    assert note not in ensemble_report(alone).notes


def test_analyses_elsewhere_are_those_on_the_cpu(fitted, elsewhere, monkeypatch):
    """Routing, removed experts, averaged LoRAs (one run under two names), and a mixture with constant gates."""
    original, seeds = ensemble.load_trained, itertools.count(1)
    monkeypatch.setattr(ensemble, "load_trained", lambda *given: original(*given)._replace(seed=next(seeds)))
    found = []
    for device in (torch.device("cpu"), elsewhere):
        mixture, lora = fitted["mixture", 1], fitted["lora", 1]
        given = {"device": device, "batch_size": 20}  # two batches of each set: each batch takes long there
        used = routing.analyze_routing(mixture, permutations=19, **given)
        given["resamples"] = 20
        alone = experts.analyze_experts(mixture, **given)
        seeds = itertools.count(1)
        both = ensemble.analyze_ensemble([lora, lora], against=mixture, **given)
        found.append({"gates": used.overall.mean_gate, "norms": used.overall.output_norm})
        for by_variant in (*alone.scores.values(), *both.scores.values()):
            found[-1] |= {variant: table.scores for variant, table in by_variant.items()}
    assert found[0].keys() == found[1].keys()
    assert {"without 0", "weights averaged", "mixture with constant gates"} <= found[0].keys()
    for name, wanted in found[0].items():
        np.testing.assert_allclose(found[1][name], wanted, rtol=1e-4, atol=1e-4, err_msg=name)

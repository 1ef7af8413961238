"""Seeds compared by their score files, by formulas written out, and by the gates of copies of one model."""

import hashlib
import json
import shutil
from itertools import count

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from moelora_ad.adapters import adapted_sites, record_routing
from moelora_ad.analysis import stability
from moelora_ad.analysis.stability import ScoreStability, routing_of
from moelora_ad.analysis.trained import batches, load_trained, trials_of
from moelora_ad.cli import analyze as analyze_command
from moelora_ad.corpora.trial import Trial
from moelora_ad.evaluation import ScoreTable
from moelora_ad.runs.record import read_record


def test_the_verb_on_two_seeds(fitted, run_verb, tmp_path):
    runs = [fitted["mixture", 1], fitted["mixture", 2]]
    code, printed, err = run_verb(analyze_command, "stability", runs[0].parent, "--permutations", 20, "--to", tmp_path)
    assert (code, err) == (0, "")
    content = json.loads((tmp_path / "stability.json").read_text())
    assert content["finding"] in printed
    assert content["seeds"] == [1, 2]
    for name in ("dev", "other"):
        tables = [ScoreTable.read(read_record(run).score_folder / f"{name}.csv") for run in runs]
        eers = [table.equal_error_rate().eer for table in tables]
        one = content["sets"][name]
        np.testing.assert_allclose(one["eers"], eers)
        assert one["summary"]["std"] == pytest.approx(np.std(eers, ddof=1))
        assert one["rank_correlation"] == pytest.approx(spearmanr(*(table.scores for table in tables)).statistic)
        of_rows = [row["value"] for row in content["rows"] if row["what"] == "eer" and row["set"] == name]
        np.testing.assert_allclose(of_rows, eers)

    # Mean gates of each model, recorded separately: their spread, expert by expert, is the reported one.
    means = []
    for run in runs:
        trained = load_trained(run)
        with torch.inference_mode(), record_routing(trained.detector.backbone.encoder) as record:
            for batch in batches(trained, trials_of(trained, "dev")):
                trained.detector(batch.waveforms, batch.lengths)
        means.append(np.stack([gate.numpy() for gate in record.mean_gates().values()]))
    spread = np.std(means, axis=0, ddof=1).mean()
    assert content["routing"]["spread_of_mean_gate_unmatched"] == pytest.approx(spread, abs=1e-5)
    assert -1 <= content["routing"]["similarity"] <= 1
    assert content["routing"]["draws"] == 19
    assert 1 / 20 <= content["routing"]["p_untrained"] <= 1
    of_sites = [row["value"] for row in content["rows"] if row["what"] == "similarity_untrained"]
    assert content["routing"]["similarity_untrained"] == pytest.approx(np.mean(of_sites))
    assert "untrained" in printed
    assert (tmp_path / "stability-routing.png").stat().st_size > 1000


def test_without_draws_nothing_is_said_of_untrained_gates(fitted, run_verb, tmp_path):
    arguments = [fitted["mixture", 1].parent, "--permutations", 19, "--draws", 0, "--to", tmp_path]
    code, printed, _ = run_verb(analyze_command, "stability", *arguments)
    assert code == 0
    assert "untrained" not in printed + (tmp_path / "stability.json").read_text()


def test_gates_that_nothing_has_trained_agree_as_untrained_ones_do(fitted, monkeypatch):
    """Both models' own gates are drawn anew, so that only their inputs make them agree."""
    load, seeds = stability.load_trained, count()

    def untrained(*arguments):
        trained = load(*arguments)
        torch.manual_seed(next(seeds))
        for _, layer in adapted_sites(trained.detector.backbone.encoder):
            layer.gate.reset_parameters()
        return trained

    monkeypatch.setattr(stability, "load_trained", untrained)
    runs = [fitted["mixture", 1], fitted["mixture", 2]]
    reading = {"workers": 0, "batch_size": 40}  # all at once
    found = [stability.analyze_stability(runs, permutations=19, draws=99, **reading).routing for _ in range(6)]
    assert 0.2 < np.mean([one.p_untrained for one in found]) < 0.8
    own = np.mean([one.agreement.similarity.mean() for one in found])
    drawn = found[0].untrained.mean(1)
    assert own == pytest.approx(drawn.mean(), abs=3 * drawn.std() / len(found) ** 0.5)


def test_models_without_gates_are_compared_by_scores_alone(fitted, run_verb, tmp_path):
    for seed in (1, 2):
        shutil.copytree(fitted["lora", 1], tmp_path / f"seed_{seed}")
    path = tmp_path / "seed_2" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 2}))
    code, printed, _ = run_verb(analyze_command, "stability", tmp_path)
    assert code == 0
    assert "no gates" in printed
    assert "+- 0.00 (std, the widest), and two seeds decide 0.0 % of its trials differently" in printed


def table(scores: list[float]) -> ScoreTable:
    return ScoreTable([Trial(str(number), "", label=int(number > 2)) for number in range(6)], scores)


def test_scores_by_hand():
    first, second = table([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), table([0.0, 1.0, 4.0, 3.0, 2.0, 5.0])
    found = ScoreStability.between([first, second])
    # The first has no error; the second's best threshold misses one bona fide of 3 and accepts one spoof of 3.
    np.testing.assert_allclose(found.eers, [0, 1 / 3])
    assert found.rank_correlation == pytest.approx(1 - 6 * (2**2 + 2**2) / (6 * 35))
    assert found.disagreement == pytest.approx(2 / 6)
    assert ScoreStability.between([first, table([1.0] * 6)]).rank_correlation == 0


def test_the_spread_of_matched_experts_forgets_their_numbers():
    logits = np.random.default_rng(2).normal([0.0, 0.5, 1.0], 1.0, (80, 2, 3))
    gates = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).astype(np.float32)
    turned = gates[..., [2, 0, 1]]
    found = routing_of([gates, turned], ["layers.0.q", "layers.1.q"], permutations=10, seed=1)
    np.testing.assert_allclose(found.agreement.similarity, 1, atol=1e-5)
    np.testing.assert_allclose(found.spread, 0, atol=1e-6)
    means = gates.mean(0)
    expected = np.std([means, means[:, [2, 0, 1]]], axis=0, ddof=1).mean(1)
    np.testing.assert_allclose(found.unmatched_spread, expected, atol=1e-6)


def test_gates_are_compared_with_draws_of_untrained_ones():
    """Two gates share half of their variance, so r = 0.5; untrained ones share a fifth, all of it, or nothing."""
    generator = np.random.default_rng(3)

    def pair(share: float) -> np.ndarray:
        """(2, n, S, 2) weights of two experts at one site."""
        common, own = generator.normal(size=(1, 5_000, 1)), generator.normal(size=(2, 5_000, 1))
        first = share**0.5 * common + (1 - share) ** 0.5 * own
        return np.stack([first, -first], -1).astype(np.float32)

    trained = list(pair(0.5))
    for share, p in ((0.2, 1 / 20), (1.0, 1.0), (0.0, 1 / 20)):
        untrained = np.stack([pair(share) for _ in range(19)], axis=1)  # of each model, (draws, n, S, N)
        found = routing_of(trained, ["layers.0.q"], 19, 1, untrained=list(untrained))
        assert found.agreement.similarity.mean() == pytest.approx(0.5, abs=0.03)
        np.testing.assert_allclose(found.untrained, np.full((19, 1), share), atol=0.06)
        assert found.p_untrained == pytest.approx(p)
    assert routing_of(trained, ["layers.0.q"], 19, 1).untrained.shape == (0, 1)


def test_mistakes(fitted, run_verb, tmp_path):
    both = fitted["mixture", 1].parent.parent
    shutil.copytree(fitted["mixture", 1], tmp_path / "a")
    shutil.copytree(fitted["mixture", 1], tmp_path / "b")
    shutil.copytree(fitted["mixture", 2], tmp_path / "other")
    (scores,) = (tmp_path / "other" / "scores").glob("*/dev.csv")
    lines = scores.read_text().splitlines(keepends=True)
    scores.write_text("".join(lines[:-1]))
    shutil.copytree(tmp_path / "other", tmp_path / "cut")
    record = json.loads(scores.with_suffix(".json").read_text())
    part = {"scored": len(lines) - 2, "complete": False}
    part["score_file_sha256"] = hashlib.sha256(scores.read_bytes()).hexdigest()
    scores.with_suffix(".json").write_text(json.dumps(record | part))
    for runs, expected, words in (
        ([both], 2, "runs of 2 systems, lora, mixture: name those of one"),
        ([fitted["mixture", 1]], 2, "at least two finished runs of a system, there is one"),
        ([tmp_path / "a", tmp_path / "b"], 1, "with seed 1: name one of them"),
        ([tmp_path / "a", tmp_path / "other"], 1, "have scores of other trials in dev"),
        ([tmp_path / "a", tmp_path / "cut"], 1, f"it has {len(lines) - 2} scores, recorded: {len(lines) - 1}"),
        ([tmp_path / "a" / "scores"], 2, "no run in it or below it"),
    ):
        code, _, err = run_verb(analyze_command, "stability", *runs)
        assert (code, err.count("\n")) == (expected, 1)
        assert words in err

"""Singular values against those of dense products, and the layers in which projections are reported as active."""

import json

import numpy as np
import pytest
import torch

from moelora_ad.adapters import adapted_sites
from moelora_ad.analysis.reports.report import Report
from moelora_ad.analysis.reports.singular_values import singular_values_report
from moelora_ad.analysis.singular_values import SingularValueAnalysis, num_last
from moelora_ad.analysis.trained import load_trained
from moelora_ad.cli import analyze as analyze_command

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


@pytest.mark.parametrize("system", ["mixture", "lora"])
def test_the_verb_gives_those_of_the_dense_updates(fitted, run_verb, tmp_path, system):
    run = fitted[system, 1]
    code, printed, _ = run_verb(analyze_command, "singular-values", run, "--to", tmp_path)
    content = json.loads((tmp_path / "singular-values.json").read_text())
    assert code == 0
    assert content["finding"] in printed
    sites = dict(adapted_sites(load_trained(run).detector.backbone.encoder))
    assert list(content["singular_values"]) == list(sites)
    for site, layer in sites.items():
        scale = 2.0 if system == "lora" else 1.0  # alpha / rank
        dense = torch.stack([scale * expert.lora_B.double() @ expert.lora_A.double() for expert in layer.experts])
        expected = torch.linalg.svdvals(dense)[:, :2].detach()
        np.testing.assert_allclose(content["singular_values"][site], expected, atol=1e-10)
        largest = [row["largest"] for row in content["rows"] if row["site"] == site]
        np.testing.assert_allclose(largest, expected[:, 0], atol=1e-10)


def planted(levels: dict[str, list[float]]) -> dict[str, np.ndarray]:
    """Singular values of 2 experts of rank 2; the largest are the ``levels`` of each layer, times 0.9 and 1.1."""
    return {
        f"layers.{layer}.self_attn.{name}": np.array([[0.9 * level, 0.0], [1.1 * level, 0.1 * level]])
        for layer in range(len(next(iter(levels.values()))))
        for name, level in ((name, levels[name][layer]) for name in levels)
    }


def report_of(levels: dict[str, list[float]]) -> Report:
    return singular_values_report(SingularValueAnalysis("x", planted(levels)))


def test_the_published_pattern_is_recognised():
    late, flat = [0.1, 0.1, 0.2, 0.1, 1.0, 2.0], [1.0, 1.2, 1.0, 0.8, 1.5, 1.0]
    levels = dict(zip(PROJECTIONS, (late, late, flat, flat), strict=True))
    found = report_of(levels)
    # The mean of the last 2 of 6 layers over that of the first 4: 1.5 / 0.125 and 1.25 / 1.
    assert found.data["late_to_early"]["q_proj"] == pytest.approx(12)
    assert found.data["late_to_early"]["v_proj"] == pytest.approx(1.25)
    assert found.data["active_in"] == {
        "q_proj": "the last layers",
        "k_proj": "the last layers",
        "v_proj": "all layers",
        "out_proj": "all layers",
    }
    assert "this is the published pattern" in found.finding
    found = report_of(levels | {"k_proj": flat, "v_proj": late[::-1], "out_proj": [0.0] * 6})
    assert "q_proj in the last layers" in found.finding
    assert "v_proj in the first layers" in found.finding
    assert "out_proj in no layer" in found.finding
    assert "not the published pattern" in found.finding


def test_models_that_say_nothing():
    assert "not trained" in report_of({"q_proj": [0.0, 0.0]}).finding
    assert "no early and late part" in report_of({"q_proj": [1.0]}).finding
    assert [num_last(number) for number in (1, 2, 4, 6, 12, 24)] == [0, 1, 1, 2, 4, 8]


def test_a_model_without_updates_is_a_mistake(fitted, run_verb, monkeypatch):
    monkeypatch.setattr("moelora_ad.analysis.singular_values.adapted_sites", lambda encoder: iter(()))
    code, _, err = run_verb(analyze_command, "singular-values", fitted["lora", 1])
    assert code == 2
    assert "no LoRA and no experts" in err

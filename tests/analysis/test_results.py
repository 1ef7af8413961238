"""What the analyses return in Python: arrays, without files or a terminal."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moelora_ad import analysis
from moelora_ad.evaluation import ScoreTable

PAGE = (Path(__file__).parents[2] / "docs/howto/experts.md").read_text(encoding="utf-8")
HERE = {"device": "cpu", "workers": 0}


class Told(list):
    """A progress function that stores its calls."""

    def __call__(self, what: str, done: float, total: int) -> None:
        self.append((what, done, total))


def test_nothing_heavy_is_imported_before_it_is_used():
    program = (
        "import sys, moelora_ad.analysis as a\n"
        "assert {*a.__all__} <= {*dir(a)}\n"
        "assert not hasattr(a, 'nothing')\n"
        "assert not {'torch', 'matplotlib', 'scipy', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert all(callable(getattr(analysis, name)) for name in analysis.__all__)
    names: dict = {}
    exec("from moelora_ad.analysis import *", names)
    assert names["analyze_routing"].__module__ == "moelora_ad.analysis.routing"


def test_routing(fitted, tmp_path):
    told = Told()
    result = analysis.analyze_routing(fitted["mixture", 1], set="other", permutations=19, progress=told, **HERE)
    num_sites, num_trials = 8, 36  # 2 layers of 4 projections; 4 utterances of each of 8 attacks, and 4 bona fide
    assert (result.system, result.set, result.num_experts) == ("mixture", "other", 3)
    assert len(result.sites) == num_sites
    assert result.grid.layers == ("0", "1")
    assert result.leading.shape == (num_trials, num_sites)
    assert result.overall.mean_gate.shape == (num_sites, 3)
    np.testing.assert_allclose(result.overall.mean_gate.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(result.overall.top1_share.sum(1), 1, atol=1e-6)
    assert result.by_class["label"].keys() == {"bona fide", "spoof"}
    # All utterances have the same number of tokens: the overall mean is that of the classes, weighted by their counts.
    counts = result.classes["label"].counts / num_trials
    means = [one.mean_gate for one in result.by_class["label"].values()]
    np.testing.assert_allclose(np.einsum("c,csn->sn", counts, means), result.overall.mean_gate, atol=1e-6)
    share = result.overall.mean_gate
    np.testing.assert_allclose(result.overall.effective_experts, np.exp(-(share * np.log(share)).sum(1)))
    assert result.dependence.keys() == {"attack", "label", "codec"}
    assert result.dependence["attack"].information.shape == (num_sites,)
    assert result.dependence["attack"].p_values.shape == (2,)

    # Progress counts every utterance once, then every permutation of each kind.
    assert told[0] == ("mixture, seed 1", 0, num_trials)
    assert [entry for entry in told if entry[1] == entry[2]] == [
        ("mixture, seed 1", num_trials, num_trials),
        ("permutations", 57, 57),
    ]
    assert [done for what, done, _ in told if what == "permutations"] == list(range(1, 58))
    files = analysis.write_report(analysis.routing_report(result), tmp_path)
    assert {path.name for path in files} >= {"routing.json", "routing.csv", "routing.md", "routing-gates.png"}


def test_the_example_of_the_page(fitted, tmp_path, monkeypatch, capsys):
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "analyze_routing" in code]
    (path,) = re.findall(r'"(runs/.*?)"', example)
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).symlink_to(fitted["mixture", 1], target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(example, namespace)
    gates, p_value = namespace["analysis"].overall.mean_gate[0], namespace["analysis"].dependence["attack"].p_value
    printed = capsys.readouterr().out
    assert printed == f"{namespace['analysis'].sites[0]} {gates} {p_value}\n"
    assert (tmp_path / "figures" / "routing.json").is_file()


def test_experts(fitted):
    result = analysis.analyze_experts(fitted["mixture", 1], sets=["other"], resamples=20, keep_gates=True, **HERE)
    assert (result.seed, result.keep_gates, result.resamples) == (1, True, 20)
    of_set = result.scores["other"]
    assert all(isinstance(table, ScoreTable) and len(table) == 36 for table in of_set.values())
    for variant, difference in result.differences["other"].items():
        eers = [of_set[name].equal_error_rate().eer for name in (variant, "all experts")]
        assert (difference.first, difference.difference) == pytest.approx((eers[0], eers[0] - eers[1]))
    changes = result.score_changes["other"]
    assert list(changes.kinds) == ["bona fide", *sorted(result.eers_by_attack["other"]["all experts"])]
    moved = of_set["without 1"].scores - of_set["all experts"].scores
    labels = np.asarray(of_set["all experts"].labels)
    assert changes.means[0, list(changes.variants).index("without 1")] == pytest.approx(moved[labels == 1].mean())


def test_singular_values_and_stability(fitted):
    values = analysis.analyze_singular_values(fitted["lora", 1])
    assert values.largest.shape == (2, 4, 1)
    assert values.late_to_early.keys() == values.active_in.keys() == {*values.grid.projections}
    stability = analysis.analyze_stability([fitted["mixture", 1].parent], permutations=19, **HERE)
    assert stability.seeds == [1, 2]
    assert stability.scores["other"].eers.shape == (2,)
    assert stability.routing.agreement.similarity.shape == (1, 8)
    assert stability.routing.spread.shape == (8,)

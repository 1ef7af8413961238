"""The forgetting table of an extended model against the formulas of its figures."""

import json

import numpy as np
import pytest

from moelora_ad.evaluation import ScoreError, ScoreTable, compare
from moelora_ad.evaluation.comparison.forgetting import FORGETTING, changes, changes_table, write_changes
from moelora_ad.evaluation.metrics.intervals import mean_difference
from moelora_ad.evaluation.metrics.options import FigureOptions

FEW = FigureOptions(resamples=200)


def moved(table: ScoreTable, by: float, seed: int) -> ScoreTable:
    noise = np.random.default_rng(seed).normal(scale=0.5, size=len(table))
    return table.with_scores(table.scores + by * table.labels + noise)


@pytest.fixture
def before(make_scores):
    return {"old_a": make_scores(1, "A"), "new": make_scores(2, "B", shift=0.2), "old_b": make_scores(3, "C", num=60)}


def test_every_way_on_every_set_and_the_mean_over_the_old_ones(before):
    after = {name: moved(table, 2.0 if name == "new" else -0.5, 7) for name, table in before.items()}
    found = changes(before, {"expert": after, "others": "no old data"}, ["new"], FEW)
    assert [(one.set_name, one.kind) for one in found[:-1]] == [
        ("new", "new"),
        ("old_a", "old"),
        ("old_b", "old"),
        (FORGETTING, "mean"),
    ]
    for one in found[:3]:
        assert one.eer == compare(after[one.set_name], before[one.set_name], FEW)["eer"]
    mean = found[3].eer
    assert mean.difference == pytest.approx(np.mean([one.eer.difference for one in found[1:3]]))
    assert mean.interval.low < mean.difference < mean.interval.high
    assert found[0].eer.difference < 0 < mean.difference
    assert found[-1].reason == "no old data"
    with pytest.raises(ScoreError, match="new: two systems are compared on the same trials"):
        changes(before, {"expert": after | {"new": after["old_a"]}}, ["new"], FEW)


def test_the_interval_of_a_mean_is_that_of_independent_sets(before):
    """The variance of the mean of n independent differences is their mean variance divided by n."""
    pairs = [(moved(before[name], -0.5, 5), before[name]) for name in ("old_a", "old_b")]
    many = FigureOptions(resamples=2000)
    widths = [np.subtract(*compare(*pair, many)["eer"].interval) for pair in pairs]
    width = np.subtract(*mean_difference(pairs, "eer", many).interval)
    assert width == pytest.approx(-np.sqrt(np.square(widths).sum()) / 2, rel=0.12)
    # With one set, the mean difference is that set's difference.
    assert mean_difference(pairs[:1], "eer", many) == compare(*pairs[0], many)["eer"]
    with pytest.raises(ScoreError, match="empty list of sets"):
        mean_difference([])


def test_what_is_written(before, tmp_path):
    after = {name: moved(table, 1.0, 7) for name, table in before.items()}
    found = changes(before, {"expert": after, "others": "no old data"}, ["new"], FEW)
    table = changes_table(found)
    assert [row[:2] for row in table.rows] == [
        ("expert", "new (new)"),
        ("", "old_a"),
        ("", "old_b"),
        ("", FORGETTING),
        ("others", "no old data"),
    ]
    assert table.rows[0][4] == f"{100 * found[0].eer.difference:+.2f}"
    write_changes(found, tmp_path, {"model": "m"})
    content = json.loads((tmp_path / "extension.json").read_text())
    assert content["about"] == {"model": "m"}
    assert content["changes"][0]["change"] == found[0].eer.difference
    assert content["changes"][-1]["reason"] == "no old data"
    assert (tmp_path / "extension.csv").read_text().count("\n") == 6
    assert "| expert | new (new) |" in (tmp_path / "extension.md").read_text()

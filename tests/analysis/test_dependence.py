"""Mutual information of experts and classes against scikit-learn; its test on planted structure and on none."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import mutual_info_score

from moelora_ad.analysis import dependence as module
from moelora_ad.analysis.dependence import dependence, entropy, mutual_information
from moelora_ad.evaluation.metrics.seed_differences import holm

BITS = np.log(2)


@pytest.fixture
def drawn():
    generator = np.random.default_rng(7)
    return generator.integers(0, 3, (200, 5)).astype(np.int8), generator.integers(0, 4, 200)


def test_mutual_information_is_that_of_scikit_learn(drawn, monkeypatch):
    experts, classes = drawn
    expected = [mutual_info_score(classes, experts[:, site]) / BITS for site in range(5)]
    np.testing.assert_allclose(mutual_information(experts, classes, 3, 4), expected, atol=1e-12)
    monkeypatch.setattr(module, "_MOST_CODES", 64)  # forces counting in many parts
    np.testing.assert_allclose(mutual_information(experts, classes, 3, 4), expected, atol=1e-12)
    assert entropy(classes) == pytest.approx(stats.entropy(np.bincount(classes), base=2))


def test_an_expert_for_every_class_tells_all_of_its_entropy():
    classes = np.repeat([0, 1, 2], [10, 20, 30])
    experts = np.stack([(classes + 1) % 3, np.zeros(60, int)], axis=1)
    groups = [np.array([0]), np.array([1])]
    found = dependence(experts, classes, 3, groups, permutations=99, seed=1)
    assert found.information[0] == pytest.approx(stats.entropy([10, 20, 30], base=2))
    assert found.information[1] == found.by_chance[1] == 0
    assert found.p_value == pytest.approx(1 / 100)
    # No permutation is below the constant site's 0 bits; Holm doubles the smaller of two p values.
    np.testing.assert_allclose(found.p_values, [2 / 100, 1.0])


def test_p_values_count_permutations_of_whole_utterances(drawn):
    experts, classes = drawn
    experts[:60, 0] = classes[:60] % 3
    groups = [np.array([0, 1]), np.array([2, 3, 4])]
    found = dependence(experts, classes, 3, groups, permutations=60, seed=5)

    def bits(order):
        return np.array([mutual_info_score(order, experts[:, site]) / BITS for site in range(5)])

    generator = np.random.default_rng(5)
    permuted = np.array([bits(generator.permutation(classes)) for _ in range(60)])
    observed = bits(classes)
    np.testing.assert_allclose(found.by_chance, permuted.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.excess, observed - permuted.mean(0), atol=1e-12)
    assert found.p_value == (1 + (permuted.mean(1) >= observed.mean()).sum()) / 61
    each = [(1 + (permuted[:, group].mean(1) >= observed[group].mean()).sum()) / 61 for group in groups]
    np.testing.assert_allclose(found.p_values, holm(np.array(each)))


def test_without_structure_p_values_are_uniform():
    generator = np.random.default_rng(3)
    groups = [np.arange(2)]
    p_values = [
        dependence(
            generator.integers(0, 3, (40, 2)), generator.integers(0, 3, 40), 3, groups, permutations=49, seed=draw
        ).p_value
        for draw in range(120)
    ]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01

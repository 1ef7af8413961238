"""Experts of different models: planted copies are found, independent ones agree no more than by chance."""

from itertools import permutations

import numpy as np
import pytest

from moelora_ad.analysis.expert_matching import agreement, aligned, correlations, matched, standardised


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits)
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def gates() -> np.ndarray:
    """Gate weights of 120 utterances at 4 sites for 3 experts, whose means differ."""
    return softmax(np.random.default_rng(2).normal([0.0, 0.5, 1.0], 1.0, (120, 4, 3)))


def test_correlations_are_pearsons(gates):
    other = softmax(np.random.default_rng(4).normal(size=(120, 4, 3)))
    found = correlations(standardised(gates), standardised(other))
    for site in range(4):
        expected = np.corrcoef(gates[:, site].T, other[:, site].T)[:3, 3:]
        np.testing.assert_allclose(found[site], expected, atol=1e-6)


def test_the_matching_is_the_best_of_all(gates):
    correlation = np.random.default_rng(1).normal(size=(6, 4, 4))
    partners, similarity = matched(correlation)
    for site in range(6):
        means = {order: correlation[site, range(4), order].mean() for order in permutations(range(4))}
        assert tuple(partners[site]) == max(means, key=means.get)
        assert similarity[site] == pytest.approx(max(means.values()))


def test_experts_in_another_order_are_the_same_experts(gates):
    orders = np.array([[1, 2, 0], [0, 1, 2], [2, 1, 0], [2, 0, 1]])  # a different order at each site
    copy = np.take_along_axis(gates, orders[None], axis=2)
    found = agreement([gates, copy, gates], permutations=50, seed=1)
    np.testing.assert_allclose(found.similarity, 1.0, atol=1e-5)
    assert found.p_value == pytest.approx(1 / 51)
    assert (found.by_chance < 0.5).all()
    for one in aligned([gates, copy]):
        np.testing.assert_allclose(one, gates.mean(0), atol=1e-6)


def test_independent_models_agree_by_chance_alone(gates):
    other = softmax(np.random.default_rng(9).normal(size=(120, 4, 3)))
    found = agreement([gates, other], permutations=100, seed=1)
    assert (found.similarity > 0).any()  # matching alone gives a positive similarity
    assert found.by_chance.mean() > 0.02
    assert found.similarity.mean() == pytest.approx(found.by_chance.mean(), abs=0.06)
    assert found.p_value > 0.05


def test_an_expert_that_never_moves_is_like_no_other(gates):
    still = np.broadcast_to(gates.mean(0), gates.shape).copy()
    assert not standardised(still).any()
    found = agreement([gates, still], permutations=5, seed=1)
    assert (found.similarity == 0).all()
    assert found.p_value == 1.0

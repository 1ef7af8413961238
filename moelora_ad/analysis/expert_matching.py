"""A comparison of experts of different trainings: as their numbers are arbitrary, experts are matched by what they
respond to."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment


class Agreement(NamedTuple):
    """How similar the gates of several models are once their experts are matched at every site.

    Attributes:
        similarity: (pairs, S) mean correlation of matched experts, for every two models.
        by_chance: (S,) the same if each model has the utterances in an order of its own, mean over permutations and
            pairs; matching alone makes it positive.
        p_value: probability that the mean similarity is as large by chance.
        permutations: number of permutations drawn.
    """

    similarity: NDArray[np.float64]
    by_chance: NDArray[np.float64]
    p_value: float
    permutations: int


def agreement(
    gates: Sequence[NDArray[np.float32]],
    permutations: int,
    seed: int,
    advance: Callable[[int], None] = lambda done: None,
) -> Agreement:
    """Match the experts of every two models and test whether their gates agree.

    Args:
        gates: for each model (n, S, N), the mean weights of its experts for the same utterances at the same sites.
        permutations: number of permutations of the utterances, drawn for each model separately; at least 1.
        seed: seed of the permutations.
        advance: called after each permutation with the number done.
    """
    standard = [standardised(one) for one in gates]
    observed = similarities(standard)
    generator = np.random.default_rng(seed)
    exceeded, total = 0, np.zeros(observed.shape[1])
    for number in range(1, permutations + 1):
        shuffled = [one[:, generator.permutation(one.shape[1])] for one in standard]
        by_chance = similarities(shuffled)
        exceeded += bool(by_chance.mean() >= observed.mean() - 1e-12)
        total += by_chance.mean(0)
        advance(number)
    return Agreement(observed, total / permutations, (1 + exceeded) / (1 + permutations), permutations)


def similarities(standard: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Return the mean correlation (pairs, S) of matched experts for every two models, of gates (S, n, N) as
    `standardised` returns them."""
    return np.array([matched(correlations(*pair))[1] for pair in combinations(standard, 2)])


def standardised(gates: NDArray[np.float32]) -> NDArray[np.float32]:
    """Standardise gates, (n, S, N) -> (S, n, N): each column is centred and of length 1, or zero for an expert whose
    weight never changes."""
    centred = gates.astype(np.float64) - gates.mean(0, dtype=np.float64)
    lengths = np.linalg.norm(centred, axis=0)
    still = lengths <= 1e-6 * np.sqrt(len(gates))  # below the precision of float32
    return np.where(still, 0.0, centred / np.where(still, 1.0, lengths)).transpose(1, 0, 2).astype(np.float32)


def correlations(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return Pearson correlations between the experts of two models, from results of `standardised`: (S, N, N)."""
    return np.matmul(first.transpose(0, 2, 1), second).astype(np.float64)


def matched(correlation: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the one-to-one matching of experts with the largest sum of correlations, at every site separately.

    (Hungarian method, `scipy.optimize.linear_sum_assignment`.)

    Args:
        correlation: (S, N, N) between experts of a first and a second model.

    Returns:
        (S, N) the second model's expert for each of the first's, and (S,) the mean correlation of the matched ones.
    """
    partners = np.array([linear_sum_assignment(one, maximize=True)[1] for one in correlation])
    similarity = np.take_along_axis(correlation, partners[..., None], axis=2)[..., 0].mean(1)
    return partners, similarity


def aligned(gates: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64]]:
    """Return the mean gates (S, N) of each model, its experts in the order of those of the first that they match."""
    reference = standardised(gates[0])
    means = []
    for one in gates:
        partners, _ = matched(correlations(reference, standardised(one)))
        means.append(np.take_along_axis(one.mean(0, dtype=np.float64), partners, axis=1))
    return means

"""Whether the choice of experts depends on what an utterance is: mutual information, tested by permutation."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moelora_ad.evaluation.metrics.seed_differences import holm

_MOST_CODES = 4_000_000  # counted at once, at most


class Dependence(NamedTuple):
    """Mutual information between experts and classes.

    Attributes:
        information: (S,) mutual information at every site in bits, from counts, so that it is biased upwards.
        by_chance: (S,) its mean over permutations of the classes in bits: the bias.
        p_value: probability that the mean over sites is as large by chance.
        p_values: (groups,) the same for the mean over the sites of each group, corrected for their number (Holm).
        permutations: number of permutations drawn.
    """

    information: NDArray[np.float64]
    by_chance: NDArray[np.float64]
    p_value: float
    p_values: NDArray[np.float64]
    permutations: int

    @property
    def excess(self) -> NDArray[np.float64]:
        """(S,) mutual information above chance, in bits."""
        return self.information - self.by_chance


def dependence(
    experts: NDArray[np.integer],
    classes: NDArray[np.integer],
    num_experts: int,
    groups: Sequence[NDArray[np.intp]],
    permutations: int,
    seed: int,
    advance: Callable[[int], None] = lambda done: None,
) -> Dependence:
    """Test whether experts and classes are independent.

    A permutation gives the utterances' classes to other utterances, the same ones at all sites, which preserves the
    dependence between sites. p = (1 + #{permuted >= observed}) / (1 + permutations) (Phipson and Smyth, Statistical
    Applications in Genetics and Molecular Biology 9, 2010).

    Args:
        experts: (n, S) the leading expert for every utterance at every site.
        classes: (n,) the class of every utterance, from 0.
        num_experts: N.
        groups: numbers of the sites of each group.
        permutations: number of permutations, at least 1.
        seed: seed of the permutations.
        advance: called after each permutation with the number done.
    """
    num_classes = int(classes.max()) + 1
    members = np.stack([np.bincount(group, minlength=experts.shape[1]) / len(group) for group in groups])
    observed = mutual_information(experts, classes, num_experts, num_classes)
    statistics = np.append(members @ observed, observed.mean())
    exceeded = np.zeros(len(groups) + 1, np.int64)
    total = np.zeros_like(observed)
    generator = np.random.default_rng(seed)
    for number in range(1, permutations + 1):
        permuted = mutual_information(experts, generator.permutation(classes), num_experts, num_classes)
        # Sums over equal tables may differ in the last bits, as their terms are in another order.
        exceeded += np.append(members @ permuted, permuted.mean()) >= statistics - 1e-12
        total += permuted
        advance(number)
    p_values = (1 + exceeded) / (1 + permutations)
    return Dependence(observed, total / permutations, float(p_values[-1]), holm(p_values[:-1]), permutations)


def mutual_information(
    experts: NDArray[np.integer], classes: NDArray[np.integer], num_experts: int, num_classes: int
) -> NDArray[np.float64]:
    """Return the mutual information in bits between the expert at each site and the class, from counts:
    (n, S), (n,) -> (S,)."""
    return counted_information(_contingency(experts, classes, num_experts, num_classes))


def counted_information(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the mutual information in bits, given how often each class and expert occur together:
    (..., classes, N) -> (...)."""
    joint = counts / counts.sum((-2, -1), keepdims=True)
    of_class, of_expert = joint.sum(-1, keepdims=True), joint.sum(-2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(counts > 0, joint * np.log2(joint / (of_class * of_expert)), 0.0)
    return np.maximum(terms.sum((-2, -1)), 0.0)


def entropy(classes: NDArray[np.integer]) -> float:
    """Return the entropy of the classes in bits, an upper bound of the mutual information."""
    shares = np.bincount(classes) / len(classes)
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())


def _contingency(
    experts: NDArray[np.integer], classes: NDArray[np.integer], num_experts: int, num_classes: int
) -> NDArray[np.int64]:
    """Return how often each class and expert occur together: (S, classes, N)."""
    num_sites = experts.shape[1]
    size = num_sites * num_classes * num_experts
    offsets = np.arange(num_sites) * (num_classes * num_experts)
    counts = np.zeros(size, np.int64)
    step = max(1, _MOST_CODES // num_sites)
    for start in range(0, len(classes), step):
        part = slice(start, start + step)
        codes = offsets + classes[part, None] * num_experts + experts[part]
        counts += np.bincount(codes.ravel(), minlength=size)
    return counts.reshape(num_sites, num_classes, num_experts)

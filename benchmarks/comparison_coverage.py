"""How often 95 % intervals of the difference of two systems contain the true difference.

    python benchmarks/comparison_coverage.py [--comparisons 1000] [--seeds 3 5 10]

Scores are drawn for which the true difference of the two EERs is known. They are normal: the sum of a part that all
runs share, one of each system and one of each run, each with a term for clusters of trials and one for single trials;
bona fide trials also get the run's quality, which varies with its seed. The interval of `results --compare`
(`moelora_ad.evaluation.metrics.seed_differences`) is compared with three others from the same resamples: percentiles of
a hierarchical bootstrap, which draws seeds too; Student's t over seeds, as if there were no other trials; percentiles
over trials, as if there were no other seeds.
"""

import argparse
import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from moelora_ad.evaluation.metrics.seed_differences import seed_difference, variance_of_trials

OURS = "results --compare"
QUALITY = (2.0, 2.3)
SHARED, OF_SYSTEM, OF_RUN = (0.4, 0.6), (0.3, 0.5), (0.2, 0.4)  # standard deviations: of clusters, of trials

Floats = NDArray[np.float64]


class Case(NamedTuple):
    """A case to simulate: spread of the quality over seeds, number of clusters of bona fide trials, number of clusters
    of spoofs, and trials of each cluster."""

    spread: float
    bona_fide: int
    spoof: int
    trials: int


CASES = (Case(0.08, 20, 40, 5), Case(0.25, 20, 40, 5), Case(0.25, 8, 24, 5), Case(0.6, 20, 40, 5))


def true_difference(case: Case) -> float:
    """The true difference of the EERs over all seeds and trials: an EER is Phi(-quality / 2 sigma), and its mean over
    normal qualities has the same form with a larger variance."""
    variance = sum(one**2 for part in (SHARED, OF_SYSTEM, OF_RUN) for one in part)
    first, second = (stats.norm.cdf(-one / np.sqrt(4 * variance + case.spread**2)) for one in QUALITY)
    return float(first - second)


def drawn_scores(case: Case, seeds: int, generator: np.random.Generator) -> tuple[Floats, NDArray[np.int64]]:
    """Scores (2 x seeds, trials), system after system, and the cluster of each trial, bona fide first."""
    clusters = np.repeat(np.arange(case.bona_fide + case.spoof), case.trials)

    def part(sizes: tuple[float, float], times: int) -> Floats:
        of_clusters = generator.normal(0, sizes[0], (times, case.bona_fide + case.spoof))
        return of_clusters[:, clusters] + generator.normal(0, sizes[1], (times, len(clusters)))

    quality = np.repeat(QUALITY, seeds) + generator.normal(0, case.spread, 2 * seeds)
    scores = part(SHARED, 1) + np.repeat(part(OF_SYSTEM, 2), seeds, axis=0) + part(OF_RUN, 2 * seeds)
    return scores + quality[:, None] * (clusters < case.bona_fide), clusters


def eers(scores: Floats, is_bona_fide: NDArray[np.bool_], counts: NDArray[np.integer]) -> Floats:
    """EERs (runs, resamples) of scores (runs, trials) without ties, where each trial counts as often as ``counts``
    (resamples, trials) says."""
    order = np.argsort(scores, axis=1)
    weights = counts[:, order].astype(np.float32)
    rejected = np.cumsum(np.stack([weights * is_bona_fide[order], weights * ~is_bona_fide[order]]), axis=-1)
    rejected = np.concatenate([np.zeros_like(rejected[..., :1]), rejected], axis=-1)
    miss, hit = rejected / rejected[..., -1:]
    nearest = np.abs(miss - (1 - hit)).argmin(axis=-1)[..., None]
    found = np.take_along_axis(miss, nearest, -1) + 1 - np.take_along_axis(hit, nearest, -1)
    return found[..., 0].T.astype(np.float64) / 2


def coverage(case: Case, seeds: int, comparisons: int, resamples: int = 100, seed: int = 1) -> dict[str, float]:
    """The share of comparisons whose interval contains the true difference, by kind of interval."""
    generator, truth = np.random.default_rng(seed), true_difference(case)
    inside: dict[str, int] = {}
    for _ in range(comparisons):
        scores, clusters = drawn_scores(case, seeds, generator)
        is_bona_fide = clusters < case.bona_fide
        kinds = [generator.multinomial(k, np.ones(k) / k, resamples) for k in (case.bona_fide, case.spoof)]
        once = eers(scores, is_bona_fide, np.ones((1, len(clusters)), np.int64))[:, 0]
        draws = eers(scores, is_bona_fide, np.concatenate(kinds, axis=1)[:, clusters])
        for name, (low, high) in _intervals(case, once, draws, generator).items():
            inside[name] = inside.get(name, 0) + (low <= truth <= high)
    return {name: number / comparisons for name, number in inside.items()}


def _intervals(case: Case, once: Floats, draws: Floats, generator: np.random.Generator) -> dict[str, tuple]:
    n, resamples = len(once) // 2, draws.shape[1]
    variance = variance_of_trials(draws[:n], draws[n:], True, min(case.bona_fide, case.spoof))
    ours = seed_difference(once[:n], once[n:], True, variance).interval
    assert ours is not None
    apart, resampled = once[:n] - once[n:], draws[:n] - draws[n:]
    reach = stats.t.ppf(0.975, n - 1) * apart.std(ddof=1) / np.sqrt(n)
    seeds = generator.integers(n, size=(n, resamples))
    return {
        OURS: ours,
        "hierarchical bootstrap": tuple(np.percentile(resampled[seeds, np.arange(resamples)].mean(0), (2.5, 97.5))),
        "seeds alone": (apart.mean() - reach, apart.mean() + reach),
        "trials alone": tuple(np.percentile(resampled.mean(0), (2.5, 97.5))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 10])
    arguments = parser.parse_args()
    for case in CASES:
        for seeds in arguments.seeds:
            begun = time.perf_counter()
            found = coverage(case, seeds, arguments.comparisons)
            shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in found.items())
            what = f"spread {case.spread}, {case.bona_fide} + {case.spoof} clusters, {seeds} seeds"
            print(f"{what}: {shares} ({time.perf_counter() - begun:.0f} s)", flush=True)


if __name__ == "__main__":
    main()

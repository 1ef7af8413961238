"""How long the figures of a large test set take, on one thread.

    python benchmarks/metrics.py [--repeats 31] [--trials 600000] [--bona-fide 0.1]

The equal error rate (EER), minDCF and Cllr of all scores, beside an EER from `sklearn.metrics.roc_curve`. Every repeat
draws new scores, and the sides take turns within it. A figure is the median over the repeats, and a ratio is the median
of the ratios within the repeats.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from moelora_ad.evaluation import ScoreCurve, equal_error_rate

Scores = NDArray[np.float64]
Labels = NDArray[np.int8]


def from_sklearn(scores: Scores, labels: Labels) -> float:
    """The usual equal error rate, where the two rates of the curve are closest."""
    false_alarm, hit, _ = roc_curve(labels, scores)
    best = np.argmin(np.abs(false_alarm - (1 - hit)))
    return float(false_alarm[best] + 1 - hit[best]) / 2


def three_figures(scores: Scores, labels: Labels) -> tuple[float, float, float]:
    curve = ScoreCurve(scores, labels)
    return curve.equal_error_rate().eer, curve.min_dcf().cost, curve.cllr()


def only_eer(scores: Scores, labels: Labels) -> float:
    return equal_error_rate(scores, labels).eer


def drawn(trials: int, share: float, seed: int) -> tuple[Scores, Labels]:
    generator = np.random.default_rng(seed)
    labels = (generator.random(trials) < share).astype(np.int8)
    return generator.normal(4.0 * labels - 2, 2.0), labels


def milliseconds(side: Callable[[Scores, Labels], object], scores: Scores, labels: Labels) -> float:
    started = time.perf_counter()
    side(scores, labels)
    return (time.perf_counter() - started) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--trials", type=int, default=600_000)
    parser.add_argument("--bona-fide", type=float, default=0.1, help="share of bona fide trials")
    arguments = parser.parse_args()
    sides: dict[str, Callable[[Scores, Labels], object]] = {
        "EER by sklearn.metrics.roc_curve": from_sklearn,
        "EER here": only_eer,
        "EER + minDCF + Cllr here": three_figures,
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(-2, arguments.repeats):  # two to warm up
        scores, labels = drawn(arguments.trials, arguments.bona_fide, repeat + 2)
        for name, side in sides.items():
            elapsed = milliseconds(side, scores, labels)
            if repeat >= 0:
                taken[name].append(elapsed)
    print(f"{arguments.trials:,} scores, {arguments.bona_fide:.0%} bona fide, {arguments.repeats} repeats, medians")
    print(f"{'':34}{'ms':>8}{'ratio':>8}")
    usual = taken["EER by sklearn.metrics.roc_curve"]
    for name, times in taken.items():
        ratio = statistics.median(before / after for before, after in zip(usual, times, strict=True))
        print(f"{name:34}{statistics.median(times):8.1f}{ratio:7.1f}x")


if __name__ == "__main__":
    main()

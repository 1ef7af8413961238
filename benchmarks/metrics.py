"""Time to compute the figures of a large test set, and their intervals.

    python benchmarks/metrics.py [--repeats 31] [--trials 600000] [--bona-fide 0.1] [--resamples 1000] [--clusters 2000]

On one thread: the equal error rate (EER), minDCF and Cllr of all scores, beside an EER from
`sklearn.metrics.roc_curve`. Every repeat draws new scores, and the sides take turns within it. A figure is the median
over the repeats, and a ratio is the median of the ratios within the repeats.

On all processors: the intervals of every figure by the cluster bootstrap, once. Those of the EER alone stand beside the
EERs of a few resamples from `roc_curve` with sample weights, by the processor time of a resample.

In a process of its own: `moelora-ad evaluate` of a score file with 700 speakers, 13 attacks and 8 codecs, with the
intervals of all of them.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from moelora_ad.evaluation import AsvErrorRates, ScoreCurve, equal_error_rate
from moelora_ad.evaluation.metrics.intervals import bootstrap
from moelora_ad.evaluation.metrics.options import FigureOptions
from moelora_ad.evaluation.metrics.resampling import Strata

Scores = NDArray[np.float64]
Labels = NDArray[np.int8]
FEW = 5  # resamples of the slower side


def from_sklearn(scores: Scores, labels: Labels, weights: NDArray[np.int64] | None = None) -> float:
    """The usual equal error rate, where the two rates of the curve are closest."""
    false_alarm, hit, _ = roc_curve(labels, scores, sample_weight=weights)
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


def compare_figures(trials: int, share: float, repeats: int) -> None:
    sides: dict[str, Callable[[Scores, Labels], object]] = {
        "EER by sklearn.metrics.roc_curve": from_sklearn,
        "EER here": only_eer,
        "EER + minDCF + Cllr here": three_figures,
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(-2, repeats):  # two to warm up
        scores, labels = drawn(trials, share, repeat + 2)
        for name, side in sides.items():
            elapsed = milliseconds(side, scores, labels)
            if repeat >= 0:
                taken[name].append(elapsed)
    print(f"{trials:,} scores, {share:.0%} bona fide, {repeats} repeats, medians")
    print(f"{'':34}{'ms':>8}{'ratio':>8}")
    usual = taken["EER by sklearn.metrics.roc_curve"]
    for name, times in taken.items():
        ratio = statistics.median(before / after for before, after in zip(usual, times, strict=True))
        print(f"{name:34}{statistics.median(times):8.1f}{ratio:7.1f}x")


def time_intervals(trials: int, share: float, resamples: int, clusters: int) -> None:
    scores, labels = drawn(trials, share, seed=0)
    of_trial = np.random.default_rng(0).integers(0, clusters, trials)
    asv = AsvErrorRates(miss=0.02, false_alarm=0.02, spoof_false_alarm=0.3)
    options = FigureOptions(calibrated=True, threshold=0.0, asv=asv, resamples=resamples)
    started, started_cpu = time.perf_counter(), time.process_time()
    intervals = bootstrap(scores, labels, of_trial, options)
    elapsed, elapsed_cpu = time.perf_counter() - started, time.process_time() - started_cpu
    print(f"{resamples:,} resamples of {clusters:,} clusters, intervals of {', '.join(intervals)}:")
    print(f"{elapsed:.1f} s on {os.cpu_count()} processors ({elapsed_cpu:.1f} s of processor time)")
    started_cpu = time.process_time()
    bootstrap(scores, labels, of_trial, options, ("eer",))
    here = (time.process_time() - started_cpu) / resamples
    strata = Strata(labels, of_trial)
    started_cpu = time.process_time()
    for number in range(FEW):
        from_sklearn(scores, labels, strata.draw(options.seed, number)[strata.clusters])
    usual = (time.process_time() - started_cpu) / FEW
    print(f"EER of a resample: {1e3 * here:.2f} ms here, {1e3 * usual:.1f} ms by roc_curve, {usual / here:.0f}x")


def time_evaluate(trials: int, share: float, resamples: int) -> None:
    scores, labels = drawn(trials, share, seed=0)
    generator = np.random.default_rng(0)
    numbers = generator.integers(0, (700, 13, 8), (trials, 3)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "set.csv")
        with open(path, "w") as file:
            file.write("utterance,label,speaker,attack,codec,corpus,split,score\n")
            for i, (score, label, (speaker, attack, codec)) in enumerate(zip(scores, labels, numbers, strict=True)):
                kind = "bonafide" if label else "spoof"
                attack_name = "" if label else f"A{attack}"
                file.write(f"E_{i:010d},{kind},S{speaker},{attack_name},C{codec},set,eval,{float(score)!r}\n")
        command = [sys.executable, "-m", "moelora_ad", "evaluate", str(path), "--resamples", str(resamples)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"evaluate of a file of {trials:,} scores with speaker, attack and codec, {resamples:,} resamples:")
    print(f"{used.ru_utime + used.ru_stime:.1f} s of processor time, {used.ru_maxrss / 1024:.0f} MiB at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--trials", type=int, default=600_000)
    parser.add_argument("--bona-fide", type=float, default=0.1, help="share of bona fide trials")
    parser.add_argument("--resamples", type=int, default=1_000, help="0 for no intervals")
    parser.add_argument("--clusters", type=int, default=2_000)
    arguments = parser.parse_args()
    compare_figures(arguments.trials, arguments.bona_fide, arguments.repeats)
    if arguments.resamples:
        time_intervals(arguments.trials, arguments.bona_fide, arguments.resamples, arguments.clusters)
    time_evaluate(arguments.trials, arguments.bona_fide, arguments.resamples)


if __name__ == "__main__":
    main()

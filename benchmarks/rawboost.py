"""Time of RawBoost compared with its usual formulation, on one thread.

    python benchmarks/rawboost.py [--repeats 31] [--samples 64600]

The usual formulation designs one filter after the other with `scipy.signal.firwin`, convolves them into a cascade,
finds its peak with `freqz`, and filters with `lfilter`, all in float64. Both sides get the same parameters and the same
waveform; every repeat draws anew, and the two sides take turns within it. A figure is the median over the repeats, and
the ratio is the median of the ratios of the pairs.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import scipy.signal
from numpy.typing import NDArray

from moelora_ad.audio import SAMPLE_RATE, TRAINING_SAMPLES, RawBoost

Waveform = NDArray[np.float64]


class UsualRawBoost:
    """RawBoost by the same definitions, computed directly with scipy."""

    def __init__(self, parameters: RawBoost) -> None:
        self.parameters = parameters

    def __call__(self, waveform: Waveform, generator: np.random.Generator) -> Waveform:
        algorithm = self.parameters.algorithm
        if algorithm == 8:
            return full_scale(self.convolutive(waveform, generator) + self.impulsive(waveform, generator))
        for step, members in ((self.convolutive, (1, 4, 5, 6)), (self.impulsive, (2, 4, 5, 7))):
            if algorithm in members:
                waveform = step(waveform, generator)
        return self.stationary(waveform, generator) if algorithm in (3, 4, 6, 7) else waveform

    def convolutive(self, waveform: Waveform, generator: np.random.Generator) -> Waveform:
        total = np.zeros_like(waveform)
        for order in range(1, self.parameters.orders + 1):
            attenuation = self.parameters.attenuation if order > 1 else (0.0, 0.0)
            total += same_length(waveform**order, self.notch_filter(generator, attenuation))
        return full_scale(total - total.mean())

    def impulsive(self, waveform: Waveform, generator: np.random.Generator) -> Waveform:
        changed = waveform.copy()
        count = int(len(waveform) * generator.uniform(0, self.parameters.impulses) / 100)
        places = generator.permutation(len(waveform))[:count]
        ratio = generator.uniform(-1, 1, count) * generator.uniform(-1, 1, count)
        changed[places] += self.parameters.impulse_gain * waveform[places] * ratio
        return full_scale(changed)

    def stationary(self, waveform: Waveform, generator: np.random.Generator) -> Waveform:
        noise = same_length(generator.normal(0, 1, len(waveform)), self.notch_filter(generator, (0.0, 0.0)))
        snr = generator.uniform(*self.parameters.snr)
        return waveform + noise / np.linalg.norm(noise) * np.linalg.norm(waveform) / 10 ** (snr / 20)

    def notch_filter(self, generator: np.random.Generator, attenuation: tuple[float, float]) -> Waveform:
        drawn = self.parameters.filters
        cascade = np.ones(1)
        for _ in range(drawn.bands):
            centre, width = generator.uniform(*drawn.centre), generator.uniform(*drawn.width)
            length = int(generator.uniform(*drawn.coefficients)) | 1
            edges = [max(centre - width / 2, 1e-3), min(centre + width / 2, SAMPLE_RATE / 2 - 1e-3)]
            cascade = np.convolve(scipy.signal.firwin(length, edges, window="hamming", fs=SAMPLE_RATE), cascade)
        peak = np.abs(scipy.signal.freqz(cascade, fs=SAMPLE_RATE)[1]).max()
        low, high = (gain - less for gain, less in zip(drawn.gain, attenuation, strict=True))
        return cascade * 10 ** ((low + (high - low) * generator.random()) / 20) / peak


def same_length(waveform: Waveform, coefficients: Waveform) -> Waveform:
    reach = len(coefficients) // 2 + 1
    return np.asarray(scipy.signal.lfilter(coefficients, 1, np.pad(waveform, (0, reach))))[reach:]


def full_scale(waveform: Waveform) -> Waveform:
    return waveform / max(1.0, float(np.abs(waveform).max()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--samples", type=int, default=TRAINING_SAMPLES)
    arguments = parser.parse_args()
    waveform = np.random.default_rng(0).uniform(-0.7, 0.7, arguments.samples).astype(np.float32)
    print(f"{arguments.samples} samples, {arguments.repeats} pairs, medians")
    print("algorithm   usual (ms)   here (ms)   ratio")
    for algorithm in range(1, 9):
        here = RawBoost(algorithm)
        usual = UsualRawBoost(here)
        double = waveform.astype(np.float64)
        pairs = []
        for repeat in range(-2, arguments.repeats):  # two to warm up
            started = time.perf_counter()
            usual(double, np.random.default_rng(repeat + 2))
            between = time.perf_counter()
            here(waveform, np.random.default_rng(repeat + 2))
            ended = time.perf_counter()
            if repeat >= 0:
                pairs.append((between - started, ended - between))
        usual_ms, here_ms = (statistics.median(side) * 1e3 for side in zip(*pairs, strict=True))
        ratio = statistics.median(before / after for before, after in pairs)
        print(f"{algorithm:9}   {usual_ms:10.2f}   {here_ms:9.2f}   {ratio:4.1f}x")


if __name__ == "__main__":
    main()

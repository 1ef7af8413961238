"""Figures that follow from how many trials lie on either side of a threshold; a trial may count several times."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from moelora_ad.evaluation.metrics.costs import AsvErrorRates, DetectionCosts, TandemCosts2019, TandemCosts2021
from moelora_ad.evaluation.metrics.equal_error_rate import EqualErrorRateResult
from moelora_ad.evaluation.metrics.options import FigureOptions

Counts = NDArray[np.int64]


class CostResult(NamedTuple):
    """A least cost, and the lowest bona fide score that is accepted for it (infinity if all are rejected)."""

    cost: float
    threshold: float


class ErrorRates(NamedTuple):
    """The shares of bona fide trials rejected (``miss``) and of spoofs accepted (``false_alarm``), in [0, 1]."""

    miss: float
    false_alarm: float


ASVSPOOF_5 = DetectionCosts()
ASVSPOOF_2021 = TandemCosts2021()


class CountedTrials(ABC):
    """Trials of two classes on a scale of scores; each may count once, several times, or not at all.

    Attributes:
        num_bona_fide: The number of bona fide trials, each as often as it counts; at least one.
        num_spoof: The number of spoofs, likewise.
    """

    num_bona_fide: int
    num_spoof: int

    @abstractmethod
    def equal_error_rate(self) -> EqualErrorRateResult:
        """See the function `equal_error_rate`."""

    @abstractmethod
    def _errors(self, threshold: float) -> tuple[int, int]:
        """Return how many bona fide trials are rejected and how many spoofs accepted at a threshold, not nan."""

    @abstractmethod
    def _least_cost(self, miss: float, false_alarm: float) -> CostResult:
        """Return the least of ``miss * miss rate + false_alarm * false alarm rate``; the weights are not negative."""

    @property
    @abstractmethod
    def _groups(self) -> tuple[Counts, Counts]:
        """The numbers of bona fide trials and of spoofs, (g,) each, in groups in ascending order of the scores. The
        trials of a group all have one score, or are all of one class; no group is empty."""

    @abstractmethod
    def _softplus(self) -> tuple[float, float]:
        """The mean of ln(1 + e^-s) over bona fide trials, and of ln(1 + e^s) over spoofs."""

    def min_dcf(self, costs: DetectionCosts = ASVSPOOF_5) -> CostResult:
        """Return the least detection cost over all thresholds, normalised by the lower cost of accepting all and
        rejecting all (ASVspoof 5)."""
        miss, false_alarm = costs.weights
        cost, threshold = self._least_cost(miss, false_alarm)
        return CostResult(cost / min(miss, false_alarm), threshold)

    def act_dcf(self, costs: DetectionCosts = ASVSPOOF_5) -> float:
        """Return the detection cost at ``costs.bayes_threshold``, normalised as in `min_dcf` (ASVspoof 5).

        Meaningful for log-likelihood ratios (natural logarithm), that is after a calibration.
        """
        miss, false_alarm = costs.weights
        rates = self.error_rates(costs.bayes_threshold)
        return (miss * rates.miss + false_alarm * rates.false_alarm) / min(miss, false_alarm)

    def min_tdcf(self, asv: AsvErrorRates, costs: TandemCosts2019 | TandemCosts2021 = ASVSPOOF_2021) -> CostResult:
        """Return the least tandem detection cost over all thresholds, normalised (ASVspoof 2019 and 2021).

        Args:
            asv: The error rates of the speaker verification system beside the detector.
            costs: The form of 2019 or that of 2021.

        Raises:
            ScoreError: An error rate is not in [0, 1], or the ASV system is so bad that the normalised cost is not
                defined.
        """
        weights = costs.checked_weights(asv)
        cost, threshold = self._least_cost(weights.miss, weights.false_alarm)
        return CostResult((weights.constant + cost) / (weights.constant + min(weights[1:])), threshold)

    def cllr(self) -> float:
        """The cost of log-likelihood ratios, in bits (Brümmer and du Preez, Computer Speech and Language 20, 2006).

        ½ [mean log2(1 + e^-s) over bona fide + mean log2(1 + e^s) over spoofs]; 0 is perfect, and 1 is the cost of
        no information. Meaningful for log-likelihood ratios (natural logarithm), that is after a calibration.
        """
        bits = 2 * math.log(2)
        bona_fide, spoof = self._softplus()
        return bona_fide / bits + spoof / bits

    def min_cllr(self) -> float:
        """Return `cllr` after the monotone map of the scores that minimises it, by pooling adjacent violators."""
        return pooled_cllr(*self._groups)

    def auc(self) -> float:
        """Return the area under the receiver operating characteristic: the share of pairs of a bona fide trial and a
        spoof that are ranked correctly; ties count one half."""
        bona_fide, spoof = self._groups
        twice_right = bona_fide * (2 * (spoof.cumsum() - spoof) + spoof)
        return int(twice_right.sum()) / (2 * self.num_bona_fide * self.num_spoof)

    def error_rates(self, threshold: float) -> ErrorRates:
        """Return the error rates at a threshold; a trial is accepted if its score is at or above it.

        Raises:
            ScoreError: The threshold is not a number.
        """
        missed, accepted_spoofs = self._errors(threshold)
        return ErrorRates(missed / self.num_bona_fide, accepted_spoofs / self.num_spoof)

    def accuracy(self, threshold: float) -> float:
        """Return the share of all trials classified correctly at a threshold; raises what `error_rates` raises."""
        trials = self.num_bona_fide + self.num_spoof
        return (trials - sum(self._errors(threshold))) / trials

    def figure(self, name: str, options: FigureOptions) -> float:
        """Return a figure by its name in `Figures`; the options set how it is computed, and must define it."""
        if name == "eer":
            return self.equal_error_rate().eer
        if name == "min_tdcf":
            assert options.asv is not None
            return self.min_tdcf(options.asv, options.tandem).cost
        if name == "accuracy":
            assert options.threshold is not None
            return self.accuracy(options.threshold)
        if name == "min_dcf":
            return self.min_dcf(options.costs).cost
        if name == "act_dcf":
            return self.act_dcf(options.costs)
        return {"auc": self.auc, "cllr": self.cllr, "min_cllr": self.min_cllr}[name]()


def pooled_cllr(bona_fide: Counts, spoof: Counts) -> float:
    """Return the Cllr after the monotone map of the scores that minimises it, found by pooling adjacent violators.

    Args:
        bona_fide: (n,) how many bona fide trials have each score, in ascending order of the scores.
        spoof: (n,) how many spoofs have it; every score has a trial.
    """
    trials = bona_fide + spoof
    blocks = isotonic_regression(bona_fide / trials, weights=trials).blocks[:-1]
    # The map gives each block the ratio of its shares of the two classes.
    hits = np.add.reduceat(bona_fide, blocks) / bona_fide.sum()
    false_alarms = np.add.reduceat(spoof, blocks) / spoof.sum()
    # A block of one class has a ratio of 0 or infinity, which costs its trials nothing.
    mixed = (hits > 0) & (false_alarms > 0)
    hits, false_alarms = hits[mixed], false_alarms[mixed]
    bits = hits * np.log2(1 + false_alarms / hits) + false_alarms * np.log2(1 + hits / false_alarms)
    return float(bits.sum()) / 2

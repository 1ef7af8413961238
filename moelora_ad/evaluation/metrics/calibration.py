"""The calibration of scores: log-likelihood ratios by a line fitted on development scores."""

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from moelora_ad.errors import counted
from moelora_ad.evaluation.metrics.equal_error_rate import ScoreError, as_array, sorted_by_class
from moelora_ad.evaluation.score_table import ScoreTable

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """log-likelihood ratio = ``scale`` * score + ``offset``, natural logarithm; see `fit_calibration`.

    Args:
        scale: Positive, so that the order of the scores is kept.
        offset: The log-likelihood ratio of a score of zero.
        fitted_on: The name of the development scores.
        num_bona_fide: How many of them are bona fide.
        num_spoof: How many of them are spoofs.
        precision: The precision that they were computed in, by Lightning's name; None if it is not known.

    Raises:
        ScoreError: A field has another type, the scale is not positive and finite, the offset is not finite, or a
            class had no trial.
    """

    scale: float
    offset: float
    fitted_on: str
    num_bona_fide: int
    num_spoof: int
    precision: str | None = None

    def __post_init__(self) -> None:
        for name in ("scale", "offset"):
            value = getattr(self, name)
            if not _is_finite_number(value) or (name == "scale" and value <= 0):
                wanted = "a positive number" if name == "scale" else "a finite number"
                raise ScoreError(f"calibration: {name} must be {wanted}, not {value!r}")
        if not isinstance(self.fitted_on, str):
            raise ScoreError(f"calibration: fitted_on must be a name, not {self.fitted_on!r}")
        if not isinstance(self.precision, str | None):
            raise ScoreError(f"calibration: precision must be a name, not {self.precision!r}")
        for name in ("num_bona_fide", "num_spoof"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ScoreError(f"calibration: {name} must be a positive whole number, not {value!r}")

    def apply(self, scores: ArrayLike) -> Floats:
        """Return log-likelihood ratios, of the shape of the scores."""
        return self.scale * as_array(scores, np.float64) + self.offset

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Calibration":
        """Build a calibration from the result of `as_dict`.

        Raises:
            ScoreError: A field is missing, unknown or faulty.
        """
        names = {field.name for field in fields(cls)} - {"precision"}  # absent from earlier files
        if not isinstance(content, Mapping) or set(content) - {"precision"} != names:
            raise ScoreError(f"calibration: needs the fields {', '.join(sorted(names))}, and no others")
        return cls(**content)


def _is_finite_number(value: object) -> bool:
    # A comparison with the largest float, as a whole number in JSON may be too large for a float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def fit_calibration(scores: ArrayLike, labels: ArrayLike, fitted_on: str) -> Calibration:
    """Fit an affine logistic calibration (Brümmer and du Preez, Computer Speech and Language 20, 2006).

    The line minimises the mean cross-entropy of the two classes, each of which counts one half: so the prior log-odds
    are zero, and the result is a log-likelihood ratio whatever the proportions of the development set. The targets are
    (n + 1) / (n + 2) and 1 / (n + 2) with the n of each class (Platt, 1999; Lin et al., Machine Learning 68, 2007),
    which keeps the line finite for classes that do not overlap. They also let a single score far beyond all others
    flatten the line.

    Args:
        scores: (n,) finite scores of a development set.
        labels: (n,) 1 for bona fide, 0 for spoof.
        fitted_on: The name of the development set.

    Raises:
        ScoreError: See `equal_error_rate`; or the scores are uninformative, or reversed.
    """
    bona_fide, spoof = sorted_by_class(scores, labels)
    values = np.concatenate([bona_fide, spoof])
    largest = float(np.abs(values).max()) or 1.0  # huge scores must not overflow when they are squared
    centre, spread = float((values / largest).mean()), float((values / largest).std())
    slope, level = 0.0, 0.0
    if spread > 0:
        num = np.array([len(bona_fide), len(spoof)])
        targets = np.repeat([(num[0] + 1) / (num[0] + 2), 1 / (num[1] + 2)], num)
        slope, level = _logistic_fit((values / largest - centre) / spread, targets, np.repeat(0.5 / num, num))
    if slope <= 0:
        raise ScoreError(
            f"{fitted_on}: no calibration, as bona fide does not score higher: the scores are chance, or reversed"
        )
    scale = slope / spread / largest
    return Calibration(scale, level - slope * centre / spread, fitted_on, len(bona_fide), len(spoof))


def _logistic_fit(values: Floats, targets: Floats, weights: Floats) -> tuple[float, float]:
    """Return the slope and offset with the least weighted cross-entropy to targets strictly between 0 and 1, by
    Newton's method."""
    design = np.stack([values, np.ones_like(values)])

    def cross_entropy(line: Floats) -> float:
        log_odds = line @ design
        return float(weights @ (np.logaddexp(0, log_odds) - targets * log_odds))

    line = np.zeros(2)
    loss = cross_entropy(line)
    for _ in range(100):
        probabilities = expit(line @ design)
        gradient = design @ (weights * (probabilities - targets))
        hessian = (design * (weights * probabilities * (1 - probabilities))) @ design.T
        step = np.linalg.lstsq(hessian, gradient)[0]
        # The loss is convex: a step that does not overshoot reduces it.
        while (shorter := cross_entropy(line - step)) > loss and np.abs(step).max() > 1e-12:
            step = step / 2
        line, loss = line - step, shorter
        if np.abs(step).max() <= 1e-12 * (1 + np.abs(line).max()):
            break
    return float(line[0]), float(line[1])


def probability_of_bona_fide(log_likelihood_ratios: ArrayLike, prior: float) -> Floats:
    """Return the posterior probability of bona fide, of the shape of the ratios; ratios beyond 1e6 do not overflow.

    Args:
        log_likelihood_ratios: Calibrated scores, natural logarithm.
        prior: Probability of bona fide before the score is known.

    Raises:
        ScoreError: The prior is not between 0 and 1.
    """
    if not 0 < prior < 1:
        raise ScoreError(f"the prior probability of bona fide must be between 0 and 1, not {prior}")
    log_odds = as_array(log_likelihood_ratios, np.float64) + math.log(prior) - math.log1p(-prior)
    odds_against = np.exp(-np.abs(log_odds))
    return np.where(log_odds >= 0, 1.0, odds_against) / (1 + odds_against)


def refuse_own_calibration(calibration_table: ScoreTable, reported_table: ScoreTable) -> None:
    """Check that a calibration was not fitted on trials that are reported, which would flatter actDCF and Cllr.

    Raises:
        ScoreError: The two tables have `shared_trials`; the message has their number and the first.
    """
    shared = shared_trials(calibration_table, reported_table)
    if shared:
        raise ScoreError(
            f"the calibration was fitted on {len(shared):,} of {counted(len(reported_table), 'trial')}, the first of "
            f"them {shared[0]!r}; calibrate on a development set"
        )


def shared_trials(one: ScoreTable, other: ScoreTable) -> list[str]:
    """Return the utterances of ``other`` that ``one`` has too, in the same corpus; where a corpus is not known, only
    utterances are compared."""
    corpora = dict(_names(one))
    return [
        utterance
        for utterance, corpus in _names(other)
        if (first := corpora.get(utterance)) is not None and (first == corpus or not first or not corpus)
    ]


def _names(table: ScoreTable) -> Iterator[tuple[str, str | None]]:
    """Return the utterance and corpus of each trial."""
    return zip(table.trials.columns.utterance, table.trials.column("corpus"), strict=True)

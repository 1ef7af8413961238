"""The costs of errors: the detection cost of ASVspoof 5, and the tandem detection costs of ASVspoof 2019 and 2021."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from moelora_ad.corpora.protocols.records import read_lines
from moelora_ad.errors import counted
from moelora_ad.evaluation.metrics.equal_error_rate import ScoreError, as_array, equal_error_rate
from moelora_ad.evaluation.score_table import parse_scores


@dataclass(frozen=True)
class DetectionCosts:
    """The detection cost function (DCF); the defaults are those of ASVspoof 5, track 1.

    Args:
        spoof_prior: Prior probability of a spoof.
        miss: Cost of rejecting a bona fide utterance.
        false_alarm: Cost of accepting a spoof.

    Raises:
        ScoreError: The prior is not between 0 and 1, or a cost is not positive and finite.
    """

    spoof_prior: float = 0.05
    miss: float = 1.0
    false_alarm: float = 10.0

    def __post_init__(self) -> None:
        _check_costs(self)

    @property
    def weights(self) -> tuple[float, float]:
        """The weights of the miss rate and of the false alarm rate."""
        return self.miss * (1 - self.spoof_prior), self.false_alarm * self.spoof_prior

    @property
    def bayes_threshold(self) -> float:
        """The log-likelihood ratio at and above which accepting costs less: -ln 1.9 with the defaults."""
        miss, false_alarm = self.weights
        return math.log(false_alarm) - math.log(miss)


_KINDS = ("target", "nontarget", "spoof")


class AsvErrorRates(NamedTuple):
    """The error rates of a speaker verification (ASV) system at its own threshold; all in [0, 1].

    They are the shares of target speakers rejected (``miss``), other speakers accepted (``false_alarm``), and spoofs
    accepted (``spoof_false_alarm``).
    """

    miss: float
    false_alarm: float
    spoof_false_alarm: float


class TandemWeights(NamedTuple):
    """The tandem cost is constant + miss * miss rate + false_alarm * false alarm rate (C0, C1 and C2)."""

    constant: float
    miss: float
    false_alarm: float


class TandemCosts(ABC):
    """The tandem detection cost function (t-DCF), normalised by the lower cost of accepting all and rejecting all."""

    @abstractmethod
    def weights(self, asv: AsvErrorRates) -> TandemWeights:
        """Return C0, C1 and C2 of a detector beside this ASV system."""

    def checked_weights(self, asv: AsvErrorRates) -> TandemWeights:
        """Return `weights`, after a check that the normalised cost is defined with them.

        Raises:
            ScoreError: An error rate is not in [0, 1], or the ASV system is so bad that a weight is negative, or the
                cost to normalise by not positive.
        """
        if not all(0 <= rate <= 1 for rate in asv):
            raise ScoreError(f"error rates of the ASV system must be in [0, 1], not in percent: {tuple(asv)}")
        weights = self.weights(asv)
        if not (weights.miss >= 0 and weights.false_alarm >= 0 and weights.constant + min(weights[1:]) > 0):
            rates = f"misses {asv.miss:.4f}, false alarms {asv.false_alarm:.4f}, spoofs {asv.spoof_false_alarm:.4f}"
            raise ScoreError(
                f"no t-DCF beside this ASV system ({rates}): C1 = {weights.miss:.4g} and C2 = {weights.false_alarm:.4g}"
                f" must not be negative, and C0 + min(C1, C2) must be positive with C0 = {weights.constant:.4g}; check "
                "whether its scores are of the right trials and not reversed"
            )
        return weights


@dataclass(frozen=True)
class TandemCosts2019(TandemCosts):
    """The t-DCF of ASVspoof 2019 (its evaluation plan; Kinnunen et al., Odyssey 2018).

    Raises:
        ScoreError: A cost is not positive and finite, or the three priors are not between 0 and 1 with a sum of 1.
    """

    target_prior: float = 0.9405
    nontarget_prior: float = 0.0095
    spoof_prior: float = 0.05
    asv_miss: float = 1.0
    asv_false_alarm: float = 10.0
    miss: float = 1.0
    false_alarm: float = 10.0

    def __post_init__(self) -> None:
        _check_costs(self)

    def weights(self, asv: AsvErrorRates) -> TandemWeights:
        """C1 = P_tar (C_miss - C_miss_asv P_miss_asv) - P_non C_fa_asv P_fa_asv; C2 = C_fa P_spoof P_fa_spoof_asv."""
        miss = self.target_prior * (self.miss - self.asv_miss * asv.miss)
        miss -= self.nontarget_prior * self.asv_false_alarm * asv.false_alarm
        return TandemWeights(0.0, miss, self.false_alarm * self.spoof_prior * asv.spoof_false_alarm)


@dataclass(frozen=True)
class TandemCosts2021(TandemCosts):
    """The ASV-constrained t-DCF of ASVspoof 2021 (Kinnunen et al., IEEE/ACM TASLP 28, 2020).

    Raises:
        ScoreError: See `TandemCosts2019`.
    """

    target_prior: float = 0.9405
    nontarget_prior: float = 0.0095
    spoof_prior: float = 0.05
    miss: float = 1.0
    false_alarm: float = 10.0
    spoof_false_alarm: float = 10.0

    def __post_init__(self) -> None:
        _check_costs(self)

    def weights(self, asv: AsvErrorRates) -> TandemWeights:
        """C0 = P_tar C_miss P_miss_asv + P_non C_fa P_fa_asv; C1 = P_tar C_miss - C0; C2 = P_spoof C_fa P_fa_spoof."""
        constant = self.target_prior * self.miss * asv.miss
        constant += self.nontarget_prior * self.false_alarm * asv.false_alarm
        miss = self.target_prior * self.miss - constant
        return TandemWeights(constant, miss, self.spoof_prior * self.spoof_false_alarm * asv.spoof_false_alarm)


def _check_costs(costs: DetectionCosts | TandemCosts2019 | TandemCosts2021) -> None:
    for field in fields(costs):
        value = getattr(costs, field.name)
        if field.name.endswith("prior") and not 0 < value < 1:
            raise ScoreError(f"costs: {field.name} must be between 0 and 1, not {value}")
        if not (0 < value < math.inf):
            raise ScoreError(f"costs: {field.name} must be positive, not {value}")
    if not isinstance(costs, DetectionCosts):
        total = costs.target_prior + costs.nontarget_prior + costs.spoof_prior
        if not math.isclose(total, 1, abs_tol=1e-6):
            raise ScoreError(f"costs: the priors of targets, non-targets and spoofs must sum to 1, not {total:.6g}")


def asv_error_rates(target: ArrayLike, nontarget: ArrayLike, spoof: ArrayLike) -> AsvErrorRates:
    """Return the error rates of an ASV system at the threshold of its EER between target and non-target speakers.

    As in the evaluation packages, the threshold is the highest target or non-target score that the EER rejects, and a
    score at it is accepted nevertheless.

    Args:
        target: Scores of the claimed speaker; higher means more likely the claimed speaker.
        nontarget: Scores of other speakers.
        spoof: Scores of spoofs of the claimed speaker.

    Raises:
        ScoreError: One of the three has no score, or one that is not finite.
    """
    scores = [as_array(kind, np.float64) for kind in (target, nontarget, spoof)]
    for name, kind in zip(_KINDS, scores, strict=True):
        if kind.ndim != 1 or not len(kind) or not np.isfinite(kind).all():
            raise ScoreError(f"ASV scores: {name} needs a list of at least one score, all finite")
    both, labels = np.concatenate(scores[:2]), np.repeat([1, 0], [len(scores[0]), len(scores[1])])
    rejected = both[both < equal_error_rate(both, labels).threshold]
    threshold = rejected.max() if len(rejected) else both.min() - 0.001
    miss = float(np.mean(scores[0] < threshold))
    return AsvErrorRates(miss, float(np.mean(scores[1] >= threshold)), float(np.mean(scores[2] >= threshold)))


def read_asv_error_rates(path: str | Path, phase: str = "eval") -> AsvErrorRates:
    """Return `asv_error_rates` of the ASV scores that ASVspoof publishes: no header, columns separated by spaces.

    - 2019, ``ASVspoof2019.LA.asv.eval.gi.trl.scores.txt``: ``A07 spoof -1.25``, the attack or the speaker, then
      ``target``, ``nontarget`` or ``spoof``, then the score.
    - 2021, ``keys/LA/ASV/ASVTorch_Kaldi/score.txt``: ``LA_0040 LA_E_1000147 -1.25``, the claimed speaker, the
      utterance and the score. The kind of each line is in the same line of ``keys/LA/ASV/trial_metadata.txt``.

    Args:
        path: The scores.
        phase: The part of the trials of 2021: ``eval``, ``progress`` or ``hidden``. A file of 2019 has a single part.

    Raises:
        ScoreError: The file, or its ``trial_metadata.txt``, is faulty or has no scores of one of the three kinds.
        ProtocolError: One of the two is missing or has other columns.
    """
    trials = list(_keyed_scores(path, phase))
    for line, key, _ in trials:
        if key not in _KINDS:
            raise ScoreError.at(path, f"{key!r} is not one of {', '.join(_KINDS)}", line=line)
    keys = np.array([key for _, key, _ in trials])
    scores = parse_scores(path, [line for line, _, _ in trials], [text for _, _, text in trials])
    missing = [kind for kind in _KINDS if kind not in keys]
    if missing:
        raise ScoreError.at(path, f"has no {' and no '.join(missing)} trial, which a t-DCF needs")
    return asv_error_rates(*(scores[keys == kind] for kind in _KINDS))


def _keyed_scores(path: str | Path, phase: str) -> Iterator[tuple[int, str, str]]:
    """Return the line, key and score of each trial."""
    trials = _rows(path, ("source", "trial", "score"))
    if not trials or trials[0][2] in _KINDS:
        return ((line, key, score) for line, _, key, score in trials)
    metadata = Path(path).absolute().parent.parent / "trial_metadata.txt"
    keys = _rows(metadata, ("speaker", "trial", "codec", "transmission", "attack", "key", "trim", "phase"))
    if len(keys) != len(trials):
        raise ScoreError.at(
            path, f"has {counted(len(trials), 'score')}, but {metadata} has {counted(len(keys), 'trial')}"
        )
    for (line, _, utterance, _), key in zip(trials, keys, strict=True):
        if utterance != key[2]:
            raise ScoreError.at(path, f"is of {utterance!r}, but {metadata} has {key[2]!r} there", line=line)
    pairs = zip(trials, keys, strict=True)  # older keys call the hidden phase hidden_track
    return ((line, key[6], score) for (line, _, _, score), key in pairs if key[8].removesuffix("_track") == phase)


def _rows(path: str | Path, columns: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """Return all lines that are not blank: their numbers and their fields."""
    return [
        row for block in read_lines(path, columns) for row in zip(block.lines, *block.columns.values(), strict=True)
    ]

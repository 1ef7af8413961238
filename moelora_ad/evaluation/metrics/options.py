"""Options of figures: which ones are computed, and how."""

import math
from dataclasses import dataclass, field

from moelora_ad.corpora.trial import TEXT_FIELDS
from moelora_ad.evaluation.metrics.costs import AsvErrorRates, DetectionCosts, TandemCosts2019, TandemCosts2021
from moelora_ad.evaluation.metrics.equal_error_rate import ScoreError
from moelora_ad.evaluation.metrics.least import LEAST_RESAMPLES

FIGURES = ("eer", "min_dcf", "auc", "min_cllr", "act_dcf", "cllr", "accuracy", "min_tdcf")
"""The names of all figures, in the order of tables."""


@dataclass(frozen=True)
class FigureOptions:
    """Which figures are computed, and how.

    Args:
        costs: The costs of minDCF and actDCF.
        calibrated: Whether the scores are log-likelihood ratios, so that actDCF and Cllr have a meaning.
        threshold: The threshold of the accuracy: a trial is accepted if its score is at or above it.
        resamples: The number of resamples of the bootstrap, at least 20; 0 for no intervals.
        seed: The seed of the bootstrap; the same seed gives the same intervals.
        clusters: The fields of a trial whose combinations are resampled together; None for `default_clusters`.
        asv: The error rates of the speaker verification system beside the detector, for min t-DCF; they are not
            resampled.
        tandem: The form of t-DCF and its costs.

    Raises:
        ScoreError: There are too few resamples, the seed is negative, the threshold is not finite, or a field is
            unknown.
    """

    costs: DetectionCosts = field(default_factory=DetectionCosts)
    calibrated: bool = False
    threshold: float | None = None
    resamples: int = 1000
    seed: int = 1
    clusters: tuple[str, ...] | None = None
    asv: AsvErrorRates | None = None
    tandem: TandemCosts2019 | TandemCosts2021 = field(default_factory=TandemCosts2021)

    def __post_init__(self) -> None:
        if self.resamples < 0 or self.seed < 0:
            raise ScoreError(f"resamples ({self.resamples}) and seed ({self.seed}) must not be negative")
        if 0 < self.resamples < LEAST_RESAMPLES:
            raise ScoreError(f"resamples: {self.resamples} is too few for an interval; give {LEAST_RESAMPLES} or more")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ScoreError(f"a threshold must be finite, not {self.threshold}")
        for name in self.clusters or ():
            if name not in TEXT_FIELDS:
                raise ScoreError(f"clusters: trials have no field {name!r}; choose from {', '.join(TEXT_FIELDS)}")

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of the figures that these options define."""
        needed = {
            "act_dcf": self.calibrated,
            "cllr": self.calibrated,
            "accuracy": self.threshold is not None,
            "min_tdcf": self.asv is not None,
        }
        return tuple(name for name in FIGURES if needed.get(name, True))

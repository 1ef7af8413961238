"""Scores -> figures. No model is needed: a score file is enough."""

from moelora_ad.evaluation.calibration import Calibration, fit_calibration, probability_of_bona_fide
from moelora_ad.evaluation.costs import (
    AsvErrorRates,
    DetectionCosts,
    TandemCosts2019,
    TandemCosts2021,
    asv_error_rates,
    read_asv_error_rates,
)
from moelora_ad.evaluation.curve import ScoreCurve, accuracy, act_dcf, auc, cllr, min_cllr, min_dcf, min_tdcf
from moelora_ad.evaluation.equal_error_rate import EqualErrorRateResult, ScoreError, equal_error_rate
from moelora_ad.evaluation.metrics import (
    ActualDetectionCost,
    AreaUnderCurve,
    EqualErrorRate,
    LogLikelihoodRatioCost,
    MinDetectionCost,
    MinLogLikelihoodRatioCost,
    MinTandemDetectionCost,
    TrialFailures,
    TrialScores,
)
from moelora_ad.evaluation.score_table import ScoreTable

__all__ = [
    "ActualDetectionCost",
    "AreaUnderCurve",
    "AsvErrorRates",
    "Calibration",
    "DetectionCosts",
    "EqualErrorRate",
    "EqualErrorRateResult",
    "LogLikelihoodRatioCost",
    "MinDetectionCost",
    "MinLogLikelihoodRatioCost",
    "MinTandemDetectionCost",
    "ScoreCurve",
    "ScoreError",
    "ScoreTable",
    "TandemCosts2019",
    "TandemCosts2021",
    "TrialFailures",
    "TrialScores",
    "accuracy",
    "act_dcf",
    "asv_error_rates",
    "auc",
    "cllr",
    "equal_error_rate",
    "fit_calibration",
    "min_cllr",
    "min_dcf",
    "min_tdcf",
    "probability_of_bona_fide",
    "read_asv_error_rates",
]

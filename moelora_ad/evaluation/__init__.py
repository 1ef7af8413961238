"""Scores -> figures. No model is needed: a score file is enough."""

from moelora_ad.evaluation.equal_error_rate import EqualErrorRateResult, ScoreError, equal_error_rate
from moelora_ad.evaluation.metrics import EqualErrorRate, TrialFailures, TrialScores
from moelora_ad.evaluation.score_table import ScoreTable

__all__ = [
    "EqualErrorRate",
    "EqualErrorRateResult",
    "ScoreError",
    "ScoreTable",
    "TrialFailures",
    "TrialScores",
    "equal_error_rate",
]

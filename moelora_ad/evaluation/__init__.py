"""The evaluation of scores: figures, intervals and reports. No model is needed: a score file is enough."""

from typing import TYPE_CHECKING

from moelora_ad.lazy import lazy_names

if TYPE_CHECKING:
    from moelora_ad.evaluation.metrics.averages import MacroAverage, SeedSummary, macro_averages, over_seeds
    from moelora_ad.evaluation.metrics.calibration import Calibration, fit_calibration, probability_of_bona_fide
    from moelora_ad.evaluation.metrics.clusters import default_clusters
    from moelora_ad.evaluation.metrics.costs import (
        AsvErrorRates,
        DetectionCosts,
        TandemCosts2019,
        TandemCosts2021,
        asv_error_rates,
        read_asv_error_rates,
    )
    from moelora_ad.evaluation.metrics.curve import (
        ScoreCurve,
        accuracy,
        act_dcf,
        auc,
        cllr,
        min_cllr,
        min_dcf,
        min_tdcf,
    )
    from moelora_ad.evaluation.metrics.equal_error_rate import EqualErrorRateResult, ScoreError, equal_error_rate
    from moelora_ad.evaluation.metrics.figures import evaluate_set, pooled
    from moelora_ad.evaluation.metrics.intervals import Difference, Interval, bootstrap, compare
    from moelora_ad.evaluation.metrics.options import FigureOptions
    from moelora_ad.evaluation.metrics.set_evaluation import Figures, SetEvaluation
    from moelora_ad.evaluation.metrics.torchmetrics import (
        ActualDetectionCost,
        AreaUnderCurve,
        EqualErrorRate,
        LabelledScores,
        LogLikelihoodRatioCost,
        MinDetectionCost,
        MinLogLikelihoodRatioCost,
        MinTandemDetectionCost,
        TrialFailures,
        TrialScores,
    )
    from moelora_ad.evaluation.reports.evaluate import evaluate
    from moelora_ad.evaluation.reports.results import Results
    from moelora_ad.evaluation.score_files.formats import Scores, read_scores, write_scores
    from moelora_ad.evaluation.score_files.keys import Joined, join_scores, read_key
    from moelora_ad.evaluation.score_table import ScoreTable
else:
    # Modules are imported on demand: figures of a score file need no torch, and a command's help needs none of these.
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "ActualDetectionCost",
    "AreaUnderCurve",
    "AsvErrorRates",
    "Calibration",
    "DetectionCosts",
    "Difference",
    "EqualErrorRate",
    "EqualErrorRateResult",
    "FigureOptions",
    "Figures",
    "Interval",
    "Joined",
    "LabelledScores",
    "LogLikelihoodRatioCost",
    "MacroAverage",
    "MinDetectionCost",
    "MinLogLikelihoodRatioCost",
    "MinTandemDetectionCost",
    "Results",
    "ScoreCurve",
    "ScoreError",
    "ScoreTable",
    "Scores",
    "SeedSummary",
    "SetEvaluation",
    "TandemCosts2019",
    "TandemCosts2021",
    "TrialFailures",
    "TrialScores",
    "accuracy",
    "act_dcf",
    "asv_error_rates",
    "auc",
    "bootstrap",
    "cllr",
    "compare",
    "default_clusters",
    "equal_error_rate",
    "evaluate",
    "evaluate_set",
    "fit_calibration",
    "join_scores",
    "macro_averages",
    "min_cllr",
    "min_dcf",
    "min_tdcf",
    "over_seeds",
    "pooled",
    "probability_of_bona_fide",
    "read_asv_error_rates",
    "read_key",
    "read_scores",
    "write_scores",
]

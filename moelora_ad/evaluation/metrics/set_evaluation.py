"""The figures of a set of scores."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from moelora_ad.evaluation.metrics.intervals import Interval


@dataclass(frozen=True)
class Figures:
    """Figures of some trials; all rates are in [0, 1], and figures that are not requested or not defined are None.

    Args:
        num_bona_fide: Number of bona fide trials.
        num_spoof: Number of spoofed trials.
        eer: See `equal_error_rate`.
        eer_threshold: The lowest score that is accepted at the equal error rate.
        min_dcf: See `ScoreCurve.min_dcf`.
        auc: See `ScoreCurve.auc`.
        min_cllr: In bits; see `ScoreCurve.min_cllr`.
        act_dcf: See `ScoreCurve.act_dcf`; None unless the scores are declared calibrated.
        cllr: In bits; see `ScoreCurve.cllr`; None unless the scores are declared calibrated.
        threshold: The threshold of the accuracy.
        accuracy: See `ScoreCurve.accuracy`.
        min_tdcf: See `ScoreCurve.min_tdcf`.
        intervals: 95 % intervals by the figure's name; empty if there are no resamples.
    """

    num_bona_fide: int
    num_spoof: int
    eer: float
    eer_threshold: float
    min_dcf: float
    auc: float
    min_cllr: float
    act_dcf: float | None = None
    cllr: float | None = None
    threshold: float | None = None
    accuracy: float | None = None
    min_tdcf: float | None = None
    intervals: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class SetEvaluation:
    """The figures of a set.

    Args:
        name: The name of the set.
        overall: Figures of all trials.
        attacks: Figures by attack: all bona fide trials against its spoofs.
        codecs: Figures by codec: its bona fide trials against its spoofs.
        speakers: Figures by group, for example ``gender: female``: its bona fide trials against its spoofs.
        notes: What a reader of the figures must know, one sentence each.
    """

    name: str
    overall: Figures
    attacks: dict[str, Figures] = field(default_factory=dict)
    codecs: dict[str, Figures] = field(default_factory=dict)
    speakers: dict[str, Figures] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

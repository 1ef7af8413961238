"""The figures of a set of scores."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from moelora_ad.evaluation.metrics.intervals import Interval


@dataclass(frozen=True)
class Figures:
    """Figures of some trials; all rates in [0, 1], and None for what is not requested or not defined.

    Args:
        num_bona_fide: Bona fide trials.
        num_spoof: Spoofed trials.
        eer: See `equal_error_rate`.
        eer_threshold: A trial is accepted if its score is above it.
        min_dcf: See `ScoreCurve.min_dcf`.
        auc: See `ScoreCurve.auc`.
        min_cllr: In bits; see `ScoreCurve.min_cllr`.
        act_dcf: See `ScoreCurve.act_dcf`; None unless the scores are declared calibrated.
        cllr: In bits; see `ScoreCurve.cllr`; None unless the scores are declared calibrated.
        threshold: Where the accuracy is taken.
        accuracy: See `ScoreCurve.accuracy`.
        min_tdcf: See `ScoreCurve.min_tdcf`.
        intervals: Of 95 %, by the figure's name; empty if there are no resamples.
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
        name: Of the set.
        overall: All trials.
        attacks: By attack: all bona fide trials against its spoofs.
        codecs: By codec: its bona fide trials against its spoofs.
        speakers: By group, for example ``gender: female``: its bona fide trials against its spoofs.
        notes: What a reader of the figures must know, one sentence each.
    """

    name: str
    overall: Figures
    attacks: dict[str, Figures] = field(default_factory=dict)
    codecs: dict[str, Figures] = field(default_factory=dict)
    speakers: dict[str, Figures] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

"""EER when an expert is removed, or left alone."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from moelora_ad.adapters import adapted_sites, knocked_out
from moelora_ad.analysis.analysis import Analysis
from moelora_ad.analysis.batches import Reading
from moelora_ad.analysis.gate_use import require_gates
from moelora_ad.analysis.heatmaps import heatmaps
from moelora_ad.analysis.models import Trained, load_trained, trials_of
from moelora_ad.analysis.scoring import Variant, check_classes, eer_difference, eers_by_attack, scores_of_variants
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable
from moelora_ad.evaluation.metrics.intervals import Difference
from moelora_ad.evaluation.reports.text_table import TextTable

NAME = "experts"
BASE = "all experts"


def analyse(
    run: str,
    *,
    sets: Sequence[str] | None = None,
    keep_gates: bool = False,
    resamples: int = 1000,
    seed: int = 1,
    backbone: str | None = None,
    allow: Collection[str] = (),
    reading: Reading | None = None,
) -> Analysis:
    """Score sets with each expert removed at all projections, and with each alone.

    Args:
        run: folder of a run of a mixture, or a checkpoint in it.
        sets: "dev", "train" or test sets; None for all test sets.
        keep_gates: whether gates keep their weights, or decide between the experts that remain.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        backbone: where the encoder is, if not where the run found it.
        allow: packages besides ours whose classes the run's configuration may name.
        reading: see `Reading`; as the run read, and on the first GPU, if not given.

    Raises:
        InputError: the model has no gates, a set lacks a class, or audio cannot be read.
    """
    trained = load_trained(run, backbone, allow)
    require_gates(trained)
    names = sets or list(trained.data.test)
    if not names:
        raise InputError(f"{trained.folder} has no test set: name one by --set")
    trials = {name: trials_of(trained, name) for name in names}
    for name, listed in trials.items():
        check_classes(listed, name)
    variants = variants_of(trained, keep_gates)
    reading = reading or Reading()
    scored = {
        name: scores_of_variants(trained, listed, variants, reading, f"{trained.name} on {name}")
        for name, listed in trials.items()
    }
    return analysis_of(trained, scored, keep_gates, resamples, seed)


def variants_of(trained: Trained, keep_gates: bool) -> dict[str, Variant]:
    """The model as it is, without each expert, and with each alone."""
    encoder = trained.detector.backbone.encoder
    counts = {len(layer.experts) for _, layer in adapted_sites(encoder) if layer.gate is not None}
    if len(counts) > 1:
        raise InputError(f"{trained.folder}: projections have {sorted(counts)} experts: there is no common numbering")
    (count,) = counts
    without = partial(knocked_out, encoder, redistribute=not keep_gates)
    variants: dict[str, Variant] = {BASE: nullcontext}
    for number in range(count):
        variants[f"without {number}"] = partial(without, [number])
    if count > 2:  # of two experts, one without the other is alone
        for number in range(count):
            variants[f"{number} alone"] = partial(without, [other for other in range(count) if other != number])
    return variants


def analysis_of(
    trained: Trained, scored: Mapping[str, Mapping[str, ScoreTable]], keep_gates: bool, resamples: int, seed: int
) -> Analysis:
    """The analysis of scores by set and variant."""
    rows: list[dict[str, Any]] = []
    tables, removals = [], []
    changes: dict[str, tuple[list[str], list[str], NDArray[np.float64]]] = {}
    for name, by_variant in scored.items():
        base = by_variant[BASE]
        lines = []
        for variant, table in by_variant.items():
            difference = eer_difference(table, base, resamples, seed)
            low, high = difference.interval.low, difference.interval.high
            values = {"eer": difference.first, "difference": difference.difference, "low": low, "high": high}
            rows.append({"set": name, "variant": variant, "attack": "", **values})
            rows += [
                {"set": name, "variant": variant, "attack": attack, "eer": eer}
                for attack, eer in eers_by_attack(table).items()
            ]
            if variant == BASE:
                lines.append((variant, f"{100 * difference.first:.2f}", "", ""))
                continue
            lines.append((variant, f"{100 * difference.first:.2f}", _points(difference), _interval(difference)))
            if variant.startswith("without"):
                removals.append((name, variant, difference))
        tables.append(TextTable(f"EER % on {name}", ("experts", "EER %", "difference", "95 %"), lines))
        changes[name] = _changes(by_variant)
    gates = "keep their weights" if keep_gates else "decide between the experts that remain"
    notes = [
        f"an expert is removed at all projections at once; gates {gates}",
        f"intervals: paired bootstrap of clusters of trials, {resamples:,} resamples",
    ]
    return Analysis(
        name=NAME,
        finding=_finding(trained.name, removals),
        tables=tables,
        rows=rows,
        data={"system": trained.name, "seed": trained.seed, "checkpoint": trained.checkpoint},
        figures={name: partial(_figure, name, *parts) for name, parts in changes.items()},
        notes=notes,
    )


def _changes(by_variant: Mapping[str, ScoreTable]) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """Mean change of the score of each attack's trials, and of bona fide ones, by variant."""
    base = by_variant[BASE]
    column, labels = base.trials.column("attack"), np.asarray(base.labels)
    attacks = np.array([value or "spoof" for value in column.values], dtype=object)[np.asarray(column.codes)]
    kinds = np.where(labels == 1, "bona fide", attacks)
    rows = ["bona fide", *sorted({str(kind) for kind in kinds[labels == 0]})]
    columns = [variant for variant in by_variant if variant != BASE]
    means = [
        [float((by_variant[variant].scores - base.scores)[kinds == kind].mean()) for variant in columns]
        for kind in rows
    ]
    return rows, columns, np.array(means)


def _figure(name: str, rows: Sequence[str], columns: Sequence[str], values: NDArray[np.float64]) -> Figure:
    return heatmaps(
        {"": values},
        rows,
        columns,
        rows_are="trials",
        columns_are="experts",
        values_are="change of the mean score (log-odds)",
        diverging=True,
        title=f"Scores on {name} without experts",
    )


def _points(difference: Difference) -> str:
    return f"{100 * difference.difference:+.2f}"


def _interval(difference: Difference) -> str:
    return f"[{100 * difference.interval.low:+.2f}, {100 * difference.interval.high:+.2f}]"


def _finding(system: str, removals: Sequence[tuple[str, str, Difference]]) -> str:
    shown = [one for one in removals if one[2].interval.low > 0 or one[2].interval.high < 0]
    if not shown:
        largest = max(removals, key=lambda one: abs(one[2].difference))
        return (
            f"removing no single expert of {system} changes an EER beyond chance (95 %); the largest change is "
            f"{_points(largest[2])} points {_interval(largest[2])} on {largest[0]} {largest[1]}"
        )
    told = [f"{_points(difference)} points {_interval(difference)} on {name} {v}" for name, v, difference in shown]
    rest = len(removals) - len(shown)
    return f"removing experts of {system} changes the EER by {'; '.join(told)}; {rest} other removals within chance"

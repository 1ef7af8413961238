"""Independently trained LoRAs, averaged, against a mixture.

The scores of N detectors can be averaged, at N times the cost; or their updates B_i A_i and their classifiers, at the
cost of one. A mixture decides for each token instead; with its gates held at their means it is a static ensemble too,
which shows what the dynamic routing is worth.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from moelora_ad.adapters import (
    LoRAUpdate,
    adapted_sites,
    lora_updates,
    merge_static_mixture,
    record_routing,
)
from moelora_ad.adapters.merging import Merged
from moelora_ad.analysis.analysis import Analysis
from moelora_ad.analysis.batches import Reading, read
from moelora_ad.analysis.gate_use import gated_sites
from moelora_ad.analysis.models import Trained, load_trained, trials_of
from moelora_ad.analysis.scoring import check_classes, eer_difference, scores_of_variants
from moelora_ad.data.data_module import DEV
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable
from moelora_ad.evaluation.metrics.intervals import Difference
from moelora_ad.evaluation.reports.plots import BLUE, INK, short_name
from moelora_ad.evaluation.reports.text_table import TextTable

NAME = "ensemble"
SCORES, WEIGHTS = "scores averaged", "weights averaged"
MIXTURE, STATIC = "mixture", "mixture with constant gates"


def analyse(
    runs: Sequence[str],
    *,
    against: str | None = None,
    sets: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 1,
    backbone: str | None = None,
    allow: Collection[str] = (),
    reading: Reading | None = None,
) -> Analysis:
    """Score sets with every LoRA, with their averages, and with a mixture and its static form.

    Args:
        runs: folders of LoRA runs, or checkpoints in them.
        against: a run of a mixture; None for none.
        sets: "dev", "train" or test sets; None for all test sets.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        backbone: where the encoder is, if not where the run found it.
        allow: packages besides ours whose classes the run's configuration may name.
        reading: see `Reading`; as the run read, and on the first GPU, if not given.

    Raises:
        InputError: there are not two LoRA runs, their parts differ, a set lacks a class, or audio cannot be read.
    """
    if len(runs) < 2:
        raise InputError("an ensemble needs at least two LoRA runs")
    first = load_trained(runs[0], backbone, allow)
    names = sets or list(first.data.test)
    if not names:
        raise InputError(f"{first.folder} has no test set: name one by --set")
    reading = reading or Reading()
    scored: dict[str, dict[str, ScoreTable]] = {name: {} for name in names}
    updates, classifiers = [], []
    for path in runs:  # one model in memory at a time
        trained = load_trained(path, backbone, allow)
        updates.append(_updates(trained))
        classifiers.append(_classifier(trained))
        _check_alike(first, trained, updates, classifiers)
        _score(trained, f"{trained.name}, seed {trained.seed}", scored, reading)
        singles = list(scored[names[0]])
    for by_variant in scored.values():
        tables = list(by_variant.values())
        by_variant[SCORES] = tables[0].with_scores(np.mean([table.scores for table in tables], axis=0))
    with averaged(first, updates, classifiers):
        _score(first, WEIGHTS, scored, reading)
    if against is not None:
        _score_mixture(load_trained(against, backbone, allow), scored, reading)
    return analysis_of(first.name, singles, scored, SCORES if against is None else MIXTURE, resamples, seed)


def _score(trained: Trained, variant: str, scored: dict[str, dict[str, ScoreTable]], reading: Reading) -> None:
    for name, by_variant in scored.items():
        trials = trials_of(trained, name)
        check_classes(trials, name)
        others = next(iter(by_variant.values())).trials if by_variant else trials
        if list(trials.columns.utterance) != list(others.columns.utterance):
            raise InputError(f"{trained.folder} has other trials in {name} than the first run")
        if variant in by_variant:
            raise InputError(f"{trained.folder}: a run of {variant} is named twice")
        by_variant |= scores_of_variants(trained, trials, {variant: nullcontext}, reading, f"{variant} on {name}")


def _score_mixture(mixture: Trained, scored: dict[str, dict[str, ScoreTable]], reading: Reading) -> None:
    if not gated_sites(mixture):
        raise InputError(f"--against: {mixture.folder} has no gates; give a run that was adapted with MoELoRA")
    encoder = mixture.detector.backbone.encoder
    _score(mixture, MIXTURE, scored, reading)
    with torch.inference_mode(), record_routing(encoder) as routing:
        for batch in read(mixture, trials_of(mixture, DEV), reading, f"mean gates on {DEV}"):
            mixture.detector.backbone(batch.waveforms, batch.lengths)
    merged = merge_static_mixture(encoder, routing.mean_gates())
    _score(mixture, STATIC, scored, reading)
    merged.undo()


@contextmanager
def averaged(
    trained: Trained, updates: Sequence[Mapping[str, LoRAUpdate]], classifiers: Sequence[Mapping[str, Tensor]]
) -> Iterator[None]:
    """The detector with the mean of the updates, (1 / n) sum_i s_i B_i A_i exactly, not the product of mean factors,
    and with the mean of the classifiers' weights and batch statistics, within the block."""
    detector = trained.detector
    before = {name: tensor.clone() for name, tensor in detector.classifier.state_dict().items()}
    mean = {
        name: torch.stack([state[name].double() for state in classifiers]).mean(0).to(tensor.dtype)
        for name, tensor in before.items()
    }
    merged = Merged(detector.backbone.encoder, mean_updates(updates))
    detector.classifier.load_state_dict(mean)
    try:
        yield
    finally:
        merged.undo()
        detector.classifier.load_state_dict(before)


def mean_updates(updates: Sequence[Mapping[str, LoRAUpdate]]) -> dict[str, LoRAUpdate]:
    """The mean of LoRAs as one of rank n r: the factors side by side."""
    means = {}
    for site in updates[0]:
        parts = [update[site] for update in updates]
        ups = [part.scaling / len(parts) * part.lora_B for part in parts]
        means[site] = LoRAUpdate(torch.cat([part.lora_A for part in parts]), torch.cat(ups, dim=1), 1.0)
    return means


def _updates(trained: Trained) -> dict[str, LoRAUpdate]:
    encoder = trained.detector.backbone.encoder
    if gated_sites(trained) or not list(adapted_sites(encoder)):
        raise InputError(f"{trained.folder} is no run of a LoRA; a mixture goes behind --against")
    return {
        site: LoRAUpdate(one.lora_A.detach().cpu(), one.lora_B.detach().cpu(), one.scaling)
        for site, one in lora_updates(encoder).items()
    }


def _classifier(trained: Trained) -> dict[str, Tensor]:
    return {name: tensor.cpu().clone() for name, tensor in trained.detector.classifier.state_dict().items()}


def _check_alike(
    first: Trained,
    trained: Trained,
    updates: Sequence[Mapping[str, LoRAUpdate]],
    classifiers: Sequence[Mapping[str, Tensor]],
) -> None:
    backbones = [one.detector.backbone for one in (first, trained)]
    same_backbone = [type(one) for one in backbones] == [type(backbones[0])] * 2 and (
        backbones[0].init_args == backbones[1].init_args
    )
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in (classifiers[0], classifiers[-1])]
    same = (same_backbone, updates[0].keys() == updates[-1].keys(), shapes[0] == shapes[1])
    for part, alike in zip(("backbone", "adapted projections", "classifier"), same, strict=True):
        if not alike:
            raise InputError(f"{trained.folder} has another {part} than {first.folder}: their weights have no mean")


def analysis_of(
    system: str,
    singles: Sequence[str],
    scored: Mapping[str, Mapping[str, ScoreTable]],
    reference: str,
    resamples: int,
    seed: int,
) -> Analysis:
    """The analysis of scores by set and variant, each set against the variant ``reference``."""
    rows: list[dict[str, Any]] = []
    tables, told = [], []
    for name, by_variant in scored.items():
        lines = []
        for variant, table in by_variant.items():
            difference = eer_difference(table, by_variant[reference], resamples, seed)
            low, high = difference.interval.low, difference.interval.high
            passes = len(singles) if variant == SCORES else 1
            values = {"eer": difference.first, "difference": difference.difference, "low": low, "high": high}
            rows.append({"set": name, "variant": variant, "forward_passes": passes, **values})
            away = ("", "") if variant == reference else (_points(difference), _interval(difference))
            lines.append((variant, str(passes), f"{100 * difference.first:.2f}", *away))
            if variant in (SCORES, WEIGHTS, STATIC) and variant != reference:
                told.append(_sentence(name, variant, reference, difference))
        columns = ("variant", "forward passes", "EER %", f"to {reference}", "95 %")
        tables.append(TextTable(f"EER % on {name}", columns, lines))
    return Analysis(
        name=NAME,
        finding="; ".join(told),
        tables=tables,
        rows=rows,
        data={"system": system, "members": list(singles)},
        figures={"eer": lambda: _figure(rows, list(scored))},
        notes=[
            "weights averaged: the mean of the updates, exactly, and of the classifiers, which were trained apart",
            f"{STATIC}: the mean gates of {DEV} for every token",
            f"intervals: paired bootstrap of clusters of trials, {resamples:,} resamples",
        ],
    )


def _sentence(name: str, variant: str, reference: str, difference: Difference) -> str:
    points = f"{_points(difference)} points {_interval(difference)} to {reference}"
    beyond = difference.interval.low > 0 or difference.interval.high < 0
    verdict = ("worse" if difference.difference > 0 else "better") if beyond else "no difference is shown"
    return f"{variant} on {name}: {verdict} ({points})"


def _points(difference: Difference) -> str:
    return f"{100 * difference.difference:+.2f}"


def _interval(difference: Difference) -> str:
    return f"[{100 * difference.interval.low:+.2f}, {100 * difference.interval.high:+.2f}]"


def _figure(rows: Sequence[Mapping[str, Any]], sets: Sequence[str]) -> Figure:
    """A panel for each set, a dot for each variant."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    figure = Figure(figsize=(2.2 + 2.6 * len(sets), 0.9 + 0.28 * len(variants)), layout="constrained")
    grid = figure.subplots(1, len(sets), squeeze=False, sharey=True)
    highest = max(100 * row["eer"] for row in rows)
    for axes, name in zip(grid[0], sets, strict=True):
        assert isinstance(axes, Axes)
        values = [100 * row["eer"] for row in rows if row["set"] == name]
        places = range(len(variants))
        axes.hlines(places, 0, values, color=BLUE, linewidth=1.2)
        axes.plot(values, places, "o", color=BLUE, markersize=5)
        for place, value in zip(places, values, strict=True):
            axes.annotate(f"{value:.1f}", (value, place), (5, 0), textcoords="offset points", va="center", color=INK)
        axes.set_yticks(places, [short_name(variant) for variant in variants])
        axes.set_ylim(len(variants) - 0.5, -0.5)
        axes.set_xlim(0, 1.2 * max(highest, 1.0))
        axes.set_xlabel("EER (%)")
        axes.set_title(short_name(name), fontsize=9)
        axes.grid(axis="y", visible=False)
    return figure

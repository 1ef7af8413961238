"""The effects of dropping or merging a model's experts: tables, rows, JSON."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moelora_ad.adapters.sites import SiteGrid
from moelora_ad.analysis.changes import Cost, SetChange, allowed, listed
from moelora_ad.analysis.merging import Merging
from moelora_ad.analysis.pruning import Pruning, Without
from moelora_ad.analysis.reports.differences import as_row, bootstrap_note, interval, points
from moelora_ad.analysis.reports.report import Report
from moelora_ad.evaluation.reports.text_table import TextTable

_DECIDES, _UNSEEN = "decides", "unseen"
_TOO_KIND = "the intervals of deciding sets are those of the best of several experts, so slightly optimistic"


def prune_report(pruning: Pruning) -> Report:
    """Return the report of `prune_experts`."""
    tables, rows = [], []
    for one in pruning.rounds:
        lines = []
        for number, without in one.without.items():
            out = [*one.taken, number]
            for name, difference in without.differences.items():
                rows.append({"without": " ".join(map(str, out)), "set": name, **as_row(difference)})
                state = "dropped" if number == one.dropped else ""
                figures = f"{100 * difference.first:.2f}", points(difference), interval(difference)
                lines.append((listed(out), name, *figures, state))
        title = f"Without one {'more ' if one.taken else ''}expert, against all {pruning.num_experts}"
        tables.append(TextTable(title, ("without", "set", "EER %", "difference", "95 %", ""), lines, words=2))
    notes = [
        "the softmax is over the experts that remain; experts have the numbers of the original, from 0",
        *_notes(pruning.sets, pruning.margin, pruning.resamples),
        *([_TOO_KIND] if pruning.dropped else []),
        *pruning.notes,
    ]
    return Report(
        name="prune",
        finding=_pruned(pruning),
        tables=[*tables, *_tables(pruning.sets, pruning.costs)],
        rows=[*rows, *_rows(pruning.sets)],
        data={
            "model": pruning.name,
            "num_experts": pruning.num_experts,
            "dropped": pruning.dropped,
            "margin": pruning.margin,
            **_costs(pruning.costs),
        },
        notes=notes,
    )


def merge_report(merging: Merging) -> Report:
    """Return the report of `merge_experts`."""
    deciding = [name for name, change in merging.sets.items() if change.decides]
    tables = [_errors_table(name, errors) for name in deciding if (errors := merging.errors[name])]
    return Report(
        name="merge",
        finding=_merged(merging),
        tables=[*tables, *_tables(merging.sets, merging.costs)],
        rows=_rows(merging.sets),
        data={
            "model": merging.name,
            "tolerance": merging.tolerance,
            "into_weights": merging.into_weights,
            "is_refused": merging.changed is None,
            "mean_gates": merging.mean_gates,
            "errors": merging.errors,
            **_costs(merging.costs),
        },
        notes=[*_notes(merging.sets, merging.tolerance, merging.resamples), *merging.notes],
    )


def _pruned(pruning: Pruning) -> str:
    dropped, last = pruning.dropped, pruning.rounds[-1] if pruning.rounds else None
    if dropped:
        left = pruning.num_experts - len(dropped)
        what = "one is left, a plain LoRA" if left == 1 else f"{left} are left"
        which = "expert" if len(dropped) == 1 else "experts"
        told = f"not needed: {which} {listed(dropped)} of {pruning.num_experts}; {what}"
    else:
        told = f"every one of the {pruning.num_experts} experts may be needed"
    if last is None or last.dropped is not None:
        return told
    number = min(last.without, key=lambda one: (last.without[one].largest_loss, last.without[one].mean_change))
    return f"{told}; without {listed([*last.taken, number])} {_may_rise(last.without[number], pruning.margin)}"


def _may_rise(without: Without, margin: float) -> str:
    name = max(without.differences, key=lambda one: without.differences[one].interval.high)
    return f"the EER on {name} may rise by up to {without.largest_loss:.2f} points (95 %), allowed: {allowed(margin)}"


def _merged(merging: Merging) -> str:
    what = "the experts under constant gates" if merging.mean_gates else "the LoRA"
    place = "in the encoder's weights" if merging.into_weights else "as one LoRA"
    name, worst = max(
        ((name, change) for name, change in merging.sets.items() if change.decides),
        key=lambda one: one[1].difference.interval.high,
    )
    rise = f"the EER on {name} may rise by up to {100 * worst.difference.interval.high:.2f} points (95 %)"
    verdict = "refused" if merging.changed is None else "merged"
    return f"{verdict}: {what} {place}: {rise}, allowed: {allowed(merging.tolerance)}"


def _tables(sets: Mapping[str, SetChange], costs: Sequence[Cost]) -> Iterable[TextTable]:
    if not sets:
        return
    eers, scores = [], []
    for name, change in sets.items():
        difference, use = change.difference, _DECIDES if change.decides else _UNSEEN
        figures = f"{100 * difference.second:.2f}", f"{100 * difference.first:.2f}"
        eers.append((name, use, *figures, points(difference), interval(difference)))
        scores.append((name, f"{len(change.after):,}", f"{change.mean:.4f}", f"{change.largest:.4f}"))
    yield TextTable("EER % before and after", ("set", "", "before", "after", "difference", "95 %"), eers, words=2)
    yield TextTable("Changes of scores, in log-odds", ("set", "trials", "mean size", "largest"), scores)
    before, after = costs
    yield TextTable(
        "Cost of the model",
        ("", "before", "after"),
        [
            ("parameters of adapters", f"{before.adapters:,}", f"{after.adapters:,}"),
            ("all parameters", f"{before.parameters:,}", f"{after.parameters:,}"),
            ("GFLOP for a second of audio", f"{before.operations / 1e9:.3f}", f"{after.operations / 1e9:.3f}"),
        ],
    )


def _errors_table(name: str, errors: Mapping[str, float]) -> TextTable:
    places = SiteGrid([*errors])
    panels = places.grid([*errors.values()])
    lines = [
        (layer, *("" if value != value else f"{100 * value:.1f}" for value in row.tolist()))
        for layer, row in zip(places.layers, panels, strict=True)
    ]
    return TextTable(f"Error of the updates under constant gates, % on {name}", ("layer", *places.projections), lines)


def _notes(sets: Mapping[str, SetChange], margin: float, resamples: int) -> Iterable[str]:
    yield f"a loss is ruled out only if the interval ends at or below {allowed(margin)}; on few trials it is wider"
    yield bootstrap_note(resamples)
    for name, change in sets.items():
        if not change.decides and not change.allows(margin):
            loss = "has a loss" if change.difference.interval.low > 0 else "may have a loss"
            figures = f"{points(change.difference)} points {interval(change.difference)}"
            yield f"{name}, which was not a deciding set, {loss}: {figures}"


def _rows(sets: Mapping[str, SetChange]) -> list[dict[str, Any]]:
    return [
        {
            "set": name,
            "decides": change.decides,
            **as_row(change.difference),
            "eer_before": change.difference.second,
            "mean_change": change.mean,
            "largest_change": change.largest,
        }
        for name, change in sets.items()
    ]


def _costs(costs: Sequence[Cost]) -> dict[str, Any]:
    return {f"cost_{name}": one._asdict() for name, one in zip(("before", "after"), costs, strict=False)}

"""Which experts attacks, codecs and labels use, and whether that is more than chance."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from moelora_ad.adapters import RoutingRecord
from moelora_ad.analysis.analysis import Analysis
from moelora_ad.analysis.batches import Reading, progress
from moelora_ad.analysis.classes import Classes, classes_of
from moelora_ad.analysis.dependence import Dependence, dependence, entropy
from moelora_ad.analysis.gate_use import Usage, require_gates, usage_of, watched
from moelora_ad.analysis.heatmaps import heatmaps
from moelora_ad.analysis.models import Trained, load_trained, trials_of
from moelora_ad.analysis.places import Places
from moelora_ad.corpora import TrialList
from moelora_ad.data.dataset import Batch
from moelora_ad.evaluation.reports.plots import MOST_BARS
from moelora_ad.evaluation.reports.text_table import TextTable

NAME = "routing"
LEVEL = 0.05  # p values up to here are called a dependence
KINDS = ("attack", "label", "codec")


def analyse(
    run: str,
    *,
    set_name: str = "dev",
    permutations: int = 1000,
    seed: int = 1,
    backbone: str | None = None,
    allow: Collection[str] = (),
    reading: Reading | None = None,
) -> Analysis:
    """Pass a set through the model, sum up its gates by group, and test whether the leading experts depend on it.

    Args:
        run: folder of a run, or a checkpoint in it.
        set_name: "dev", "train" or a test set.
        permutations: of the tests.
        seed: of the permutations.
        backbone: where the encoder is, if not where the run found it.
        allow: packages besides ours whose classes the run's configuration may name.
        reading: see `Reading`; as the run read, and on the first GPU, if not given.

    Raises:
        InputError: there is no such run or set, the model has no gates, or audio cannot be read.
    """
    trained = load_trained(run, backbone, allow)
    sites = require_gates(trained)
    seen = _see(trained, trials_of(trained, set_name), sites, reading or Reading())
    tested = {kind: classes for kind, classes in seen.classes.items() if (classes.counts > 0).sum() > 1}
    found = {}
    places = Places(sites)
    with progress("permutations", len(tested) * permutations) as advance:
        for kind, classes in tested.items():
            members = classes.codes >= 0
            found[kind] = dependence(
                seen.leading[members],
                np.unique(classes.codes[members], return_inverse=True)[1],
                seen.everything.mean_gate.shape[1],
                [places.in_layer(layer) for layer in places.layers],
                permutations,
                seed,
                advance,
            )
    return analysis_of(seen, found, sites, trained.name, set_name)


class Seen(NamedTuple):
    """What a pass over a set showed.

    Attributes:
        classes: of the utterances, by kind.
        everything: usage by all utterances.
        usage: by kind and class.
        leading: (n, S) int8, the expert with the largest mean weight for each utterance at each site.
    """

    classes: Mapping[str, Classes]
    everything: Usage
    usage: Mapping[str, Mapping[str, Usage]]
    leading: NDArray[np.int8]


def _see(trained: Trained, trials: TrialList, sites: list[str], reading: Reading) -> Seen:
    classes = classes_of(trials)
    # One label for each combination of classes: sums of one pass serve all kinds.
    combined, joint = np.unique(np.stack([one.codes for one in classes.values()]), axis=1, return_inverse=True)
    joint = joint.reshape(-1)
    record = RoutingRecord()

    def label(batch: Batch) -> None:
        clips = len(batch.waveforms) // len(batch.trials)
        record.label([str(group) for group in joint[batch.trials.numpy()].repeat(clips)])

    leading = np.zeros((len(trials), len(sites)), np.int8)
    for batch, weights in watched(trained, trials, reading, before=label, see=record.add):
        leading[batch.trials.numpy()] = weights.argmax(-1)
    usage = {
        kind: {
            name: usage_of(record, [str(group) for group in np.flatnonzero(codes == number)], sites)
            for number, name in enumerate(one.names)
            if (codes == number).any()
        }
        for (kind, one), codes in zip(classes.items(), combined, strict=True)
    }
    return Seen(classes, usage_of(record, list(record.groups), sites), usage, leading)


def analysis_of(
    seen: Seen, found: Mapping[str, Dependence], sites: Sequence[str], system: str, set_name: str
) -> Analysis:
    """The analysis of what was seen and tested."""
    places = Places(sites)
    num_experts = seen.everything.mean_gate.shape[1]
    constant = int((seen.leading == seen.leading[0]).all(0).sum())
    notes = [
        "dependence: mutual information between the expert that leads (the largest mean weight of an utterance) and "
        "the utterance's class, less its mean over permutations of the classes; attacks are compared among spoofs",
        "utterances are exchanged freely: speakers or recordings that go with a class count as the class",
        "apart: how much weight goes to other experts than over all utterances, mean over sites, from 0 to 1; "
        "classes of few utterances stand apart by chance",
    ]
    if constant:
        notes.append(f"at {constant} of {len(sites)} sites one expert leads for every utterance, which tells 0 bits")
    notes += [f"no two classes to compare: {kind}" for kind in KINDS if kind not in found and seen.usage[kind]]
    return Analysis(
        name=NAME,
        finding="; ".join(_finding(kind, one, seen, sites, num_experts) for kind, one in found.items())
        or f"{set_name} has no two attacks, labels or codecs to compare",
        tables=[
            table
            for table in (
                _usage_table(seen, sites, set_name),
                _dependence_table(seen, found, sites),
                _layer_table(seen, found, places),
            )
            if table.rows
        ],
        rows=_rows(seen, sites, places),
        data={"system": system, "set": set_name, "dependence": _dependence_data(seen, found, sites, places)},
        figures=_figures(seen, found, sites, places, set_name),
        notes=notes,
    )


def _finding(kind: str, one: Dependence, seen: Seen, sites: Sequence[str], num_experts: int) -> str:
    most = int(one.excess.argmax())
    amount = f"{one.excess.mean():.3f} bits above chance"
    if one.p_value > LEVEL:
        return f"no sign that experts depend on the {kind} ({amount}, p = {one.p_value:.2g})"
    limit = min(np.log2(num_experts), _entropy(seen.classes[kind]))
    return (
        f"experts depend on the {kind}: mean mutual information {amount} of at most {limit:.2f} "
        f"(p = {one.p_value:.2g}), most at {sites[most]} ({one.excess[most]:.3f})"
    )


def _entropy(classes: Classes) -> float:
    return entropy(classes.codes[classes.codes >= 0])


def _usage_table(seen: Seen, sites: Sequence[str], set_name: str) -> TextTable:
    def row(kind: str, name: str, count: int, usage: Usage) -> tuple[str, ...]:
        apart = usage.deviation(seen.everything)
        most = sites[int(apart.argmax())] if kind else ""
        figures = usage.effective_experts.mean(), usage.entropy.mean(), usage.top1_share.max(1).mean()
        return (kind, name, most, f"{count:,}", *(f"{figure:.3f}" for figure in figures), f"{apart.mean():.4f}")

    rows = [row("", "all", len(seen.leading), seen.everything)]
    for kind, groups in seen.usage.items():
        counts = dict(zip(seen.classes[kind].names, seen.classes[kind].counts, strict=True))
        rows += [row(kind, name, counts[name], usage) for name, usage in groups.items()]
    columns = ("by", "class", "most apart at", "utterances", "effective experts", "entropy", "top-1 share", "apart")
    return TextTable(f"Use of experts on {set_name}, mean over sites", columns, rows, 3)


def _dependence_table(seen: Seen, found: Mapping[str, Dependence], sites: Sequence[str]) -> TextTable:
    rows = []
    for kind, one in found.items():
        most = int(one.excess.argmax())
        means = one.information.mean(), one.by_chance.mean(), one.excess.mean(), one.excess[most]
        counts = seen.classes[kind].counts
        numbers = f"{counts.sum():,}", str((counts > 0).sum()), f"{_entropy(seen.classes[kind]):.2f}"
        rows.append((kind, sites[most], *numbers, *(f"{value:.4f}" for value in means), f"{one.p_value:.2g}"))
    columns = ("by", "most at", "utterances", "classes", "entropy", "information", "by chance", "excess", "there", "p")
    title = "Mutual information of expert and class, bits, mean over sites"
    notes = [f"p from {one.permutations:,} permutations" for one in list(found.values())[:1]]
    return TextTable(title, columns, rows, 2, notes)


def _layer_table(seen: Seen, found: Mapping[str, Dependence], places: Places) -> TextTable:
    rows = []
    usage = seen.everything
    for number, layer in enumerate(places.layers):
        at = places.in_layer(layer)
        figures = usage.effective_experts[at].mean(), usage.entropy[at].mean(), usage.top1_share[at].max(1).mean()
        tests = [
            text for one in found.values() for text in (f"{one.excess[at].mean():.4f}", f"{one.p_values[number]:.2g}")
        ]
        rows.append((layer, *(f"{figure:.3f}" for figure in figures), *tests))
    tested = [text for kind in found for text in (f"{kind} bits", "p (Holm)")]
    return TextTable("By layer", ("layer", "effective experts", "entropy", "top-1 share", *tested), rows, 1)


def _rows(seen: Seen, sites: Sequence[str], places: Places) -> list[dict[str, Any]]:
    rows = []
    for kind, groups in {"all": {"": seen.everything}, **seen.usage}.items():
        for name, usage in groups.items():
            for number, site in enumerate(sites):
                for expert in range(usage.mean_gate.shape[1]):
                    rows.append(
                        {
                            "by": kind,
                            "class": name,
                            "site": site,
                            **places.of[site]._asdict(),
                            "expert": expert,
                            "mean_gate": float(usage.mean_gate[number, expert]),
                            "top1_share": float(usage.top1_share[number, expert]),
                            "output_norm": float(usage.output_norm[number, expert]),
                        }
                    )
    return rows


def _dependence_data(
    seen: Seen, found: Mapping[str, Dependence], sites: Sequence[str], places: Places
) -> dict[str, Any]:
    return {
        kind: {
            "classes": dict(zip(seen.classes[kind].names, seen.classes[kind].counts.tolist(), strict=True)),
            "entropy": _entropy(seen.classes[kind]),
            "excess": float(one.excess.mean()),
            "p": one.p_value,
            "permutations": one.permutations,
            "p_of_layers_holm": dict(zip(places.layers, one.p_values, strict=True)),
            "information": dict(zip(sites, one.information, strict=True)),
            "by_chance": dict(zip(sites, one.by_chance, strict=True)),
        }
        for kind, one in found.items()
    }


def _figures(
    seen: Seen, found: Mapping[str, Dependence], sites: Sequence[str], places: Places, set_name: str
) -> dict[str, Callable[[], Figure]]:
    experts = [str(number) for number in range(seen.everything.mean_gate.shape[1])]

    def gates() -> Figure:
        return heatmaps(
            _panels(places, seen.everything.mean_gate),
            places.layers,
            experts,
            rows_are="layer",
            columns_are="expert",
            values_are="mean gate",
            title=f"Mean gates on {set_name}",
        )

    figures: dict[str, Callable[[], Figure]] = {"gates": gates}
    for kind, one in found.items():
        if kind == "label":  # two classes: the table says it all
            continue
        figures[f"{kind}-apart"] = lambda kind=kind: _apart_figure(kind, seen, places, set_name)  # type: ignore[misc]
        figures[f"{kind}-experts"] = lambda kind=kind, one=one: _expert_figure(  # type: ignore[misc]
            kind, seen, int(one.excess.argmax()), sites
        )
    return figures


def _panels(places: Places, values: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    grid = places.grid(values)
    return {name: grid[:, at] for at, name in enumerate(places.projections)}


def _apart_figure(kind: str, seen: Seen, places: Places, set_name: str) -> Figure:
    """How far the mean gates of each class are from those of all, at every site."""
    apart = {name: usage.deviation(seen.everything) for name, usage in _farthest(kind, seen).items()}
    panels = _panels(places, np.stack(list(apart.values()), axis=1))  # (layers, classes) each
    return heatmaps(
        {name: panel.T for name, panel in panels.items()},
        list(apart),
        places.layers,
        rows_are=kind,
        columns_are="layer",
        values_are="weight that goes elsewhere",
        title=f"Mean gates of each {kind} against all of {set_name}",
    )


def _expert_figure(kind: str, seen: Seen, site: int, sites: Sequence[str]) -> Figure:
    """Mean gates of each class less those of all, at the site that depends on the class most."""
    groups = _farthest(kind, seen)
    values = np.array([usage.mean_gate[site] - seen.everything.mean_gate[site] for usage in groups.values()])
    return heatmaps(
        {sites[site]: values},
        list(groups),
        [str(number) for number in range(values.shape[1])],
        rows_are=kind,
        columns_are="expert",
        values_are="mean gate, less that of all",
        diverging=True,
    )


def _farthest(kind: str, seen: Seen) -> dict[str, Usage]:
    """The classes in their order; of many those that are farthest from all."""
    groups = seen.usage[kind]
    order = sorted(groups, key=lambda name: -groups[name].deviation(seen.everything).mean())[:MOST_BARS]
    return {name: usage for name, usage in groups.items() if name in order}

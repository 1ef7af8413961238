"""What differs from seed to seed: EER, scores, and routing once experts are matched."""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import spearmanr

from moelora_ad.analysis.analysis import Analysis
from moelora_ad.analysis.batches import Reading, progress
from moelora_ad.analysis.gate_use import gates_of_runs
from moelora_ad.analysis.heatmaps import heatmaps
from moelora_ad.analysis.matching import Agreement, agreement, aligned
from moelora_ad.analysis.places import Places
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable, SeedSummary, over_seeds
from moelora_ad.evaluation.comparison.scored_runs import ScoredRun, read_runs
from moelora_ad.evaluation.reports.plots import BLUE, INK, short_name
from moelora_ad.evaluation.reports.text_table import TextTable
from moelora_ad.runs.record import RunRecord, find_records

NAME = "stability"
DEV = "dev"


def analyse(
    runs: Sequence[str],
    *,
    set_name: str = DEV,
    permutations: int = 100,
    seed: int = 1,
    backbone: str | None = None,
    allow: Collection[str] = (),
    reading: Reading | None = None,
) -> Analysis:
    """Compare runs of one system: their score files, and the gates of their models on one set.

    Args:
        runs: folders of runs of one system, or folders above them.
        set_name: where routing is compared: "dev", "train" or a test set.
        permutations: for the agreement by chance.
        seed: of the permutations.
        backbone: where the encoder is, if not where the run found it.
        allow: packages besides ours whose classes the run's configuration may name.
        reading: see `Reading`; as the run read, and on the first GPU, if not given.

    Raises:
        InputError: there are not two finished runs of one system, their files are damaged or of other trials, or audio
            cannot be read.
    """
    found, notes = _runs(runs)
    records = [run.record for run in found]
    shared = [name for name in found[0].sets if all(name in run.sets for run in found)]
    if not shared:
        raise InputError("the runs have no set in common that all of them have scores of")
    scored = {name: SetScores.between(_scores(records, name)) for name in shared}
    gates = gates_of_runs(records, set_name, reading or Reading(), backbone, allow)
    routing = None
    if gates is not None:
        with progress("permutations", permutations) as advance:
            routing = routing_of(*gates, permutations, seed, advance)
    else:
        notes.append("the models have no gates, so there is no routing to compare")
    return analysis_of(records[0].system, [record.seed for record in records], scored, routing, set_name, notes)


def _runs(paths: Sequence[str]) -> tuple[list[ScoredRun], list[str]]:
    records = find_records(paths)
    systems = sorted({record.system for record in records})
    if len(systems) > 1:
        raise InputError(f"these are runs of {len(systems)} systems, {', '.join(systems)}: name those of one")
    runs, notes = read_runs(records)
    if len(runs) < 2:
        hint = f"; {notes[0]}" if notes else ""
        raise InputError(f"stability needs at least two finished runs of a system, there is one{hint}")
    return runs, notes


def _scores(records: Sequence[RunRecord], name: str) -> list[ScoreTable]:
    """The scores of a set by every run, in one order: runs need not list trials alike."""
    tables: list[ScoreTable] = []
    for record in records:
        assert record.score_folder is not None
        table = ScoreTable.read(record.score_folder / f"{name}.csv")
        tables.append(table.select(np.argsort(np.array(list(table.trials.columns.utterance)))))
        if list(tables[-1].trials.columns.utterance) != list(tables[0].trials.columns.utterance):
            first = records[0].folder
            raise InputError(f"{record.folder} and {first} have scores of other trials in {name}: complete both")
    return tables


class SetScores(NamedTuple):
    """The scores that the runs gave to a set.

    Attributes:
        eers: (runs,) of each run, as shares of 1.
        rank_correlation: Spearman's, of the scores of two runs, mean over all two.
        disagreement: share of the trials that two runs decide differently, each at its own EER threshold, mean over
            all two.
        num_trials: of the set.
    """

    eers: NDArray[np.float64]
    rank_correlation: float
    disagreement: float
    num_trials: int

    @property
    def summary(self) -> SeedSummary:
        return over_seeds([float(eer) for eer in self.eers])

    @classmethod
    def between(cls, tables: Sequence[ScoreTable]) -> "SetScores":
        """Of tables with the same trials in one order."""
        found = [table.equal_error_rate() for table in tables]
        accepted = [table.scores > one.threshold for table, one in zip(tables, found, strict=True)]
        pairs = list(combinations(range(len(tables)), 2))
        ranks = [_spearman(tables[a].scores, tables[b].scores) for a, b in pairs]
        differ = [(accepted[a] != accepted[b]).mean() for a, b in pairs]
        return cls(np.array([one.eer for one in found]), float(np.mean(ranks)), float(np.mean(differ)), len(tables[0]))


def _spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0  # constant scores say nothing of one another
    return float(spearmanr(first, second).statistic)


class Routing(NamedTuple):
    """The gates of the runs on one set.

    Attributes:
        sites: dotted paths.
        agreement: of matched experts.
        spread: (S,) standard deviation over runs of a matched expert's mean gate, mean over experts.
        unmatched_spread: (S,) the same of experts by their numbers.
    """

    sites: Sequence[str]
    agreement: Agreement
    spread: NDArray[np.float64]
    unmatched_spread: NDArray[np.float64]


def routing_of(
    gates: Sequence[NDArray[np.float32]], sites: Sequence[str], permutations: int, seed: int, advance: Any = lambda _: 0
) -> Routing:
    """Compare gates (n, S, N) of several models on the same utterances."""
    by_number = [one.mean(0, dtype=np.float64) for one in gates]
    return Routing(
        sites,
        agreement(gates, permutations, seed, advance),
        np.std(aligned(gates), axis=0, ddof=1).mean(1),
        np.std(by_number, axis=0, ddof=1).mean(1),
    )


def analysis_of(
    system: str,
    seeds: Sequence[int],
    scored: Mapping[str, SetScores],
    routing: Routing | None,
    set_name: str,
    notes: Sequence[str] = (),
) -> Analysis:
    """The analysis of what was read."""
    rows: list[dict[str, Any]] = [
        {"what": "eer", "set": name, "seed": seed, "value": float(eer)}
        for name, one in scored.items()
        for seed, eer in zip(seeds, one.eers, strict=True)
    ]
    data: dict[str, Any] = {
        "system": system,
        "seeds": list(seeds),
        "sets": {name: one._asdict() | {"summary": one.summary._asdict()} for name, one in scored.items()},
    }
    tables = [_sets_table(scored)]
    figures = {"eer": lambda: _eer_figure(scored, system)}
    further = [
        "disagreement: share of the trials that two seeds decide differently, each at the threshold of its own EER"
    ]
    if routing is not None:
        places = Places(routing.sites)
        data["routing"] = _routing_data(routing, set_name)
        for number, site in enumerate(routing.sites):
            at = {"set": set_name, "site": site, **places.of[site]._asdict()}
            for what, values in _by_site(routing).items():
                rows.append({"what": what, **at, "value": float(values[number])})
        tables.append(_routing_table(routing, places, set_name))
        figures["routing"] = lambda: _routing_figure(routing, places, set_name, system)
        further.append(
            "similarity: correlation over utterances between the mean weights of experts of two seeds, matched one to "
            "one at each site so that it is largest; by chance: the same with utterances in other orders"
        )
    return Analysis(
        name=NAME,
        finding=_finding(scored, routing, len(seeds), set_name),
        tables=tables,
        rows=rows,
        data=data,
        figures=figures,
        notes=[*notes, *further],
    )


def _by_site(routing: Routing) -> dict[str, NDArray[np.float64]]:
    return {
        "similarity": routing.agreement.similarity.mean(0),
        "similarity_by_chance": routing.agreement.by_chance,
        "spread_of_mean_gate": routing.spread,
        "spread_of_mean_gate_unmatched": routing.unmatched_spread,
    }


def _routing_data(routing: Routing, set_name: str) -> dict[str, Any]:
    found = routing.agreement
    return {
        "set": set_name,
        "p": found.p_value,
        "permutations": found.permutations,
        **{name: float(values.mean()) for name, values in _by_site(routing).items()},
        "similarity_of_pairs": found.similarity.mean(1),
    }


def _finding(scored: Mapping[str, SetScores], routing: Routing | None, num_seeds: int, set_name: str) -> str:
    tests = {name: one for name, one in scored.items() if name != DEV} or dict(scored)
    widest = max(tests, key=lambda name: tests[name].summary.std or 0.0)
    one = tests[widest]
    assert one.summary.std is not None
    finding = (
        f"over {num_seeds} seeds the EER of {widest} is {100 * one.summary.mean:.2f} % +- {100 * one.summary.std:.2f} "
        f"(std, the widest), and two seeds decide {100 * one.disagreement:.1f} % of its trials differently"
    )
    if routing is None:
        return finding
    found = routing.agreement
    sign = "agree" if found.p_value <= 0.05 else "do not agree more than by chance"
    return (
        f"{finding}; with experts matched, the gates of two seeds {sign}: r = {found.similarity.mean():.2f} on "
        f"{set_name} ({found.by_chance.mean():.2f} by chance, p = {found.p_value:.2g})"
    )


def _sets_table(scored: Mapping[str, SetScores]) -> TextTable:
    rows = []
    for name, one in scored.items():
        summary = one.summary
        assert summary.std is not None
        eers = (f"{100 * value:.2f}" for value in (summary.mean, summary.std, summary.best, summary.worst))
        rows.append(
            (name, f"{one.num_trials:,}", *eers, f"{one.rank_correlation:.3f}", f"{100 * one.disagreement:.1f}")
        )
    columns = ("set", "trials", "EER %", "std", "best", "worst", "Spearman", "disagreement %")
    return TextTable("EER and scores over seeds", columns, rows)


def _routing_table(routing: Routing, places: Places, set_name: str) -> TextTable:
    def row(name: str, at: NDArray[np.intp]) -> tuple[str, ...]:
        return (name, *(f"{values[at].mean():.3f}" for values in _by_site(routing).values()))

    rows = [row(layer, places.in_layer(layer)) for layer in places.layers]
    rows.append(row("all", np.arange(len(routing.sites))))
    columns = ("layer", "similarity", "by chance", "std of mean gate", "unmatched")
    return TextTable(f"Routing over seeds on {set_name}, mean over sites", columns, rows)


def _eer_figure(scored: Mapping[str, SetScores], system: str) -> Figure:
    """A dot for each seed, the mean, and one standard deviation to both sides."""
    figure = Figure(figsize=(5.2, 0.95 + 0.34 * len(scored)), layout="constrained")
    axes: Axes = figure.add_subplot()
    highest = 1.0
    for place, one in enumerate(scored.values()):
        mean, std = 100 * one.summary.mean, 100 * (one.summary.std or 0.0)
        beside = np.linspace(-0.2, 0.2, len(one.eers))
        axes.plot(100 * one.eers, place + beside, "o", color=BLUE, markersize=4, markeredgewidth=0, clip_on=False)
        axes.plot([max(mean - std, 0), mean + std], [place, place], color=INK, linewidth=1)
        axes.plot([mean, mean], [place - 0.3, place + 0.3], color=INK, linewidth=1.6)
        highest = max(highest, mean + std, 100 * one.eers.max())
    axes.set_yticks(range(len(scored)), [short_name(name) for name in scored])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(scored) - 0.5, -0.5)
    axes.set_xlim(0, 1.05 * highest)
    axes.set_xlabel("EER (%): each seed, mean, one standard deviation")
    axes.set_title(short_name(system), fontsize=9, fontweight="bold")
    axes.grid(axis="y", visible=False)
    return figure


def _routing_figure(routing: Routing, places: Places, set_name: str, system: str) -> Figure:
    values = routing.agreement.similarity.mean(0), routing.agreement.by_chance
    return heatmaps(
        {name: places.grid(one) for name, one in zip(("matched", "by chance"), values, strict=True)},
        places.layers,
        places.projections,
        rows_are="layer",
        columns_are="",
        values_are="correlation",
        limits=(min(0.0, *(float(one.min()) for one in values)), 1.0),
        title=f"Gates of two seeds of {short_name(system)} on {set_name}",
    )

"""A comparison of systems as tables for people (the paper's table 1) and as rows for programs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from moelora_ad import __version__
from moelora_ad.errors import printable
from moelora_ad.evaluation.comparison.pair_tables import how_compared, pair_rows
from moelora_ad.evaluation.comparison.pairs import ComparedPairs
from moelora_ad.evaluation.comparison.published import OUT_OF_DOMAIN, SOURCE, PublishedRow, backbone_source, paper_set
from moelora_ad.evaluation.comparison.scored_runs import ScoredRun
from moelora_ad.evaluation.comparison.systems import MACRO_OOD, Comparison
from moelora_ad.evaluation.metrics.averages import SeedSummary
from moelora_ad.evaluation.reports.tables import rounded
from moelora_ad.evaluation.reports.text_table import TextTable
from moelora_ad.runs.record import DEV

UNKNOWN = "?"


class Cost(NamedTuple):
    """The cost of a run of a system, as a mean over its runs; memory is None if no run has recorded it."""

    seconds: float
    host_bytes: int | None
    cuda_bytes: int | None


# --- tables for people


def table_one(comparison: Comparison) -> TextTable:
    """Return a table with a row for each system, and the paper's row below it if there is one; the best means are
    bold."""
    rows: list[Sequence[str]] = []
    bold = set()
    columns = comparison.columns
    best = {column: comparison.best(column) for column in columns}
    published = published_rows(comparison)
    for system, runs in comparison.systems.items():
        bold |= {(len(rows), 3 + at) for at, column in enumerate(columns) if system in best[column]}
        cells = [spread(comparison.summary(system, column)) for column in columns]
        trained = runs[0].record.trained
        rows.append((printable(system), f"{trained:,} ({millions(trained)})", str(len(runs)), *cells))
        if system in published:
            row = published[system]
            cells = [_published_cell(comparison, row, column) for column in columns]
            rows.append((f"published: {row.name}", row.trained_millions, UNKNOWN, *cells))
    heading = ("system", "trained parameters", "seeds", *(_heading(comparison, column) for column in columns))
    return TextTable(f"EER %, {_of_seeds(comparison)}", heading, rows, 1, notes(comparison), frozenset(bold))


def spread(summary: SeedSummary | None) -> str:
    """Return mean ± standard deviation in percent; the mean alone for one seed."""
    if summary is None:
        return ""
    mean = rounded("eer", summary.mean)
    return mean if summary.std is None else f"{mean} ± {rounded('eer', summary.std)}"


def millions(number: int) -> str:
    """Return a number of parameters as the paper writes it, ``5.76 M``."""
    return f"{number / 1e6:.2f} M"


def notes(comparison: Comparison) -> tuple[str, ...]:
    """Return notes on how to read the table."""
    found = [_seeds_sentence(comparison)]
    if len(comparison.systems) > 1:
        found.append("Bold (* in plain text): the lowest mean of a column, as printed")
    if DEV in comparison.sets:
        found.append(f"{DEV}: checkpoints are selected on it, so it is in no average and never bold")
    for name, sets in comparison.averages.items():
        what = "the sets that are not of the training corpus" if name == MACRO_OOD else "the test sets"
        found.append(f"{name}: mean of {what}, seed by seed: {', '.join(map(printable, sets))}")
    for name in comparison.sets:
        having = {system: len(comparison.eers(system, name)) for system in comparison.systems}
        lacking = [
            f"{printable(system)} ({number} of {len(comparison.systems[system])})"
            for system, number in having.items()
            if number < len(comparison.systems[system])
        ]
        if lacking:
            left = "" if name == DEV else ", so it is in no average"
            found.append(f"{printable(name)}: not every run was tested on it{left}: {', '.join(lacking)}")
    published = published_rows(comparison)
    if published:
        firsts = [comparison.systems[system][0] for system in published]
        sources = dict.fromkeys(printable(backbone_source(run.configuration)) for run in firsts)
        found.append(
            f"published: {SOURCE}, below the system that has the row's adaptation, training corpus and number of "
            f"trained parameters; {UNKNOWN}: not known to us. Its backbone is XLSR-53, here {', '.join(sources)}; its "
            "recipe is not published"
        )
    return tuple(found)


def _of_seeds(comparison: Comparison) -> str:
    several = any(len(runs) > 1 for runs in comparison.systems.values())
    return "mean ± standard deviation over seeds" if several else "one seed each"


def _seeds_sentence(comparison: Comparison) -> str:
    seeds = {tuple(run.record.seed for run in runs) for runs in comparison.systems.values()}
    numbers = sorted(map(len, seeds))
    if numbers[-1] == 1:
        return "One seed of each system: these figures have no spread, and another seed may turn the order around"
    std = "standard deviation of a sample (n - 1)"
    if len(seeds) == 1:
        (listed,) = seeds
        return f"{numbers[0]} seeds of each system ({', '.join(map(str, listed))}); {std} over seeds"
    number = str(numbers[0]) if numbers[0] == numbers[-1] else f"{numbers[0]} to {numbers[-1]}"
    return f"{number} seeds of each system, not the same ones; {std} over seeds, none of one seed"


def _heading(comparison: Comparison, column: str) -> str:
    return column if column in comparison.averages else printable(column)


def published_rows(comparison: Comparison) -> dict[str, PublishedRow]:
    """Return the paper's rows by our systems; none if no set is one of the paper's."""
    if not any(_paper_set(comparison, name) for name in comparison.sets):
        return {}
    rows = {system: comparison.published(system) for system in comparison.systems}
    return {system: row for system, row in rows.items() if row is not None}


def published_eer(comparison: Comparison, row: PublishedRow, column: str) -> float | None:
    """Return the paper's EER of a set, or its mean over the sets out of domain if ours is over the same sets; None if
    the paper has none that is known to us."""
    if column == MACRO_OOD:
        return row.mean_ood if _is_papers_average(comparison) else None
    name = _paper_set(comparison, column) if column in comparison.sets else None
    return None if name is None else row.eers.get(name)


def _published_cell(comparison: Comparison, row: PublishedRow, column: str) -> str:
    value = published_eer(comparison, row, column)
    is_papers = column in comparison.sets and _paper_set(comparison, column)
    return rounded("eer", value) or (UNKNOWN if is_papers else "")


def _paper_set(comparison: Comparison, name: str) -> str | None:
    one = comparison.scored_set(name)
    return None if name == DEV or one.selection else paper_set(one.corpus, one.splits)


def _is_papers_average(comparison: Comparison) -> bool:
    sets = [_paper_set(comparison, name) or name for name in comparison.averages.get(MACRO_OOD, ())]
    return sorted(sets) == sorted(OUT_OF_DOMAIN)


def cost_table(comparison: Comparison) -> TextTable:
    """Return a table with the cost of a run of each system, as a mean over its runs."""
    rows = []
    for system, runs in comparison.systems.items():
        cost = cost_of(runs)
        memory = [f"{used / 2**30:.2f}" if used is not None else "" for used in (cost.host_bytes, cost.cuda_bytes)]
        rows.append((printable(system), str(len(runs)), f"{cost.seconds / 60:.1f}", *memory))
    heading = ("system", "runs", "minutes", "peak host memory GiB", "peak GPU memory GiB")
    return TextTable("Cost of a run, mean over runs", heading, rows, 1, ("Minutes of all attempts, tests included",))


def cost_of(runs: Iterable[ScoredRun]) -> Cost:
    """Return the mean cost of the runs of a system."""
    records = [run.record for run in runs]
    peaks = [
        [peak for record in records if (peak := record.peak_memory_bytes.get(device)) is not None]
        for device in ("host", "cuda")
    ]
    host, cuda = (round(np.mean(values)) if values else None for values in peaks)
    return Cost(float(np.mean([record.seconds for record in records])), host, cuda)


# --- rows for programs

ROW = (
    *("system", "statistic", "seed", "set", "corpus", "in_domain", "eer", "best", "num_bona_fide", "num_spoof"),
    *("num_seeds", "trained_parameters", "seconds", "peak_host_bytes", "peak_cuda_bytes", "folder"),
)


def comparison_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row for each system, seed and set, and for mean and std over seeds; EERs are shares of 1, at full
    precision.

    ``statistic`` is run, mean, std or published; ``set`` may be an average.
    """
    rows = []
    for system, runs in comparison.systems.items():
        trained = runs[0].record.trained
        for run in runs:
            cost = cost_of([run])
            for column in comparison.columns:
                eer = comparison.eer(run, column)
                if eer is not None:
                    one = run.sets.get(column)
                    trials = {"num_bona_fide": one.num_bona_fide, "num_spoof": one.num_spoof} if one else {}
                    of_run = {"seed": run.record.seed, "eer": eer, **trials, "folder": str(run.record.folder)}
                    rows.append(_row(comparison, system, "run", column, trained, cost) | of_run)
        cost = cost_of(runs)
        for column in comparison.columns:
            summary = comparison.summary(system, column)
            if summary is not None:
                over = {"num_seeds": summary.num, "best": system in comparison.best(column)}
                rows.append(
                    _row(comparison, system, "mean", column, trained, cost) | over | {"eer": float(summary.mean)}
                )
                if summary.std is not None:
                    std = {"eer": summary.std, "num_seeds": summary.num}
                    rows.append(_row(comparison, system, "std", column, trained) | std)
    for system, published in published_rows(comparison).items():
        for column in comparison.columns:
            eer = published_eer(comparison, published, column)
            if eer is not None:
                rows.append(_row(comparison, system, "published", column) | {"eer": eer})
    return rows


def _row(
    comparison: Comparison,
    system: str,
    statistic: str,
    column: str,
    trained: int | None = None,
    cost: Cost | None = None,
) -> dict[str, Any]:
    is_set = column not in comparison.averages
    row: dict[str, Any] = {
        "system": system,
        "statistic": statistic,
        "set": column,
        "corpus": comparison.scored_set(column).corpus if is_set else None,
        "in_domain": column in comparison.own_sets if is_set and column != DEV else None,
        "trained_parameters": trained,
    }
    if cost is not None:
        row |= {"seconds": cost.seconds, "peak_host_bytes": cost.host_bytes, "peak_cuda_bytes": cost.cuda_bytes}
    return row


def comparison_json(comparison: Comparison, compared: ComparedPairs | None = None) -> str:
    """Return the rows of a comparison, those of compared pairs, and their description, as JSON."""
    content = {
        "moelora_ad": __version__,
        "sets": {
            name: {"corpus": comparison.scored_set(name).corpus, "in_domain": name in comparison.own_sets}
            for name in comparison.sets
        },
        "averages": comparison.averages,
        "systems": {system: _system(comparison, system) for system in comparison.systems},
        "rows": [{name: row[name] for name in ROW if row.get(name) is not None} for row in comparison_rows(comparison)],
        "pairs": None if compared is None else _pairs(compared),
        "notes": [*notes(comparison), *comparison.notes],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _pairs(compared: ComparedPairs) -> Mapping[str, Any]:
    options = {"resamples": compared.options.resamples, "seed": compared.options.seed}
    return {**options, "rows": pair_rows(compared), "notes": how_compared(compared)}


def _system(comparison: Comparison, system: str) -> Mapping[str, Any]:
    runs = comparison.systems[system]
    published = published_rows(comparison).get(system)
    return {
        "seeds": [run.record.seed for run in runs],
        "parameters": dict(runs[0].record.parameters),
        "trained_parameters": runs[0].record.trained,
        "cost": cost_of(runs)._asdict(),
        "git_commits": sorted({str(run.record.git_commit) for run in runs}),
        "published": None if published is None else {"row": published.name, "source": SOURCE},
    }

"""Differences from seed to seed: EER, scores, and routing once experts are matched."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from moelora_ad.adapters.sites import SiteGrid
from moelora_ad.analysis.expert_matching import Agreement, agreement, aligned, similarities, standardised
from moelora_ad.analysis.gates import gated_sites, watched
from moelora_ad.analysis.passes import AudioPasses, Progress, silent
from moelora_ad.analysis.trained import RequestError, load_trained, requested, trials_of
from moelora_ad.analysis.untrained_gates import UntrainedGates, check_tests
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable, SeedSummary, over_seeds
from moelora_ad.evaluation.comparison.scored_runs import ScoredRun, read_runs
from moelora_ad.runs.record import DEV, RunRecord, find_records


class ScoreStability(NamedTuple):
    """The scores that the runs gave to a set.

    Attributes:
        eers: (runs,) EER of each run, as a share of 1.
        rank_correlation: Spearman's correlation of the scores of two runs, mean over all pairs.
        disagreement: share of the trials that two runs decide differently, each at its own EER threshold, mean over
            all pairs.
        num_trials: number of trials of the set.
    """

    eers: NDArray[np.float64]
    rank_correlation: float
    disagreement: float
    num_trials: int

    @property
    def summary(self) -> SeedSummary:
        """The mean and spread of the EERs over runs."""
        return over_seeds([float(eer) for eer in self.eers])

    @classmethod
    def between(cls, tables: Sequence[ScoreTable]) -> "ScoreStability":
        """Compare tables of the same trials in the same order."""
        results = [table.equal_error_rate() for table in tables]
        accepted = [table.scores >= one.threshold for table, one in zip(tables, results, strict=True)]
        pairs = list(combinations(range(len(tables)), 2))
        ranks = [_spearman(tables[a].scores, tables[b].scores) for a, b in pairs]
        differ = [(accepted[a] != accepted[b]).mean() for a, b in pairs]
        eers = np.array([one.eer for one in results])
        return cls(eers, float(np.mean(ranks)), float(np.mean(differ)), len(tables[0]))


def _spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0  # constant scores are uncorrelated
    return float(spearmanr(first, second).statistic)


class RoutingStability(NamedTuple):
    """The gates of the runs on one set.

    Attributes:
        sites: (S,) dotted paths of the projections.
        agreement: agreement of matched experts.
        spread: (S,) standard deviation over runs of a matched expert's mean gate, mean over experts.
        unmatched_spread: (S,) the same for experts with the same number instead of matched ones.
        untrained: (draws, S) similarity of matched experts with gates before training, on the same inputs, mean over
            pairs; see `UntrainedGates`. No draws for mixtures with experts that were added later.
    """

    sites: Sequence[str]
    agreement: Agreement
    spread: NDArray[np.float64]
    unmatched_spread: NDArray[np.float64]
    untrained: NDArray[np.float64]

    @property
    def grid(self) -> SiteGrid:
        """Layers and projections of the sites."""
        return SiteGrid(self.sites)

    @property
    def p_untrained(self) -> float:
        """The p value of the trained gates: the probability that gates before training agree as much."""
        as_much = self.untrained.mean(1) >= self.agreement.similarity.mean() - 1e-12
        return float((1 + as_much.sum()) / (1 + len(self.untrained)))


@dataclass(frozen=True, eq=False)
class StabilityAnalysis:
    """Differences between runs of one system.

    Attributes:
        system: name of the system.
        seeds: seeds of the runs.
        set: name of the set on which routing is compared.
        scores: comparison of the scores, by set, for all sets that every run has scores of.
        routing: comparison of the gates; None if the models have none.
        notes: notes on the runs and on the precision, a line each.
    """

    system: str
    seeds: Sequence[int]
    set: str
    scores: Mapping[str, ScoreStability]
    routing: RoutingStability | None
    notes: Sequence[str] = ()


def analyze_stability(
    runs: Sequence[str | Path],
    *,
    set: str = DEV,
    permutations: int = 100,
    draws: int = 19,
    seed: int = 1,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str | torch.device | None = None,
    precision: str | None = None,
    backbone: str | None = None,
    allow: Collection[str] = (),
    progress: Progress = silent,
) -> StabilityAnalysis:
    """Compare runs of one system: their score files, and the gates of their models on one set.

    Args:
        runs: folders of runs of one system, or folders above them.
        set: the set on which routing is compared: "dev", "train" or a test set.
        permutations: number of permutations of the utterances, at least 19; see `agreement`.
        draws: number of draws of untrained gates, at least 19; 0 for none. Their weights for all utterances are in
            memory, draws times as many as those of the runs' own gates.
        seed: seed of the permutations, and of the untrained gates.
        batch_size: as for `moelora_ad.analysis.passes.AudioPasses`, like ``workers``, ``device``, ``precision`` and
            ``progress``.
        backbone: where the encoder is, if not where the runs found it.
        allow: packages besides ours whose classes the runs' configurations may name.

    Raises:
        RequestError: there are not two finished runs of one system, or their routing does not compare.
        InputError: their files are damaged or of other trials, or audio cannot be read.
    """
    check_tests(permutations, draws)
    passes = AudioPasses(batch_size, workers, device, precision, progress)
    scored, notes = _runs(runs)
    records = [run.record for run in scored]
    shared = [name for name in scored[0].sets if all(name in run.sets for run in scored)]
    if not shared:
        raise RequestError("the runs have no set in common that all of them have scores of")
    scores = {name: ScoreStability.between(_scores(records, name)) for name in shared}
    sites, gates, untrained = _gates(records, set, passes, draws, seed, backbone, allow)
    routing = None
    if gates:
        routing = routing_of(
            gates, sites, permutations, seed, lambda n: progress("permutations", n, permutations), untrained
        )
    else:
        notes.append("the models have no gates, so there is no routing to compare")
    seeds = [record.seed for record in records]
    return StabilityAnalysis(records[0].system, seeds, set, scores, routing, (*notes, *passes.notes))


def _runs(paths: Sequence[str | Path]) -> tuple[list[ScoredRun], list[str]]:
    with requested():
        records = find_records(paths)
    systems = sorted({record.system for record in records})
    if len(systems) > 1:
        raise RequestError(f"these are runs of {len(systems)} systems, {', '.join(systems)}: name those of one")
    runs, notes = read_runs(records)
    if len(runs) < 2:
        hint = f"; {notes[0]}" if notes else ""
        raise RequestError(f"stability needs at least two finished runs of a system, there is one{hint}")
    return runs, notes


def _scores(records: Sequence[RunRecord], name: str) -> list[ScoreTable]:
    """Return the scores of a set by every run, all in one order, as runs may list trials in different orders."""
    tables: list[ScoreTable] = []
    for record in records:
        assert record.score_folder is not None
        table = ScoreTable.read(record.score_folder / f"{name}.csv")
        tables.append(table.select(np.argsort(np.array(list(table.trials.columns.utterance)))))
        if list(tables[-1].trials.columns.utterance) != list(tables[0].trials.columns.utterance):
            first = records[0].folder
            raise InputError(f"{record.folder} and {first} have scores of other trials in {name}: complete both")
    return tables


def _gates(
    records: Sequence[RunRecord],
    set_name: str,
    passes: AudioPasses,
    draws: int,
    seed: int,
    backbone: str | None,
    allow: Collection[str],
) -> tuple[list[str], list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Return the sites of the gates, mean weights (n, S, N) of each run, and those (draws, n, S, N) of untrained gates
    with the run's inputs; all are empty without gates."""
    gates: list[NDArray[np.float32]] = []
    untrained: list[NDArray[np.float32]] = []
    sites: list[str] = []
    utterances: list[str] = []
    for number, record in enumerate(records):  # one model in memory at a time
        trained = load_trained(record.folder, backbone, allow)
        own = gated_sites(trained)
        if not gates:
            if not own:
                return [], [], []
            sites = own
        trials = trials_of(trained, set_name)
        listed = list(trials.columns.utterance)
        utterances = utterances or listed
        if own != sites or listed != utterances:
            what = f"other trials in {set_name}" if own == sites else "gates at other sites"
            raise RequestError(
                f"{record.folder} has {what} than {records[0].folder}, so their routing does not compare"
            )
        control = UntrainedGates.of(trained.detector.backbone.encoder, sites, draws, seed + number)
        own_weights, drawn_weights = [], []
        for batch, weights in watched(trained, trials, passes, see=control.see if control else None):
            own_weights.append(weights)
            if control is not None:
                drawn_weights.append(control.weights(len(batch.trials)))
        gates.append(np.concatenate(own_weights))
        if drawn_weights:
            untrained.append(np.concatenate(drawn_weights, axis=1))
        if gates[-1].shape != gates[0].shape:
            raise RequestError(
                f"{record.folder} has {gates[-1].shape[-1]} experts and {records[0].folder} has {gates[0].shape[-1]}"
            )
    return sites, gates, untrained


def routing_of(
    gates: Sequence[NDArray[np.float32]],
    sites: Sequence[str],
    permutations: int,
    seed: int,
    advance: Callable[[int], None] = lambda done: None,
    untrained: Sequence[NDArray[np.float32]] = (),
) -> RoutingStability:
    """Compare gates (n, S, N) of several models on the same utterances; arguments as for `agreement`.

    Args:
        untrained: for each model, the weights (draws, n, S, N) of untrained gates.
    """
    drawn = [similarities([standardised(one) for one in models]).mean(0) for models in zip(*untrained, strict=True)]
    by_number = [one.mean(0, dtype=np.float64) for one in gates]
    return RoutingStability(
        sites,
        agreement(gates, permutations, seed, advance),
        np.std(aligned(gates), axis=0, ddof=1).mean(1),
        np.std(by_number, axis=0, ddof=1).mean(1),
        np.array(drawn).reshape(len(drawn), len(sites)),
    )

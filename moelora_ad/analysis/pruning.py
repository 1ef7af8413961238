"""The pruning of mixtures: dropping the experts that no set needs."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from moelora_ad.adapters import AdapterError, drop_expert, knocked_out
from moelora_ad.analysis.changes import DATA, Changed, Cost, Done, Original, SetChange, allowed, check_margin, listed
from moelora_ad.analysis.experts import BASE, number_of_experts
from moelora_ad.analysis.passes import AudioPasses, Progress, check_least, silent
from moelora_ad.analysis.scoring import Variant, eer_difference, scores_of_variants
from moelora_ad.evaluation import ScoreTable
from moelora_ad.evaluation.metrics.intervals import Difference
from moelora_ad.evaluation.metrics.least import LEAST_RESAMPLES
from moelora_ad.models.detector import Detector
from moelora_ad.runs.record import DEV

Scores = Mapping[str, ScoreTable]


@dataclass(frozen=True, eq=False)
class Without:
    """The figures of the deciding sets without an expert, against the original model.

    Attributes:
        differences: differences of the EER, by set.
        mean_change: mean size of the changes of all scores, in log-odds.
    """

    differences: Mapping[str, Difference]
    mean_change: float

    @property
    def largest_loss(self) -> float:
        """The highest upper end of the intervals, in points of EER."""
        return 100 * max(difference.interval.high for difference in self.differences.values())


@dataclass(frozen=True, eq=False)
class Round:
    """A round of pruning, which may remove one more expert.

    Attributes:
        taken: the experts removed before.
        without: the figures without each of the other experts in addition, by its number.
        dropped: the expert whose removal costs least; None if a set needs it.
    """

    taken: Sequence[int]
    without: Mapping[int, Without]
    dropped: int | None


@dataclass(frozen=True, eq=False)
class Pruning:
    """The result of pruning a mixture.

    Experts have the numbers of the original model, from 0 on.

    Attributes:
        name: name of the model.
        num_experts: number of experts of the original model.
        margin: points of EER that may be lost.
        resamples: number of resamples of the bootstrap.
        rounds: the rounds in order; the last one drops none, unless no other expert could be dropped after it.
        sets: the sets before and after, by name; empty if nothing was dropped, or in a dry run.
        costs: costs of the original model, and of the changed one, if there is one.
        changed: the new model; None if nothing was dropped, or in a dry run.
        notes: notes, a line each.
    """

    name: str
    num_experts: int
    margin: float
    resamples: int
    rounds: Sequence[Round]
    sets: Mapping[str, SetChange]
    costs: Sequence[Cost]
    changed: Changed | None
    notes: Sequence[str]

    @property
    def dropped(self) -> list[int]:
        """The experts that were dropped, in their order."""
        return [one.dropped for one in self.rounds if one.dropped is not None]


def prune_experts(
    model: str | Path,
    *,
    data: DATA = None,
    decide_on: Collection[str] = (DEV,),
    margin: float = 1.0,
    dry_run: bool = False,
    resamples: int = 1000,
    seed: int = 1,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str | torch.device | None = None,
    precision: str | None = None,
    backbone: str | None = None,
    revision: str | None = None,
    allow: Collection[str] = (),
    progress: Progress = silent,
) -> Pruning:
    """Drop experts, one at a time, as long as no deciding set needs them; the softmax is over those that are left.

    Each round considers the expert without which the worst of the sets may lose least: the one with the lowest upper
    end, the highest over the sets, of the paired 95 % interval of EER without it - EER of the whole model. It is
    dropped if that end is at or below the margin. Losses do not add up, as every round is compared with the original
    model. At least one expert remains; a single one is a plain LoRA.

    Args:
        model: adapted with a mixture: a run, a checkpoint, a model's folder, a packaged model or a hub id.
        data: corpora, see `moelora_ad.analysis.changes.DATA`.
        decide_on: the deciding sets. The other sets are scored after the decision, and are unseen until then.
        margin: points of EER that may be lost.
        dry_run: stop after the decision: no other set is scored, nothing is changed.
        resamples: number of resamples of the bootstrap, at least 20.
        seed: seed of the bootstrap.
        batch_size: as for `moelora_ad.analysis.passes.AudioPasses`, like ``workers``, ``device``, ``precision`` and
            ``progress``.
        backbone: where the encoder is, if not where the model says.
        revision: commit, tag or branch of a hub repository.
        allow: packages besides ours whose classes may be built.

    Raises:
        InputError: the model has no gates, there is no such set, a set lacks a class, or audio cannot be read.
    """
    check_least("resamples", resamples, LEAST_RESAMPLES)
    check_margin("margin", margin)
    passes = AudioPasses(batch_size, workers, device, precision, progress)
    original = Original(model, data, decide_on, backbone, revision, allow)
    trained = original.trained
    count = number_of_experts(trained)
    original.adopt(trained.detector)  # fails early if a pruned model could not be saved
    costs = [Cost.of(trained.detector)]
    before: dict[str, ScoreTable] = {}
    rounds: list[Round] = []
    taken: list[int] = []
    while len(taken) < count - 1:
        variants = _without_one_more(trained.detector, taken, count)
        base: dict[str, Variant] = {} if before else {BASE: nullcontext}
        if not variants:
            break
        scored = {
            name: scores_of_variants(trained, trials, base | variants, passes, f"{trained.name} on {name}")
            for name, trials in original.deciding.items()
        }
        before = before or {name: tables.pop(BASE) for name, tables in scored.items()}
        without = {int(one): _without(one, scored, before, resamples, seed) for one in variants}
        best = min(without, key=lambda one: (without[one].largest_loss, without[one].mean_change))
        is_missed = without[best].largest_loss > margin
        rounds.append(Round(tuple(taken), without, None if is_missed else best))
        if is_missed:
            break
        taken.append(best)
    sets: dict[str, SetChange] = {}
    changed = None
    if taken and not dry_run:
        before |= original.scores(trained, original.others, passes)
        detector = _dropped(original, taken)
        costs.append(Cost.of(detector))
        after = original.scores(original.with_data(detector), original.deciding | original.others, passes)
        sets = {name: original.change_of(name, before[name], after[name], resamples, seed) for name in after}
        done = _done(taken, count, list(original.deciding), margin)
        changed = original.finished(_dropped(original, taken), sets, done, resamples, seed)
    notes = (*passes.notes, *(changed.notes if changed else ()))
    return Pruning(trained.name, count, margin, resamples, rounds, sets, costs, changed, notes)


def _without_one_more(detector: Detector, taken: Sequence[int], count: int) -> dict[str, Variant]:
    """Return the variants without the experts that are already removed and one more, by its number; an expert without
    which a gate would have none to choose is not among them."""
    encoder = detector.backbone.encoder
    variants: dict[str, Variant] = {}
    for number in sorted({*range(count)} - {*taken}):
        variant = partial(knocked_out, encoder, [*taken, number])
        with suppress(AdapterError):
            with variant():
                pass
            variants[str(number)] = variant
    return variants


def _without(one: str, scored: Mapping[str, Scores], before: Scores, resamples: int, seed: int) -> Without:
    differences = {name: eer_difference(tables[one], before[name], resamples, seed) for name, tables in scored.items()}
    moved = [np.abs(tables[one].scores - before[name].scores) for name, tables in scored.items()]
    return Without(differences, float(np.concatenate(moved).mean()))


def _dropped(original: Original, taken: Collection[int]) -> Detector:
    """Return a fresh copy of the model without some experts."""
    detector = original.again()
    for number in sorted(taken, reverse=True):  # the experts after a dropped one move up
        drop_expert(detector.backbone.encoder, number)
    original.adopt(detector)
    return detector


def _done(taken: Sequence[int], count: int, sets: Sequence[str], margin: float) -> Done:
    which = f"expert {taken[0]} of {count} was" if len(taken) == 1 else f"experts {listed(taken)} of {count} were"
    return Done(
        "pruned",
        f"{which} dropped (counted from 0), without which the 95 % interval of the EER's change ends at or below "
        f"{allowed(margin)} on {listed(sets)}",
    )

"""Which experts process which attacks, codecs and labels, and whether they depend on these beyond chance."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moelora_ad.adapters import Decision, RoutingRecord
from moelora_ad.adapters.sites import SiteGrid
from moelora_ad.analysis.dependence import Dependence, counted_information, dependence, entropy
from moelora_ad.analysis.gates import GateStatistics, require_gates, watched
from moelora_ad.analysis.passes import AudioPasses, Progress, silent
from moelora_ad.analysis.trained import TrainedDetector, load_trained, trials_of
from moelora_ad.analysis.untrained_gates import UntrainedGates, check_tests
from moelora_ad.corpora import TrialList
from moelora_ad.corpora.trial import BONA_FIDE, SPOOF
from moelora_ad.data.dataset import Batch
from moelora_ad.runs.record import DEV


class Classes(NamedTuple):
    """The utterances of a set by one of their properties.

    Attributes:
        names: names of the classes.
        codes: (n,) index of each utterance's class, -1 for those that belong to none.
    """

    names: tuple[str, ...]
    codes: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """(classes,) number of utterances of each class."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.names))

    @property
    def are_several(self) -> bool:
        """Whether there are utterances of at least two classes."""
        return bool((self.counts > 0).sum() > 1)

    @property
    def entropy(self) -> float:
        """The entropy in bits over the utterances of a class: an upper bound of the mutual information."""
        return entropy(self.codes[self.codes >= 0])


@dataclass(frozen=True, eq=False)
class RoutingAnalysis:
    """How a mixture routes the n utterances of a set through its N experts at S projections.

    Kinds of classes are "attack" (of spoofs alone), "label" and "codec".

    Attributes:
        system: name of the run's system.
        set: name of the set that was read.
        sites: (S,) dotted paths of the projections.
        classes: classes of the utterances, by kind.
        overall: use of the experts by all utterances.
        by_class: use of the experts by kind and class.
        leading: (n, S) int8, the expert with the largest mean weight for each utterance at each site.
        dependence: dependence of the leading expert on the class, by kind, if there are two classes; its groups are the
            layers.
        untrained: (draws, S) mutual information in bits of class and expert with gates before training, on the same
            inputs, by kind; see `UntrainedGates`. Empty for mixtures with experts that were added later.
        notes: notes on the precision, a line each.
    """

    system: str
    set: str
    sites: Sequence[str]
    classes: Mapping[str, Classes]
    overall: GateStatistics
    by_class: Mapping[str, Mapping[str, GateStatistics]]
    leading: NDArray[np.int8]
    dependence: Mapping[str, Dependence]
    untrained: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def grid(self) -> SiteGrid:
        """Layers and projections of the sites."""
        return SiteGrid(self.sites)

    @property
    def num_experts(self) -> int:
        """The number N of experts."""
        return self.overall.mean_gate.shape[1]

    def p_untrained(self, kind: str) -> float:
        """Return the p value of the trained gates: the probability that gates before training have as much information
        about the class, mean over sites."""
        drawn, observed = self.untrained[kind].mean(1), self.dependence[kind].information.mean()
        as_much = drawn >= observed - 1e-12  # equal sums may differ in the last bits
        return float((1 + as_much.sum()) / (1 + len(drawn)))


def analyze_routing(
    run: str | Path,
    *,
    set: str = DEV,
    permutations: int = 1000,
    draws: int = 99,
    seed: int = 1,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str | torch.device | None = None,
    precision: str | None = None,
    backbone: str | None = None,
    allow: Collection[str] = (),
    progress: Progress = silent,
) -> RoutingAnalysis:
    """Pass a set through a mixture, sum up its gates by class, and test if the leading experts depend on the class.

    Args:
        run: folder of a run, or a checkpoint in it.
        set: "dev", "train" or a test set of the run.
        permutations: number of permutations of the classes, at least 19; see `dependence`.
        draws: number of draws of untrained gates, at least 19; 0 for none.
        seed: seed of the permutations, and of the untrained gates.
        batch_size: as for `moelora_ad.analysis.passes.AudioPasses`, like ``workers``, ``device``, ``precision`` and
            ``progress``.
        backbone: where the encoder is, if not where the run found it.
        allow: packages besides ours whose classes the run's configuration may name.

    Raises:
        RequestError: there is no such run or set, or the model has no gates.
        InputError: audio cannot be read.
    """
    check_tests(permutations, draws)
    passes = AudioPasses(batch_size, workers, device, precision, progress)
    trained = load_trained(run, backbone, allow)
    sites = require_gates(trained)
    trials = trials_of(trained, set)
    classes = classes_of(trials)
    overall, by_class, leading, untrained = _watch(trained, trials, sites, classes, passes, draws, seed)
    tested = {kind: one for kind, one in classes.items() if one.are_several}
    grid, by_kind = SiteGrid(sites), {}

    def advance(before: int, done: int) -> None:
        progress("permutations", before + done, len(tested) * permutations)

    for number, (kind, one) in enumerate(tested.items()):
        members = one.codes >= 0
        by_kind[kind] = dependence(
            leading[members],
            np.unique(one.codes[members], return_inverse=True)[1],
            overall.mean_gate.shape[1],
            [grid.in_layer(layer) for layer in grid.layers],
            permutations,
            seed,
            partial(advance, number * permutations),
        )
    return RoutingAnalysis(
        trained.name, set, tuple(sites), classes, overall, by_class, leading, by_kind, untrained, tuple(passes.notes)
    )


def classes_of(trials: TrialList) -> dict[str, Classes]:
    """Group the utterances by attack (spoofs that name one; bona fide ones belong to none), by label, and by codec."""
    labels = trials.labels.astype(np.int64)
    attacks, codecs = (_named(trials.column(field).values, trials.column(field).codes) for field in ("attack", "codec"))
    attacks = attacks._replace(codes=np.where(labels == SPOOF, attacks.codes, -1))
    by_label = np.select([labels == BONA_FIDE, labels == SPOOF], [0, 1], -1)
    return {"attack": attacks, "label": Classes(("bona fide", "spoof"), by_label), "codec": codecs}


def _named(values: Sequence[str | None], codes: NDArray[np.unsignedinteger]) -> Classes:
    names = tuple(sorted(value for value in values if value))
    numbers = np.array([names.index(value) if value else -1 for value in values])
    return Classes(names, numbers[codes])


def _watch(
    trained: TrainedDetector,
    trials: TrialList,
    sites: list[str],
    classes: Mapping[str, Classes],
    passes: AudioPasses,
    draws: int,
    seed: int,
) -> tuple[GateStatistics, dict[str, dict[str, GateStatistics]], NDArray[np.int8], dict[str, NDArray[np.float64]]]:
    """Pass the set through the model once, and return the statistics of all utterances and of each class, the leading
    experts (n, S), and the information of untrained gates (draws, S)."""
    # One label for each combination of classes: sums of one pass serve all kinds.
    combined, joint = np.unique(np.stack([one.codes for one in classes.values()]), axis=1, return_inverse=True)
    joint = joint.reshape(-1)
    record = RoutingRecord()

    def label(batch: Batch) -> None:
        clips = len(batch.waveforms) // len(batch.trials)
        record.label([str(group) for group in joint[batch.trials.numpy()].repeat(clips)])

    control = UntrainedGates.of(trained.detector.backbone.encoder, sites, draws, seed)

    def see(decision: Decision) -> None:
        record.add(decision)
        if control is not None:
            control.see(decision)

    leading = np.zeros((len(trials), len(sites)), np.int8)
    # (draws, S, groups, N) utterances in which an untrained expert leads
    counts = np.zeros((draws, len(sites), combined.shape[1], control.num_experts if control else 0), np.int64)
    drawn, by_site = np.ogrid[:draws, : len(sites)]
    for batch, weights in watched(trained, trials, passes, before=label, see=see):
        leading[batch.trials.numpy()] = weights.argmax(-1)
        if control is not None:
            leaders = control.weights(len(batch.trials)).argmax(-1)  # (draws, B, S)
            for number, group in enumerate(joint[batch.trials.numpy()]):
                np.add.at(counts, (drawn, by_site, group, leaders[:, number]), 1)
    by_class = {
        kind: {
            name: GateStatistics.of(record, [str(group) for group in np.flatnonzero(codes == number)], sites)
            for number, name in enumerate(one.names)
            if (codes == number).any()
        }
        for (kind, one), codes in zip(classes.items(), combined, strict=True)
    }
    untrained = {}
    for (kind, one), codes in zip(classes.items(), combined, strict=True):
        if control is not None and one.are_several:
            members = codes == np.arange(len(one.names))[:, None]  # (classes, groups)
            untrained[kind] = counted_information(np.einsum("cg,dsgn->dscn", members, counts))
    return GateStatistics.of(record, record.groups, sites), by_class, leading, untrained

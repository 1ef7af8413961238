"""The merging of mixtures with constant gates into one LoRA, or into the encoder's weights, if little is lost."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moelora_ad.adapters import (
    FrozenBackbone,
    adapted_sites,
    merge,
    merge_static_mixture,
    put_loras,
    record_routing,
    static_mixture,
    static_mixture_error,
)
from moelora_ad.analysis.changes import DATA, Changed, Cost, Done, Original, SetChange, allowed, check_margin, listed
from moelora_ad.analysis.gates import gated_sites
from moelora_ad.analysis.passes import AudioPasses, Progress, check_least, silent
from moelora_ad.analysis.trained import RequestError, TrainedDetector
from moelora_ad.evaluation import ScoreTable
from moelora_ad.evaluation.metrics.least import LEAST_RESAMPLES
from moelora_ad.models.detector import Detector
from moelora_ad.models.saving.specification import without_source
from moelora_ad.runs.record import DEV


@dataclass(frozen=True, eq=False)
class Merging:
    """The result of merging a model's experts, or its LoRA.

    Attributes:
        name: name of the model.
        tolerance: points of EER that may be lost.
        resamples: number of resamples of the bootstrap.
        into_weights: whether the model is merged into the encoder's weights; otherwise into one LoRA.
        mean_gates: (N,) weights at each projection that had a gate.
        errors: relative error of the updates by projection, by set, see `moelora_ad.adapters.StaticError`; empty for a
            model without gates.
        sets: the sets before and after, by name; only the deciding sets if the merging is refused.
        costs: costs of the original model, and of the merged one.
        changed: the new model; None if the merging is refused.
        notes: notes, a line each.
    """

    name: str
    tolerance: float
    resamples: int
    into_weights: bool
    mean_gates: Mapping[str, Tensor]
    errors: Mapping[str, Mapping[str, float]]
    sets: Mapping[str, SetChange]
    costs: tuple[Cost, Cost]
    changed: Changed | None
    notes: tuple[str, ...]


def merge_experts(
    model: str | Path,
    *,
    data: DATA = None,
    decide_on: Collection[str] = (DEV,),
    tolerance: float = 1.0,
    into_weights: bool = False,
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
) -> Merging:
    """Hold the gates at their mean weights over the deciding sets: sum_i g_i B_i A_i is one LoRA of rank N r.

    The merging is refused if on a deciding set the paired 95 % interval of the EER after - before ends above the
    tolerance. A LoRA is merged into the weights exactly, except for rounding.

    Args:
        model: adapted with a mixture, or with a LoRA for ``into_weights``: a run, a checkpoint, a model's folder, a
            packaged model or a hub id.
        data: corpora, see `moelora_ad.analysis.changes.DATA`.
        decide_on: the deciding sets, which also give the mean gates. The other sets are scored afterwards.
        tolerance: points of EER that may be lost.
        into_weights: merge the LoRA into the encoder's weights, which are then saved with the model.
        resamples: number of resamples of the bootstrap, at least 20.
        seed: seed of the bootstrap.
        batch_size: as for `moelora_ad.analysis.passes.AudioPasses`, like ``workers``, ``device``, ``precision`` and
            ``progress``.
        backbone: where the encoder is, if not where the model says.
        revision: commit, tag or branch of a hub repository.
        allow: packages besides ours whose classes may be built.

    Raises:
        InputError: there is nothing to merge, or it cannot be saved; there is no such set, a set lacks a class, or
            audio cannot be read.
    """
    check_least("resamples", resamples, LEAST_RESAMPLES)
    check_margin("tolerance", tolerance)
    passes = AudioPasses(batch_size, workers, device, precision, progress)
    original = Original(model, data, decide_on, backbone, revision, allow)
    trained = original.trained
    _check_mergeable(trained, into_weights)
    cost = Cost.of(trained.detector)
    gates = _mean_gates(original, passes)
    merged = original.with_data(_merged(original, gates, into_weights))
    costs = cost, Cost.of(merged.detector)
    before: dict[str, ScoreTable] = {}
    errors: dict[str, Mapping[str, float]] = {}
    sets: dict[str, SetChange] = {}
    changed = None
    for trials in (original.deciding, original.others):
        for name in trials:
            before[name], errors[name] = _before(original, name, gates, passes)
        after = original.scores(merged, trials, passes)
        sets |= {name: original.change_of(name, before[name], after[name], resamples, seed) for name in after}
        if not all(change.allows(tolerance) for change in sets.values() if change.decides):
            break
    else:
        kept = _merged(original, gates, into_weights)
        done = _done(gates, original.deciding, tolerance, into_weights)
        changed = original.finished(kept, sets, done, resamples, seed)
    notes = (*passes.notes, *(changed.notes if changed else ()))
    return Merging(trained.name, tolerance, resamples, into_weights, gates, errors, sets, costs, changed, notes)


def _check_mergeable(trained: TrainedDetector, into_weights: bool) -> None:
    detector, where = trained.detector, trained.folder
    sites = dict(adapted_sites(detector.backbone.encoder))
    if not sites:
        name = type(detector.adaptation).__name__
        raise RequestError(f"{where}: nothing to merge: the method is {name}, and there is no LoRA and no mixture")
    if into_weights:
        if not without_source(type(detector.backbone)):
            name = type(detector.backbone).__name__
            raise RequestError(
                f"{where}: cannot be merged into the weights: {name} is not built without a source (let it be None by "
                "default, or add an argument pretrained)"
            )
        return
    if not gated_sites(trained):
        raise RequestError(f"{where}: is already one LoRA, without gates; --into-weights merges it into the encoder")
    for site, layer in sites.items():
        rank, most = len(layer.experts) * layer.rank, min(layer.in_features, layer.out_features)
        if rank > most:
            raise RequestError(f"{where}: one LoRA of rank {rank} is too large for {site}: use --into-weights")


def _mean_gates(original: Original, passes: AudioPasses) -> dict[str, Tensor]:
    """Return the mean gates over all deciding sets together: each decision has the same weight, padding has none, and
    there is no noise."""
    trained = original.trained
    if not gated_sites(trained):
        return {}
    with record_routing(trained.detector.backbone.encoder) as routing:
        for name, trials in original.deciding.items():
            for batch in passes.batches(trained, trials, f"mean gates on {name}"):
                trained.detector.backbone(batch.waveforms, batch.lengths)
    return routing.mean_gates()


def _merged(original: Original, gates: Mapping[str, Tensor], into_weights: bool) -> Detector:
    """Return a fresh copy of the model, merged."""
    detector = original.again()
    encoder = detector.backbone.encoder
    if not into_weights:
        put_loras(encoder, static_mixture(encoder, gates))
        original.adopt(detector)
        return detector.eval()
    if gates:
        merge_static_mixture(encoder, gates)
    else:
        merge(encoder)
    return with_own_encoder(detector)


def with_own_encoder(detector: Detector) -> Detector:
    """Return a detector without adapters that saves the weights of its encoder, which no longer match a source.

    Args:
        detector: a detector whose adapters are merged; the new one shares its classifier.
    """
    backbone, kind = detector.backbone, type(detector.backbone)
    fresh = kind(**(backbone.init_args | without_source(kind)))
    made = Detector(fresh, FrozenBackbone(), lambda width: detector.classifier)
    made.load_state_dict(detector.state_dict())
    made.window, made.fill, made.precision = detector.window, detector.fill, detector.precision
    made.calibration, made.about = detector.calibration, detector.about
    made.configuration, made.encoder_named = detector.configuration, detector.encoder_named
    return made.eval()


def _before(
    original: Original, name: str, gates: Mapping[str, Tensor], passes: AudioPasses
) -> tuple[ScoreTable, dict[str, float]]:
    """Return the scores of a set before the merging, and the error of each projection's update on it under constant
    gates."""
    trained, one = original.trained, {name: (original.deciding | original.others)[name]}
    if not gates:
        return original.scores(trained, one, passes)[name], {}
    with static_mixture_error(trained.detector.backbone.encoder, gates) as error:
        scores = original.scores(trained, one, passes)
    return scores[name], error.sites


def _done(gates: Mapping[str, Tensor], sets: Collection[str], tolerance: float, into_weights: bool) -> Done:
    what = f"the experts under constant gates, their means on {listed([*sets])}," if gates else "the LoRA"
    place = "into the weights of the encoder" if into_weights else "into one LoRA"
    return Done(
        "merged",
        f"{what} {place}; the 95 % interval of the EER's change ends at or below {allowed(tolerance)} on "
        f"{listed([*sets])}",
    )

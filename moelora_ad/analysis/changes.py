"""A trained model before and after a change of its experts: what the change costs, and the changed model.

A change is allowed if no set shows a loss: if on each deciding set the 95 % interval of the paired difference of the
EER, after minus before, ends at or below a margin (non-inferiority). That an interval includes 0 is not such evidence:
on a small set every interval does. Other sets are scored after the decision, and do not affect it.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from moelora_ad.adapters import AdapterError
from moelora_ad.analysis.passes import AudioPasses
from moelora_ad.analysis.scoring import check_both_classes, eer_difference, scores_of_variants
from moelora_ad.analysis.trained import RequestError, TrainedDetector, trials_of
from moelora_ad.audio import SAMPLE_RATE, ScoredClips, Segment
from moelora_ad.configuration.building import config_beside
from moelora_ad.configuration.data import data_of
from moelora_ad.corpora import TrialList
from moelora_ad.data.data_module import AudioDeepfakeDataModule, corpora_in_words
from moelora_ad.errors import InputError
from moelora_ad.evaluation import ScoreTable
from moelora_ad.evaluation.metrics.figures import evaluate_set
from moelora_ad.evaluation.metrics.intervals import Difference
from moelora_ad.evaluation.metrics.options import FigureOptions
from moelora_ad.inference.loading import load
from moelora_ad.models.accounting.operations import forward_operations
from moelora_ad.models.detector import Detector
from moelora_ad.models.saving.card import card_result, is_packed
from moelora_ad.models.saving.files import CONFIG, short
from moelora_ad.models.saving.packaged import found_model
from moelora_ad.runs.record import DEV, RECORD, read_record

DATA = str | Path | Sequence[str | Path] | AudioDeepfakeDataModule | None
"""Corpora: configurations with a part ``data``, of which later ones change earlier ones; a data module; or None for the
corpora of the run that the model comes from."""
_UNCHANGED = 0.01
"""Change of a log-likelihood ratio in nats, 1 % of the odds, that a calibration outlives: another order of the same
sums changes it by some 1e-6, and by some 1e-3 in half precision."""


class SetChange(NamedTuple):
    """A set before and after the change.

    Attributes:
        decides: whether the change was decided on this set; otherwise it was scored afterwards.
        before: scores of the original model.
        after: scores of the changed model.
        difference: difference of the EER, after - before, as a share of 1, with its interval.
    """

    decides: bool
    before: ScoreTable
    after: ScoreTable
    difference: Difference

    @property
    def largest(self) -> float:
        """Largest change of a score, in log-odds."""
        return float(np.abs(self.after.scores - self.before.scores).max())

    @property
    def mean(self) -> float:
        """Mean size of the changes of the scores, in log-odds."""
        return float(np.abs(self.after.scores - self.before.scores).mean())

    def allows(self, margin: float) -> bool:
        """Whether a loss of more than ``margin`` points of EER is ruled out."""
        return 100 * self.difference.interval.high <= margin


class Cost(NamedTuple):
    """The cost of a model.

    Attributes:
        adapters: number of parameters of the adaptation's modules.
        parameters: number of all parameters of the model.
        operations: floating-point operations for one second of audio, a multiplication and an addition being two.
    """

    adapters: int
    parameters: int
    operations: float

    @classmethod
    def of(cls, detector: Detector) -> "Cost":
        """Return the cost of a detector on the CPU; a clip of its window is passed through it."""
        own = [p for _, module in detector.ownership.own_modules() for p in module.parameters(recurse=False)]
        with torch.no_grad():
            operations = forward_operations(detector, torch.zeros(1, detector.window))["total"]
        seconds = detector.window / SAMPLE_RATE
        everything = sum(parameter.numel() for parameter in detector.parameters())
        return cls(sum(parameter.numel() for parameter in own), everything, operations / seconds)


class Done(NamedTuple):
    """What was done to a model, in words: a verb such as "pruned", and the details."""

    verb: str
    what: str


class Changed(NamedTuple):
    """A changed model.

    Attributes:
        detector: the detector in float32 on the CPU, in evaluation mode.
        packs: whether its encoder is saved in the folder whatever its size, as that of the original model was.
        notes: notes on it for the user, a line each.
    """

    detector: Detector
    packs: bool
    notes: Sequence[str]

    def save_pretrained(self, folder: str | Path) -> None:
        """See `Detector.save_pretrained`."""
        self.detector.save_pretrained(folder, with_backbone=True if self.packs else None)


def check_margin(name: str, margin: float) -> None:
    """Check that a margin is a number of points.

    Raises:
        InputError: the margin is negative or not finite.
    """
    if not (margin >= 0 and math.isfinite(margin)):
        raise InputError(f"{name}: must be points of EER, 0 or more, not {margin}")


def allowed(margin: float) -> str:
    """Return a margin in words."""
    return "1 point" if margin == 1 else f"{margin:g} points"


def listed(words: Sequence[object]) -> str:
    """Return words as a list: ``a, b and c``."""
    *most, last = map(str, words)
    return f"{', '.join(most)} and {last}" if most else last


class Original:
    """A model to change, and the corpora to measure the change on.

    Args:
        source: a run, a checkpoint, a model's folder, a packaged model or a hub id; see `moelora_ad.inference.load`.
        data: see `DATA`.
        decide_on: sets that the change is decided on: "dev", "train" or test sets. All other sets of the data but
            "train" are scored after the decision.
        backbone: where the encoder is, if not where the model says.
        revision: commit, tag or branch of a hub repository.
        allow: packages besides ours whose classes may be built.

    Attributes:
        trained: the model; passing audio through it may round its weights.
        deciding: trials of the deciding sets, by name.
        others: trials of the other sets, by name.

    Raises:
        InputError: there is no such model, data or set, or a set lacks a class.
    """

    def __init__(
        self,
        source: str | Path,
        data: DATA,
        decide_on: Collection[str],
        backbone: str | None,
        revision: str | None,
        allow: Collection[str],
    ) -> None:
        self._source = source
        self._given: dict[str, Any] = {"backbone": backbone, "revision": revision, "allow": allow}
        detector = self.again()
        path = Path(found_model(source))
        self._run = None if (path / CONFIG).exists() or not path.exists() else _run_of(path)
        self._data_of_run = None if self._run is None else self._read([self._run / "config.yaml"], detector)
        if data is None:
            data = self._data_of_run
        elif not isinstance(data, AudioDeepfakeDataModule):
            data = self._read([data] if isinstance(data, str | Path) else data, detector)
        if data is None:
            raise RequestError(f"{source} is a model, which has no corpora: name them with --data FILE")
        self.trained = self.with_data(detector, data)
        named = [decide_on] if isinstance(decide_on, str) else dict.fromkeys(decide_on)
        self.deciding = {name: self._trials(name) for name in named}
        if not self.deciding:
            raise RequestError("decide_on names no set: the change must be decided on one")
        left = [name for name in ([DEV] if data.val else []) + [*data.test] if name not in self.deciding]
        self.others = {name: self._trials(name) for name in left}

    def adopt(self, detector: Detector) -> None:
        """Give a detector whose experts were changed the adaptation method that creates such experts.

        Raises:
            InputError: there is no such method, so that the detector could not be saved.
        """
        try:
            detector.adaptation = detector.adaptation.after_surgery(detector.backbone.encoder)
        except AdapterError as error:
            raise RequestError(f"{self._source}: cannot be changed: {error}") from None

    def again(self) -> Detector:
        """Load a fresh copy of the model, in float32 on the CPU."""
        return load(self._source, **self._given)

    def with_data(self, detector: Detector, data: AudioDeepfakeDataModule | None = None) -> TrainedDetector:
        """Return a detector with the corpora, name and seed of the model."""
        data = self.trained.data if data is None else data
        name, seed, place = Path(self._source).name, data.seed, Path(self._source)
        if self._run is not None and self._data_of_run is not None:
            name = read_record(self._run).system if (self._run / RECORD).exists() else self._run.name
            seed = self._data_of_run.seed
        return TrainedDetector(detector, data, name, seed, place, place)

    def scores(self, trained: TrainedDetector, sets: Mapping[str, TrialList], passes: AudioPasses) -> dict[str, Any]:
        """Return the scores of sets by the model or by a changed one, by the sets' names."""
        return {
            name: scores_of_variants(trained, trials, {"": nullcontext}, passes, f"{trained.name} on {name}")[""]
            for name, trials in sets.items()
        }

    def change_of(self, name: str, before: ScoreTable, after: ScoreTable, resamples: int, seed: int) -> SetChange:
        """Return the figures of a set before and after the change."""
        return SetChange(name in self.deciding, before, after, eer_difference(after, before, resamples, seed))

    def finished(
        self, detector: Detector, sets: Mapping[str, SetChange], done: Done, resamples: int, seed: int
    ) -> Changed:
        """Prepare a changed detector for saving: its card gets what was done and its own figures, and a calibration
        that its scores no longer fit is removed.

        Args:
            detector: the changed detector, before any audio passed through it.
            sets: the measured sets, by name.
            done: what was done to it.
            resamples: number of resamples of the card's intervals.
            seed: seed of these resamples.
        """
        about, packs = dict(detector.about or {}), is_packed(detector.configuration or {})
        if self._data_of_run is not None:
            about["data"] = corpora_in_words(self._data_of_run)
            origin = f"the run {self.trained.name}, seed {self.trained.seed}"
        else:
            digest = (detector.configuration or {})["weights_sha256"]
            origin = f"{self.trained.name} (SHA-256 of its weights {short(digest)})"
        about["history"] = [*about.get("history", []), f"{done.verb} from {origin}: {done.what}"]
        options = FigureOptions(resamples=resamples, seed=seed)
        about["results"] = [
            card_result(name, evaluate_set(name, one.after, options).overall) for name, one in sets.items()
        ]
        detector.about = about
        notes = []
        largest = max((one.largest for one in sets.values()), default=0.0)
        if detector.calibration is not None and largest * abs(detector.calibration["scale"]) > _UNCHANGED:
            detector.calibration = None
            notes.append("the calibration was fitted on other scores and is removed: these are not calibrated")
        return Changed(detector, packs, notes)

    def _read(self, paths: Sequence[str | Path], detector: Detector) -> AudioDeepfakeDataModule:
        """Return the data of configurations; if they do not set the evaluation segment, it is that of the detector."""
        segment = Segment(detector.window, short=ScoredClips.of(detector.window, detector.fill).short)
        return data_of([str(path) for path in paths], self._given["allow"], segment)

    def _trials(self, name: str) -> TrialList:
        if name == DEV and self.trained.data.val is None:
            raise RequestError("data.val is not given: it decides, unless --decide-on names other sets")
        trials = trials_of(self.trained, name)
        check_both_classes(trials, name)
        return trials


def _run_of(path: Path) -> Path:
    """Return the folder of a run from the path of the folder or of a checkpoint in it."""
    return path if path.is_dir() else Path(config_beside(str(path))).parent

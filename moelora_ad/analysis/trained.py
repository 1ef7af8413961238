"""Trained models and the batches of a corpus, for the analyses."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from moelora_ad.corpora import TrialList
from moelora_ad.data.data_module import TRAIN, AudioDeepfakeDataModule
from moelora_ad.data.dataset import Batch, TrialDataset
from moelora_ad.data.samplers import EvaluationBatches
from moelora_ad.data.shares import by_name
from moelora_ad.data.workers import end_of_workers_awaited, end_workers, starved
from moelora_ad.errors import InputError
from moelora_ad.inference.loading import load_run
from moelora_ad.models import Detector
from moelora_ad.runs.record import DEV, RECORD, read_record
from moelora_ad.torch_internals import WatchedLoader


class RequestError(InputError):
    """What was asked for cannot be done, whatever the audio: there is no such run, set or device, or runs do not suit
    the analysis. The command line takes it for a usage error."""


@contextmanager
def requested() -> Iterator[None]:
    """Within the block, an `InputError` is a mistake in what was asked for, and becomes a `RequestError`."""
    try:
        yield
    except InputError as error:
        raise RequestError(str(error)) from None


class TrainedDetector(NamedTuple):
    """A trained detector and the corpora of its run.

    Attributes:
        detector: detector in evaluation mode; its ``precision`` is that of the run.
        data: data module of the run.
        name: the run's system; the name of its folder if it has no record.
        seed: seed of the run.
        checkpoint: where the weights come from.
        folder: folder of the run.
    """

    detector: Detector
    data: AudioDeepfakeDataModule
    name: str
    seed: int
    checkpoint: Path
    folder: Path


def load_trained(path: str | Path, backbone: str | None = None, allow: Collection[str] = ()) -> TrainedDetector:
    """Load a run's detector with its trained weights.

    Args:
        path: a run's folder, for its best checkpoint, or a checkpoint in RUN/checkpoints.
        backbone: where the encoder is, if not where the run found it.
        allow: packages besides ours whose classes the run's configuration may name.

    Raises:
        RequestError: there is no such run, it has no checkpoint, or its checkpoint and configuration do not fit.
    """
    with requested():
        built, checkpoint, config = load_run(path, backbone, allow)
    folder = config.parent
    name = read_record(folder).system if (folder / RECORD).exists() else folder.name
    return TrainedDetector(built.detector, built.data, name, built.data.seed, checkpoint, folder)


def trials_of(trained: TrainedDetector, set_name: str) -> TrialList:
    """Return the trials of one of the run's sets: "train", "dev", or a test set by its name.

    Raises:
        RequestError: the run has no such set.
        InputError: its corpus cannot be read.
    """
    data = trained.data
    corpora = dict(data.test)
    if data.val is not None:
        corpora[DEV] = data.val
    training = by_name(data.train) if data.train else {}
    if len(training) == 1:
        (corpora[TRAIN],) = training.values()
    if set_name not in corpora:
        raise RequestError(f"{trained.folder} has no set {set_name!r}: choose from {', '.join(corpora)}")
    return corpora[set_name].trials()


def batches(
    trained: TrainedDetector,
    trials: TrialList,
    batch_size: int | None = None,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Iterator[Batch]:
    """Yield batches of the trials in their order, in evaluation segments, never augmented.

    Args:
        trained: the model, whose data module sets the segments.
        trials: what to read.
        batch_size: utterances in a batch; None for that of the run's evaluation.
        workers: number of processes that read audio; None for that of the run.
        advance: called after each batch with its number of trials.

    Raises:
        InputError: a file cannot be read, or the workers lack memory, shared memory or open files.
    """
    data = trained.data
    workers = data.num_workers if workers is None else workers
    size = batch_size or data.eval_batch_size
    dataset = TrialDataset(trials, data.eval_segment, data.seed)
    sampler = EvaluationBatches(len(trials), size)
    reading = data.reading(dataset, sampler, size, again=False, workers=workers)
    loader = WatchedLoader(dataset, sampler=sampler, **reading)
    batch: Batch
    try:
        with end_of_workers_awaited(alone=True):
            for batch in loader:
                yield batch
                advance(len(batch.trials))
    except (KeyboardInterrupt, OSError, RuntimeError) as error:
        end_workers()
        if told := starved(error, workers):
            raise InputError(told) from None
        raise

"""Passes of sets through trained detectors: on which device, in which precision, and their progress."""

from collections.abc import Callable, Iterator

import torch

from moelora_ad.analysis.trained import TrainedDetector, batches, requested
from moelora_ad.corpora import TrialList
from moelora_ad.data.dataset import Batch
from moelora_ad.errors import InputError
from moelora_ad.inference.precision import chosen_precision, computing_in
from moelora_ad.models.devices import usable_device
from moelora_ad.models.precision import ROUNDED, round_frozen

Progress = Callable[[str, float, int], None]
"""Called with the work's description, the amount done, and the total amount."""


def silent(what: str, done: float, total: int) -> None:
    """The `Progress` that shows nothing."""


def check_least(name: str, number: int, least: int = 1) -> None:
    """Check that a number is at least ``least``.

    Raises:
        InputError: the number is smaller.
    """
    if number < least:
        raise InputError(f"{name}: must be at least {least}, not {number}")


class AudioPasses:
    """Passes of sets through trained detectors.

    Args:
        batch_size: utterances at once; None for as many as the run evaluated.
        workers: processes that read audio; None for as many as the run had.
        device: "cpu", "cuda", "cuda:1", ...; None for the first GPU, if there is one.
        precision: as for `Scorer`; None for the precision that each run was evaluated in.
        progress: called with the state of each pass.

    Attributes:
        notes: what a reader should know about the precision, a line each.

    Raises:
        InputError: there is no such device, or the batch size is below 1.
    """

    def __init__(
        self,
        batch_size: int | None = None,
        workers: int | None = None,
        device: str | torch.device | None = None,
        precision: str | None = None,
        progress: Progress = silent,
    ) -> None:
        if batch_size is not None:
            check_least("batch size", batch_size)
        with requested():
            self.device = usable_device(device)
        self.progress = progress
        self.notes: list[str] = []
        self._batch_size = batch_size
        self._workers = workers
        self._precision = precision

    def batches(self, trained: TrainedDetector, trials: TrialList, what: str) -> Iterator[Batch]:
        """Yield the batches of some trials, in order, on the device. While the loop runs, computations are in the
        chosen precision and without gradients.

        Args:
            trained: the model; its detector is moved to the device and, in ``bf16-true`` and ``16-true``, rounded in
                place.
            trials: what to read.
            what: description for the progress.

        Raises:
            InputError: a file cannot be read, or the precision is not available.
        """
        detector = trained.detector
        with requested():
            precision, notes = chosen_precision(self._precision, detector, None, self.device, "computed")
        self.notes += [note for note in notes if note not in self.notes]
        detector.to(self.device)
        if precision in ROUNDED:
            round_frozen(detector, precision)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self.progress(what, done, len(trials))

        with torch.inference_mode(), computing_in(precision, self.device):
            advance(0)
            for batch in batches(trained, trials, self._batch_size, self._workers, advance):
                yield batch.to(self.device)

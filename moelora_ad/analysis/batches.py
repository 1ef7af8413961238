"""A set read by the analyses: its batches on the device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moelora_ad.analysis.models import Trained, batches
from moelora_ad.corpora import TrialList
from moelora_ad.data.dataset import Batch
from moelora_ad.errors import InputError, printable


@dataclass(frozen=True)
class Reading:
    """How audio is read and where it is computed on.

    Args:
        batch_size: utterances at once; None for that of the run's evaluation.
        workers: processes that read audio; None for those of the run.
        device: None for the first GPU, or the CPU.
    """

    batch_size: int | None = None
    workers: int | None = None
    device: str | None = None


def read(trained: Trained, trials: TrialList, reading: Reading, what: str) -> Iterator[Batch]:
    """The batches of some trials, in order, on the device that the detector is put on; a bar shows how far it is.

    Args:
        trained: its detector is moved to the device.
        trials: what to read.
        reading: how.
        what: words beside the bar.

    Raises:
        InputError: a file cannot be read, or there is no such device.
    """
    device = device_of(reading.device)
    trained.detector.to(device)
    with progress(what, len(trials)) as advance:
        for batch in batches(trained, trials, reading.batch_size, reading.workers, advance):
            lengths = None if batch.lengths is None else batch.lengths.to(device)
            yield batch._replace(waveforms=batch.waveforms.to(device), lengths=lengths)


def device_of(name: str | None) -> torch.device:
    """The device of this name; for None the first GPU, or the CPU.

    Raises:
        InputError: there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"--device: {name!r} cannot be used: {reason}") from None
    return device


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, if that is a terminal; the function is told how many more are done."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(printable(what), total=total)
        yield lambda count: bar.advance(task, count)

"""The runs of a sweep on this machine, some at a time."""

import time
from collections import deque
from collections.abc import Sequence

from moelora_ad.errors import InputError, counted
from moelora_ad.sweeps.attempt import Attempt, start
from moelora_ad.sweeps.gpus import Gpus
from moelora_ad.sweeps.live import LiveView
from moelora_ad.sweeps.planning import PlannedRun
from moelora_ad.sweeps.states import Status, readable_status_of

_PAUSE = 0.25  # seconds between two looks at the processes


def run_here(runs: Sequence[PlannedRun], jobs: int, retry: bool, view: LiveView) -> None:
    """Run all unfinished runs, ``jobs`` at once, each on its own GPUs (see `Gpus`); if one fails, the others continue.

    Args:
        runs: the runs in the order in which they start.
        jobs: number of runs at once.
        retry: whether to try failed runs again.
        view: shows every change.

    Raises:
        KeyboardInterrupt: on Ctrl-C; the runs were stopped, after saving checkpoints unless it was pressed again.
    """
    waiting = deque(runs)
    active: list[Attempt] = []
    gpus = Gpus(runs, jobs)
    if (shared := gpus.warning()) is not None:
        view.say(shared)
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                run = gpus.given_to(waiting.popleft())
                begun = _start(run, retry)
                if isinstance(begun, Attempt):
                    active.append(begun)
                else:
                    gpus.take_back(run)
                    view.show(run, begun)
            ended = [attempt for attempt in active if attempt.ended()]
            for attempt in active:
                view.show(attempt.run, readable_status_of(attempt.run, running=attempt not in ended))
            active = [attempt for attempt in active if attempt not in ended]
            for attempt in ended:
                gpus.take_back(attempt.run)
            if active:
                time.sleep(_PAUSE)
    except KeyboardInterrupt:
        _stop(active, view)
        raise


def _start(run: PlannedRun, retry: bool) -> Attempt | Status:
    try:
        return start(run, retry)
    except InputError as error:
        return Status("failed", str(error))
    except OSError as error:
        return Status("failed", f"{error.filename or run.folder}: {error.strerror}")


def _stop(active: Sequence[Attempt], view: LiveView) -> None:
    """Ask the runs to save checkpoints and end, and wait for them; a second Ctrl-C ends them at once."""
    view.say(f"stopping {counted(len(active), 'run')}; once more to stop at once")
    kill = False
    for attempt in active:
        attempt.stop()
    while not all(attempt.ended() for attempt in active):
        try:
            time.sleep(_PAUSE)
        except KeyboardInterrupt:
            kill = True
        if kill:
            for attempt in active:
                attempt.stop(kill=True)
    for attempt in active:
        view.show(attempt.run, readable_status_of(attempt.run, running=False))

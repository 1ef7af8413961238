"""The one thread that computes scores, in the order in which sounds arrive; sounds that wait share batches."""

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import BinaryIO, NamedTuple

from moelora_ad.inference.file_scores import FileFailure, FileScore
from moelora_ad.inference.scorer import Scorer

_MEMORY = 0.9  # weight of the earlier sounds in the running mean of a sound's time


class _Job(NamedTuple):
    sound: BinaryIO
    result: "Future[FileScore | FileFailure]"


class ScoringWorker:
    """Scores sounds one after another, in a thread of its own.

    Args:
        scorer: Computes the scores; nobody else may use it meanwhile.
        longest: Maximum length of a sound in seconds.

    Attributes:
        seconds: Running mean of the time that a sound takes.
    """

    def __init__(self, scorer: Scorer, longest: float) -> None:
        self._scorer = scorer
        self._longest = longest
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._is_closed = False
        self.seconds = 1.0
        self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the worker accepts sounds."""
        return self._thread.is_alive() and not self._is_closed

    def submit(self, sound: BinaryIO) -> "Future[FileScore | FileFailure]":
        """Queue an open file, and return its future result. The file is closed; its ``name`` is for messages."""
        job = _Job(sound, Future())
        self._jobs.put(job)
        return job.result

    def close(self, timeout: float | None = None) -> None:
        """Stop after all submitted sounds are scored, and wait for that, at most ``timeout`` seconds."""
        self._is_closed = True
        self._jobs.put(None)
        self._thread.join(timeout)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            taken: deque[_Job] = deque()
            begin = time.monotonic()
            try:
                for result in self._scorer.score_files(self._sounds(job, taken), longest=self._longest):
                    taken.popleft().result.set_result(result)
                    now = time.monotonic()
                    self.seconds, begin = _MEMORY * self.seconds + (1 - _MEMORY) * (now - begin), now
            except Exception as error:  # such as too little memory on the device: the next sounds may be smaller
                for lost in taken or [job]:
                    if not lost.result.done():
                        lost.result.set_exception(error)
                    lost.sound.close()

    def _sounds(self, job: _Job | None, taken: deque[_Job]) -> Iterator[BinaryIO]:
        """Yield waiting sounds until none is left; then the scorer computes the batch that they are in."""
        while job is not None:
            if job.result.set_running_or_notify_cancel():
                taken.append(job)
                yield job.sound
            else:
                job.sound.close()
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
        self._jobs.put(None)  # the signal to end is for `_work`

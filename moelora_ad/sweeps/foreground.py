"""One run of a sweep in the foreground: in a terminal, or under an agent of Weights & Biases."""

import signal
import sys
import time

from moelora_ad.errors import printable
from moelora_ad.sweeps.attempt import start
from moelora_ad.sweeps.live import status_line
from moelora_ad.sweeps.planning import PlannedRun
from moelora_ad.sweeps.states import Status

_PAUSE = 0.2  # seconds


def run_alone(run: PlannedRun, retry: bool) -> int:
    """Start a run and show its output, which is saved too; SIGTERM and Ctrl-C are passed on to it as SIGTERM.

    Returns:
        The exit code of fit (128 + the signal if one killed it); 0 if the run is already finished, 1 if it should not
        be started.

    Raises:
        InputError: something in the run's folder is damaged.
    """
    attempt = start(run, retry)
    if isinstance(attempt, Status):
        print(printable(status_line(run, attempt)), file=sys.stderr)
        return 0 if attempt.state == "finished" else 1
    before = {number: signal.signal(number, lambda *_: attempt.stop()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with open(attempt.output, "rb") as output:
            ended = False
            while not ended:
                ended = attempt.ended()
                sys.stdout.buffer.write(output.read())
                sys.stdout.flush()
                time.sleep(0 if ended else _PAUSE)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = attempt.process.returncode
    return code if code >= 0 else 128 - code

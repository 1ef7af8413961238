"""One attempt at a run of a sweep: a process of fit."""

import os
import secrets
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from moelora_ad.errors import printable
from moelora_ad.sweeps.planning import PlannedRun
from moelora_ad.sweeps.run_folder import (
    Notes,
    output_path,
    read_notes,
    resumable,
    take_lock,
    write_notes,
)
from moelora_ad.sweeps.states import Status, status_of

RUNNABLE = ("waiting", "cut off", "interrupted")
_TAIL = 8192  # bytes at the end of the output that are searched for the reason of a failure


class Attempt:
    """A process of fit that starts or resumes a run; its output goes to ``output-ATTEMPT.log``.

    It holds the run's lock until it ends, even if the process of the sweep is killed before. See `start`.

    Args:
        run: a run of a sweep.
        lock: file descriptor of the run's lock.
        own_session: whether it is shielded from signals to the process group of the sweep, like Ctrl-C.
    """

    def __init__(self, run: PlannedRun, lock: int, own_session: bool = True) -> None:
        self.run = run
        self._lock = lock
        earlier = read_notes(run.folder) or Notes(run.identity())
        self._notes = replace(
            earlier,
            identity=run.identity(),
            attempts=earlier.attempts + 1,
            exit_code=None,
            reason=None,
            wandb_run=earlier.wandb_run or secrets.token_hex(4),
        )
        self.output: Path = output_path(run.folder, self._notes.attempts)
        write_notes(run.folder, self._notes)
        command = fit_command(run)
        # A WANDB_RUN_ID in the environment has precedence: an agent of Weights & Biases has set it.
        variables = {"WANDB_RUN_ID": str(self._notes.wandb_run), **os.environ, **run.environment}
        with open(self.output, "ab") as output:
            output.write(f"$ {shlex.join(command)}\n".encode())
            output.flush()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables,
                pass_fds=[lock],
                start_new_session=own_session,
            )

    def ended(self, stopped: bool = False) -> bool:
        """Whether the process has ended; then its end is recorded, if it can be, and the lock is released.

        Args:
            stopped: whether the process and its children were asked to end; then no exit code counts as a failure.
        """
        if self.process.poll() is None:
            return False
        if self._lock >= 0:
            code = self.process.returncode
            if stopped and code:
                code = 128 + signal.SIGTERM
            with suppress(OSError):  # a full disk, a removed folder: the end stays unrecorded, and other runs go on
                reason = last_line(self.output) if code > 0 else None
                write_notes(self.run.folder, replace(self._notes, exit_code=code, reason=reason))
            os.close(self._lock)
            self._lock = -1
        return True

    def stop(self, kill: bool = False) -> None:
        """Ask the process to save a checkpoint and end; with ``kill``, end it at once."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)


def fit_command(run: PlannedRun) -> list[str]:
    """Return the command that starts a run, or resumes it from its newest checkpoint."""
    return [sys.executable, "-m", "moelora_ad", *run.arguments(resumable(run.folder))]


def runs_now(status: Status, retry: bool) -> bool:
    """Whether a run in this state is to be started: if it is waiting, was cut off or interrupted; or, with ``retry``,
    if it has failed."""
    return status.state in RUNNABLE or (retry and status.state == "failed")


def start(run: PlannedRun, retry: bool = False, own_session: bool = True) -> Attempt | Status:
    """Start fit for a run, if it should be started (see `runs_now`).

    Returns:
        The attempt; or the status of the run if it is not to be started, or is running already.

    Raises:
        InputError: something in the run's folder is damaged.
    """
    lock = take_lock(run.folder)
    if lock is None:
        return Status("running")
    try:
        status = status_of(run, running=False)
        if runs_now(status, retry):
            attempt = Attempt(run, lock, own_session)
            lock = -1
            return attempt
        return status
    finally:
        if lock >= 0:
            os.close(lock)


def last_line(output: Path) -> str | None:
    """Return the last line of an output that is not blank; None if there is none."""
    with open(output, "rb") as file:
        file.seek(max(0, output.stat().st_size - _TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    return next((printable(line.strip()) for line in reversed(lines) if line.strip()), None)

"""The runs of a sweep as an array job on a SLURM cluster, through submitit."""

import getpass
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from moelora_ad.documents import read_json
from moelora_ad.errors import InputError, counted
from moelora_ad.files import written_whole
from moelora_ad.sweeps.attempt import Attempt, fit_command, last_line, runs_now, start
from moelora_ad.sweeps.live import LiveView
from moelora_ad.sweeps.planning import PlannedRun
from moelora_ad.sweeps.run_folder import NOTES, take_lock
from moelora_ad.sweeps.states import Status, readable_status_of, status_of
from moelora_ad.sweeps.sweep import Sweep

_PAUSE = 5.0  # seconds between two looks at the queue
_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_TIMEOUT = 60  # seconds for an answer of the controller


class Job(NamedTuple):
    """A job in the queue: its state there, and why it waits."""

    state: str
    reason: str


def check_slurm() -> None:
    """Check that jobs can be submitted from here.

    Raises:
        InputError: this is not a machine of a cluster, or submitit is not installed.
    """
    for program in ("sbatch", "squeue"):
        if shutil.which(program) is None:
            raise InputError(f"--slurm: there is no {program} here: use a machine from which SLURM jobs are submitted")
    if importlib.util.find_spec("submitit") is None:
        raise InputError("--slurm: submitit is not installed: pip install 'moelora_ad[slurm]'")


def run_on_cluster(sweep: Sweep, runs: Sequence[PlannedRun], retry: bool, view: LiveView) -> None:
    """Submit the runs that are neither finished nor in the queue, then watch until all jobs have ended.

    Args:
        sweep: the sweep, whose ``slurm`` has the resources of a job.
        runs: runs of the sweep.
        retry: whether to submit failed runs again.
        view: shows every change.

    Raises:
        InputError: SLURM does not answer, or refuses the job.
        KeyboardInterrupt: on Ctrl-C, which ends only the watching; the jobs continue.
    """
    with _submitting(sweep.folder):
        jobs, statuses = _read_jobs(sweep.folder), cluster_statuses(sweep, runs)
        chosen = [run for run in runs if runs_now(statuses[run.label], retry)]
        if chosen:
            jobs |= _submit(sweep, chosen, retry)
            _write_jobs(sweep.folder, jobs)
            array = jobs[chosen[0].label].partition("_")[0]
            view.say(f"submitted {counted(len(chosen), 'run')} as job {array}")
    while True:
        try:
            queue = _queue()
        except InputError as error:  # a controller may be down for a while; the jobs keep running
            view.say(str(error))
        else:
            for run in runs:
                view.show(run, _status(run, sweep.folder, jobs.get(run.label), queue))
            if not any(jobs.get(run.label) in queue for run in runs):
                return
        time.sleep(_PAUSE)


def cluster_statuses(sweep: Sweep, runs: Sequence[PlannedRun]) -> dict[str, Status]:
    """Return the status of each run by its label, including runs in the queue.

    Raises:
        InputError: SLURM does not answer, or something in a folder is damaged.
    """
    jobs, queue = _read_jobs(sweep.folder), _queue()
    return {run.label: _status(run, sweep.folder, jobs.get(run.label), queue) for run in runs}


def run_task(run: PlannedRun, retry: bool) -> NoReturn:
    """Run one run in a task of a job, like a sweep on this machine, with one process of fit for each task.

    A requeued job calls this again, which then resumes from the newest checkpoint. SLURM signals every process of a
    job, also the workers of a DataLoader, in which Lightning's own handler for the time limit would save and requeue as
    well. So fit ignores that signal, and this process asks it to save and end.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # inherited by fit
    first = int(os.environ.get("SLURM_PROCID", "0")) == 0
    begun = start(run, retry, own_session=False) if first else _join(run, retry)
    if isinstance(begun, Status):
        print(f"{run.label}: {begun.state}{f': {begun.reason}' if begun.reason else ''}", file=sys.stderr)
        sys.exit(0 if begun.state == "finished" else 1)
    process = begun.process if isinstance(begun, Attempt) else begun
    received: set[int] = set()

    def time_is_up(number: int, *_: object) -> None:
        received.add(number)
        process.terminate()

    signal.signal(signal.SIGUSR1, time_is_up)
    signal.signal(signal.SIGTERM, lambda number, _: received.add(number))  # fit has received it too
    process.wait()
    if isinstance(begun, Attempt):
        begun.ended(stopped=bool(received))
        if signal.SIGUSR1 in received and process.returncode:
            _requeue()
    sys.exit(0 if received else abs(process.returncode))


def _join(run: PlannedRun, retry: bool) -> "subprocess.Popen[bytes] | Status":
    """Start fit in a task that is not the first of its job. Only the first one locks the run and writes its notes; the
    others decide in the same way whether to start it."""
    status = status_of(run, running=False)
    if not runs_now(status, retry):
        return status
    return subprocess.Popen(fit_command(run), env={**os.environ, **run.environment})


def _requeue() -> None:
    """Put the job of this task into the queue again, which ends it."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    job_id = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    subprocess.run(["scontrol", "requeue", job_id], check=True, timeout=_TIMEOUT)


def _submit(sweep: Sweep, runs: Sequence[PlannedRun], retry: bool) -> dict[str, str]:
    """Submit one array job with a task for each run; return the jobs' ids by the runs' labels."""
    # submitit reads this when it is imported: the signal before the time limit is the one that Lightning waits for.
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    parameters = _parameters(sweep)
    executor = SlurmExecutor(_log_folder(sweep.folder))
    try:
        executor.update_parameters(**parameters)
        with executor.batch():
            jobs = [executor.submit(run_task, run, retry) for run in runs]
    except (ValueError, TypeError) as error:
        raise InputError.at(sweep.path, f"slurm: {' '.join(str(error).split())}") from None
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError, OSError) as error:
        raise InputError(f"SLURM refuses the job: {' '.join(str(error).split())}") from None
    return {run.label: job.job_id for run, job in zip(runs, jobs, strict=True)}


def _parameters(sweep: Sweep) -> dict[str, Any]:
    """Return the parameters of submitit's ``SlurmExecutor``, by its own names for them."""
    given = dict(sweep.slurm)
    if "tasks_per_node" in given:
        given["ntasks_per_node"] = given.pop("tasks_per_node")
    further = {"requeue": True, **(given.pop("additional_parameters", None) or {})}
    srun = [*(given.pop("srun_args", None) or []), "--kill-on-bad-exit=1"]
    if "cpus_per_task" in given:  # srun does not take it from sbatch
        srun.append(f"--cpus-per-task={given['cpus_per_task']}")
    if "time" not in given:  # submitit's default is five minutes
        raise InputError.at(sweep.path, "slurm.time is missing: give the time limit of a job, like 24:00:00")
    given["time"] = _minutes(given["time"], sweep.path)
    return {"job_name": sweep.folder.name, **given, "additional_parameters": further, "srun_args": srun}


def _minutes(time_limit: Any, path: Path) -> int:
    """Return the minutes, rounded up, of a time limit in one of SLURM's forms: minutes, minutes:seconds,
    hours:minutes:seconds, days-hours[:minutes[:seconds]]."""
    days, dash, rest = str(time_limit).rpartition("-")
    try:
        parts = [int(part) for part in rest.split(":")]
        if dash:
            hours, minutes, seconds = (*parts, 0, 0)[:3]
        else:
            hours, minutes, seconds = {1: (0, *parts, 0), 2: (0, *parts), 3: tuple(parts)}[len(parts)]
        return (int(days or 0) * 24 + hours) * 60 + minutes + (seconds > 0)
    except (ValueError, KeyError):
        raise InputError.at(path, f"slurm.time must be like 24:00:00 or 2-12:00:00, not {time_limit!r}") from None


def _status(run: PlannedRun, folder: Path, job_id: str | None, queue: Mapping[str, Job]) -> Status:
    """Return the status of a run: by the queue while its job is there, by its folder afterwards."""
    job = queue.get(job_id or "")
    if job is not None:
        record = readable_status_of(run, running=True).record
        if job.state in _WAITING:
            return Status("queued", f"job {job_id}, {job.reason}", record)
        return Status("running", f"job {job_id}", record)
    status = readable_status_of(run)
    if status.state == "waiting" and job_id is not None:
        output = _log_folder(folder) / f"{job_id}_0_log.err"
        reason = (last_line(output) if output.exists() else None) or f"see {output}"
        return Status("failed", f"job {job_id} ended before the run began: {reason}")
    return status


def _queue() -> dict[str, Job]:
    """The jobs of this user in the queue, by id."""
    command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i|%T|%r"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT).stdout
    except (OSError, subprocess.SubprocessError) as error:
        words = getattr(error, "stderr", None) or str(error)
        raise InputError(f"SLURM does not answer: {' '.join(str(words).split())}") from None
    lines = (line.strip().split("|", 2) for line in told.splitlines() if line.count("|") >= 2)
    return {job_id: Job(state, reason) for job_id, state, reason in lines}


@contextmanager
def _submitting(folder: Path) -> Iterator[None]:
    """Lock the folder of a sweep, so that only one process at a time submits runs into it."""
    lock = take_lock(folder)
    if lock is None:
        raise InputError(f"{folder}: another sweep is submitting runs just now: try again")
    try:
        yield
    finally:
        os.close(lock)


def _read_jobs(folder: Path) -> dict[str, str]:
    """Ids of the jobs that were submitted last, by the runs' labels."""
    path = folder / NOTES
    try:
        content = read_json(path)
        return {str(label): str(job_id) for label, job_id in content["jobs"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError.at(path, "is damaged: see which jobs are in the queue (squeue), then delete it") from None


def _write_jobs(folder: Path, jobs: Mapping[str, str]) -> None:
    with written_whole(folder / NOTES) as path:
        path.write_text(json.dumps({"format": 1, "jobs": jobs}, indent=2) + "\n", encoding="utf-8")


def _log_folder(folder: Path) -> Path:
    return folder / "slurm"

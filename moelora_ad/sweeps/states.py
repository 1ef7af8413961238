"""How far each run of a sweep is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from moelora_ad.errors import InputError
from moelora_ad.sweeps.planning import PlannedRun
from moelora_ad.sweeps.run_folder import is_running, read_notes, resumable

if TYPE_CHECKING:
    from moelora_ad.runs.record import RunRecord

State = Literal["waiting", "queued", "running", "finished", "interrupted", "cut off", "failed", "differs"]
_SIGNALLED = (130, 143)  # 128 + SIGINT, 128 + SIGTERM


@dataclass(frozen=True)
class Status:
    """The state of a run.

    Attributes:
        state: "cut off": the run was killed; "differs": it has figures of another configuration than the sweep's;
            "queued": its job waits in SLURM's queue.
        reason: why the run failed or differs, in one line; for "queued" and "running" the job, if known.
        record: record of the run; None before there is one.
    """

    state: State
    reason: str | None = None
    record: "RunRecord | None" = None


def status_of(run: PlannedRun, running: bool | None = None) -> Status:
    """Return the status of a run by the content of its folder.

    Args:
        run: a run of a sweep.
        running: whether it runs now; None to check its lock.

    Raises:
        InputError: a record, a note or a configuration file is damaged.
    """
    if not run.folder.is_dir():
        return Status("waiting")
    record = _record(run)
    if is_running(run.folder) if running is None else running:
        return Status("running", None, record)
    notes = read_notes(run.folder)
    if notes is None and record is None:
        return Status("waiting")
    has_figures = (record is not None and record.state == "finished") or resumable(run.folder) is not None
    if notes is not None and has_figures:
        changed = _difference(notes.identity, run.identity())
        if changed is not None:
            return Status("differs", changed, record)
    exit_code = None if notes is None else notes.exit_code
    if record is not None and record.state == "finished" and not exit_code:
        return Status("finished", None, record)
    if exit_code in _SIGNALLED:
        return Status("interrupted", None, record)
    if exit_code is not None and exit_code > 0:
        reason = None if notes is None else notes.reason
        return Status("failed", reason or f"exit code {exit_code}", record)
    if exit_code is None and record is not None and record.state in ("failed", "interrupted"):
        return Status(record.state, record.reason, record)
    return Status("cut off", None, record)


def readable_status_of(run: PlannedRun, running: bool | None = None) -> Status:
    """`status_of`, except that a run with a damaged file in its folder is a failed run, which does not stop others."""
    try:
        return status_of(run, running)
    except InputError as error:
        return Status("failed", str(error))


def _record(run: PlannedRun) -> "RunRecord | None":
    if not (run.folder / "run.json").exists():
        return None
    # Imported here because it takes a second or two, which a sweep that has not begun does without.
    from moelora_ad.runs.record import read_record

    return read_record(run.folder)


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first difference between two identities, in words; None if there is none. Configuration files are compared by
    their contents: they may have been moved."""
    if [*now["configs"].values()] != [*before["configs"].values()]:
        for path in [*now["configs"], *before["configs"]]:
            old, new = before["configs"].get(path), now["configs"].get(path)
            if old != new:
                return f"{path} {'is new' if old is None else 'is gone' if new is None else 'changed'}"
        return "the configuration files have another order"
    for name in {**now["options"], **before["options"]}:
        old, new = before["options"].get(name, "not given"), now["options"].get(name, "not given")
        if old != new:
            return f"{name} was {old}, is {new}"
    return None

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
        state: "cut off" was killed; "differs" has figures of another configuration than the sweep's; "queued" is up
            to SLURM.
        reason: of a failure, in one line; for "queued" and "running" the job, if known.
        record: of the run; None before there is one.
    """

    state: State
    reason: str | None = None
    record: "RunRecord | None" = None


def status_of(run: PlannedRun, running: bool | None = None) -> Status:
    """The state of a run by the content of its folder.

    Args:
        run: of a sweep.
        running: whether it runs now, if the caller knows.

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
    """`status_of`, but a damaged file in its folder makes a run a failed one: it does not stop the others."""
    try:
        return status_of(run, running)
    except InputError as error:
        return Status("failed", str(error))


def _record(run: PlannedRun) -> "RunRecord | None":
    if not (run.folder / "run.json").exists():
        return None
    # It imports torch, which takes seconds; a sweep that has not begun answers at once.
    from moelora_ad.runs.record import read_record

    return read_record(run.folder)


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first difference between two identities, in words; None if there is none."""
    for path in [*now["configs"], *before["configs"]]:
        if before["configs"].get(path) != now["configs"].get(path):
            verb = "is new" if path not in before["configs"] else "is gone" if path not in now["configs"] else "changed"
            return f"{path} {verb}"
    if list(before["configs"]) != list(now["configs"]):
        return "the configuration files have another order"
    for name in {**now["options"], **before["options"]}:
        old, new = before["options"].get(name, "not given"), now["options"].get(name, "not given")
        if old != new:
            return f"{name} was {old}, is {new}"
    return None

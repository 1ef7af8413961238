"""Training runs that are stopped at random moments and started again until they end: is anything lost?

    python benchmarks/kills.py [--kills 100] [--seed 1]

A small run is made once by the command line, uninterrupted: a Wav2Vec2 encoder of two layers with random weights, six
epochs of four steps on the quickstart's speech, two batches to a step, two validations and checkpoints an epoch, and a
test. The others are the same run with 0 or 1 reading process, each stopped again and again: by ``kill -9`` at a random
moment, or at a random call that writes, flushes, renames or deletes; by SIGTERM; by Ctrl-C; by SIGTERM with ``kill -9``
soon after, as a cluster does it. It is started again as a user would, with ``--ckpt_path last`` once there is a
checkpoint. After each stop, every file under a final name must be complete. At the end, everything must be as in the
first run: weights, optimiser and scores bit for bit, the record, and the names of all files, with nothing left over but
the checkpoint of an interruption.

The runs are processes forked from this one, so that no start takes the seconds that imports need.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from small_run import write_config

import moelora_ad.cli.lightning_cli.detection_command  # noqa: F401  # before the processes are forked
from moelora_ad.cli.main import main as moelora_ad_main
from moelora_ad.errors import InputError
from moelora_ad.files import UNFINISHED, file_hash
from moelora_ad.models.saving.checkpoints import check_readable
from moelora_ad.training.callbacks.checkpoints import INTERRUPTED

RUN = Path("runs", "small", "run")  # below a run's working folder
KINDS = ("KILL at a moment", "KILL at a write", "TERM", "INT", "TERM, then KILL")
WRITING = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "fcntl.flock"}
TERMINATED = {128 + signal.SIGTERM, -signal.SIGTERM}  # the second before and after main; to a shell they are the same
PATIENCE = 120.0  # seconds after which a run that was told to end, or is not stopped at a moment, counts as hanging
# Fields of the record that are compared; the others are times, attempts and facts about the machine.
RECORDED = ("state", "system", "seed", "epoch", "step", "dev_eer", "best_dev_eer", "sets", "checkpoint", "scores")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="in all runs together (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default: 1)")
    given = parser.parse_args()
    draws, begun = random.Random(given.seed), time.monotonic()
    told: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        config = write_config(Path(scratch))
        whole = Path(scratch, "whole")
        whole.mkdir()
        command = [sys.executable, "-m", "moelora_ad", *arguments(config, whole, workers=0)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        subprocess.run(command, cwd=whole, env=environment, check=True, stdout=subprocess.DEVNULL)
        expected = outcome(whole / RUN)
        writes, seconds = measured(config, Path(scratch, "counted"))
        print(f"a run left alone: {seconds:.1f} s without imports, {writes} calls that write", flush=True)
        while stops(told) < given.kills:
            told["runs"] += 1
            folder = Path(scratch, f"run_{told['runs']}")
            folder.mkdir()
            workers = told["runs"] % 2
            faults = run_to_the_end(folder, config, workers, draws, told, given.kills, (writes, seconds))
            if not faults:
                found = outcome(folder / RUN)
                for what in [name for name in expected if found[name] != expected[name]]:
                    told[f"other {what}"] += 1
                    faults.append(f"other {what}: {difference(found[what], expected[what])}")
            for fault in faults:
                print(f"run {told['runs']}, {workers} workers: {fault}", file=sys.stderr, flush=True)
            print(f"run {told['runs']}: {stops(told)} stops, {time.monotonic() - begun:.0f} s", flush=True)
    print_table(told, list(expected), time.monotonic() - begun)
    return 1 if told["faults"] or any(told[f"other {what}"] for what in expected) else 0


def arguments(config: Path, folder: Path, workers: int) -> list[str]:
    """The command line's arguments that start the run of a folder, or resume it."""
    given = ["fit", "--config", str(config), "--data.num_workers", str(workers)]
    return given + (["--ckpt_path", "last"] if list((folder / RUN).glob("checkpoints/last*.ckpt")) else [])


def run_to_the_end(
    folder: Path,
    config: Path,
    workers: int,
    draws: random.Random,
    told: Counter[str],
    kills: int,
    length: tuple[int, float],
) -> list[str]:
    """Start a run again and again until it ends, stopping it at random moments and at random calls that write, within
    its ``length`` (calls, seconds); return what was wrong."""
    writes, seconds = length
    while True:
        given = arguments(config, folder, workers)
        told["starts"] += 1
        told["resumed"] += "--ckpt_path" in given
        kind = draws.choice(KINDS) if stops(told) < kills else None
        call = draws.randrange(writes) if kind == "KILL at a write" else None
        process = started(given, folder, None if call is None else lambda left=call: die_at(left))
        moment = draws.uniform(0, 0.7 * seconds) if kind and call is None else PATIENCE
        process.join(moment)
        if process.exitcode is None:
            code = stop(process, kind, draws)
        else:
            code, kind = process.exitcode, kind if process.exitcode == -signal.SIGKILL else None
        if code == 0 and (kind not in ("TERM", "INT") or is_finished(folder / RUN)):  # the stop came too late
            kind = None
        with suppress(ProcessLookupError):  # workers that outlived the run
            os.killpg(process.pid, signal.SIGKILL)
        if kind is not None:
            told[kind] += 1
        words = (folder / "stderr").read_text()
        allowed = {None: {0}, "TERM": TERMINATED, "INT": {130}, "TERM, then KILL": TERMINATED | {-signal.SIGKILL}}.get(
            kind, {-9}
        )
        faults = [f"{name} is {why}" for name, why in half_files(folder / RUN)]
        told["half files"] += len(faults)
        # After a kill -9, workers may print an error because their run is gone.
        if code not in allowed or (code != -signal.SIGKILL and "Traceback" in words):
            faults.append(f"exit code {code} after {kind}, {given[-2:]}: {words[-3_000:]}")
        told["faults"] += bool(faults)
        if code == 0 or faults:
            return faults


def started(given: list[str], folder: Path, prepare: Callable[[], None] | None = None) -> multiprocessing.Process:
    """Start the command line with these arguments, as a process of a group of its own, in a working folder."""

    def run() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a process started in the background ignores SIGINT
        os.setsid()
        os.chdir(folder)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
        sys.argv = ["moelora-ad", *given]
        if prepare is not None:
            prepare()
        sys.exit(moelora_ad_main())

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def stop(process: multiprocessing.Process, kind: str | None, draws: random.Random) -> int:
    """Stop a process, alone or with its group, wait for its end, and return its exit code."""
    number = {"TERM": signal.SIGTERM, "INT": signal.SIGINT}.get((kind or "").partition(",")[0], signal.SIGKILL)
    with suppress(ProcessLookupError):
        (os.kill if draws.random() < 0.5 else os.killpg)(process.pid, number)
    process.join(draws.uniform(0, 0.5) if kind == "TERM, then KILL" else PATIENCE)
    if process.exitcode is None:
        process.kill()
        process.join()
        return process.exitcode if kind == "TERM, then KILL" else -999
    return process.exitcode


def calls_that_write(count: Callable[[], None]) -> None:
    """Call ``count`` before each call of this process that writes, flushes, renames, creates or deletes."""
    own = os.getpid()

    def is_writing(event: str, details: tuple) -> bool:
        if event == "open":
            return bool(details[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        return event in WRITING

    sys.addaudithook(lambda event, details: count() if is_writing(event, details) and os.getpid() == own else None)
    for name in ("write", "fsync"):
        real = getattr(os, name)
        setattr(os, name, lambda *given, real=real: (count(), real(*given))[1])


def die_at(left: int) -> None:
    """Kill this process before a call that writes, after ``left`` others."""

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    calls_that_write(count)


def measured(config: Path, folder: Path) -> tuple[int, float]:
    """The number of calls that write in an uninterrupted run, and the seconds that it takes."""
    folder.mkdir()
    calls = multiprocessing.Value("l", 0)

    def count() -> None:
        calls.value += 1

    begun = time.monotonic()
    process = started(arguments(config, folder, workers=0), folder, lambda: calls_that_write(count))
    process.join()
    if process.exitcode:
        raise SystemExit((folder / "stderr").read_text())
    return calls.value, time.monotonic() - begun


def is_finished(run: Path) -> bool:
    """Whether a run is recorded as finished."""
    return (run / "run.json").is_file() and json.loads((run / "run.json").read_text())["state"] == "finished"


def half_files(run: Path) -> list[tuple[str, str]]:
    """Files under a final name that are incomplete, and why."""
    faults = []
    for path in run.rglob("*"):
        name = str(path.relative_to(run))
        try:
            if path.name.startswith(UNFINISHED) or not path.is_file():
                continue
            if path.suffix == ".ckpt":
                check_readable(str(path))
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".yaml":
                assert yaml.safe_load(path.read_text())["data"]
        except (InputError, ValueError, TypeError, KeyError, AssertionError) as error:
            faults.append((name, f"half a file: {error}"))
    return faults


def outcome(run: Path) -> dict[str, dict[str, Any]]:
    """What must be the same in two runs that have ended."""
    record = json.loads((run / "run.json").read_text())
    # An interrupted run also has the checkpoint of its interruption.
    files = [path for path in run.rglob("*") if path.is_file() and path.name != INTERRUPTED]
    tensors = {}
    for path in [path for path in files if path.suffix == ".ckpt"]:
        saved = torch.load(path, weights_only=True)
        for name, value in flat({part: saved[part] for part in ("state_dict", "optimizer_states")}):
            tensors[f"{path.name} {name}"] = value
    return {
        "weights": tensors,
        "scores": {str(path.relative_to(run)): file_hash(path) for path in run.glob("scores/**/*.csv")},
        "records": {name: record[name] for name in RECORDED},
        "files": {str(path.relative_to(run)): True for path in files},
    }


def flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """The leaves of nested values, tensors as bytes."""
    if isinstance(value, torch.Tensor):
        return [(name, value.contiguous().numpy().tobytes())]
    if isinstance(value, dict | list | tuple):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return [leaf for key, part in parts for leaf in flat(part, f"{name}.{key}".lstrip("."))]
    return [(name, value)]


def difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """The names of what differs, as text."""
    differing = [name for name in found | expected if found.get(name) != expected.get(name)]
    told = [
        f"{name} is {'more' if name not in expected else 'missing' if name not in found else 'another'}"
        for name in differing
    ]
    return ", ".join(told[:8]) + (f" and {len(told) - 8} more" if len(told) > 8 else "")


def stops(told: Counter[str]) -> int:
    return sum(told[kind] for kind in KINDS)


def print_table(told: Counter[str], parts: list[str], seconds: float) -> None:
    rows = [("runs", told["runs"]), ("starts", told["starts"]), ("of these with --ckpt_path last", told["resumed"])]
    rows += [("stops", stops(told)), *((f"  {kind}", told[kind]) for kind in KINDS)]
    rows += [(f"runs with other {what}", told[f"other {what}"]) for what in parts]
    rows += [("half files", told["half files"]), ("runs given up for a fault", told["faults"])]
    for name, count in [*rows, ("seconds", round(seconds))]:
        print(f"{name:32}{count:>6,}")


if __name__ == "__main__":
    raise SystemExit(main())

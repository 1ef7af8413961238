"""The command sweep: a grid of training runs over systems and seeds."""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence

from moelora_ad.cli.arguments import FAILED, OneLineArgumentParser
from moelora_ad.cli.terminal import print_table
from moelora_ad.errors import InputError, printable
from moelora_ad.sweeps.attempt import runs_now
from moelora_ad.sweeps.foreground import run_alone
from moelora_ad.sweeps.live import LiveView, counts, status_line
from moelora_ad.sweeps.local import run_here
from moelora_ad.sweeps.planning import PlannedRun, choose, plan_runs
from moelora_ad.sweeps.run_folder import resumable
from moelora_ad.sweeps.slurm import check_slurm, cluster_statuses, run_on_cluster
from moelora_ad.sweeps.states import Status, readable_status_of
from moelora_ad.sweeps.sweep import Sweep, read_sweep
from moelora_ad.sweeps.wandb_agent import agent_configuration

_BAD = ("failed", "differs", "cut off", "interrupted")


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the command with its arguments ``argv[1:]``; returns the exit code: 1 if a run failed or was refused."""
    parser = _parser(f"{program} sweep")
    given = parser.parse_args(argv[1:])
    _check(parser, given)
    try:
        sweep = read_sweep(given.sweep)
        planned = plan_runs(sweep)
        chosen = choose(planned, given.only) if given.only else planned
        if given.run is not None:
            chosen = [run for run in planned if run.label == given.run]
            if not chosen:
                raise InputError(f"--run: no run {given.run!r}; the first one is {planned[0].label!r}")
        if given.slurm:
            check_slurm()
        if given.wandb_agent_config:
            print(agent_configuration(sweep, chosen), end="")
            return 0
    except InputError as error:
        parser.error(str(error))
    try:
        if given.dry_run:
            statuses = (
                cluster_statuses(sweep, chosen)
                if given.slurm
                else {run.label: readable_status_of(run) for run in chosen}
            )
            _show_plan(chosen, statuses, given.retry, program)
            print(f"# to check keys and values first: {program} configs validate {shlex.quote(given.sweep)}")
            return 0
        if given.run is not None:
            return run_alone(chosen[0], given.retry)
        return _run(sweep, chosen, given, program)
    except InputError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt as stop:
        stop.args = ("the same command resumes it",)
        raise


def _parser(program: str) -> OneLineArgumentParser:
    parser = OneLineArgumentParser(prog=program, description=__doc__)
    add = parser.add_argument
    add("sweep", metavar="SWEEP.yaml", help="systems, options and seeds")
    add("--dry-run", action="store_true", help="show what would run and what not, and why")
    add("--jobs", type=_positive, metavar="N", help="runs at once here, each on a GPU of its own (default: 1)")
    add(
        "--only",
        nargs="+",
        default=(),
        metavar="PATTERN",
        help="runs by SYSTEM or SYSTEM/seed_S; * stands for anything",
    )
    add(
        "--slurm", action="store_true", help="submit the runs as an array job, and watch them; Ctrl-C ends the watching"
    )
    add("--run", metavar="SYSTEM/seed_S", help="one run, in the foreground, with its output")
    add(
        "--wandb-agent-config",
        action="store_true",
        help="print a configuration for wandb sweep, whose agents do the runs",
    )
    add("--retry", action="store_true", help="try again what has failed")
    return parser


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    if given.slurm and given.jobs is not None:
        parser.error("--jobs is for this machine; for --slurm set array_parallelism under slurm in the file")
    if given.run is not None and (given.slurm or given.only or given.jobs is not None):
        parser.error("--run takes neither --slurm nor --only nor --jobs")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _run(sweep: Sweep, runs: Sequence[PlannedRun], given: argparse.Namespace, program: str) -> int:
    # This imports torch now: an interruption while it loads later would be a crash.
    from moelora_ad.sweeps.ending import runs_table

    view = LiveView(runs, {run.label: readable_status_of(run) for run in runs})
    try:
        with view:
            if given.slurm:
                run_on_cluster(sweep, runs, given.retry, view)
            else:
                run_here(runs, given.jobs or 1, given.retry, view)
    except KeyboardInterrupt:
        still = "; the jobs keep running" if given.slurm else ""
        print(f"{program} sweep: {counts(list(view.statuses.values()))}{still}", file=sys.stderr)
        raise
    left = [view.statuses[run.label] for run in runs]
    print_table(runs_table(runs, left))
    bad = [(run, status) for run, status in zip(runs, left, strict=True) if status.state in _BAD]
    for run, status in bad:
        print(f"{program} sweep: error: {printable(_line(run, status))}", file=sys.stderr)
    if any(status.state == "finished" for status in left):
        print(f"next: {program} results {shlex.quote(str(sweep.folder))}")
    return FAILED if bad else 0


def _show_plan(runs: Sequence[PlannedRun], statuses: Mapping[str, Status], retry: bool, program: str) -> None:
    """Print each run's command line, ready to be copied; runs that will not start are comments."""
    for run in runs:
        status = statuses[run.label]
        if runs_now(status, retry):
            checkpoint = resumable(run.folder)
            print(f"# {printable(status_line(run, status))}{f'; resumes from {checkpoint}' if checkpoint else ''}")
            variables = [f"{name}={value}" for name, value in run.environment.items()]
            before = ["env", *variables] if variables else []
            print(shlex.join([*before, *program.split(), *run.arguments(checkpoint)]))
        else:
            print(f"# {printable(_line(run, status))}; does not run")


def _line(run: PlannedRun, status: Status) -> str:
    line = status_line(run, status)
    if status.state == "differs":
        return f"{line}: undo that, or move or delete {run.folder} to run it from scratch"
    if status.state in ("cut off", "interrupted"):
        return f"{line}: the same command resumes it"
    if status.state == "failed":
        return f"{line}: see {run.folder if run.folder.exists() else 'there'}, then give --retry"
    return line

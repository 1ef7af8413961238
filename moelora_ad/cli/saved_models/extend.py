"""The command extend: an expert for a new attack, beside those that a model has, which stay as they are."""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moelora_ad.cli.arguments import FAILED, OneLineArgumentParser, check_folder
from moelora_ad.configuration.trust import add_allow
from moelora_ad.errors import InputError, printable

if TYPE_CHECKING:
    from moelora_ad.evaluation.score_table import ScoreTable
    from moelora_ad.sweeps.planning import PlannedRun
    from moelora_ad.sweeps.states import Status

_EXAMPLE = """FILE has the part data of a configuration, and nothing else:

  data:
    train:
      new: CORPUS        # of the new attack, with bona fide speech
      replay: CORPUS     # some old training data, if there is any; data.train_weights has the shares (default: half)
    val: CORPUS          # development set, looked at when all steps are done
    test:
      new: CORPUS        # the new attack: new, or new_NAME for several
      old_attacks: CORPUS
      ...

see experiments/extend/new_attack.yaml. The same by hand: model.init_weights and model.adaptation.init_args.extend."""


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the command with its arguments ``argv[1:]``; returns the exit code: 1 if a run failed."""
    parser = _parser(f"{program} extend")
    given = parser.parse_args(argv[1:])
    _check(parser, given)
    try:
        return _extend(given, program)
    except InputError as error:
        parser.error(str(error))
    except KeyboardInterrupt as stop:
        stop.args = ("the same command resumes it",)
        raise


def _parser(program: str) -> OneLineArgumentParser:
    parser = OneLineArgumentParser(
        prog=program, description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="the folder of a model, its id on the hub, or the name of a packaged one")
    add("--data", required=True, metavar="FILE", help="the new attack, and the test sets: a file as below, or a name")
    add("--to", required=True, metavar="DIR", help="folder of the new model; one that is there is replaced")
    add("--few", type=int, metavar="N", help="draw N spoofs and N bona fide trials of what is new (default: all)")
    add("--seed", type=int, default=1, help="fixes what is drawn, weights and order (default: 1)")
    training = parser.add_argument_group("training")
    add = training.add_argument
    add("--steps", type=int, default=100, metavar="N", help="optimiser steps of each run (default: 100)")
    add("--start", type=float, default=0.5, metavar="W", help="weight of the new expert at first (default: 0.5)")
    add("--train-gates", action="store_true", help="train the old experts' gate rows too")
    add("--train-classifier", action="store_true", help="train the classifier too")
    add(
        "--tether",
        type=float,
        metavar="W",
        help="weight of the loss that keeps scores near the old model's, 0 for none (default: 0.3, and 0 with replay)",
    )
    add(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="a configuration, or a packaged one's name, that changes those of the runs; may be repeated",
    )
    add("--jobs", type=int, default=1, metavar="N", help="runs at once (default: 1)")
    add("--retry", action="store_true", help="try again what has failed")
    add("--alone", action="store_true", help="do not train what the extension is compared with")
    places = parser.add_argument_group("places")
    add = places.add_argument
    add("--backbone", metavar="DIR", help="the frozen encoder, if it is not where the model says")
    add("--runs", metavar="DIR", help="folder of the training runs (default: runs/extend/NAME, of --to DIR/NAME)")
    add("--report", metavar="DIR", help="write extension.json, .csv and .md there (default: DIR_report, of --to DIR)")
    add_allow(parser)
    return parser


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    for option in ("few", "steps", "jobs"):
        value = getattr(given, option)
        if value is not None and value < 1:
            parser.error(f"--{option}: {value} is below 1")
    if given.seed < 0:
        parser.error(f"--seed: {given.seed} is negative")
    if not 0 < given.start < 1:
        parser.error(f"--start: must be above 0 and below 1, not {given.start}")
    if given.tether is not None and not (given.tether >= 0 and math.isfinite(given.tether)):
        parser.error(f"--tether: must be 0 or more, not {given.tether}")
    check_folder(parser, "--report", _report_folder(given))


def _extend(given: argparse.Namespace, program: str) -> int:
    from moelora_ad.cli.lightning_cli.model_folder import model_parts, segment_of
    from moelora_ad.cli.saved_models.export import check_target
    from moelora_ad.cli.saved_models.extension_runs import EXTENDED, Options, configurations, read_data
    from moelora_ad.configuration.packaged import existing_configuration
    from moelora_ad.models.saving.loading import folder_of

    given.data, *given.config = map(existing_configuration, (given.data, *given.config))
    target, model = Path(given.to), folder_of(given.model)
    check_target(target)
    if target.resolve() == model.resolve():
        raise InputError(f"--to: {target} is the model that is extended: give another folder")
    config, parts = model_parts(model, given.allow, given.backbone)
    options = Options(
        given.few, given.steps, given.seed, given.start, given.train_gates, given.train_classifier, given.tether
    )
    data = read_data(given.data, options, segment_of(config))
    made = configurations(model, parts, config["precision"], data, options)
    folder = Path(given.runs) if given.runs else Path("runs", "extend", target.absolute().name)
    runs = _planned(made if not given.alone else {EXTENDED: made[EXTENDED]}, folder, given)
    _check_configurations(runs)
    _refuse_in_vain(runs, given.retry)
    code = _score_before(runs[0], model, folder / "before", given, program)
    if code:
        return code
    statuses = _train(runs, given)
    failed = {name: status for name, status in statuses.items() if status.state != "finished"}
    for name, status in failed.items():
        print(f"{program} extend: error: {printable(_failure(runs, name, status))}", file=sys.stderr)
    if EXTENDED in failed:
        return FAILED
    record = statuses[EXTENDED].record
    assert record is not None
    assert record.checkpoint_path is not None
    code = _export(record.checkpoint_path, given, program)
    _report(statuses, folder / "before", [*data["test"]], given, model, made)
    return code or (FAILED if failed else 0)


def _planned(made: Mapping[str, object], folder: Path, given: argparse.Namespace) -> "list[PlannedRun]":
    """The planned runs; their configurations are written into ``folder``."""
    import yaml

    from moelora_ad.files import written_whole
    from moelora_ad.sweeps.planning import PlannedRun

    runs = []
    for name, configuration in made.items():
        path = folder / f"{name}.yaml"
        with written_whole(path) as unfinished:
            unfinished.write_text(yaml.safe_dump(configuration, sort_keys=False), encoding="utf-8")
        configs = (str(path), *given.config)
        runs.append(PlannedRun(name, given.seed, folder / name / f"seed_{given.seed}", configs))
    return runs


def _check_configurations(runs: "Sequence[PlannedRun]") -> None:
    """Stop before anything is scored if a configuration of ``--config`` is faulty; all are trusted, as for fit."""
    from moelora_ad.cli.lightning_cli.validation import problems_of

    for problem in filter(None, problems_of([run.configs for run in runs], None).values()):
        raise InputError(problem)


def _refuse_in_vain(runs: "Sequence[PlannedRun]", retry: bool) -> None:
    """Stop before anything is trained if a run would be refused at the end: one of other settings, or the extension
    itself, if it has failed and is not to be tried again."""
    from moelora_ad.cli.saved_models.extension_runs import EXTENDED
    from moelora_ad.sweeps.states import readable_status_of

    for run in runs:
        status = readable_status_of(run)
        if status.state == "differs" or (status.state == "failed" and run.system == EXTENDED and not retry):
            raise InputError(_failure(runs, run.system, status))


def _score_before(run: "PlannedRun", model: Path, to: Path, given: argparse.Namespace, program: str) -> int:
    """Score the test sets with the model as it is; existing scores are not computed again."""
    from moelora_ad.cli import fit

    configs = [word for path in run.configs for word in ("--config", path)]
    print(f"before: {model}", flush=True)
    scored = ["--ckpt_path", str(model), "--score_folder", str(to), *_found(given)]
    return fit.run(["test", *configs, *scored], program)


def _found(given: argparse.Namespace) -> list[str]:
    """Options that say where the model's encoder and classes are."""
    backbone = ["--backbone", given.backbone] if given.backbone else []
    return backbone + [word for package in given.allow for word in ("--allow", package)]


def _train(runs: "Sequence[PlannedRun]", given: argparse.Namespace) -> "dict[str, Status]":
    from moelora_ad.sweeps.live import LiveView
    from moelora_ad.sweeps.local import run_here
    from moelora_ad.sweeps.states import readable_status_of

    view = LiveView(runs, {run.label: readable_status_of(run) for run in runs})
    with view:
        run_here(runs, given.jobs, given.retry, view)
    return {run.system: readable_status_of(run) for run in runs}


def _failure(runs: "Sequence[PlannedRun]", name: str, status: "Status") -> str:
    run = next(run for run in runs if run.system == name)
    why = f": {status.reason}" if status.reason else ""
    remedies = {"failed": "then give --retry", "differs": "or give another --to, or other --runs"}
    what = remedies.get(status.state, "the same command resumes it")
    return f"{name}: {status.state}{why}; see {run.folder}, {what}"


def _export(checkpoint: Path, given: argparse.Namespace, program: str) -> int:
    from moelora_ad.cli.saved_models import export

    return export.run(["export", "--checkpoint", str(checkpoint), "--to", given.to, *_found(given)], program)


def _report(
    statuses: "Mapping[str, Status]",
    before: Path,
    sets: Sequence[str],
    given: argparse.Namespace,
    model: Path,
    made: Mapping[str, object],
) -> None:
    from moelora_ad.cli.saved_models.extension_runs import WORDS, is_new, why_not
    from moelora_ad.cli.terminal import print_line, print_table
    from moelora_ad.evaluation.comparison.forgetting import changes, changes_table, write_changes

    ways: dict[str, Mapping[str, ScoreTable] | str] = {}
    for name, words in WORDS.items():
        status = statuses.get(name)
        if status is None:
            ways[words] = why_not(name, made)
        elif status.state != "finished" or status.record is None or status.record.score_folder is None:
            ways[words] = status.state
        else:
            ways[words] = _scores(status.record.score_folder, sets)
    found = changes(_scores(before, sets), ways, [name for name in sets if is_new(name)])
    print_table(changes_table(found))  # first: it is not lost if the folder cannot be written
    folder = _report_folder(given)
    about = {name: value for name, value in vars(given).items() if value not in (None, [], False)}
    write_changes(found, folder, about | {"model": str(model)})
    print_line(f"report: {folder}")


def _report_folder(given: argparse.Namespace) -> Path:
    return Path(given.report) if given.report else Path(f"{Path(given.to)}_report")


def _scores(folder: Path, sets: Sequence[str]) -> "dict[str, ScoreTable]":
    from moelora_ad.evaluation.score_table import ScoreTable

    return {name: ScoreTable.read(folder / f"{name}.csv") for name in sets}

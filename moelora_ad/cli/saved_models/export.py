"""The command export: a model folder to keep and to share, from a checkpoint of a run or from another model."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import yaml

from moelora_ad.cli.arguments import FAILED, OneLineArgumentParser
from moelora_ad.cli.imports import at_once
from moelora_ad.configuration.trust import add_allow
from moelora_ad.errors import InputError

if TYPE_CHECKING:
    from moelora_ad.models import Detector


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the command with its arguments ``argv[1:]``; returns the exit code."""
    parser = OneLineArgumentParser(prog=f"{program} export", description=__doc__)
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="checkpoint of a run, best the one that fit names at its end; or a model: its folder, or a packaged "
        "one's name",
    )
    parser.add_argument("--to", required=True, metavar="DIR", help="folder of the model; one that is there is replaced")
    parser.add_argument(
        "--config", action="append", metavar="FILE", help="configuration of the run (default: RUN/config.yaml)"
    )
    parser.add_argument("--backbone", metavar="DIR", help="the frozen encoder, if it is not where the run found it")
    packing = parser.add_mutually_exclusive_group()
    packing.add_argument(
        "--with-backbone",
        action="store_true",
        default=None,
        help="put the frozen encoder into the model's folder (default: below 50 million weights, 200 MB)",
    )
    packing.add_argument("--without-backbone", dest="with_backbone", action="store_false", help="leave it out")
    parser.add_argument(
        "--scores",
        nargs="+",
        metavar="FILE",
        help="its score files, for the model card (default: those of the run, if the checkpoint is its best one)",
    )
    parser.add_argument("--licence", metavar="ID", help="licence of the weights, for example cc-by-4.0")
    parser.add_argument(
        "--about",
        metavar="FILE",
        help="YAML that describes the model: notice (shown with every score), licence, limits, recordings",
    )
    parser.add_argument("--calibrate", metavar="FILE", help="development score file to fit a calibration on")
    parser.add_argument("--onnx", action="store_true", help="write model.onnx too")
    add_allow(parser)
    arguments = parser.parse_args(argv[1:])
    try:
        return _export(program, arguments)
    except InputError as error:
        parser.error(str(error))


def _export(program: str, arguments: argparse.Namespace) -> int:
    from moelora_ad.models.precision import SINGLE
    from moelora_ad.models.saving.files import CONFIG, ONNX, read_config

    folder = Path(arguments.to)
    check_target(folder, arguments.onnx)
    before = read_config(folder) if (folder / CONFIG).is_file() else None
    detector = _detector(arguments)
    about = dict(detector.about or {}) | (_told(arguments.about) if arguments.about else {})
    scores, note = _scores(arguments)
    notes = []
    if arguments.calibrate or scores:
        from moelora_ad.cli.saved_models.calibrate import (
            Identity,
            check_model,
            figures_of_sets,
            fitted,
            labelled,
            notes_on,
            precision_of,
            recorded_beside,
        )

        model = Identity(lambda: detector)
        for path in arguments.scores or ():
            check_model(path, recorded_beside(path), model)
        development = calibration = None
        if arguments.calibrate:
            development, recorded = labelled(arguments.calibrate), recorded_beside(arguments.calibrate)
            notes = notes_on(arguments.calibrate, development, recorded, model)
            calibration = fitted(development, arguments.calibrate, precision_of(recorded))
            detector.calibration = calibration.as_dict()
        try:
            about["results"] = figures_of_sets(scores, calibration, development)
        except InputError as error:
            if arguments.scores:
                raise
            note = f"note: the model card has no figures: {error}"
    if arguments.licence:
        about["licence"] = arguments.licence
    detector.about = about
    (folder / ONNX).unlink(missing_ok=True)  # that of a model that is overwritten
    detector.save_pretrained(folder, arguments.with_backbone)
    failure = _onnx_failure(detector, folder) if arguments.onnx else None
    for line in [*filter(None, [note]), *notes]:
        print(line)
    if before is not None:
        kind = before["adaptation"]["class_path"].rpartition(".")[2]
        print(f"replaced the model that was there ({kind}){', and its calibration' if before['calibration'] else ''}")
    _tell(program, folder, detector)
    if arguments.onnx and not failure and detector.precision not in (None, SINGLE):
        print(f"{ONNX} computes in {SINGLE}: its scores differ slightly from those of the run")
    if failure:
        print(f"{program} export: error: the model is complete, but there is no {ONNX}: {failure}", file=sys.stderr)
    return FAILED if failure else 0


def _detector(arguments: argparse.Namespace) -> "Detector":
    with at_once():
        from moelora_ad.configuration.building import build_from_configs, config_beside, detector_state, load_weights
        from moelora_ad.data.data_module import corpora_in_words
        from moelora_ad.models import Detector
        from moelora_ad.models.saving.files import CONFIG
        from moelora_ad.models.saving.packaged import found_model
        from moelora_ad.runs.checkpoints import no_checkpoint

    source = Path(found_model(arguments.checkpoint))
    if (source / CONFIG).is_file():
        if arguments.config:
            raise InputError(f"--config: {source} is a model, which has a configuration of its own")
        return Detector.from_pretrained(source, backbone=arguments.backbone, allow=arguments.allow)
    if source.is_dir():
        raise no_checkpoint(source, "--checkpoint")
    state = detector_state(arguments.checkpoint)
    configs = arguments.config or [config_beside(arguments.checkpoint)]
    run = build_from_configs(configs, state, arguments.checkpoint, arguments.backbone, arguments.allow)
    load_weights(run.detector, state, arguments.checkpoint)
    run.detector.window, run.detector.fill = run.clips
    run.detector.precision = run.precision
    before = _started_from(source, run.detector)
    run.detector.about = before | {"data": corpora_in_words(run.data) | before.get("data", {})}
    return run.detector


def _started_from(checkpoint: Path, detector: "Detector") -> dict[str, Any]:
    """What the card of a run that started from a model has of that: its training data, its history with this run, and,
    if the run has extended it, what was stated about it, such as a notice."""
    from moelora_ad.models.saving.files import CONFIG, TOLD, read_config, short
    from moelora_ad.runs.record import RECORD, read_record

    run = checkpoint.absolute().parent.parent
    try:
        started = read_record(run).init_weights if (run / RECORD).is_file() else None
    except InputError:  # the card's figures are missing too, and a line says why
        started = None
    if started is None:
        return {}
    model = Path(started.source)
    about = (read_config(model)["about"] or {}) if (model / CONFIG).is_file() else {}
    is_extended = bool(detector.continued_names())
    done = f"{'extended' if is_extended else 'trained on'} from {model.name}"
    done += f" (SHA-256 of its weights {short(started.sha256)})"
    told = {f"{use} of {model.name}": words for use, words in about.get("data", {}).items()}
    kept = {name: about[name] for name in TOLD if is_extended and name in about}
    return kept | {"data": told, "history": [*about.get("history", []), done]}


def _told(path: str) -> dict[str, Any]:
    """What the user states about the model."""
    from moelora_ad.documents import read_yaml
    from moelora_ad.models.saving.files import TOLD, is_told

    try:
        told = read_yaml(path)
    except yaml.YAMLError as error:
        raise InputError(f"--about: {path}: {error}") from None
    except OSError as error:
        raise InputError(f"--about: {path}: {error.strerror}") from None
    if not isinstance(told, dict) or not told.keys() <= TOLD.keys():
        raise InputError(f"--about: {path} must have the fields {', '.join(TOLD)}, or some of them, and no others")
    if faulty := [name for name in told if not is_told({name: told[name]})]:
        raise InputError(f"--about: {path}: {faulty[0]} must be {TOLD[faulty[0]]}")
    return told


def _scores(arguments: argparse.Namespace) -> tuple[list[str], str | None]:
    """The score files for the model card, and a note about them."""
    from moelora_ad.runs.record import RECORD, read_record

    run = Path(arguments.checkpoint).absolute().parent.parent
    if arguments.scores or not Path(arguments.checkpoint).is_file() or not (run / RECORD).is_file():
        return arguments.scores or [], None
    try:
        record = read_record(run)
    except InputError as error:
        return [], f"note: the model card has no figures: {error}"
    best, folder = record.checkpoint_path, record.score_folder
    if best is None or folder is None or best.resolve() != Path(arguments.checkpoint).resolve():
        return [], "note: the model card has no figures: the run scored another checkpoint; give its own with --scores"
    return [str(path) for name in record.sets if (path := folder / f"{name}.csv").is_file()], None


def _onnx_failure(detector: "Detector", folder: Path) -> str | None:
    from moelora_ad.models.saving.files import ONNX, read_config
    from moelora_ad.models.saving.onnx_export import export_onnx

    model_id = f"{folder.absolute().name}@{read_config(folder)['weights_sha256'][:16]}"
    try:
        fixed = export_onnx(detector, folder / ONNX, model_id=model_id)
    except (InputError, RuntimeError) as error:
        return " ".join(str(error).split())
    if fixed:
        print(f"{ONNX} takes clips of {detector.window:,} samples and no others: {' '.join(fixed.split())}")
    return None


def check_target(folder: Path, onnx: bool = False) -> None:
    """Check that saving a model overwrites nothing but another saved model, and that as a whole.

    Args:
        folder: where a model is to be saved.
        onnx: whether its ``model.onnx`` will be written too.

    Raises:
        InputError: the folder has other content, or a ``model.onnx`` of another model that would remain.
    """
    from moelora_ad.models.saving.files import ONNX, read_config

    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        try:
            read_config(folder)
        except InputError:
            raise InputError(f"--to: {folder} exists and is not a model of ours: give a new or empty folder") from None
    if not onnx and (folder / ONNX).exists():
        raise InputError(f"--to: {folder} has the {ONNX} of another model: give --onnx too, or another folder")


def _tell(program: str, folder: Path, detector: "Detector") -> None:
    from moelora_ad.configuration.building import PARTS
    from moelora_ad.models.saving.card import is_packed
    from moelora_ad.models.saving.files import CONFIG, ENCODER_FOLDER, read_config
    from moelora_ad.models.saving.specification import allow_options, packages_of

    config = read_config(folder)
    files = [path.name for path in sorted(folder.iterdir()) if path.is_file()]
    packed = sorted(config["backbone_files"])
    size = sum((folder / name).stat().st_size for name in [*files, *packed])
    print(f"{folder}: {', '.join([*files, *packed])}; {size / 1e6:.1f} MB in all")
    allowed = allow_options(packages_of([config[part] for part in PARTS]))
    given = config["backbone"]["init_args"]
    if is_packed(config):
        print(f"the frozen encoder is in {ENCODER_FOLDER}: the folder is all that is needed, wherever it is")
    elif config["backbone_sha256"] and given.get("revision"):
        print(f"the frozen encoder is {given['source']} of the hub; {CONFIG} has its commit and its hash")
    elif config["backbone_sha256"]:
        print(
            f"the frozen encoder stays where it is; {CONFIG} has its hash and calls it {given.get('source')}: say "
            "where it is with --backbone FOLDER, or put it into the model, --with-backbone"
        )
        allowed = f" --backbone {quote(str(detector.backbone.init_args.get('source')))}{allowed}"
    if detector.precision is not None:
        print(f"score computes in {detector.precision}, like the run; --precision takes another one")
    if detector.calibration is None:
        print(f"scores are not calibrated: {program} calibrate DEV_SCORES.csv --model {quote(str(folder))}")
    print(f"next: {program} score FILES --model {quote(str(folder))}{allowed}")

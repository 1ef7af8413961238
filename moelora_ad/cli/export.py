"""The verb export: a small model to keep, from a checkpoint of a training run."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from moelora_ad.cli.arguments import FAILED, OneLineArgumentParser
from moelora_ad.configuration.trust import add_allow
from moelora_ad.errors import InputError

if TYPE_CHECKING:
    from moelora_ad.corpora import Corpus
    from moelora_ad.data.data_module import AudioDeepfakeDataModule
    from moelora_ad.models import Detector

ONNX = "model.onnx"


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the verb with its arguments ``argv[1:]``; returns the exit code."""
    parser = OneLineArgumentParser(prog=f"{program} export", description=__doc__)
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="of the run, for example last.ckpt")
    parser.add_argument("--to", required=True, metavar="DIR", help="folder of the model; made if it is not there")
    parser.add_argument(
        "--config", action="append", metavar="FILE", help="configuration of the run (default: RUN/config.yaml)"
    )
    parser.add_argument("--backbone", metavar="DIR", help="the frozen encoder, if it is not where the run found it")
    parser.add_argument("--scores", nargs="+", default=[], metavar="FILE", help="its score files, for the model card")
    parser.add_argument("--calibrate", metavar="FILE", help="development score file to fit a calibration on")
    parser.add_argument("--onnx", action="store_true", help="write model.onnx too")
    add_allow(parser)
    arguments = parser.parse_args(argv[1:])
    try:
        return _export(program, arguments)
    except InputError as error:
        parser.error(str(error))


def _export(program: str, arguments: argparse.Namespace) -> int:
    from moelora_ad.configuration.building import build_from_configs, config_beside, detector_state, load_weights
    from moelora_ad.models.precision import SINGLE

    folder = Path(arguments.to)
    _check_target(folder, arguments.onnx)
    state = detector_state(arguments.checkpoint)
    configs = arguments.config or [config_beside(arguments.checkpoint)]
    run = build_from_configs(configs, state, arguments.checkpoint, arguments.backbone, arguments.allow)
    load_weights(run.detector, state, arguments.checkpoint)
    run.detector.window = run.window
    run.detector.precision = run.precision
    run.detector.about = {"data": _corpora(run.data)}
    if arguments.calibrate or arguments.scores:
        from moelora_ad.cli.calibrate import figures_of_sets, fitted
        from moelora_ad.evaluation.score_table import ScoreTable

        development = ScoreTable.read(arguments.calibrate) if arguments.calibrate else None
        calibration = None if development is None else fitted(development, arguments.calibrate)
        run.detector.calibration = None if calibration is None else calibration.as_dict()
        run.detector.about["results"] = figures_of_sets(arguments.scores, calibration, development)
    (folder / ONNX).unlink(missing_ok=True)  # of the model that was there
    run.detector.save_pretrained(folder)
    failure = _onnx_failure(run.detector, folder) if arguments.onnx else None
    _tell(program, folder, run.detector)
    if arguments.onnx and not failure and run.precision != SINGLE:
        print(f"{ONNX} computes in {SINGLE}: its scores differ slightly from those of the run")
    if failure:
        print(f"{program} export: error: the model is complete, but there is no {ONNX}: {failure}", file=sys.stderr)
    return FAILED if failure else 0


def _onnx_failure(detector: "Detector", folder: Path) -> str | None:
    from moelora_ad.models.saving.onnx_export import export_onnx

    try:
        export_onnx(detector, folder / ONNX)
    except (InputError, RuntimeError) as error:
        return " ".join(str(error).split())
    return None


def _corpora(data: "AudioDeepfakeDataModule") -> dict[str, str]:
    """Which corpora a run used, in words."""
    from moelora_ad.data.shares import by_name

    words = {"training": ", ".join(sorted({_corpus(corpus) for corpus in by_name(data.train).values()}))}
    words["selection of the checkpoint"] = _corpus(data.val) if data.val else ""
    words["augmentation in training"] = type(data.train_augmentation).__name__ if data.train_augmentation else "none"
    return {use: what for use, what in words.items() if what}


def _corpus(corpus: "Corpus") -> str:
    return f"{corpus.name} {getattr(corpus, 'split', None) or ''}".strip()


def _check_target(folder: Path, onnx: bool) -> None:
    """Nothing but a model that was saved before is overwritten, and that as a whole."""
    from moelora_ad.models.saving.files import read_config

    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        try:
            read_config(folder)
        except InputError:
            raise InputError(f"--to: {folder} is there and is no model of ours: give a new or empty folder") from None
    if not onnx and (folder / ONNX).exists():
        raise InputError(f"--to: {folder} has the {ONNX} of another model: give --onnx too, or another folder")


def _tell(program: str, folder: Path, detector: "Detector") -> None:
    from moelora_ad.configuration.building import PARTS
    from moelora_ad.models.saving.files import CONFIG, read_config
    from moelora_ad.models.saving.specification import allow_options, packages_of

    files = sorted(path for path in folder.iterdir() if path.is_file())
    size = sum(path.stat().st_size for path in files)
    print(f"{folder}: {', '.join(path.name for path in files)}; {size / 1e6:.1f} MB in all")
    encoder, config = detector.backbone.init_args.get("source"), read_config(folder)
    if config["backbone_sha256"]:
        print(f"the frozen encoder stays where it is: {encoder}; {CONFIG} has its hash")
    print(f"score computes in {detector.precision}, like the run; --precision takes another one")
    if detector.calibration is None:
        print(f"scores are not calibrated: {program} calibrate DEV_SCORES.csv --model {quote(str(folder))}")
    allowed = allow_options(packages_of([config[part] for part in PARTS]))
    print(f"next: {program} score FILES --model {quote(str(folder))}{allowed}")

"""The verb export: a small model to keep, from a checkpoint of a training run."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple
from zipfile import is_zipfile

import torch
from torch import Tensor

from moelora_ad.adapters import AdaptationMethod
from moelora_ad.arguments import OneLineArgumentParser
from moelora_ad.audio import TRAINING_SAMPLES
from moelora_ad.corpora import Corpus
from moelora_ad.errors import InputError
from moelora_ad.models import Backbone, Classifier, Detector
from moelora_ad.models.kept_files import CONFIG, read_config
from moelora_ad.models.onnx_export import export_onnx
from moelora_ad.training.data_module import AudioDeepfakeDataModule
from moelora_ad.training.joining import by_name
from moelora_ad.training.usage import OneLineParser, read_yaml

ClassifierOf = Callable[[int], Classifier]
PARTS = ("backbone", "adaptation", "classifier")
ONNX = "model.onnx"
FAILED = 1
PREFIX = "detector."  # of the detector's tensors in a Lightning checkpoint


def run(program: str) -> int:
    """Run the verb in ``sys.argv``; returns the exit code."""
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
    arguments = parser.parse_args(sys.argv[2:])
    try:
        return _export(program, arguments)
    except InputError as error:
        parser.error(str(error))
    except OSError as error:
        print(f"{parser.prog}: error: {error.filename or arguments.to}: {error.strerror}", file=sys.stderr)
        return FAILED


def _export(program: str, arguments: argparse.Namespace) -> int:
    folder = Path(arguments.to)
    _check_target(folder, arguments.onnx)
    state = _detector_state(arguments.checkpoint)
    configs = arguments.config or [_config_beside(arguments.checkpoint)]
    run = build_from_configs(configs, arguments.backbone, f"{program} export")
    _load(run.detector, state, arguments.checkpoint)
    run.detector.window = run.window
    run.detector.about = {"data": run.data}
    if arguments.calibrate or arguments.scores:
        from moelora_ad.evaluation.score_table import ScoreTable
        from moelora_ad.inference.calibrate_command import figures_of_sets, fitted

        development = ScoreTable.read(arguments.calibrate) if arguments.calibrate else None
        calibration = None if development is None else fitted(development, arguments.calibrate)
        run.detector.calibration = None if calibration is None else calibration.as_dict()
        run.detector.about["results"] = figures_of_sets(arguments.scores, calibration, development)
    (folder / ONNX).unlink(missing_ok=True)  # of the model that was there
    run.detector.save_pretrained(folder)
    failure = _onnx_failure(run.detector, folder) if arguments.onnx else None
    _tell(program, folder, run.detector)
    if failure:
        print(f"{program} export: error: the model is complete, but there is no {ONNX}: {failure}", file=sys.stderr)
    return FAILED if failure else 0


def _onnx_failure(detector: Detector, folder: Path) -> str | None:
    try:
        export_onnx(detector, folder / ONNX)
    except (InputError, RuntimeError) as error:
        return " ".join(str(error).split())
    return None


class Run(NamedTuple):
    """What a configuration says of a detector; the detector's weights are not loaded."""

    detector: Detector
    window: int
    data: dict[str, str]


def build_from_configs(paths: list[str], backbone: str | None, program: str) -> Run:
    """Build the detector of configurations.

    Args:
        paths: as for fit; later files change earlier ones. Of ``model`` the three parts are used, of ``data`` the
            segments and the names of the corpora.
        backbone: where the encoder is, if not where the configurations say.
        program: for error messages, which end the program.

    Raises:
        InputError: a file is missing or faulty, or the parts do not fit each other.
    """
    parser = OneLineParser(prog=program)
    # Not required here: a file that others complete may lack any of them.
    for name, kind in (("backbone", Backbone), ("adaptation", AdaptationMethod), ("classifier", ClassifierOf)):
        parser.add_argument(f"--model.{name}", type=kind)
    parser.add_class_arguments(AudioDeepfakeDataModule, "data")
    parsed = parser.get_defaults()
    for path in paths:
        config = _config(path)
        model, data = _part(config, "model", path), _part(config, "data", path)
        content = {
            "model": {name: model[name] for name in PARTS if name in model},
            "data": {name: data[name] for name in data if name != "seed"},
        }
        parsed = parser.parse_object(content, cfg_base=parsed)
    if missing := [name for name in PARTS if parsed.model.get(name) is None]:
        raise InputError(f"{', '.join(paths)}: no model.{missing[0]}")
    if backbone is not None:
        given = parsed.model.backbone.init_args
        if "source" not in given:
            raise InputError(f"--backbone: a {parsed.model.backbone.class_path} is built from no source")
        given["source"], given["revision"] = backbone, None
    try:
        built = parser.instantiate_classes(parsed)
        detector = Detector(built.model.backbone, built.model.adaptation, built.model.classifier)
    except (ValueError, TypeError) as error:
        line = f"{', '.join(paths)}: {' '.join(str(error).split())}"
        elsewhere = backbone is None and "no such folder" in line
        raise InputError(f"{line}; give its place now with --backbone" if elsewhere else line) from None
    data_module: AudioDeepfakeDataModule = built.data
    window = data_module.eval_segment.samples or data_module.train_segment.samples or TRAINING_SAMPLES
    return Run(detector, window, _corpora(data_module))


def _corpora(data: AudioDeepfakeDataModule) -> dict[str, str]:
    """Which corpora a run used, in words."""
    words = {"training": ", ".join(sorted({_corpus(corpus) for corpus in by_name(data.train).values()}))}
    words["selection of the checkpoint"] = _corpus(data.val) if data.val else ""
    words["augmentation in training"] = type(data.train_augmentation).__name__ if data.train_augmentation else "none"
    return {use: what for use, what in words.items() if what}


def _corpus(corpus: Corpus) -> str:
    return f"{corpus.name} {getattr(corpus, 'split', None) or ''}".strip()


def _config_beside(checkpoint: str) -> str:
    """RUN/config.yaml of RUN/checkpoints/X.ckpt."""
    path = Path(checkpoint).absolute().parent.parent / "config.yaml"
    if not path.is_file():
        raise InputError(f"no configuration {path}: give the one of the run with --config")
    return str(path)


def _detector_state(path: str) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise InputError(f"--checkpoint: {path} is no file")
    if not is_zipfile(path):
        raise InputError(f"--checkpoint: {path} is no checkpoint, or is cut off")
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"--checkpoint: {path} is no readable checkpoint: {reason}") from None
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError(f"--checkpoint: {path} is no checkpoint of a training run: it has no state_dict")
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}


def _load(detector: Detector, state: dict[str, Tensor], path: str) -> None:
    kept, own = detector.kept_names(), detector.state_dict()
    for names, what in ((kept - state.keys(), "lacks"), (state.keys() - kept, "holds what the model has not:")):
        if names:
            raise InputError(
                f"--checkpoint: {path} does not fit the configuration: it {what} {len(names)} tensors, "
                f"first {min(names)}; give the configuration that it was trained with"
            )
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise InputError(
                f"--checkpoint: {path} does not fit the configuration: {name} is {tuple(tensor.shape)}, "
                f"the model has {tuple(own[name].shape)}"
            )
    detector.load_state_dict(state, strict=False)


def _check_target(folder: Path, onnx: bool) -> None:
    """Nothing but a model that was saved before is overwritten, and that as a whole."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        try:
            read_config(folder)
        except InputError:
            raise InputError(f"--to: {folder} is there and is no model of ours: give a new or empty folder") from None
    if not onnx and (folder / ONNX).exists():
        raise InputError(f"--to: {folder} has the {ONNX} of another model: give --onnx too, or another folder")


def _config(path: str) -> dict[str, Any]:
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise InputError(f"--config: {path} is no configuration of a run")
    return config


def _part(config: dict[str, Any], name: str, path: str) -> dict[str, Any]:
    part = config.get(name) or {}
    if not isinstance(part, dict):
        raise InputError(f"--config: the part {name!r} of {path} is no mapping")
    return part


def _tell(program: str, folder: Path, detector: Detector) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    size = sum(path.stat().st_size for path in files)
    print(f"{folder}: {', '.join(path.name for path in files)}; {size / 1e6:.1f} MB in all")
    encoder = detector.backbone.init_args.get("source")
    if read_config(folder)["backbone_sha256"]:
        print(f"the frozen encoder stays where it is: {encoder}; {CONFIG} has its hash")
    if detector.calibration is None:
        print(f"scores are not calibrated: {program} calibrate DEV_SCORES.csv --model {folder}")
    print(f"next: {program} score FILES --model {folder}")

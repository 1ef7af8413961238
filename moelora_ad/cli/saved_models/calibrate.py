"""The command calibrate: make a model's scores log-likelihood ratios."""

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moelora_ad.cli.arguments import FAILED, OneLineArgumentParser
from moelora_ad.configuration.trust import add_allow
from moelora_ad.errors import InputError

if TYPE_CHECKING:
    from moelora_ad.evaluation.metrics.calibration import Calibration
    from moelora_ad.evaluation.reports.text_table import TextTable
    from moelora_ad.evaluation.score_table import ScoreTable
    from moelora_ad.models import Detector

_TEST_SPLITS = {"eval", "evaluation", "test", "testing"}


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the command with its arguments ``argv[1:]``; returns the exit code."""
    parser = OneLineArgumentParser(
        prog=f"{program} calibrate",
        description="Fit an affine calibration on a development score file of a model, and store it with the model.",
        epilog="Calibrate on data that you report nothing on: never on a test set.",
    )
    parser.add_argument(
        "scores",
        metavar="DEV_SCORES.csv",
        help="raw scores of the model on a development set, as validate writes them; or any table that has utterance, "
        "label and score",
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="a folder that export wrote")
    parser.add_argument("--backbone", metavar="DIR", help="the frozen encoder, if it is not where the model says")
    add_allow(parser)
    arguments = parser.parse_args(argv[1:])
    from moelora_ad.cli.terminal import print_table
    from moelora_ad.models.saving.files import ONNX, read_config, store_calibration
    from moelora_ad.models.saving.packaged import packaged_models

    if not Path(arguments.model).is_dir() and arguments.model in packaged_models():
        copied = f"{program} export --checkpoint {arguments.model} --to MODEL"
        parser.error(f"--model: {arguments.model} is a packaged model, which stays as it is: {copied} makes a copy")
    try:
        config = read_config(arguments.model)
        table, recorded = labelled(arguments.scores), recorded_beside(arguments.scores)
        notes = notes_on(arguments.scores, table, recorded, Identity(lambda: _loaded(arguments)))
        calibration = fitted(table, arguments.scores, precision_of(recorded))
    except InputError as error:
        parser.error(str(error))
    try:
        if (exported := Path(arguments.model) / ONNX).is_file():  # first: it is what may fail
            from moelora_ad.models.saving import onnx_export

            onnx_export.store_calibration(exported, calibration.as_dict())
        store_calibration(arguments.model, calibration.as_dict())
    except InputError as error:
        print(f"{parser.prog}: error: nothing is stored: {error}", file=sys.stderr)
        return FAILED
    counts = f"{calibration.num_bona_fide:,} bona fide and {calibration.num_spoof:,} spoof"
    print(f"{calibration.fitted_on}: {counts}; the figures are on the scores that it was fitted on")
    print_table(_table(table, calibration))
    if None not in (judged := config["precision"], calibration.precision) and judged != calibration.precision:
        print(
            f"note: these are scores in {calibration.precision}; the model was evaluated in {judged}: give score one "
            "of the two with --precision"
        )
    for note in notes:
        print(note)
    replaced = ", replacing another one" if config["calibration"] else ""
    print(
        f"stored in {arguments.model}{replaced}: log-likelihood ratio = {calibration.scale:.6g} * score "
        f"{calibration.offset:+.6g}"
    )
    return 0


def _loaded(arguments: Any) -> "Detector":
    from moelora_ad.models import Detector

    return Detector.from_pretrained(arguments.model, backbone=arguments.backbone, allow=arguments.allow)


def labelled(path: str | Path) -> "ScoreTable":
    """Read the scores of a file that has the labels too, in any format that evaluate takes.

    Raises:
        ScoreError: the file is missing or faulty, or has no labels.
    """
    from moelora_ad.evaluation.metrics.equal_error_rate import ScoreError
    from moelora_ad.evaluation.score_files.formats import read_scores
    from moelora_ad.evaluation.score_table import ScoreTable

    found = read_scores(path)
    if not isinstance(found, ScoreTable):
        raise ScoreError.at(path, "has scores but no labels: add a column 'label' with bonafide or spoof")
    return found


class Identity:
    """What evaluations record of the model that made their scores: the hash of its weights, and its settings.

    Args:
        model: gives the model; called once, when anything of it is asked for.
    """

    def __init__(self, model: "Callable[[], Detector]") -> None:
        self._model = model
        self._hashes: dict[str | None, str] = {}

    @cached_property
    def _detector(self) -> "Detector":
        return self._model()

    def weights(self, precision: str | None) -> str:
        """The hash of the weights as they are used in a precision, which may round the frozen ones.

        Raises:
            InputError: the model cannot be loaded, or not be used in the precision.
        """
        from moelora_ad.models.precision import ROUNDED, round_frozen
        from moelora_ad.models.saving.checkpoints import PREFIX
        from moelora_ad.models.saving.files import tensors_hash

        rounded = precision if precision in ROUNDED else None
        if rounded not in self._hashes:
            detector = self._detector
            if rounded is not None:
                detector = copy.deepcopy(detector)
                round_frozen(detector, rounded)
            state = detector.state_dict()
            self._hashes[rounded] = tensors_hash({f"{PREFIX}{name}": tensor for name, tensor in state.items()})
        return self._hashes[rounded]

    def other_settings(self, recorded: Mapping[str, Any]) -> list[str]:
        """The recorded settings, such as the gate's top_k, that are not the model's. One that only the record or only
        the model has came with another version, and is passed over.

        Raises:
            InputError: the model cannot be loaded.
        """
        from moelora_ad.models.saving.checkpoints import settings_of

        own = settings_of(self._detector) or {}
        return [name for name, value in recorded.items() if name in own and own[name] != value]


def notes_on(path: str | Path, table: "ScoreTable", recorded: Mapping[str, Any], model: Identity) -> list[str]:
    """Check that a model made the scores that its calibration is fitted on; return notes for the user.

    Args:
        path: the score file.
        table: its scores.
        recorded: see `recorded_beside`.
        model: the model; loaded only if it is known which one made the scores.

    Raises:
        InputError: another model made them, or they are calibrated already.
    """
    if _is_calibrated(path):
        raise InputError.at(path, "its scores are calibrated already (column 'scale' has llr): raw scores are needed")
    notes = []
    unknown = check_model(path, recorded, model)
    if unknown:
        notes.append(f"note: whether this model made the scores in {path} is not known: {unknown}")
    if _is_test_set(table, recorded):
        notes.append(f"note: {path} is of a test set: report no calibrated figures (actDCF, Cllr) on its trials")
    return notes


def check_model(path: str | Path, recorded: Mapping[str, Any], model: Identity) -> str | None:
    """Check that the weights and settings recorded beside the scores are those of the model; return why that cannot be
    known."""
    from moelora_ad.models.saving.files import short

    origin = _origin(recorded)
    wanted, settings = origin.get("weights"), origin.get("settings")
    if not isinstance(wanted, str):
        return f"no {Path(path).with_suffix('.json').name} beside them records it"
    try:
        found = model.weights(precision_of(recorded))
        others = model.other_settings(settings) if isinstance(settings, dict) else []
    except InputError as error:
        return str(error)
    if found != wanted:
        told = f"its weights have the SHA-256 {short(wanted)}, those of this model {short(found)}"
    elif others:
        told = f"it has the weights of this one, but another {', '.join(others)}"
    else:
        return None
    scored = "moelora-ad validate --config RUN/config.yaml --ckpt_path MODEL scores with this one"
    raise InputError.at(path, f"are scores of another model: {told}; {scored}")


def _is_calibrated(path: str | Path) -> bool:
    """Whether a table that the command score wrote has log-likelihood ratios; other files do not say."""
    from moelora_ad.evaluation.score_table import read_score_columns
    from moelora_ad.inference.output import LLR

    try:
        _, _, columns = read_score_columns(path)
    except InputError:  # no table, but scores in another format
        return False
    return LLR in columns.get("scale", ())


def _is_test_set(table: "ScoreTable", recorded: Mapping[str, Any]) -> bool:
    """Whether scores are of a test set, by the split of a trial or by what their provenance records."""
    from moelora_ad.runs.record import DEV

    tested = recorded.get("verb") == "test" and recorded.get("set") != DEV
    return tested or any(str(split).lower() in _TEST_SPLITS for split in set(table.trials.column("split")))


def fitted(table: "ScoreTable", path: str | Path, precision: str | None = None) -> "Calibration":
    """Fit a calibration on ``table``, the scores of the development score file ``path``, computed in ``precision``.

    Raises:
        ScoreError: see `fit_calibration`.
    """
    from moelora_ad.evaluation.metrics.calibration import fit_calibration

    calibration = fit_calibration(table.scores, table.labels, fitted_on=_named(path, table))
    return replace(calibration, precision=precision)


def precision_of(recorded: Mapping[str, Any]) -> str | None:
    """The precision that scores were computed in, from their provenance; None if it is not known."""
    precision = _origin(recorded).get("precision")
    return precision if isinstance(precision, str) else None


def _origin(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """What scores depend on, from their provenance; empty if that is not known."""
    origin = recorded.get("origin")
    return origin if isinstance(origin, dict) else {}


def recorded_beside(path: str | Path) -> dict[str, Any]:
    """The provenance beside a score file; empty if there is none, or that of other scores."""
    from moelora_ad.evaluation.provenance import read_provenance
    from moelora_ad.files import file_hash

    try:
        provenance = read_provenance(Path(path))
        return provenance if provenance.get("score_file_sha256") == file_hash(Path(path)) else {}
    except OSError:
        return {}


def figures_of_sets(
    paths: Sequence[str | Path], calibration: "Calibration | None", fitted_on: "ScoreTable | None"
) -> list[dict[str, Any]]:
    """Figures of score files for the model card, see `moelora_ad.models.saving.card`; a set is named after its file.

    Args:
        paths: score files of the model, raw scores.
        calibration: the calibration that is stored with the model, if any: then actDCF and Cllr are computed too.
        fitted_on: the scores that the calibration was fitted on. A set that shares trials with them gets neither
            actDCF nor Cllr: these would be meaningless for other data.

    Raises:
        InputError: a file is missing or faulty, or two have the same name.
    """
    from moelora_ad.evaluation.metrics.calibration import shared_trials
    from moelora_ad.evaluation.metrics.figures import evaluate_set
    from moelora_ad.evaluation.metrics.options import FigureOptions
    from moelora_ad.models.saving.card import card_result

    names = [Path(path).stem for path in paths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{len(names)} score files, but {twice[0]!r} names more than one: rename them")
    results = []
    for name, path in zip(names, paths, strict=True):
        table = labelled(path)
        calibrated = calibration is not None and (fitted_on is None or not shared_trials(fitted_on, table))
        if calibration is not None:
            table = table.with_scores(calibration.apply(table.scores))
        figures = evaluate_set(name, table, FigureOptions(calibrated=calibrated)).overall
        results.append(card_result(name, figures))
    return results


def _named(path: str | Path, table: "ScoreTable") -> str:
    """A description of a score file that stays true when it is moved: its name, its corpora and splits."""
    fields = zip(table.trials.column("corpus"), table.trials.column("split"), strict=True)
    parts = sorted({" ".join(filter(None, pair)) for pair in set(fields)})
    return f"{Path(path).name} ({', '.join(parts)})" if any(parts) else Path(path).name


def _table(table: "ScoreTable", calibration: "Calibration") -> "TextTable":
    from moelora_ad.evaluation.metrics.curve import ScoreCurve
    from moelora_ad.evaluation.reports.text_table import TextTable

    rows = []
    for name, scores in (("before", table.scores), ("after", calibration.apply(table.scores))):
        curve = ScoreCurve(scores, table.labels)
        rows.append((name, f"{curve.cllr():.4f}", f"{curve.act_dcf():.4f}"))
    rows.append(("least possible", f"{curve.min_cllr():.4f}", f"{curve.min_dcf().cost:.4f}"))
    return TextTable("Calibration", ("scores", "Cllr", "actDCF"), rows)

"""The command calibrate: make a model's scores log-likelihood ratios."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moelora_ad.cli.arguments import OneLineArgumentParser
from moelora_ad.configuration.trust import add_allow
from moelora_ad.errors import InputError

if TYPE_CHECKING:
    from moelora_ad.evaluation.metrics.calibration import Calibration
    from moelora_ad.evaluation.reports.text_table import TextTable
    from moelora_ad.evaluation.score_table import ScoreTable


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the command with its arguments ``argv[1:]``; returns the exit code."""
    parser = OneLineArgumentParser(
        prog=f"{program} calibrate",
        description="Fit an affine calibration on a development score file of a model, and store it with the model.",
        epilog="Calibrate on data that you report nothing on: never on a test set.",
    )
    parser.add_argument(
        "scores", metavar="DEV_SCORES.csv", help="raw scores of the model on a development set, as validate writes them"
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="a folder that export wrote")
    add_allow(parser)  # as for other commands on models; no class is built here
    arguments = parser.parse_args(argv[1:])
    from moelora_ad.cli.terminal import print_table
    from moelora_ad.evaluation.score_table import ScoreTable
    from moelora_ad.models.saving.files import ONNX, read_config, store_calibration

    try:
        config = read_config(arguments.model)
        table = ScoreTable.read(arguments.scores)
        calibration = fitted(table, arguments.scores)
        store_calibration(arguments.model, calibration.as_dict())
        if (exported := Path(arguments.model) / ONNX).is_file():
            from moelora_ad.models.saving import onnx_export

            onnx_export.store_calibration(exported, calibration.as_dict())
    except InputError as error:
        parser.error(str(error))
    counts = f"{calibration.num_bona_fide:,} bona fide and {calibration.num_spoof:,} spoof"
    print(f"{calibration.fitted_on}: {counts}; the figures are on the scores that it was fitted on")
    print_table(_table(table, calibration))
    if None not in (judged := config["precision"], calibration.precision) and judged != calibration.precision:
        print(
            f"note: these are scores in {calibration.precision}; the model was evaluated in {judged}: give score one "
            "of the two with --precision"
        )
    replaced = ", replacing another one" if config["calibration"] else ""
    print(
        f"stored in {arguments.model}{replaced}: log-likelihood ratio = {calibration.scale:.6g} * score "
        f"{calibration.offset:+.6g}"
    )
    return 0


def fitted(table: "ScoreTable", path: str | Path) -> "Calibration":
    """Fit a calibration on ``table``, the scores of the development score file ``path``.

    Raises:
        ScoreError: see `fit_calibration`.
    """
    from moelora_ad.evaluation.metrics.calibration import fit_calibration

    calibration = fit_calibration(table.scores, table.labels, fitted_on=_named(path, table))
    return replace(calibration, precision=precision_of(path))


def precision_of(path: str | Path) -> str | None:
    """The precision that the scores in a file were computed in, from the provenance beside it; None if there is none,
    or that of other scores."""
    from moelora_ad.evaluation.provenance import read_provenance
    from moelora_ad.files import file_hash

    try:
        provenance = read_provenance(Path(path))
        of_these = provenance["score_file_sha256"] == file_hash(Path(path))
        precision = provenance["origin"]["precision"]
    except (OSError, KeyError, TypeError):
        return None
    return precision if of_these and isinstance(precision, str) else None


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
    from moelora_ad.evaluation.score_table import ScoreTable
    from moelora_ad.models.saving.card import card_result

    names = [Path(path).stem for path in paths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{len(names)} score files, but {twice[0]!r} names more than one: rename them")
    results = []
    for name, path in zip(names, paths, strict=True):
        table = ScoreTable.read(path)
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
    return f"{Path(path).name} ({', '.join(parts)})"


def _table(table: "ScoreTable", calibration: "Calibration") -> "TextTable":
    from moelora_ad.evaluation.metrics.curve import ScoreCurve
    from moelora_ad.evaluation.reports.text_table import TextTable

    rows = []
    for name, scores in (("before", table.scores), ("after", calibration.apply(table.scores))):
        curve = ScoreCurve(scores, table.labels)
        rows.append((name, f"{curve.cllr():.4f}", f"{curve.act_dcf():.4f}"))
    rows.append(("least possible", f"{curve.min_cllr():.4f}", f"{curve.min_dcf().cost:.4f}"))
    return TextTable("Calibration", ("scores", "Cllr", "actDCF"), rows)

"""The provenance of scores, which is a JSON file beside them, and checks that they still match it."""

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from moelora_ad.documents import read_json
from moelora_ad.errors import counted, printable
from moelora_ad.evaluation.metrics.equal_error_rate import ScoreError
from moelora_ad.files import file_hash

_MOST_PROVENANCE = 200_000  # characters on a page
_WRITTEN = ".csv"  # the ending that evaluations write; a file with another ending is a copy in another format
_UNREADABLE = (OSError, ValueError)


class Provenance(NamedTuple):
    """The content of a provenance file as indented text, a note on it for the reader, and whether the scores are of a
    set that their run is configured with (true if that is not known)."""

    text: str | None
    note: str | None
    of_run: bool = True


def provenance_of(path: Path) -> Provenance:
    """Read the provenance of scores from the JSON file beside them; without a file it has no text."""
    beside = path.with_suffix(".json")
    try:
        content = read_json(beside)
        text = json.dumps(content, indent=2, ensure_ascii=False)
    except FileNotFoundError:
        return Provenance(None, None)
    except _UNREADABLE:
        return Provenance(None, f"{beside.name} beside the scores cannot be read")
    lines = [printable(line) for line in text.split("\n")]
    told = content if isinstance(content, dict) else {}
    untrained = told.get("untrained") is True
    note = "these are scores of untrained weights, not of a trained detector" if untrained else None
    return Provenance("\n".join(lines)[:_MOST_PROVENANCE], note, told.get("set_of_run") is not False)


def read_provenance(path: Path) -> dict[str, Any]:
    """Return the fields of the JSON file beside scores; empty if it is missing or cannot be read, which `provenance_of`
    reports."""
    try:
        content = read_json(path.with_suffix(".json"))
    except _UNREADABLE:
        return {}
    return content if isinstance(content, dict) else {}


def refuse_changed(path: str | Path) -> None:
    """Check that a score file is, byte for byte, the one whose hash is recorded beside it, if a hash is recorded.

    Raises:
        ScoreError: The file is a different one.
    """
    path = Path(path)
    recorded = read_provenance(path)
    if path.suffix != _WRITTEN or "score_file_sha256" not in recorded:
        return
    try:
        found = file_hash(path)
    except OSError:  # whoever reads the scores reports it
        return
    wanted = recorded["score_file_sha256"]
    if found != wanted:
        number, scored = _number(path), recorded.get("scored")
        if number is None or number == scored or not _is_count(scored):
            what = f"its SHA-256 is {found[:16]}... where {str(wanted)[:16]}... is recorded"
        else:
            what = f"it has {counted(number, 'score')}, recorded: {scored:,}"
        raise _other(path, what)


def refuse_other_number(path: str | Path, number: int) -> None:
    """Check that the number of scores read from a file is the one recorded beside it, if a number is recorded.

    Raises:
        ScoreError: There are more or fewer scores.
    """
    path = Path(path)
    if path.suffix != _WRITTEN:
        return
    recorded = read_provenance(path)
    scored, trials = recorded.get("scored"), recorded.get("trials")
    if _is_count(scored) and scored != number:
        raise _other(path, f"it has {counted(number, 'score')}, recorded: {scored:,}")
    if recorded.get("complete") is True and _is_count(trials) and trials != number:
        raise _other(
            path, f"it has {counted(number, 'score')}, and all of {counted(trials, 'trial')} are recorded as scored"
        )


def refuse_other_model(calibration_path: str | Path, path: str | Path) -> None:
    """Check that a calibration was fitted on scores of the model that made other scores, if both are recorded beside
    the scores.

    Raises:
        ScoreError: They are of different weights, in the same precision, or of different settings, such as a top-k.
    """
    fitted, reported = (read_provenance(Path(one)).get("origin") for one in (calibration_path, path))
    if not (isinstance(fitted, dict) and isinstance(reported, dict)):
        return
    # Some precisions round the weights, so that their hash does not tell models apart.
    same_precision = fitted.get("precision") == reported.get("precision")
    for name in ("settings", "weights") if same_precision else ("settings",):
        both = [fitted.get(name), reported.get(name)]
        if None not in both and both[0] != both[1]:
            raise ScoreError.at(path, f"is of another model than {calibration_path}: a calibration is for one model")


def partial_note(path: Path, number: int) -> str | None:
    """Return a note if the provenance beside ``number`` scores records that other trials of the set have no score."""
    recorded = read_provenance(path)
    if recorded.get("complete", True) is True:
        return None
    trials = recorded.get("trials")
    scored = f"{number:,} of {counted(trials, 'trial')}" if _is_count(trials) else counted(number, "trial")
    return f"only {scored} with a score"


def _other(path: Path, what: str) -> ScoreError:
    beside = path.with_suffix(".json").name
    return ScoreError.at(
        path,
        f"is not the file that {beside} beside it records: {what}; make the scores again (the same moelora-ad test "
        f"does), or remove {beside} if the file was changed on purpose",
    )


def _number(path: Path) -> int | None:
    """Count the scores in a CSV file with a header; None if it cannot be read."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return max(0, sum(1 for row in csv.reader(file) if row) - 1)
    except (OSError, ValueError, csv.Error):
        return None


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int

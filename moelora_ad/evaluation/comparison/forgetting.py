"""What further training of a model has gained on a new attack and lost on the old ones: each way of training is
compared with the model before."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moelora_ad.evaluation.metrics.equal_error_rate import ScoreError
from moelora_ad.evaluation.metrics.intervals import Difference, compare, mean_difference
from moelora_ad.evaluation.metrics.options import FigureOptions
from moelora_ad.evaluation.reports.rows import as_csv
from moelora_ad.evaluation.reports.text_table import TextTable, as_markdown
from moelora_ad.evaluation.score_table import ScoreTable
from moelora_ad.files import written_whole

NAME = "extension"  # stem of the files' names
FORGETTING = "mean forgetting"
_COLUMNS = ("way", "set", "kind", "eer_before", "eer_after", "change", "low", "high", "reason")


@dataclass(frozen=True)
class Change:
    """The EER after one way of training against that of the model before, on a set or as a mean over the old sets.

    Attributes:
        way: how the model was trained further.
        set_name: name of the set, or `FORGETTING`.
        kind: "new", "old", or "mean" over the old sets.
        eer: EER after (first) and before (second), and the paired 95 % interval of the difference; None without scores.
        reason: why there are no scores.
    """

    way: str
    set_name: str
    kind: str
    eer: Difference | None
    reason: str = ""


def changes(
    before: Mapping[str, ScoreTable],
    ways: Mapping[str, Mapping[str, ScoreTable] | str],
    new: Sequence[str],
    options: FigureOptions | None = None,
) -> list[Change]:
    """Compare every way of training with the model before, on every set and in the mean over the old sets.

    Args:
        before: scores of the model before, by set.
        ways: scores after each way of training, by set, of the same trials; or the reason why there are none.
        new: sets of the new attack; the others are old.
        options: options of the bootstrap.

    Raises:
        ScoreError: scores before and after are of different trials, or a set lacks a class.
    """
    options = options or FigureOptions()
    found = []
    old = [name for name in before if name not in new]
    for way, after in ways.items():
        if isinstance(after, str):
            found.append(Change(way, "", "", None, after))
            continue
        for name in (*new, *old):
            try:
                eer = compare(after[name], before[name], options)["eer"]
            except ScoreError as error:
                raise ScoreError(f"{name}: {error}") from None
            found.append(Change(way, name, "new" if name in new else "old", eer))
        if old:
            mean = mean_difference([(after[name], before[name]) for name in old], "eer", options)
            found.append(Change(way, FORGETTING, "mean", mean))
    return found


def changes_table(found: Sequence[Change]) -> TextTable:
    """Return a table for people: EER in percent, differences in points."""
    rows: list[tuple[str, ...]] = []
    for number, one in enumerate(found):
        way = one.way if not number or found[number - 1].way != one.way else ""
        if one.eer is None:
            rows.append((way, one.reason, "", "", "", ""))
            continue
        named = f"{one.set_name} (new)" if one.kind == "new" else one.set_name
        low, high = (_points(limit) for limit in one.eer.interval)
        eers = (f"{100 * value:.2f}" for value in (one.eer.second, one.eer.first))
        rows.append((way, named, *eers, _points(one.eer.difference), f"[{low}, {high}]"))
    note = "change: in points, with the paired 95 % interval of a bootstrap over clusters"
    columns = ("trained", "set", "before", "after", "change", "95 %")
    return TextTable("EER % before and after", columns, rows, words=2, notes=(note,))


def write_changes(found: Sequence[Change], folder: str | Path, about: Mapping[str, Any]) -> None:
    """Write extension.json and .csv at full precision, extension.md rounded; each appears whole or not at all.

    Args:
        found: the results.
        folder: the folder, created if it is missing.
        about: what was compared, as plain values, for the JSON file.
    """
    rows = [_row(one) for one in found]
    texts = {
        "json": json.dumps({"about": dict(about), "changes": rows}, indent=2) + "\n",
        "csv": as_csv(rows, _COLUMNS),
        "md": as_markdown(changes_table(found)),
    }
    for ending, text in texts.items():
        with written_whole(Path(folder) / f"{NAME}.{ending}") as unfinished:
            unfinished.write_text(text, encoding="utf-8", newline="")


def _row(one: Change) -> dict[str, Any]:
    eer = one.eer
    values = (None,) * 5 if eer is None else (eer.second, eer.first, eer.difference, *eer.interval)
    return dict(zip(_COLUMNS, (one.way, one.set_name, one.kind, *values, one.reason), strict=True))


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f}"

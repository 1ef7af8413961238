"""Results at full precision, for programs: CSV and JSON."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from moelora_ad.errors import printable
from moelora_ad.evaluation.metrics.options import FIGURES
from moelora_ad.evaluation.metrics.set_evaluation import Figures
from moelora_ad.evaluation.reports.results import Results, averages_by_name, figure_values


def figure_rows(results: Results) -> list[dict[str, Any]]:
    """Return everything at full precision: a row for each set, each part of it, each average and each summary over
    runs.

    ``part`` says what a row is of: all, attack, codec, speaker, pooled, macro_all, macro_ood, or mean, std, best or
    worst over runs; ``group`` has the name of an attack, codec or speaker group, or the sets of an average.
    """
    rows = []
    for file in results.files:
        at = {"set": file.set_name, "run": file.run}
        rows.append({**at, "part": "all", "group": "", **_flat(file.evaluation.overall)})
        parts = {
            "attack": file.evaluation.attacks,
            "codec": file.evaluation.codecs,
            "speaker": file.evaluation.speakers,
        }
        for part, groups in parts.items():
            rows += [{**at, "part": part, "group": name, **_flat(row)} for name, row in groups.items()]
    for run, summary in results.runs.items():
        for name, averages in averages_by_name(summary.averages).items():
            values = {average.figure: average.value for average in averages}
            rows.append({"set": "", "run": run, "part": name, "group": " + ".join(averages[0].sets), **values})
        rows.append({"set": "", "run": run, "part": "pooled", "group": "", **_flat(summary.pooled.overall)})
    summaries: dict[str, dict[str, Any]] = {}
    for (name, figure), summary_of_one in results.over_runs().items():
        summaries.setdefault(name, {})[figure] = summary_of_one
    for name, by_figure in summaries.items():
        for part in ("mean", "std", "best", "worst"):
            values = {figure: getattr(summary_of_one, part) for figure, summary_of_one in by_figure.items()}
            rows.append({"set": name, "run": "", "part": part, "group": "", **values})
    return rows


def _flat(figures: Figures) -> dict[str, Any]:
    flat: dict[str, Any] = {
        "num_bona_fide": figures.num_bona_fide,
        "num_spoof": figures.num_spoof,
        "eer_threshold": figures.eer_threshold,
        "threshold": figures.threshold,
        **figure_values(figures),
    }
    for name, interval in figures.intervals.items():
        flat[f"{name}_low"], flat[f"{name}_high"] = interval
    return flat


def difference_rows(results: Results) -> list[dict[str, Any]]:
    """Return a row for every figure of every compared set, at full precision."""
    first, second = results.systems
    rows = []
    for comparison in results.comparisons:
        for figure, found in comparison.differences.items():
            values = (found.first, found.second, found.difference, *found.interval)
            rows.append(dict(zip(DIFFERENCE_ROW, (comparison.set_name, figure, first, second, *values), strict=True)))
    return rows


DIFFERENCE_ROW = (
    *("set", "figure", "system_1", "system_2", "value_1", "value_2"),
    *("difference", "difference_low", "difference_high"),
)
_FIGURE_COLUMNS = [column for name in FIGURES for column in (name, f"{name}_low", f"{name}_high")]
FIGURE_ROW = [
    "set",
    "run",
    "part",
    "group",
    "num_bona_fide",
    "num_spoof",
    "eer_threshold",
    "threshold",
    *_FIGURE_COLUMNS,
]


def as_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return rows under a header as CSV; missing values are empty, and numbers have full precision."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: _plain(value) for column, value in row.items()} for row in rows)
    return text.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    return repr(float(value)) if isinstance(value, float) else value


def as_json(results: Results) -> str:
    """Return the rows of figures and of differences, and how they were computed, as JSON."""
    content = {
        "options": dict(results.options),
        "calibration": asdict(results.calibration) if results.calibration else None,
        "files": [{"set": file.set_name, "run": file.run, "path": str(file.path or "")} for file in results.files],
        "figures": [{k: v for k, v in row.items() if v is not None} for row in figure_rows(results)],
        "before_calibration": [
            {"set": file.set_name, "run": file.run, **file.before._asdict()} for file in results.files if file.before
        ],
        "comparison": difference_rows(results),
        "conclusions": [sentence for comparison in results.comparisons for sentence in comparison.sentences],
        "notes": list(results.notes),
    }
    return json.dumps(content, indent=2, allow_nan=False, default=_number_of_numpy) + "\n"


def _number_of_numpy(value: Any) -> Any:
    return value.item()

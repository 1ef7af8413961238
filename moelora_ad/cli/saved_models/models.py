"""The command models: the detectors that come with the package."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moelora_ad.cli.arguments import OneLineArgumentParser
from moelora_ad.cli.terminal import print_table
from moelora_ad.documents import read_json
from moelora_ad.errors import printable
from moelora_ad.evaluation.reports.text_table import TextTable
from moelora_ad.files import written_whole
from moelora_ad.models.saving.packaged import packaged_models


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the command with its arguments ``argv[1:]``; returns the exit code."""
    parser = OneLineArgumentParser(prog=f"{program} models", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write all their details there; - for standard output")
    arguments = parser.parse_args(argv[1:])
    models = [_described(name, folder) for name, folder in packaged_models().items()]
    if arguments.json == "-":
        print(json.dumps(models, indent=2))
        return 0
    for model in models:
        _show(model, program)
    if arguments.json is not None:
        with written_whole(arguments.json) as unfinished:
            unfinished.write_text(json.dumps(models, indent=2) + "\n", encoding="utf-8")
    return 0


def _described(name: str, folder: Path) -> dict[str, Any]:
    """What a model's ``config.json`` says about it, except what only programs need."""
    config = read_json(folder / "config.json")
    about = config["about"]
    return {
        "name": name,
        "folder": str(folder),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "architecture": [config[part]["class_path"].rpartition(".")[2] for part in _PARTS],
        "parameters": config["parameters"],
        "window_seconds": config["window"] / config["sample_rate"],
        "calibrated_on": (config["calibration"] or {}).get("fitted_on"),
        "data": about.get("data", {}),
        "results": about.get("results", []),
        "notice": about.get("notice"),
        "limits": about.get("limits", []),
        "licence": about.get("licence"),
        "recordings": about.get("recordings", []),
        "licence_texts": [str(path) for path in sorted(folder.glob("*/*")) if path.suffix in ("", ".txt")],
    }


_PARTS = ("backbone", "adaptation", "classifier")


def _show(model: Mapping[str, Any], program: str) -> None:
    trained = sum(count for part, count in model["parameters"].items() if part != "total")
    rows: list[tuple[str, str]] = [
        ("notice", model["notice"] or ""),
        *((use, what) for use, what in model["data"].items()),
        *((f"EER {result['set']}", _error_rate(result)) for result in model["results"]),
        ("scores", f"calibrated on {model['calibrated_on']}" if model["calibrated_on"] else "not calibrated"),
        ("clips", f"{model['window_seconds']:.4g} s of 16 kHz mono"),
        ("parameters", f"{trained:,} trained of {model['parameters']['total']:,}; {model['bytes'] / 1e6:.1f} MB"),
        *(("limit", limit) for limit in model["limits"]),
        ("licence", model["licence"] or "not stated"),
        *(("recordings", text) for text in model["recordings"]),
        ("licence texts", ", ".join(os.path.relpath(path, model["folder"]) for path in model["licence_texts"])),
        ("folder", model["folder"]),
        ("use", f"{program} score FILES --model {model['name']}"),
    ]
    title = f"{model['name']}: {', '.join(model['architecture'])}"
    print_table(TextTable(title, ("", ""), [(name, printable(text)) for name, text in rows if text], 2))


def _error_rate(result: Mapping[str, Any]) -> str:
    figure = result["figures"].get("EER")
    if figure is None:
        return ""
    interval = "" if figure["low"] is None else f" [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"
    counts = f"{result['num_bona_fide']:,} bona fide, {result['num_spoof']:,} spoofed utterances"
    return f"{100 * figure['value']:.1f} %{interval}, 95 % interval; {counts}"

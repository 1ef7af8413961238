"""The model card of a saved detector, made of its ``config.json`` alone."""

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from moelora_ad.evaluation.metrics.set_evaluation import Figures
from moelora_ad.models.saving.specification import allow_options, packages_of

_PARTS = {"experts": "LoRA experts", "gates": "gates", "classifier": "classifier", "backbone": "encoder"}
_FIGURES = {"eer": "EER", "min_dcf": "minDCF", "act_dcf": "actDCF", "cllr": "Cllr"}
_PERCENT = ("EER", "accuracy")


def model_card(config: Mapping[str, Any]) -> str:
    """The model card: Markdown with the metadata header of the Hugging Face hub.

    Args:
        config: content of ``config.json``. Its ``about`` may have

            - ``data``: what was used for what, for example {"training": "LA19 train"};
            - ``licence``: of the weights, an SPDX identifier or in words;
            - ``notice``: what is shown with every score; ``limits`` and ``recordings``: lists of lines;
            - ``results``: a list of ``{"set": name, "num_bona_fide": n, "num_spoof": n, "figures": {...}}``, a figure
              by its name ``{"value": x, "low": x, "high": x}``; rates in [0, 1], ``low`` and ``high`` a 95 % confidence
              interval or None;
            - ``history``: a list of lines, what was done to a trained model.
    """
    about = config.get("about") or {}
    results = about.get("results", [])
    sections = [
        "# Audio deepfake detector",
        *([f"**{_text(about['notice'])}**"] if about.get("notice") else []),
        _summary(config),
        "## Use",
        _use(config),
        "## What it was trained on",
        _data(about.get("data", {})),
        *(["## Changes after training", _lines(about["history"])] if about.get("history") else []),
        "## Figures",
        _figures(results),
        "## Parameters",
        _parameters(config),
        "## Licence",
        _licence(config),
        "## Intended use and limits",
        _LIMITS + "".join(f"\n- {_text(limit)}" for limit in about.get("limits", [])),
    ]
    return f"---\n{_header(config, results)}\n---\n\n" + "\n\n".join(sections) + "\n"


def card_result(name: str, figures: Figures) -> dict[str, Any]:
    """The figures of a set as one of a card's ``results``, see `model_card`."""
    shown = {}
    for field, title in _FIGURES.items():
        value = getattr(figures, field)
        if value is not None:
            low, high = figures.intervals.get(field, (None, None))
            shown[title] = {"value": value, "low": low, "high": high}
    counts = {"num_bona_fide": figures.num_bona_fide, "num_spoof": figures.num_spoof}
    return {"set": name, **counts, "figures": shown}


def hub_id(config: Mapping[str, Any]) -> str | None:
    """The hub id that the encoder was loaded from, always with its commit; None if it was a folder."""
    arguments = config["backbone"]["init_args"]
    return str(arguments["source"]) if arguments.get("revision") and "source" in arguments else None


def is_packed(config: Mapping[str, Any]) -> bool:
    """Whether the weights of the encoder are part of the model's files."""
    return any(name.endswith(".safetensors") for name in config.get("backbone_files") or ())


def _header(config: Mapping[str, Any], results: list[dict[str, Any]]) -> str:
    return ModelCardData(
        library_name="moelora_ad",
        pipeline_tag="audio-classification",
        tags=["anti-spoofing", "audio-deepfake-detection", _class(config["adaptation"]).lower()],
        base_model=hub_id(config),
        **_licence_fields((config.get("about") or {}).get("licence")),
        model_name="audio deepfake detector" if results else None,
        eval_results=[
            EvalResult(
                task_type="audio-classification",
                task_name="audio deepfake detection",
                dataset_type=result["set"],
                dataset_name=result["set"],
                metric_type=name,
                metric_value=figure["value"],
            )
            for result in results
            for name, figure in result["figures"].items()
        ]
        or None,
    ).to_yaml()


def _summary(config: Mapping[str, Any]) -> str:
    encoder = hub_id(config) or Path(str(config["backbone"]["init_args"].get("source") or "not named")).name
    digest = config["backbone_sha256"]
    if digest is None:
        frozen = "The whole encoder is part of `model.safetensors`."
    elif is_packed(config):
        frozen = (
            f"The frozen encoder, `{_text(encoder)}`, is part of these files, in `backbone/`, and refused unless the "
            f"SHA-256 of its tensors is `{digest}`."
        )
    else:
        frozen = (
            f"The encoder, `{_text(encoder)}`, is not part of these files: it is loaded from your own copy, and "
            f"refused unless the SHA-256 of its tensors is `{digest}`."
        )
    calibrated = config["calibration"]
    scores = (
        f"Scores are log-likelihood ratios, calibrated on {_text(calibrated.get('fitted_on', 'a file not named'))}."
        if calibrated
        else "Scores are log-odds and not calibrated: they rank files, they are not probabilities."
    )
    if config.get("precision"):
        scores += f" They were computed in {_text(config['precision'])}."
    return (
        f"{_class(config['backbone'])} with {_class(config['adaptation'])} and {_class(config['classifier'])}: "
        f"from {config['window'] / config['sample_rate']:g} s of 16 kHz speech to a score of how likely it is bona "
        f"fide rather than synthetic or converted. Higher is more bona fide. {scores}\n\n{frozen}"
    )


def _use(config: Mapping[str, Any]) -> str:
    packages = packages_of([config["backbone"], config["adaptation"], config["classifier"]])
    allow = f", allow={packages}" if packages else ""
    return (
        "```python\nfrom moelora_ad.inference import Scorer\n\n"
        f'scorer = Scorer.from_pretrained("FOLDER_OR_HUB_ID"{allow})\nprint(scorer("speech.wav"))\n```\n\n'
        f"or `moelora-ad score speech.wav --model FOLDER_OR_HUB_ID{allow_options(packages)}`"
        + (f" with {', '.join(packages)}, which is not part of these files" if packages else "")
        + (
            ""
            if hub_id(config) or is_packed(config) or config["backbone_sha256"] is None
            else "; give the encoder's folder with `backbone=` or `--backbone`"
        )
        + "."
    )


def _data(data: Mapping[str, Any]) -> str:
    if not data:
        return "Not stated."
    return "\n".join(f"- {_text(use)}: {_text(what)}" for use, what in data.items())


def _lines(lines: list[str]) -> str:
    return "\n".join(f"- {_text(line)}" for line in lines)


def _figures(results: list[dict[str, Any]]) -> str:
    if not results:
        return "None stated. Evaluate it on your own data before you rely on it."
    names = list(dict.fromkeys(name for result in results for name in result["figures"]))
    rows = [["set", "bona fide", "spoof", *names], ["---", *(["---:"] * (len(names) + 2))]]
    for result in results:
        counts = [f"{result['num_bona_fide']:,}", f"{result['num_spoof']:,}"]
        rows.append([_text(result["set"]), *counts, *(_figure(name, result["figures"].get(name)) for name in names)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\nIn brackets: 95 % confidence interval of a bootstrap over groups of trials."


def _figure(name: str, figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return ""
    percent = name in _PERCENT

    def shown(value: float) -> str:
        return f"{100 * value:.2f}" if percent else f"{value:.4f}"

    interval = "" if figure.get("low") is None else f" [{shown(figure['low'])}, {shown(figure['high'])}]"
    return f"{shown(figure['value'])}{' %' if percent else ''}{interval}"


def _parameters(config: Mapping[str, Any]) -> str:
    counts = config["parameters"]
    trained = {part: count for part, count in counts.items() if part != "total"}
    rows = [f"| {_PARTS.get(part) or _text(part)} | {count:,} |" for part, count in trained.items() if count]
    rows += [f"| **trained** | **{sum(trained.values()):,}** |", f"| all, with what is frozen | {counts['total']:,} |"]
    return "\n".join(["| part | parameters |", "| --- | ---: |", *rows])


def _licence_fields(licence: str | None) -> dict[str, Any]:
    """The header's fields: the hub has a list of identifiers, and another licence is "other" with a name."""
    if not licence:
        return {}
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", licence):
        return {"license": licence.lower()}
    return {"license": "other", "license_name": " ".join(licence.split())}


def _licence(config: Mapping[str, Any]) -> str:
    about = config.get("about") or {}
    licence = about.get("licence")
    told = (
        f"These weights: {_text(licence)}."
        if licence
        else "That of these weights is not stated: whoever publishes them sets it, respecting those of the encoder and "
        "of the training data."
    )
    beside = [name for name in config.get("backbone_files") or () if not name.endswith((".json", ".safetensors"))]
    if about.get("recordings"):
        told += f" It learned from:\n\n{_lines(about['recordings'])}\n\n"
    if beside:
        told += f" The encoder keeps its own: see {', '.join(f'`{name}`' for name in beside)}."
    return told


def _class(described: Mapping[str, Any]) -> str:
    return _text(str(described["class_path"]).rpartition(".")[2])


def _text(value: Any) -> str:
    """Text of an untrusted file, without control characters and markup."""
    printable = "".join(c if c.isprintable() else " " for c in str(value))
    return html.escape(printable, quote=False).replace("|", "\\|").replace("`", "'")


_LIMITS = """For research on audio deepfake detection, and as one of several indications when speech is checked. Not
meant as the only ground of a decision about a person.

- It knows the attacks, languages, channels and codecs of its training data. On others the error rates can be many times
  higher; the figures above hold for the sets that they name.
- It judges whether speech is synthetic or converted, not who speaks or whether what is said is true. Edits, replayed
  speech, music and noise without speech were not part of the training unless stated.
- What a score means for one file depends on how common spoofed speech is where the file comes from."""

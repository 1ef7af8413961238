"""The summary that is printed at the end of a run."""

import os
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from lightning.pytorch import Trainer
from rich.console import Console, RenderableType
from rich.text import Text

from moelora_ad.configuration.building import PARTS
from moelora_ad.data.data_module import TRAIN
from moelora_ad.data.trainer_state import run_directory, score_folder, set_folder, training_folder
from moelora_ad.errors import counted, printable
from moelora_ad.evaluation.reports.text_table import TextTable, as_rich
from moelora_ad.models.saving.specification import allow_options, packages_of
from moelora_ad.runs.folder import shown
from moelora_ad.runs.record import DEV, RunRecord
from moelora_ad.training.callbacks.progress import duration
from moelora_ad.training.detection_module import DetectionModule


def print_fit(
    trainer: Trainer, model: DetectionModule, checkpoint: str, tested: bool, record: RunRecord | None = None
) -> None:
    """Print the figures of the best checkpoint, time and memory of the run, where its files are, and the next commands.

    Args:
        trainer: trainer of the run.
        model: the trained module; it has the figures, if ``tested``.
        checkpoint: path of the best checkpoint.
        tested: whether the best checkpoint was evaluated.
        record: record of the run; None if there is none.
    """
    console = Console(soft_wrap=True)
    console.print()
    if tested:
        console.print(_figures(model, "EER of the best checkpoint"))
    else:
        best = getattr(trainer.checkpoint_callback, "best_model_score", None)
        line(console, "best dev EER", "none" if best is None else f"{100 * float(best):.2f} %")
    line(console, "trainable parameters", trainable(model.parameter_counts))
    line(console, "epochs", f"{trainer.current_epoch} ({counted(trainer.global_step, 'step')})")
    if record is not None:
        peak = {name: size for name, size in record.peak_memory_bytes.items() if size is not None}
        memory = ", ".join(f"{size / 2**30:.2f} GiB ({name})" for name, size in peak.items())
        line(console, "time", f"{duration(record.seconds)}; memory at most {memory or 'unknown'}")
        line(console, "folder", shown(record.folder))
    line(console, "checkpoint", f"{shown(checkpoint)} ({os.path.getsize(checkpoint) / 1e6:.1f} MB with optimiser)")
    if tested:
        line(console, "scores", shown(score_folder(trainer)))
    _print_failures(console, trainer, model)
    config, best = quote(shown(run_directory(trainer) / "config.yaml")), quote(shown(checkpoint))
    line(console, "next", f"moelora-ad test --config {config} --ckpt_path {best}")
    if tested:
        line(console, "next", f"moelora-ad evaluate {quote(shown(score_folder(trainer)))}")
    line(console, "next", f"moelora-ad export --checkpoint {best} --to MODEL{allow_options(_packages(model))}")


def _packages(model: DetectionModule) -> list[str]:
    """The packages besides this one whose classes the detector and the data of a run are built of."""
    configuration = model.configuration or {}
    parts = configuration.get("model") or {}
    return packages_of([*(parts.get(name) for name in PARTS), configuration.get("data")])


def print_evaluation(trainer: Trainer, model: DetectionModule) -> None:
    """Print the figures of ``validate``, ``test`` or ``predict``, and where the scores are."""
    console = Console(soft_wrap=True)
    console.print()
    if trainer.state.fn != "predict":
        console.print(_figures(model, "EER of UNTRAINED weights" if model.untrained else "EER"))
    folders: dict[Path, list[str]] = {}
    for name in model.evaluated:
        folders.setdefault(set_folder(trainer, name), []).append(name)
    for folder, names in folders.items():
        other = f" ({', '.join(names)}: not configured in the run, in none of its averages)"
        apart = "" if folder == score_folder(trainer) else other
        line(console, "scores", f"{shown(folder)}{apart}")
    for name, figures in model.evaluated.items():
        if figures.num_known:
            line(console, "not computed again", f"{figures.num_known:,} of {name}, scored by an earlier run")
    _print_failures(console, trainer, model)


def unscored(model: DetectionModule) -> list[str]:
    """An error line for each evaluated set that has no score at all."""
    return [
        f"{name}: none of its {counted(figures.num_failed, 'file')} could be read; the first: {figures.first_failure}"
        for name, figures in model.evaluated.items()
        if figures.num_failed and not figures.num_scored
    ]


def any_failures(model: DetectionModule) -> bool:
    """Whether any file of training or of an evaluated set could not be read."""
    return bool(model.train_failures) or any(figures.num_failed for figures in model.evaluated.values())


def _print_failures(console: Console, trainer: Trainer, model: DetectionModule) -> None:
    """Print a line for each set with files that could not be read, and so have no part in its figures."""
    counts = {TRAIN: len(model.train_failures)}
    counts |= {name: figures.num_failed for name, figures in model.evaluated.items()}
    for name, count in counts.items():
        if count:
            folder = training_folder(trainer) if name == TRAIN else set_folder(trainer, name)
            listed = shown(folder / f"{name}.failed.csv")
            line(console, "could not be read", f"{count:,} of {name}, listed in {listed}")


def _figures(model: DetectionModule, title: str) -> RenderableType:
    rows = []
    for name, figures in model.evaluated.items():
        eer = "undefined" if figures.eer is None else f"{100 * figures.eer:.2f}"
        told = f"{name} (selects the checkpoint)" if name == DEV else name
        rows.append((printable(told), str(figures.num_bona_fide), str(figures.num_spoof), eer))
    return as_rich(TextTable(title, ("set", "bona fide", "spoof", "EER %"), rows))


def trainable(parameters: Mapping[str, int]) -> str:
    """Numbers of trainable parameters in words.

    Args:
        parameters: as `Detector.parameter_counts` gives them.
    """
    parts = {part: count for part, count in parameters.items() if part != "total" and count}
    detail = ", ".join(f"{part} {count:,}" for part, count in parts.items())
    share = 100 * sum(parts.values()) / parameters["total"]
    return f"{sum(parts.values()):,} of {parameters['total']:,}, {share:.2f} % ({detail})"


def line(console: Console, name: str, text: str) -> None:
    """Print a name in bold and a text, aligned with those of the other lines."""
    console.print(Text.assemble((f"{name + ':':22}", "bold"), text), soft_wrap=True)

"""What a person reads at the end of a run."""

import os
from pathlib import Path

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from moelora_ad.evaluation import ScoreTable
from moelora_ad.training.data_module import DEV
from moelora_ad.training.detection_module import DetectionModule, score_path
from moelora_ad.training.run import run_directory


def print_fit(trainer: Trainer, model: DetectionModule, checkpoint: str) -> None:
    """The figures of the best checkpoint, where everything is, and the next command."""
    run = run_directory(trainer)
    console = Console(soft_wrap=True)
    console.print()
    if model.evaluated:
        console.print(_figures(run, model, "EER of the best checkpoint"))
    total, trainable = model.parameter_count()
    parts = {part: sum(p.numel() for p in ps) for part, ps in model.detector.parameters_by_part().items()}
    detail = ", ".join(f"{part} {count:,}" for part, count in parts.items() if count)
    config = os.path.relpath(run / "config.yaml")
    checkpoint = os.path.relpath(checkpoint)
    lines = {
        "trainable parameters": f"{trainable:,} of {total:,} ({detail})",
        "epochs": f"{trainer.current_epoch} ({trainer.global_step} steps)",
        "checkpoint": f"{checkpoint} ({os.path.getsize(checkpoint) / 1e6:.1f} MB with optimiser)",
        "scores": os.path.relpath(run / "scores"),
        "next": f"lightning test --config {config} --ckpt_path {checkpoint}",
    }
    for name, text in lines.items():
        console.print(f"[bold]{name + ':':22}[/bold]{text}", highlight=False)


def print_evaluation(trainer: Trainer, model: DetectionModule) -> None:
    """The figures of ``validate``, ``test`` or ``predict``, and where the scores are."""
    run = run_directory(trainer)
    console = Console(soft_wrap=True)
    console.print()
    if model.evaluated:
        console.print(_figures(run, model, "EER"))
    console.print(f"[bold]scores:[/bold] {os.path.relpath(run / 'scores')}", highlight=False)


def _figures(run: Path, model: DetectionModule, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("set", "bona fide", "spoof", "EER %"):
        table.add_column(name, justify="left" if name == "set" else "right")
    for name, eer in model.evaluated.items():
        path = score_path(run, name)
        labels = [trial.label for trial in ScoreTable.read(path).trials] if path.is_file() else []
        figure = "undefined (one class)" if eer is None else f"{100 * eer:.2f}"
        shown = f"{name} (selects the checkpoint)" if name == DEV else name
        table.add_row(shown, str(labels.count(1)), str(labels.count(0)), figure)
    return table

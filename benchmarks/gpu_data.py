"""Recordings for gpu.py: the quickstart's, linked to as many names as needed; and the rates of reading and testing."""

import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from moelora_ad.audio import RawBoost, Segment
from moelora_ad.corpora import Manifest
from moelora_ad.training import AudioDeepfakeDataModule, DetectionModule

QUICKSTART = Path(__file__).parents[1] / "experiments" / "quickstart" / "corpus"
FIRST_BATCHES = 5  # of a test, not measured, as its workers start meanwhile


def linked(folder: Path, count: int) -> Path:
    """Link ``count`` names to the quickstart's recordings, and return their manifest."""
    (folder / "audio").mkdir(exist_ok=True)
    lines = ["path,label"]
    for number, recording in enumerate(islice(cycle(sorted(QUICKSTART.rglob("*.flac"))), count)):
        (folder / "audio" / f"{number:06}.flac").symlink_to(recording)
        lines.append(f"audio/{number:06}.flac,{('spoof', 'bonafide')[number % 2]}")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def loader(manifest: Path, clips: int, samples: int, workers: int, epochs: int) -> list[float]:
    """Utterances a second of the training loader in each epoch, after half of one to warm up."""
    corpus = Manifest(str(manifest))
    data = AudioDeepfakeDataModule(
        corpus,
        corpus,
        batch_size=clips,
        num_workers=workers,
        train_segment=Segment(samples, "random"),
        train_augmentation=RawBoost(5),
    )
    data.setup("fit")
    read = data.train_dataloader()
    rates = []
    for _ in range(epochs):
        begun, first, seen = 0.0, len(read) // 2, 0
        for number, batch in enumerate(read):
            if number == first:
                begun = time.perf_counter()
            seen += len(batch.trials) if number > first else 0
        rates.append(seen / (time.perf_counter() - begun))
    return rates


class Clock(Callback):
    """Measures utterances a second of a test, without its `FIRST_BATCHES`."""

    def on_test_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, number: int, *_: Any) -> None:
        if number == FIRST_BATCHES - 1:
            self.begun, self.seen = time.perf_counter(), 0
        elif number >= FIRST_BATCHES:
            self.seen += len(batch.trials)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        self.rate = self.seen / (time.perf_counter() - self.begun)


def tested_rate(module: DetectionModule, manifest: Path, clips: int, samples: int, workers: int) -> float:
    """Utterances a second of ``Trainer.test`` in bf16-mixed, which keeps every score on disk as it comes."""
    corpus, clock = Manifest(str(manifest)), Clock()
    data = AudioDeepfakeDataModule(
        test={"set": corpus}, eval_batch_size=clips, num_workers=workers, eval_segment=Segment(samples)
    )
    with tempfile.TemporaryDirectory() as folder:
        quiet: Any = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(precision="bf16-mixed", devices=1, default_root_dir=folder, callbacks=[clock], **quiet)
        trainer.test(module, datamodule=data, verbose=False)
    return clock.rate


def asvspoof2019(folder: Path) -> None:
    """Link 3 x 96 of the quickstart's recordings, in the layout of ASVspoof 2019 LA."""
    for split, letter, kind in (("train", "T", "trn"), ("dev", "D", "trl"), ("eval", "E", "trl")):
        audio = folder / "LA" / f"ASVspoof2019_LA_{split}" / "flac"
        audio.mkdir(parents=True)
        protocols = folder / "LA" / "ASVspoof2019_LA_cm_protocols"
        protocols.mkdir(exist_ok=True)
        lines = []
        for number, recording in enumerate(islice(cycle(sorted(QUICKSTART.rglob("MiniLA/flac/*.flac"))), 96)):
            utterance = f"LA_{letter}_{1_000_000 + number}"
            (audio / f"{utterance}.flac").symlink_to(recording)
            attack, key = ("-", "bonafide") if number % 2 else (f"A{1 + number % 6:02}", "spoof")
            lines.append(f"LA_{number % 5:04} {utterance} - {attack} {key}")
        (protocols / f"ASVspoof2019.LA.cm.{split}.{kind}.txt").write_text("\n".join(lines) + "\n")

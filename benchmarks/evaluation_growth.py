"""How the cost of evaluation grows with its sets, their number and their files: each ratio should stay near 1.

    python benchmarks/evaluation_growth.py [--batches 20000] [--sets 6] [--workers 8]

Time of a batch: the scores of a set are gathered from batches of 14 trials, without a detector; the median time of the
last 1,000 batches against that of the first 1,000.
Processes: the quickstart's backbone is tested on several sets, with workers; the most reading processes that live at
once, against the workers that were asked for.
Crop: random crops of 64,600 samples at 16 kHz are read from files of 10, 60 and 600 s; the least time of each length,
as other work on the machine only adds to it, and the greatest of these against the smallest.
"""

import argparse
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import soundfile
import torch
from lightning.pytorch import Callback, Trainer

from moelora_ad.adapters import LoRA
from moelora_ad.audio import SAMPLE_RATE, TRAINING_SAMPLES, Segment, read_audio
from moelora_ad.corpora import Manifest, Trial, TrialList
from moelora_ad.models import MeanPooling, WhisperBackbone
from moelora_ad.training import AudioDeepfakeDataModule, Batch, DetectionModule
from moelora_ad.training.scoring import SetScores

BACKBONE = Path(__file__).parents[1] / "experiments" / "quickstart" / "backbone"
BATCH, SPAN = 14, 1_000
RATES = (8_000, 16_000, 22_050, 44_100, 48_000)
SECONDS = (10, 60, 600)
CROPS = 25


def time_of_batches(batches: int) -> list[float]:
    """Seconds that each batch of a set takes to be gathered."""
    trials = TrialList([Trial(f"u{number}", "") for number in range(batches * BATCH)])
    part = SetScores("set", trials, complete=True)
    logits = torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(0))
    times = []
    for first in range(0, batches * BATCH, BATCH):
        places = torch.arange(first, first + BATCH)
        batch = Batch(torch.zeros(BATCH, 1), None, torch.zeros(BATCH, dtype=torch.int64), places, [])
        started = time.perf_counter()
        part.update(batch, logits)
        times.append(time.perf_counter() - started)
    assert len(part.result().indices) == len(trials)
    return times


class Processes(Callback):
    """Records the largest number of child processes at the beginning of any batch."""

    most = 0

    def on_test_batch_start(self, *arguments: object, **named: object) -> None:
        self.most = max(self.most, len(multiprocessing.active_children()))


def most_processes(folder: Path, sets: int, workers: int) -> int:
    lines = ["path,label"]
    for number in range(2 * workers):
        soundfile.write(folder / f"{number}.wav", np.full(SAMPLE_RATE, 0.1), SAMPLE_RATE)
        lines.append(f"{number}.wav,{('spoof', 'bonafide')[number % 2]}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    corpora = {f"set{number}": Manifest(folder / "manifest.csv") for number in range(sets)}
    data = AudioDeepfakeDataModule(test=corpora, batch_size=1, num_workers=workers, eval_segment=Segment(8_000))
    processes = Processes()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(accelerator="cpu", callbacks=[processes], default_root_dir=folder, **quiet)
    model = DetectionModule(WhisperBackbone(BACKBONE), LoRA(2), MeanPooling)
    trainer.test(model, datamodule=data, verbose=False)
    return processes.most


def crop_times(folder: Path, form: str, rate: int) -> list[float]:
    """The shortest time of a crop in seconds, for a file of each length."""
    generator, times = np.random.default_rng(0), []
    for seconds in SECONDS:
        path = folder / f"{seconds}.{form}"
        soundfile.write(path, generator.uniform(-0.1, 0.1, seconds * rate), rate)
        taken = []
        for _ in range(CROPS):
            start = int(generator.integers(seconds * SAMPLE_RATE - TRAINING_SAMPLES))
            started = time.perf_counter()
            read_audio(path, start, TRAINING_SAMPLES)
            taken.append(time.perf_counter() - started)
        times.append(min(taken))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=20_000)
    parser.add_argument("--sets", type=int, default=6)
    parser.add_argument("--workers", type=int, default=8)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)

    times = time_of_batches(arguments.batches)
    first, last = statistics.median(times[:SPAN]), statistics.median(times[-SPAN:])
    print(f"gathering a batch: {1e3 * first:.3f} ms at first, {1e3 * last:.3f} ms after {arguments.batches:,} batches")
    print(f"    ratio {last / first:.2f}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        most = most_processes(Path(name), arguments.sets, arguments.workers)
        print(f"reading processes: {most} at most for {arguments.sets} sets with {arguments.workers} workers")
        print(f"    ratio {most / arguments.workers:.2f}", flush=True)
        print(f"a crop of {TRAINING_SAMPLES:,} samples, ms from files of {', '.join(map(str, SECONDS))} s")
        for form in ("wav", "flac"):
            for rate in RATES:
                times = crop_times(Path(name), form, rate)
                told = " ".join(f"{1e3 * one:7.2f}" for one in times)
                print(f"    {form:4} {rate:6} Hz {told}   ratio {max(times) / min(times):.2f}", flush=True)


if __name__ == "__main__":
    main()

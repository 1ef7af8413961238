"""Utterances per second from a folder and from archives, compared with the usual way to load them.

    pip install -e '.[benchmark]' && python benchmarks/data_loading.py [--rounds 3] [--epochs 2] [--algorithm 5]

The usual way reads each file whole with librosa, cuts or repeats it to 64,600 samples, and applies RawBoost in its
usual scipy formulation (see rawboost.py), in an ordinary DataLoader. Ours reads a random segment through the data
module. All take the quickstart's 612 utterances, shuffled, in batches of 14, with one thread a process. Every round
measures every case once, after an epoch to warm up; a figure is the median over the rounds, and a ratio the median of
the ratios within rounds. The last columns are the private memory of the first worker after the first and the last
measured epoch.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import librosa
import numpy as np
import torch
from rawboost import UsualRawBoost
from torch.utils.data import DataLoader, Dataset

from moelora_ad.audio import SAMPLE_RATE, TRAINING_SAMPLES, RawBoost, Segment
from moelora_ad.corpora import Manifest
from moelora_ad.training import AudioDeepfakeDataModule

QUICKSTART = Path(__file__).parents[1] / "experiments" / "quickstart" / "corpus"
FORMS = {"folder": "", "zip": ".zip!", "tar": ".tar!", "tar.gz": ".tar.gz!"}
BATCH = 14


class UsualDataset(Dataset):
    """Whole files, then a crop or repetition, then the usual RawBoost."""

    def __init__(self, files: list[Path], boost: UsualRawBoost | None) -> None:
        self.files = files
        self.boost = boost

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        waveform, _ = librosa.load(self.files[index], sr=SAMPLE_RATE)
        waveform = np.tile(waveform, TRAINING_SAMPLES // len(waveform) + 1)[:TRAINING_SAMPLES]
        if self.boost is not None:
            waveform = self.boost(waveform.astype(np.float64), np.random.default_rng(index))
        return torch.tensor(waveform, dtype=torch.float32), index % 2


def lay_out(folder: Path) -> list[Path]:
    """Write the corpus as a folder and as archives of it, side by side; return the files in the folder."""
    corpus = folder / "corpus"
    (corpus / "audio").mkdir(parents=True)
    for path in sorted(QUICKSTART.rglob("*.flac")):
        shutil.copy(path, corpus / "audio" / path.name)
    files = sorted((corpus / "audio").iterdir())
    lines = [f"audio/{path.name},{('spoof', 'bonafide')[i % 2]}\n" for i, path in enumerate(files)]
    (corpus / "manifest.csv").write_text("path,label\n" + "".join(lines))
    for kind in ("zip", "tar", "gztar"):
        shutil.make_archive(str(corpus), kind, corpus)
    return files


def ours(folder: Path, form: str, workers: int, boost: RawBoost | None) -> DataLoader:
    corpus = Manifest(f"{folder / 'corpus'}{FORMS[form]}/manifest.csv")
    segment = Segment(position="random")
    data = AudioDeepfakeDataModule(
        corpus, corpus, batch_size=BATCH, num_workers=workers, train_segment=segment, train_augmentation=boost
    )
    data.setup("fit")
    return data.train_dataloader()


def usual(files: list[Path], workers: int, boost: RawBoost | None) -> DataLoader:
    dataset = UsualDataset(files, None if boost is None else UsualRawBoost(boost))
    return DataLoader(dataset, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True)


def measure(loader: DataLoader, epochs: int) -> tuple[float, float, float]:
    """Utterances per second, and a worker's private memory after the first and the last epoch, in MiB."""
    memory: list[float] = []
    started = 0.0
    for epoch in range(-1, epochs):
        if epoch == 0:
            started = time.perf_counter()
        for _ in loader:
            pass
        if epoch in (0, epochs - 1):
            memory.append(private_memory(loader._iterator._workers[0].pid))  # type: ignore[union-attr]
    seconds = time.perf_counter() - started
    return epochs * len(loader) * BATCH / seconds, memory[0], memory[-1]


def private_memory(process: int) -> float:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--algorithm", type=int, default=5, help="of RawBoost")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        files = lay_out(folder)
        print(f"{len(files)} utterances, {arguments.rounds} rounds of {arguments.epochs} epochs, medians")
        print(
            "workers  RawBoost  from     utterances/s  against usual  against folder  worker MiB, first and last epoch"
        )
        for workers in (1, 2):
            for boost in (None, RawBoost(arguments.algorithm)):
                cases: dict[str, Callable[[], DataLoader]] = {"usual": lambda w=workers, b=boost: usual(files, w, b)}
                for form in FORMS:
                    cases[form] = lambda f=form, w=workers, b=boost: ours(folder, f, w, b)
                rounds = [
                    {case: measure(make(), arguments.epochs) for case, make in cases.items()}
                    for _ in range(arguments.rounds)
                ]
                for case in cases:
                    rate, first, last = (statistics.median(one[case][i] for one in rounds) for i in range(3))
                    ratios = [
                        statistics.median(one[case][0] / one[peer][0] for one in rounds) for peer in ("usual", "folder")
                    ]
                    algorithm = boost.algorithm if boost else "none"
                    print(
                        f"{workers:7}  {algorithm!s:8}  {case:7}  {rate:12.0f}  {ratios[0]:12.2f}x  {ratios[1]:13.2f}x"
                        f"  {first:9.0f} {last:9.0f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()

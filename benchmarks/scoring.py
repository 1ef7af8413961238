"""Speed of `score` on many short files, compared with the bare model on batches that are ready.

    python benchmarks/scoring.py [--files 5000] [--block 250] [--num-workers N] [--device cpu] [--precision 32-true]
        [--encoder quickstart | xlsr] [--batch-size 16] [--threads N]

Files are the quickstart's 612 utterances, copied under other names until there are enough; the model is 3 LoRA experts
of rank 8 and AASIST, untrained, on the quickstart's Whisper tiny.en, or on random weights of XLSR-53's size. `score`
does what the command does: it decodes, scores, gives verdicts, and writes a row of JSON for each file. The bare model
gets as many windows, in batches that are decoded already. The two take turns in blocks of some hundred files, so that
other work on the machine affects both; while the bare model has its turn, each worker of `score` decodes ahead until
its queue is full, two batches. A figure is the quotient of the sums of all blocks, with the median and the extremes of
the quotients of single blocks. Ctrl-C ends it with the figures so far.
"""

import argparse
import itertools
import os
import shutil
import signal
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from moelora_ad.adapters import MoELoRA
from moelora_ad.inference.batches.pieces import Cutting, read_pieces, sensible_workers
from moelora_ad.inference.file_scores import FileScore
from moelora_ad.inference.output import DecisionRule, file_row
from moelora_ad.inference.precision import computing_in
from moelora_ad.inference.row_files import RowFile
from moelora_ad.inference.scorer import Scorer
from moelora_ad.models import AASIST, Backbone, Detector, Wav2Vec2Backbone, WhisperBackbone
from moelora_ad.models.scores import log_odds

QUICKSTART = Path(__file__).parents[1] / "experiments" / "quickstart"
DECISION = DecisionRule.of(False, 0.5, None)


def lay_out(folder: Path, count: int) -> list[str]:
    """Copy the quickstart's utterances to ``count`` files with different names, and return their paths."""
    sources = sorted((QUICKSTART / "corpus").rglob("*.flac"))
    paths = []
    for number, source in zip(range(count), itertools.cycle(sources), strict=False):
        paths.append(str(folder / f"{number:06}.flac"))
        shutil.copy(source, paths[-1])
    return paths


def encoder(name: str, folder: Path) -> Backbone:
    if name == "quickstart":
        return WhisperBackbone(QUICKSTART / "backbone")
    config = Wav2Vec2Config(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
    )
    Wav2Vec2Model(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"do_normalize": true, "return_attention_mask": true}')
    return Wav2Vec2Backbone(folder)


class Bare:
    """The bare model, on batches that are decoded and on its device."""

    def __init__(self, scorer: Scorer, paths: list[str]) -> None:
        self.scorer = scorer
        cutting = Cutting(scorer.window, scorer.hop, scorer.fill, scorer.batch_size)
        pieces = itertools.islice(read_pieces(paths, cutting, 0), 8)
        self.batches = [p.waveforms.to(scorer.device) for p in pieces if len(p.waveforms) == scorer.batch_size]

    def __call__(self, windows: int) -> float:
        """Seconds that the model takes for so many windows."""
        started = time.perf_counter()
        scores = []
        with torch.inference_mode(), computing_in(self.scorer.precision, self.scorer.device):
            for batch, first in zip(
                itertools.cycle(self.batches), range(0, windows, self.scorer.batch_size), strict=False
            ):
                scores.append(log_odds(self.scorer.detector(batch[: windows - first])))
        torch.cat(scores).cpu()
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=5_000)
    parser.add_argument("--block", type=int, default=250, help="files of a turn")
    parser.add_argument("--num-workers", type=int, help="default: that of the verb")
    parser.add_argument("--device")
    parser.add_argument("--precision")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--encoder", choices=("quickstart", "xlsr"), default="quickstart")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: all processors)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads or os.cpu_count() or 1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "encoder").mkdir()
        detector = Detector(encoder(arguments.encoder, folder / "encoder"), MoELoRA(3, 8), AASIST)
        scorer = Scorer(
            detector, batch_size=arguments.batch_size, device=arguments.device, precision=arguments.precision
        )
        paths = lay_out(folder, arguments.files)
        workers = arguments.num_workers
        if workers is None:
            cutting = Cutting(scorer.window, scorer.hop, scorer.fill, scorer.batch_size)
            workers = sensible_workers(len(paths), scorer.device, cutting)
        bare = Bare(scorer, paths)
        for _ in range(2):
            bare(4 * scorer.batch_size)
        device = torch.cuda.get_device_name(scorer.device) if scorer.device.type == "cuda" else "CPU"
        print(
            f"{len(paths):,} files, {device}, {torch.get_num_threads()} threads of PyTorch, {workers} workers, "
            f"{scorer.precision}, batches of {scorer.batch_size}",
            flush=True,
        )
        rows = RowFile(folder / "scores.jsonl", "jsonl", {}, resumes=False)
        results = scorer.score_files(paths, num_workers=workers)
        turns: list[tuple[float, float, int]] = []
        more = True
        signal.signal(signal.SIGINT, lambda *_: setattr(arguments, "block", 0))
        while more and arguments.block:
            started, windows, files = time.perf_counter(), 0, 0
            for result in itertools.islice(results, block := arguments.block):
                assert isinstance(result, FileScore)
                rows(file_row(result, DECISION))
                windows += len(result.windows)
                files += 1
            seconds = time.perf_counter() - started
            more = files == block
            if files:
                turns.append((seconds, bare(windows), windows))
                print(f"  {files} files: {turns[-1][1] / seconds:.3f}", flush=True)
        rows.finish()
    ours, theirs, windows = (sum(column) for column in zip(*turns, strict=True))
    quotients = [alone / scored for scored, alone, _ in turns]
    print(f"score: {windows / ours:8.1f} windows/s, {windows:,} windows")
    print(f"bare:  {windows / theirs:8.1f} windows/s")
    print(
        f"score / bare: {theirs / ours:.3f} (blocks: median {statistics.median(quotients):.3f}, "
        f"{min(quotients):.3f} to {max(quotients):.3f})"
    )


if __name__ == "__main__":
    main()

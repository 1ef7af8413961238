"""Speed of training and scoring with these adapters on a GPU, beside peft, a loop over experts and full fine-tuning.

    pip install -e '.[benchmark]' && python benchmarks/gpu.py [--parts eager data ...] [--repeats 9]

It runs from a bare checkout: random weights of XLSR-53's size, AASIST, clips of 64,600 samples, bf16-mixed, and the
quickstart's recordings under other names where files are needed. It takes some ten minutes. It prints the card's name
and a line for every goal: what, the median of paired runs (lowest to highest), the goal, met or missed. A part that
fails is told, and the others are measured; the exit code is 1 then.

`eager`, `compiled`, `graphs`: sides take turns within a repeat, in an order that rotates; a figure is the time of 3
steps, and a ratio the median of the ratios within the repeats. "Compiled" is what `model.compile: true` does, and with
graphs `model.compile: reduce-overhead`. The matrix rate is the number of operations of a step divided by its time,
beside that of one product of 8,192 x 8,192 matrices in bf16. Three more eager steps run in which every wait for the GPU
is an error. `front`: the convolutional front end alone, without gradients, eager and compiled, at the largest batch.
`data`: utterances a second of the training loader (FLAC, random crop, RawBoost 5; a worker for each core, at most 16)
beside what the fastest step at batch 64 takes. `test`: `Trainer.test` from its sixth batch on, beside the bare forward
pass over one ready batch, without TF32 as in all evaluations. `score`: `Scorer.score_files` of 2,000 and of all files,
beside that forward pass too. `paper`: `fit` with experiments/paper.yaml, until it prints its table, on recordings in
the layout of ASVspoof 2019 LA. `profile`: what that step spends its time on, by kernels.

`--rehearse` runs everything small, on any device, in a minute or two: the figures mean nothing then.
"""

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from gpu_data import asvspoof2019, linked, loader, tested_rate
from gpu_sides import FULL, LOOP, OURS, PEFT, SMALL, XLSR_53, TrainingStep, module, no_waiting
from torch.profiler import ProfilerActivity
from transformers import Wav2Vec2Config

from moelora_ad.audio import TRAINING_SAMPLES
from moelora_ad.inference import Scorer
from moelora_ad.inference.file_scores import FileScore
from moelora_ad.models import Detector
from moelora_ad.models.accounting.account import account
from moelora_ad.models.compilation import GRAPHS
from moelora_ad.models.precision import tf32_allowed

PROJECT = Path(__file__).parents[1]
STEPS = 3  # in one measurement
PATIENCE = 300  # seconds for the paper's fit
COMPILED = " compiled"  # end of the name of a side
PARTS = ("eager", "compiled", "graphs", "front", "data", "test", "score", "paper", "profile")


@dataclass
class Bench:
    """Settings of the measurements, and their results."""

    device: torch.device
    repeats: int
    samples: int
    batches: Sequence[int]  # smallest first
    source: str
    files: int
    lines: list[str] = field(default_factory=list)
    peaks: dict[tuple[str, int], int] = field(default_factory=dict)  # bytes that a side adds at a batch size
    fastest: tuple[str, float] | None = None  # backend and seconds of a compiled step of ours at the largest batch
    peak_rate: float | None = None  # operations a second of one large product
    operations: float = 0.0  # of a training step of one clip

    def goal(self, what: str, ratios: Sequence[float], limit: float, at_most: bool) -> None:
        ratio = statistics.median(ratios)
        met = "met" if (ratio <= limit if at_most else ratio >= limit) else "missed"
        spread = f"{ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        self.lines.append(f"{what:64} {spread:>25}  {'<=' if at_most else '>='} {limit:.2f}  {met}")
        print(self.lines[-1], flush=True)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object], times: int = STEPS) -> float:
        self.wait()
        begun = time.perf_counter()
        for _ in range(times):
            run()
        self.wait()
        return (time.perf_counter() - begun) / times

    def turns(self, runs: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Seconds of each side in each repeat."""
        taken: dict[str, list[float]] = {name: [] for name in runs}
        names = list(runs)
        for run in runs.values():
            self.seconds(run)
        for repeat in range(self.repeats):
            turn = repeat % len(names)
            for name in names[turn:] + names[:turn]:
                taken[name].append(self.seconds(runs[name]))
        return taken


def ratios(taken: dict[str, list[float]], first: str, second: str) -> list[float]:
    return [a / b for a, b in zip(taken[first], taken[second], strict=True)]


def training_steps(
    bench: Bench, names: Sequence[str], clips: int, compiled: str | None = None
) -> dict[str, TrainingStep]:
    """Steps of the sides, compiled where their names end so, each after a first measurement."""
    begin(bench.device)
    print(f"\ntraining steps, batch {clips}", flush=True)
    sides: dict[str, TrainingStep] = {}
    for name in names:
        method = name.removesuffix(COMPILED)
        before, begun = reset_peak(bench.device), time.perf_counter()
        model = module(method, bench.source, bench.device).detector
        sides[name] = step = TrainingStep(model, clips, bench.samples, None if name == method else compiled)
        bench.seconds(step)
        bench.peaks[name, clips] = peak(bench.device) - before
        memory = f"{bench.peaks[name, clips] / 2**20:.0f} MiB at most"
        print(f"  {name:32} made in {time.perf_counter() - begun:.0f} s, {memory}", flush=True)
    return sides


def paired(bench: Bench, sides: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each side in each repeat."""
    taken = bench.turns(dict(sides))
    for name, seconds in taken.items():
        print(f"  {name:32} {1e3 * statistics.median(seconds):9.2f} ms", flush=True)
    return taken


def eager(bench: Bench) -> None:
    for clips in bench.batches:
        first = clips == bench.batches[0]
        sides = training_steps(bench, [OURS, PEFT, LOOP, FULL] if first else [OURS, PEFT, FULL], clips)
        taken = paired(bench, sides)
        bench.goal(f"step, batch {clips}, eager: ours / peft LoRA r8", ratios(taken, OURS, PEFT), 1.10, True)
        ours, theirs = bench.peaks[OURS, clips], bench.peaks[PEFT, clips]
        if theirs:
            bench.goal(f"peak memory, batch {clips}: ours / peft LoRA r8", [ours / theirs], 1.05, True)
        if first:
            bench.goal(f"step, batch {clips}, eager: loop over experts / ours", ratios(taken, LOOP, OURS), 1.5, False)
        bench.goal(f"step, batch {clips}, eager: full fine-tuning / ours", ratios(taken, FULL, OURS), 1.5, False)
        with no_waiting(bench.device):
            for _ in range(STEPS):
                sides[OURS]()
        del sides


def compiled(bench: Bench, backend: str, name: str) -> None:
    ours, theirs, full = OURS + COMPILED, PEFT + COMPILED, FULL + COMPILED
    for clips in bench.batches:
        first, last = clips == bench.batches[0], clips == bench.batches[-1]
        names = [ours, theirs, full, OURS] if first else [ours, theirs, full]
        taken = paired(bench, training_steps(bench, names, clips, backend))
        bench.goal(f"step, batch {clips}, {name}: ours / peft LoRA r8", ratios(taken, ours, theirs), 1.03, True)
        bench.goal(f"step, batch {clips}, {name}: full fine-tuning / ours", ratios(taken, full, ours), 1.5, False)
        if first:
            bench.goal(f"step, batch {clips}: ours {name} / eager", ratios(taken, ours, OURS), 0.75, True)
        if last:
            rates = [matrix_rate(bench, clips, seconds) for seconds in taken[ours]]
            bench.goal(f"matrix rate, batch {clips}, {name} / one product", rates, 0.40, False)
            seconds = statistics.median(taken[ours])
            if bench.fastest is None or seconds < bench.fastest[1]:
                bench.fastest = backend, seconds


def matrix_rate(bench: Bench, clips: int, seconds: float) -> float:
    """The matrix rate of a step, as a share of that of one large product."""
    if bench.peak_rate is None:
        size = 8192 if bench.device.type == "cuda" else 512
        a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
        for _ in range(2):
            a @ b
        bench.peak_rate = 2 * size**3 / bench.seconds(lambda: a @ b, 20)
        counted = module(OURS, bench.source, torch.device("meta")).detector
        bench.operations = account(counted, torch.optim.AdamW, bench.samples, 1).training_step * bench.samples / 16_000
        print(f"  one product: {bench.peak_rate / 1e12:.1f} T a second; a clip: {bench.operations / 1e12:.3f} T")
    return clips * bench.operations / seconds / bench.peak_rate


def front(bench: Bench) -> None:
    begin(bench.device)
    clips = bench.batches[-1]
    eagerly, compiled = (module(OURS, bench.source, bench.device).detector.backbone for _ in range(2))
    compiled.front_end_module().compile()
    waveforms = 0.1 * torch.randn(clips, bench.samples, device=bench.device)

    def run(front_end: torch.nn.Module) -> None:
        with torch.no_grad(), torch.autocast(bench.device.type, torch.bfloat16, cache_enabled=False):
            front_end(waveforms)

    print(f"\nfront end, batch {clips}")
    paired(
        bench,
        {name: partial(run, one.front_end_module()) for name, one in (("eager", eagerly), ("compiled", compiled))},
    )


def data(bench: Bench) -> None:
    clips = bench.batches[-1]
    begin(bench.device)
    if bench.fastest is None:
        step = TrainingStep(module(OURS, bench.source, bench.device).detector, clips, bench.samples, "inductor")
        bench.fastest = "inductor", min(bench.seconds(step) for _ in range(4))
    with tempfile.TemporaryDirectory() as name:
        manifest = linked(Path(name), bench.files)
        rates = loader(manifest, clips, bench.samples, workers(), bench.repeats // 3 or 1)
    eaten = clips / bench.fastest[1]
    print(f"\nloader: {statistics.median(rates):,.0f} utterances a second, {workers()} workers; the step: {eaten:,.0f}")
    bench.goal(f"loader / compiled step, batch {clips}", [rate / eaten for rate in rates], 1.2, False)


def bare_rate(bench: Bench, model: Detector, clips: int) -> float:
    """Utterances a second of the forward pass over a ready batch."""
    waveforms = 0.1 * torch.randn(clips, bench.samples, device=bench.device)
    model.eval()

    def run() -> None:
        with torch.inference_mode(), torch.autocast(bench.device.type, torch.bfloat16), tf32_allowed(False):
            model(waveforms)

    bench.seconds(run)
    return clips / min(bench.seconds(run) for _ in range(3))


def test(bench: Bench) -> None:
    clips = bench.batches[-1]
    tested = module(OURS, bench.source, bench.device)
    with tempfile.TemporaryDirectory() as name:
        manifest = linked(Path(name), bench.files)
        rates = [tested_rate(tested, manifest, clips, bench.samples, workers()) for _ in range(2)]
    bare = bare_rate(bench, tested.detector.to(bench.device), clips)  # a test leaves it on the CPU
    print(f"\ntest: {statistics.median(rates):,.0f} utterances a second; the bare forward pass: {bare:,.0f}")
    bench.goal(f"test / bare forward pass, batch {clips}", [rate / bare for rate in rates], 0.9, False)


def score(bench: Bench) -> None:
    clips = bench.batches[-1]
    model = module(OURS, bench.source, bench.device).detector
    bare = bare_rate(bench, model, clips)
    print(f"\nthe bare forward pass: {bare:,.0f} windows a second", flush=True)
    scorer = Scorer(model, window=bench.samples, batch_size=clips, device=bench.device, precision="bf16-mixed")
    with tempfile.TemporaryDirectory() as name:
        linked(Path(name), bench.files)
        places = [str(path) for path in sorted(Path(name).glob("audio/*.flac"))]
        list(scorer.score_files(places[:clips]))
        for number in sorted({min(len(places), 2_000), len(places)}):  # short: its workers' start is a part of it
            rates = []
            for _ in range(2):
                begun = time.perf_counter()
                results = list(scorer.score_files(places[:number], num_workers=None))
                windows = sum(len(result.windows) for result in results if isinstance(result, FileScore))
                rates.append(windows / (time.perf_counter() - begun))
                print(f"score of {number:,} files: {rates[-1]:,.0f}", flush=True)
            bench.goal(f"score of {number:,} files / bare forward pass", [rate / bare for rate in rates], 0.8, False)


def paper(bench: Bench) -> None:
    begin(bench.device)
    with tempfile.TemporaryDirectory() as name:
        corpora = Path(name)
        asvspoof2019(corpora / "ASVspoof2019")
        rehearsal = ["--trainer.precision", "32-true", "--data.train_segment.samples", "16000"]
        command = [sys.executable, "-m", "moelora_ad", "fit", "--config", str(PROJECT / "experiments" / "paper.yaml")]
        command += ["--model.backbone.init_args.pretrained", "false", "--trainer.max_epochs", "1"]
        command += ["--trainer.logger.init_args.save_dir", str(corpora / "runs"), "--data.num_workers", str(workers())]
        if bench.device.type != "cuda":
            command += [*rehearsal, "--model.backbone.init_args.source", bench.source, "--data.num_workers", "0"]
            command += ["--data.eval_segment.samples", "16000"]
        begun = time.perf_counter()
        environment = os.environ | {"CORPORA": str(corpora)}
        done = subprocess.run(command, cwd=corpora, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        print(f"\nfit with experiments/paper.yaml: exit code {done.returncode}, {time.perf_counter() - begun:.0f} s")
        print((done.stdout if not done.returncode else done.stdout + done.stderr)[-3_000:])
        bench.goal("fit with experiments/paper.yaml, to its table", [float(done.returncode == 0)], 1.0, False)
        done.check_returncode()


def profile(bench: Bench) -> None:
    begin(bench.device)
    how = bench.fastest[0] if bench.fastest else "inductor"
    step = TrainingStep(module(OURS, bench.source, bench.device).detector, bench.batches[-1], bench.samples, how)
    bench.seconds(step)
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (bench.device.type == "cuda")
    with torch.profiler.profile(activities=kinds) as profiler:
        bench.seconds(step)
    print(f"\n{STEPS} steps ({how}), batch {bench.batches[-1]}")
    order = "self_device_time_total" if bench.device.type == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=60))


def workers() -> int:
    return min(16, len(os.sched_getaffinity(0)))


def begin(device: torch.device) -> None:
    """Forget compiled code, whose limit of variants and whose dynamic shapes depend on what ran before, and free what
    it kept."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reset_peak(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batches", nargs="+", type=int, help="batch sizes of the training steps")
    parser.add_argument("--rehearse", action="store_true", help="everything small, on any device")
    given = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cuda" and not given.rehearse:
        parser.error("there is no CUDA device here: --rehearse runs everything small")
    card = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU"
    print(f"{card}; torch {torch.__version__}; {len(os.sched_getaffinity(0))} cores")
    with tempfile.TemporaryDirectory() as name:
        source = XLSR_53
        if given.rehearse:
            source = name
            Wav2Vec2Config(**SMALL).save_pretrained(name)
            Path(name, "preprocessor_config.json").write_text('{"do_normalize": true}')
        sizes = (16_000, (2, 4), 40) if given.rehearse else (TRAINING_SAMPLES, (14, 64), 6_000)
        repeats, batches = 2 if given.rehearse else given.repeats, given.batches or sizes[1]
        bench = Bench(device, repeats, sizes[0], batches, source, sizes[2])
        steps = (
            eager,
            partial(compiled, backend="inductor", name="compiled"),
            partial(compiled, backend=GRAPHS, name="with graphs"),
        )
        measures = dict(zip(PARTS, (*steps, front, data, test, score, paper, profile), strict=True))
        failed = []
        for part in PARTS:
            if part in given.parts:
                begun = time.perf_counter()
                try:
                    measures[part](bench)
                except Exception:  # the other parts are worth their time on a card
                    traceback.print_exc()
                    failed.append(part)
                print(f"  ({part}: {time.perf_counter() - begun:.0f} s)", flush=True)
        print(f"\n{card}: what, median (lowest to highest), goal")
        print("\n".join(bench.lines))
        if failed:
            raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

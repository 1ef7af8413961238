"""Cost of a mixture of LoRA experts, compared with one LoRA of peft, a loop over experts, and full fine-tuning.

    python benchmarks/adapters.py [--repeats 15] [--clips 1] [--parts layer backbone step memory]

One thread, float32, processor time. `layer`: forward and backward of one 1024 -> 1024 projection on (8, 201, 1024)
inputs. `backbone`: forward and backward of an encoder of XLSR-53's size with random weights, adapted on q, k, v and out
of its 24 layers, on clips of 64,600 samples. `step`: a training step with it: forward, AASIST, loss, backward, AdamW.
`memory`: peak memory of two such steps, each side in a process of its own.

Within a repeat the sides take turns, in an order that rotates; a figure is the median over the repeats, a ratio the
median of the ratios within the repeats (lowest to highest). All sides have the same frozen weights and inputs; peft's
LoRA has no dropout. Saved activations are what autograd saves for the backward pass: unique storages, without
parameters and buffers; for the backbone with 4 clips (the concatenated low-rank matrices are saved once for any number
of clips).
"""

import argparse
import copy
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from peers import PROJECTIONS, loop, lora_of_peft
from torch import Tensor, nn
from torch.nn import functional

from moelora_ad.adapters import MoELoRA
from moelora_ad.models import AASIST, Wav2Vec2Backbone

WIDTH, FRAMES, SAMPLES = 1024, 201, 64_600
SAVED_CLIPS = 4
OURS, FULL = "MoE-LoRA 3 x r8 dense", "full fine-tuning"
SMALL, LARGE, LOOP = "peft LoRA r8", "peft LoRA r24", "loop over experts"


SIDES: dict[str, Callable[[nn.Module], object]] = {
    OURS: MoELoRA(3, 8, targets=PROJECTIONS).adapt,
    "MoE-LoRA 3 x r8 top-2": MoELoRA(3, 8, top_k=2, targets=PROJECTIONS).adapt,
    SMALL: lora_of_peft(8),
    LARGE: lora_of_peft(24),
    LOOP: loop,
    FULL: lambda model: model.requires_grad_(True),
}


class OneProjection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.q_proj(x)


def adapted(model: nn.Module, name: str) -> nn.Module:
    """A copy of the model, adapted by one side; frozen weights are shared between the copies."""
    model.requires_grad_(False)
    memo = {} if name == FULL else {id(p): p for p in model.parameters()}
    twin = copy.deepcopy(model, memo)
    SIDES[name](twin)
    if hasattr(twin, "freeze_feature_encoder"):
        twin.freeze_feature_encoder()
    for key, parameter in twin.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter, std=1e-3)
    return twin.train()


def saved_bytes(model: nn.Module, run: Callable[[], object]) -> int:
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    del result
    return sum(kept.values())


def times_of(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for repeat in range(-1, repeats):  # one to warm up
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            started = time.process_time()
            runs[name]()
            if repeat >= 0:
                taken[name].append(time.process_time() - started)
    return taken


def show(title: str, taken: dict[str, list[float]], saved: dict[str, int]) -> None:
    print(f"\n{title}")
    print(f"{'':24}{'ms':>8}  {'ours / this':>20}  {'saved MiB':>9}{'ours / this':>12}")
    for name, times in taken.items():
        ratios = [ours / this for ours, this in zip(taken[OURS], times, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        size, ratio = (f"{saved[name] / 2**20:9.1f}", f"{saved[OURS] / saved[name]:11.2f}") if saved else ("", "")
        print(f"{name:24}{1e3 * statistics.median(times):8.1f}  {spread:>20}  {size:>9}{ratio:>12}")


def goal(text: str, taken: dict[str, list[float]], first: str, second: str, limit: float, at_most: bool) -> None:
    ratio = statistics.median(a / b for a, b in zip(taken[first], taken[second], strict=True))
    met = ratio <= limit if at_most else ratio >= limit
    print(f"goal: {text} {'<=' if at_most else '>='} {limit}x: {ratio:.2f}x, {'met' if met else 'missed'}")


def compare_layers(repeats: int) -> None:
    torch.manual_seed(0)
    models = {name: adapted(OneProjection(), name) for name in SIDES if name != FULL}
    x, seed = torch.randn(2, 8, FRAMES, WIDTH)
    x.requires_grad_()
    runs = {name: lambda model=model: model(x).backward(seed) for name, model in models.items()}
    taken = times_of(runs, repeats)
    saved = {name: saved_bytes(model, lambda model=model: model(x)) for name, model in models.items()}
    show(f"layer, (8, {FRAMES}, {WIDTH}), {repeats} repeats", taken, saved)
    goal("ours to peft LoRA r24", taken, OURS, LARGE, 1.05, at_most=True)
    goal("loop over experts to ours", taken, LOOP, OURS, 1.5, at_most=False)
    print(f"goal: saved activations to peft LoRA r24 <= 1.1x: {saved[OURS] / saved[LARGE]:.2f}x")


def encoder_and_clips(clips: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Wav2Vec2Backbone(pretrained=False).encoder, torch.randn(clips, SAMPLES)


def compare_backbones(clips: int, repeats: int) -> None:
    encoder, waveforms = encoder_and_clips(clips)
    models = {name: adapted(encoder, name) for name in SIDES}

    def run(model: nn.Module) -> None:
        model(waveforms).last_hidden_state.square().mean().backward()
        model.zero_grad()

    several = waveforms[:1].expand(SAVED_CLIPS, -1)
    saved = {name: saved_bytes(model, lambda model=model: model(several)) for name, model in models.items()}
    taken = times_of({name: lambda model=model: run(model) for name, model in models.items()}, repeats)
    show(f"backbone of 24 layers, {clips} x {SAMPLES:,} samples, {repeats} repeats", taken, saved)
    print(f"goal: saved activations to peft LoRA r8 <= 1.1x: {saved[OURS] / saved[SMALL]:.2f}x")


def training_step(encoder: nn.Module, waveforms: Tensor) -> Callable[[], None]:
    head = AASIST(WIDTH).train()
    parameters = [p for p in (*encoder.parameters(), *head.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    labels = torch.arange(len(waveforms)) % 2

    def step() -> None:
        loss = functional.cross_entropy(head(encoder(waveforms).last_hidden_state), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def compare_steps(clips: int, repeats: int) -> None:
    encoder, waveforms = encoder_and_clips(clips)
    taken = times_of({name: training_step(adapted(encoder, name), waveforms) for name in SIDES}, repeats)
    show(f"training step with AASIST, {clips} x {SAMPLES:,} samples, {repeats} repeats", taken, {})
    goal("ours to peft LoRA r8", taken, OURS, SMALL, 1.05, at_most=True)
    goal("full fine-tuning to ours", taken, FULL, OURS, 1.5, at_most=False)


def peak_of(name: str, clips: int) -> None:
    encoder, waveforms = encoder_and_clips(clips)
    SIDES[name](encoder)
    encoder.freeze_feature_encoder()
    step = training_step(encoder.train(), waveforms)
    step()
    step()
    print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**10)


def compare_peaks(clips: int) -> None:
    print(f"\npeak memory of two training steps, {clips} x {SAMPLES:,} samples, the frozen weights' 1,203 MiB included")
    for name in SIDES:
        command = [sys.executable, __file__, "--clips", str(clips), "--peak", name]
        print(f"{name:24}{float(subprocess.check_output(command)):8.0f} MiB")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--clips", type=int, default=1, help="in a batch of the whole model")
    parts = ("layer", "backbone", "step", "memory")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--peak", choices=list(SIDES), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if given.peak:
        return peak_of(given.peak, given.clips)
    if "layer" in given.parts:
        compare_layers(max(given.repeats, 15))
    if "backbone" in given.parts:
        compare_backbones(given.clips, given.repeats)
    if "step" in given.parts:
        compare_steps(given.clips, given.repeats)
    if "memory" in given.parts:
        compare_peaks(given.clips)
    return None


if __name__ == "__main__":
    main()

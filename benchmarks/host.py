"""What a training step costs the program itself, without a GPU: Python, autograd and the optimiser's bookkeeping.

    pip install -e '.[benchmark]' && python benchmarks/host.py [--compiled] [--repeats 15]

The sides of gpu.py with 24 layers, as XLSR-53 has, but so narrow, and with so short a clip, that computing takes next
to nothing: what is left is what a GPU waits for where the program limits a step. Processor time of one thread; sides
take turns, and a ratio is the median of the ratios within the repeats. Kernels are started on the CPU here, which costs
less than on a GPU, so that the figures say nothing about seconds there: gpu.py measures those.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence

import torch
from gpu_sides import FULL, LOOP, OURS, PEFT, SMALL, TrainingStep, module
from transformers import Wav2Vec2Config

STEPS = 2  # in one measurement
SAMPLES = 3_200
NARROW = SMALL | {"num_hidden_layers": 24, "conv_dim": [8] * 7}


def milliseconds(step: TrainingStep) -> float:
    begun = time.process_time()
    for _ in range(STEPS):
        step()
    return 1e3 * (time.process_time() - begun) / STEPS


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compiled", action="store_true", help="with model.compile: true")
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names = [OURS, PEFT, FULL] if given.compiled else [OURS, PEFT, LOOP, FULL]
    with tempfile.TemporaryDirectory() as source:
        Wav2Vec2Config(**NARROW).save_pretrained(source)
        how = "inductor" if given.compiled else None
        made = {name: module(name, source, torch.device("cpu")).detector for name in names}
        sides = {name: TrainingStep(model, 1, SAMPLES, how) for name, model in made.items()}
    for step in sides.values():
        milliseconds(step)  # compiles, and warms up
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(given.repeats):
        for name, step in sides.items():
            taken[name].append(milliseconds(step))
    print(f"torch {torch.__version__}, {'compiled' if given.compiled else 'eager'}; one thread")
    print(f"{'':24}{'ms a step':>10}{'/ peft (lowest to highest)':>30}{'trained tensors':>18}")
    for name, times in taken.items():
        ratios = [one / peer for one, peer in zip(times, taken[PEFT], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        trained = sum(parameter.requires_grad for parameter in made[name].parameters())
        print(f"{name:24}{statistics.median(times):10.1f}{spread:>30}{trained:18,}")


if __name__ == "__main__":
    main()

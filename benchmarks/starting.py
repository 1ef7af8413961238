"""What it takes until a command begins its work, beside the libraries that it imports.

    python benchmarks/starting.py [--repeats 9]

Processor seconds of whole processes, which start, import, find a mistake in what they are given, and end. Sides take
turns, and a ratio is the median of the ratios within the repeats.
"""

import argparse
import resource
import statistics
import subprocess
import sys

PAPER = ["--config", "paper"]
SIDES = {
    "import torch": ["-c", "import torch"],
    "import lightning.pytorch": ["-c", "import lightning.pytorch"],
    "moelora-ad --help": ["-m", "moelora_ad", "--help"],
    "moelora-ad score, no model": ["-m", "moelora_ad", "score", __file__, "--model", "./none"],
    "moelora-ad fit, unknown option": ["-m", "moelora_ad", "fit", *PAPER, "--trainer.max_epoch", "1"],
    "moelora-ad inspect, unknown option": ["-m", "moelora_ad", "inspect", *PAPER, "--trainer.max_epoch", "1"],
}


def seconds(arguments: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in SIDES}
    for arguments in SIDES.values():
        seconds(arguments)  # fills the caches of files
    for _ in range(given.repeats):
        for name, arguments in SIDES.items():
            taken[name].append(seconds(arguments))
    print(f"{'':36}{'seconds':>8}{'/ import lightning.pytorch (lowest to highest)':>48}")
    peer = taken["import lightning.pytorch"]
    for name, times in taken.items():
        ratios = [one / other for one, other in zip(times, peer, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:36}{statistics.median(times):8.2f}{spread:>48}")


if __name__ == "__main__":
    main()

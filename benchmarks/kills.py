"""Training runs that are killed by ``kill -9`` at random moments and started again, until they end: is anything lost?

    python benchmarks/kills.py [--kills 100] [--seed 1]

Each run is a small one of the quickstart's configuration (its encoder and corpus, four epochs of three batches, and a
test). The same command is given again after every kill, with ``--ckpt_path last`` once there is a checkpoint. A run
that was never killed says what the weights of the last checkpoint and the score files have to be, bit for bit.
"""

import argparse
import hashlib
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

PROJECT = Path(__file__).parents[1]
OPTIONS = {
    "config": "experiments/quickstart.yaml",
    "trainer.accelerator": "cpu",
    "trainer.max_epochs": 4,
    "trainer.limit_train_batches": 3,
    "trainer.logger.init_args.version": "run",
    "trainer.enable_progress_bar": "false",
    "data.batch_size": 4,
    "data.train_segment.samples": 16_000,
    "data.eval_segment.samples": 16_000,
}


def command(folder: Path) -> list[str]:
    """The command that starts the run in a folder, or goes on with it."""
    options = OPTIONS | {"trainer.logger.init_args.save_dir": folder}
    if list(folder.glob("quickstart/run/checkpoints/last*.ckpt")):
        options["ckpt_path"] = "last"
    return [sys.executable, "-m", "moelora_ad", "fit", *(f"--{name}={value}" for name, value in options.items())]


def outcome(folder: Path) -> dict[str, str]:
    """Hashes of the last weights and of the score files of a finished run."""
    run = folder / "quickstart" / "run"
    digest = hashlib.sha256()
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name in sorted(state):
        digest.update(name.encode() + state[name].contiguous().numpy().tobytes())
    scores = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in run.glob("scores/*/*.csv")}
    return {"weights": digest.hexdigest()} | scores


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="in all runs together (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default: 1)")
    given = parser.parse_args()
    moments = random.Random(given.seed)
    kills = runs = resumes = faults = differences = 0
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch, "whole")
        begun = time.monotonic()
        subprocess.run(command(whole), cwd=PROJECT, check=True, capture_output=True)
        longest = time.monotonic() - begun
        expected = outcome(whole)
        while kills < given.kills:
            runs += 1
            folder, ended = Path(scratch, f"run_{runs}"), False
            while not ended:
                start = command(folder)
                resumes += "--ckpt_path=last" in start
                process = subprocess.Popen(
                    start, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
                )
                try:  # the last run is let to its end
                    patience = moments.uniform(0.2, 1.2) * longest if kills < given.kills else None
                    _, told = process.communicate(timeout=patience)
                    ended = True
                except subprocess.TimeoutExpired:
                    process.kill()
                    _, told = process.communicate()
                    kills += 1
                if (ended and process.returncode) or re.search(r"Traceback|error:", told):
                    faults += 1
                    print(f"run {runs}: exit code {process.returncode}: {told[-2_000:]}", file=sys.stderr)
                    break
            if ended and (found := outcome(folder)) != expected:
                differences += 1
                differing = [name for name in expected if found.get(name) != expected[name]]
                print(f"run {runs}: other {', '.join(differing)}", file=sys.stderr)
    print(f"kills {kills}, runs {runs}, resumed starts {resumes}, faults {faults}, runs that differ {differences}")
    return 1 if faults or differences else 0


if __name__ == "__main__":
    raise SystemExit(main())

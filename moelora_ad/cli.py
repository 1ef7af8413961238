"""The door: one program for every verb.

Nothing heavy is imported before the verb is known, so that help and a mistyped verb answer at once.
"""

import difflib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from moelora_ad import __version__

# verb -> (what it does, the function that runs it)
VERBS = {
    "fit": ("train a detector, select it on the development set and test the best checkpoint", "training.command"),
    "validate": ("EER and scores of a checkpoint on the development set", "training.command"),
    "test": ("EER and scores of a checkpoint on every test set", "training.command"),
    "predict": ("scores alone, for test sets without labels", "training.command"),
    "inspect": ("parameters, operations and memory of a configuration, without weights", "training.inspect_command"),
    "plan": ("time, memory and disk of a training run, from a few measured steps", "training.plan_command"),
    "evaluate": ("figures, plots and a report from score files", "evaluation.evaluate_command"),
    "results": ("systems over their seeds, from the folders of runs", "evaluation.results_command"),
    "analyze": ("what the experts of trained models do", "analysis.analyze_command"),
    "score": ("scores of your own audio files", "inference.score_command"),
    "export": ("a small model to keep, from a checkpoint", "inference.export_command"),
    "calibrate": ("make a model's scores log-likelihood ratios", "inference.calibrate_command"),
    "sweep": ("train a grid of systems and seeds, here or on a SLURM cluster", "sweeps.sweep_command"),
    "corpus": ("list the corpora, or check those of a configuration", "training.corpus_command"),
}


def main() -> int:
    """Run the command line in ``sys.argv``; returns the exit code: 0, 1 failed work, 2 usage, 130 interrupted."""
    program = Path(sys.argv[0]).name if sys.argv[0].endswith(("lightning", "moelora-ad")) else "python -m moelora_ad"
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help(program))
        return 0
    if arguments[0] == "--version":
        print(f"moelora_ad {__version__}")
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(VERBS)}"
        print(f"{program}: error: no verb {verb!r}; {hint}", file=sys.stderr)
        return 2
    run: Callable[[str], int] = importlib.import_module(f"moelora_ad.{VERBS[verb][1]}").run
    return run(program)


def _help(program: str) -> str:
    verbs = "\n".join(f"  {verb:10} {what}" for verb, (what, _) in VERBS.items())
    return f"""usage: {program} VERB [options]

Adapt a speech foundation model to audio deepfake detection.

verbs:
{verbs}

{program} VERB --help lists a verb's options. Configurations compose: --config a.yaml --config b.yaml --model.x=...
first steps: {program} fit --config experiments/quickstart.yaml"""

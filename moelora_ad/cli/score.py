"""The verb score: what a model says of your own audio files."""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from moelora_ad.cli.arguments import OneLineArgumentParser
from moelora_ad.configuration.trust import add_allow
from moelora_ad.errors import InputError
from moelora_ad.models.precision_names import CHOICES

_PATHS = """audio files; folders (searched to the bottom); quoted patterns ('calls/**/*.flac'); a list of files (.csv,
.tsv, .jsonl, .parquet with a column 'path'); places in archives (x.zip, 'x.zip!/a.wav'); pipes; - for sound on standard
input, or for one of these a line"""

_ABOUT = """What a model says of your own audio files. The verdict is inconclusive, with the reason beside it, where
there is nothing to judge: no speech (silence below -60 dBFS, noise, tones; lively music is not told from speech), less
than 0.5 s, or so little that a window has it more than 8 times. Exit code: 0 if all files have a score, whatever their
verdicts; 1 if some have none, which is told, and all others are scored; 2 for a mistake in use."""


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the verb with its arguments ``argv[1:]``; returns the exit code: 1 if a file could not be scored."""
    parser = OneLineArgumentParser(prog=f"{program} score", description=_ABOUT)
    _add_arguments(parser)
    arguments = parser.parse_args(argv[1:])
    _check(arguments, parser)
    from moelora_ad.audio import SAMPLE_RATE
    from moelora_ad.cli.score_output import score_all
    from moelora_ad.inference.scorer import Scorer
    from moelora_ad.inference.sources import find_sounds

    try:
        found = find_sounds(arguments.paths, sys.stdin.buffer)
        if not found.sounds:
            parser.error(str(found.problems[0]) if found.problems else "no files to score: standard input is empty")
        scorer = Scorer.from_pretrained(
            arguments.model,
            revision=arguments.revision,
            backbone=arguments.backbone,
            hop=None if arguments.hop is None else round(arguments.hop * SAMPLE_RATE),
            batch_size=arguments.batch_size,
            device=arguments.device,
            precision=arguments.precision,
            allow=arguments.allow,
        )
        return score_all(found, scorer, arguments)
    except InputError as error:
        parser.error(str(error))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help=_PATHS)
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="the folder of a model that was exported, the id of one on the hub, or the name of one that comes with "
        "the package (see the verb models; ./NAME is a folder of that name)",
    )
    parser.add_argument("--revision", help="commit, tag or branch of the hub repository")
    parser.add_argument(
        "--backbone", metavar="DIR", help="where the pretrained encoder is, if not where the model says"
    )
    parser.add_argument("--prior", type=float, default=0.5, help="how probable bona fide is beforehand (default: 0.5)")
    parser.add_argument(
        "--threshold",
        type=float,
        help="score from which on a file is bona fide (default: -logit(prior), 0 for raw scores)",
    )
    parser.add_argument(
        "--timeline",
        nargs="?",
        const="timeline",
        metavar="DIR",
        help="also write one page of all files with player and score over time, a plot of each, a table of all windows "
        "(default folder: timeline; give it after the PATHs)",
    )
    parser.add_argument(
        "--format",
        choices=("table", "jsonl", "csv"),
        help="of the scores (default: by the ending of --output, or a table)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="write the scores there instead of standard output, as they come, and in a .json beside what they are of",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the rows in --output, of the same model and options, after a run that was cut off",
    )
    parser.add_argument(
        "--hop", type=float, metavar="SECONDS", help="from one window to the next (default: half a window)"
    )
    parser.add_argument(
        "--track", type=int, metavar="N", help="audio track of each file, from 1 on (default: the file's default track)"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="windows at once (default: 16)")
    parser.add_argument(
        "--num-workers",
        type=int,
        metavar="N",
        help="processes that decode; 0: this one (default: as many as are of use for the files and the device)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the first GPU, if there is one)")
    parser.add_argument(
        "--precision",
        choices=CHOICES,
        help="that the encoder is computed in (default: the one that the model was judged in); bf16 is bf16-mixed, and "
        "tf32 is 32-true with the faster products of GPUs since Ampere",
    )
    add_allow(parser)


def _check(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if not 0 < arguments.prior < 1:
        parser.error(f"--prior: must be above 0 and below 1, not {arguments.prior}")
    if arguments.threshold is not None and not math.isfinite(arguments.threshold):
        parser.error(f"--threshold: must be a finite number, not {arguments.threshold}")
    if arguments.hop is not None and not 1 / 16_000 <= arguments.hop < math.inf:
        parser.error(f"--hop: must be above 0, not {arguments.hop}")
    if arguments.track is not None and arguments.track < 1:
        parser.error(f"--track: must be at least 1, not {arguments.track}")
    if arguments.batch_size < 1:
        parser.error(f"--batch-size: must be at least 1, not {arguments.batch_size}")
    if arguments.num_workers is not None and arguments.num_workers < 0:
        parser.error(f"--num-workers: must be at least 0, not {arguments.num_workers}")
    if arguments.timeline is not None and os.path.exists(arguments.timeline) and not os.path.isdir(arguments.timeline):
        parser.error(f"--timeline: {arguments.timeline} is no folder; name the files first, or write --timeline=DIR")
    if arguments.output is not None and os.path.isdir(arguments.output):
        parser.error(f"--output: {arguments.output} is a folder; name a file")
    if arguments.output is not None and os.path.exists(arguments.output) and not os.path.isfile(arguments.output):
        parser.error(f"--output: {arguments.output} is a device or a pipe: leave the option out, and send it there")
    if arguments.format is None:
        ending = Path(arguments.output or "").suffix.lower()
        arguments.format = {".jsonl": "jsonl", ".csv": "csv"}.get(ending, "table")
    if arguments.resume and (arguments.output is None or arguments.format == "table" or arguments.timeline is not None):
        parser.error("--resume: goes on with --output FILE.csv or FILE.jsonl, and with no --timeline")

"""The command score: score your own audio files with a model."""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from moelora_ad.cli.arguments import OneLineArgumentParser, add_scorer, check_scorer, scorer_of
from moelora_ad.cli.imports import at_once
from moelora_ad.errors import InputError
from moelora_ad.formats import AUDIO_SUFFIXES, ending

_PATHS = """audio files; folders, with those inside them; quoted patterns ('calls/**/*.flac'); a list of files (.csv,
.tsv, .jsonl, .parquet with a column 'path'); places in archives (x.zip, 'x.zip!/a.wav'); pipes; - for sound on standard
input, or for one of these a line"""

_ABOUT = """Score your own audio files with a model. The verdict is inconclusive, with the reason beside it, where
there is nothing to judge: no speech (silence below -60 dBFS, noise, tones; lively music may pass for speech), less
than 0.5 s, or so little that a window repeats it more than 8 times. Exit code: 0 if all files have a score, whatever
the verdicts; 1 if some could not be scored: they are reported, the others scored; 2 for a usage error."""


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the command with its arguments ``argv[1:]``; returns the exit code: 1 if a file could not be scored."""
    parser = OneLineArgumentParser(prog=f"{program} score", description=_ABOUT)
    _add_arguments(parser)
    arguments = parser.parse_args(argv[1:])
    _check(arguments, parser)
    with at_once():
        from moelora_ad.audio import SAMPLE_RATE
        from moelora_ad.cli.score_output import score_all
        from moelora_ad.inference.sources import find_sounds

    try:
        found = find_sounds(arguments.paths, sys.stdin.buffer)
        if not found.sounds:
            parser.error(str(found.problems[0]) if found.problems else "no files to score: standard input is empty")
        if arguments.output is not None and _is_among(arguments.output, [*arguments.paths, *found.sounds]):
            parser.error(f"--output: {arguments.output} is one of the inputs, which would be lost; name another file")
        hop = None if arguments.hop is None else round(arguments.hop * SAMPLE_RATE)
        return score_all(found, scorer_of(arguments, hop), arguments)
    except InputError as error:
        parser.error(str(error))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help=_PATHS)
    add_scorer(parser)
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
        help="format of the scores (default: by the ending of --output, or a table)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="write the scores there instead of standard output (-), as they come, and in a .json beside what they are "
        "of",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="add to the rows in --output, of the same model and options, after an interrupted run",
    )
    parser.add_argument(
        "--hop", type=float, metavar="SECONDS", help="seconds from one window to the next (default: half a window)"
    )
    parser.add_argument(
        "--track", type=int, metavar="N", help="audio track of each file, from 1 on (default: the file's default track)"
    )
    parser.add_argument(
        "--num-workers",
        type=int,
        metavar="N",
        help="processes that decode; 0: this one (default: as many as help for the files and the device)",
    )


def _check(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    check_scorer(arguments, parser)
    if arguments.hop is not None and not 1 / 16_000 <= arguments.hop < math.inf:
        parser.error(f"--hop: must be above 0, not {arguments.hop}")
    if arguments.track is not None and arguments.track < 1:
        parser.error(f"--track: must be at least 1, not {arguments.track}")
    if arguments.num_workers is not None and arguments.num_workers < 0:
        parser.error(f"--num-workers: must be at least 0, not {arguments.num_workers}")
    if arguments.timeline is not None and os.path.exists(arguments.timeline) and not os.path.isdir(arguments.timeline):
        parser.error(f"--timeline: {arguments.timeline} is not a folder; name the files first, or write --timeline=DIR")
    if arguments.output == "-":
        arguments.output = None
    if arguments.output is not None and os.path.isdir(arguments.output):
        parser.error(f"--output: {arguments.output} is a folder; name a file")
    if arguments.output is not None and os.path.exists(arguments.output) and not os.path.isfile(arguments.output):
        parser.error(f"--output: {arguments.output} is a device or a pipe: leave the option out, and send it there")
    if arguments.output is not None and os.path.exists(arguments.output) and ending(arguments.output) in AUDIO_SUFFIXES:
        parser.error(f"--output: {arguments.output} is a sound, which would be lost; name another file")
    if arguments.output is not None and arguments.timeline is not None:
        names = ("index.html", "windows.csv", "windows.jsonl")
        if os.path.abspath(arguments.output) in [
            os.path.abspath(os.path.join(arguments.timeline, one)) for one in names
        ]:
            parser.error(f"--output: --timeline writes {arguments.output}, too; name another file")
    if arguments.format is None:
        suffix = Path(arguments.output or "").suffix.lower()
        arguments.format = {".jsonl": "jsonl", ".csv": "csv"}.get(suffix, "table")
    if arguments.resume and (arguments.output is None or arguments.format == "table" or arguments.timeline is not None):
        parser.error("--resume: needs --output FILE.csv or FILE.jsonl, and no --timeline")


def _is_among(output: str, inputs: Sequence[object]) -> bool:
    """Whether a file is one of the inputs: a sound, or a list or an archive of sounds."""
    if not os.path.exists(output):
        return False
    places = [place for place in inputs if isinstance(place, str) and os.path.exists(place)]
    return any(os.path.samefile(output, place) for place in places)

"""The verb score: what a model says of your own audio files."""

import argparse
import io
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.text import Text

from moelora_ad.audio import SAMPLE_RATE
from moelora_ad.cli.arguments import FAILED, OneLineArgumentParser
from moelora_ad.cli.terminal import progress
from moelora_ad.configuration.trust import add_allow
from moelora_ad.errors import InputError
from moelora_ad.files import written_whole
from moelora_ad.formats import told_left_out
from moelora_ad.inference.output import (
    FILE_COLUMNS,
    WINDOW_COLUMNS,
    Decision,
    Row,
    RowWriter,
    file_row,
    print_table,
    window_rows,
)
from moelora_ad.inference.scorer import Failure, FileScore, Scorer
from moelora_ad.inference.sources import Found, find_sounds
from moelora_ad.models.precision import PRECISIONS

_PATHS = """audio files; folders (searched to the bottom); quoted patterns ('calls/**/*.flac'); a list of files (.csv,
.tsv, .jsonl, .parquet with a column 'path'); places in archives (x.zip, 'x.zip!/a.wav'); pipes; - for sound on standard
input, or for one of these a line"""


def run(argv: Sequence[str], program: str = "moelora-ad") -> int:
    """Run the verb with its arguments ``argv[1:]``; returns the exit code: 1 if a file could not be scored."""
    parser = OneLineArgumentParser(prog=f"{program} score", description="What a model says of your own audio files.")
    _add_arguments(parser)
    arguments = parser.parse_args(argv[1:])
    _check(arguments, parser)
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
        return _score(found, scorer, arguments)
    except InputError as error:
        parser.error(str(error))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help=_PATHS)
    parser.add_argument(
        "--model", required=True, metavar="DIR_OR_HUB_ID", help="a model that was exported or published"
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
        help="also write a plot and a page of the score over time for each file, and a table of all windows "
        "(default folder: timeline; give it after the PATHs)",
    )
    parser.add_argument(
        "--format",
        choices=("table", "jsonl", "csv"),
        help="of the scores (default: by the ending of --output, or a table)",
    )
    parser.add_argument("--output", metavar="FILE", help="write the scores there instead of standard output")
    parser.add_argument(
        "--hop", type=float, metavar="SECONDS", help="from one window to the next (default: half a window)"
    )
    parser.add_argument(
        "--track", type=int, metavar="N", help="audio track of each file, from 1 on (default: the file's default track)"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="windows at once (default: 16)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the first GPU, if there is one)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="that the encoder is computed in (default: the one that the model was judged in)",
    )
    add_allow(parser)


def _check(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if not 0 < arguments.prior < 1:
        parser.error(f"--prior: must be above 0 and below 1, not {arguments.prior}")
    if arguments.threshold is not None and not math.isfinite(arguments.threshold):
        parser.error(f"--threshold: must be a finite number, not {arguments.threshold}")
    if arguments.hop is not None and not 1 / SAMPLE_RATE <= arguments.hop < math.inf:
        parser.error(f"--hop: must be above 0, not {arguments.hop}")
    if arguments.track is not None and arguments.track < 1:
        parser.error(f"--track: must be at least 1, not {arguments.track}")
    if arguments.batch_size < 1:
        parser.error(f"--batch-size: must be at least 1, not {arguments.batch_size}")
    if arguments.timeline is not None and os.path.exists(arguments.timeline) and not os.path.isdir(arguments.timeline):
        parser.error(f"--timeline: {arguments.timeline} is no folder; name the files first, or write --timeline=DIR")
    if arguments.output is not None and os.path.isdir(arguments.output):
        parser.error(f"--output: {arguments.output} is a folder; name a file")
    if arguments.format is None:
        ending = Path(arguments.output or "").suffix.lower()
        arguments.format = {".jsonl": "jsonl", ".csv": "csv"}.get(ending, "table")


def _score(found: Found, scorer: Scorer, arguments: argparse.Namespace) -> int:
    decision = Decision.of(scorer.calibration is not None, arguments.prior, arguments.threshold)
    failed, total = len(found.problems), len(found.sounds) + len(found.problems)
    code, stop = 0, None
    with ExitStack() as stack:
        sink = _Sink(arguments, decision, stack)
        show, complain = stack.enter_context(_progress(len(found.sounds)))
        if arguments.format != "table" and not decision.is_calibrated:
            complain(f"note: {decision.explained()}")
        for note in scorer.precision_notes:
            complain(f"note: {note}")
        if found.left_out:
            complain(f"{told_left_out(found.left_out)}; a file that is named itself is always tried")
        for problem in found.problems:
            complain(str(problem))
        try:
            for result in scorer.score_files(found.sounds, show, arguments.track):
                if isinstance(result, Failure):
                    failed += 1
                    complain(result.reason)
                sink(result)
        except KeyboardInterrupt as given:
            stop = given
            stop.args = ("the files before are scored",)
        except InputError as error:  # what was computed is kept
            complain(str(error))
            code = FAILED
        sink.finish()
    if stop is not None:
        raise stop
    if failed:
        print(f"{failed} of {total} inputs could not be scored", file=sys.stderr)
    return code or (FAILED if failed else 0)


class _Sink:
    """Where results go: rows at once, a table in the end, timelines beside."""

    def __init__(self, arguments: argparse.Namespace, decision: Decision, stack: ExitStack) -> None:
        self._decision = decision
        self._table: list[Row] | None = None
        write: Callable[[bytes], object] = _to_standard_output
        self._page = Console()
        if arguments.output is not None:
            file = _whole_file(Path(arguments.output), stack)
            write = file.write
            self._page = Console(file=io.TextIOWrapper(file, "utf-8", write_through=True), width=160)
        if arguments.format == "table":
            self._table = []
        else:
            self._write = RowWriter(arguments.format, FILE_COLUMNS, write)
        self._timelines: Path | None = None
        if arguments.timeline is not None:
            from moelora_ad.inference.timeline import FileNames, write_timeline  # matplotlib takes seconds

            self._write_timeline, self._names = write_timeline, FileNames()
            self._timelines = Path(arguments.timeline)
            form = "jsonl" if arguments.format == "jsonl" else "csv"
            windows = _whole_file(self._timelines / f"windows.{form}", stack)
            self._write_window = RowWriter(form, WINDOW_COLUMNS, windows.write)

    def __call__(self, result: FileScore | Failure) -> None:
        row = file_row(result, self._decision)
        if self._table is None:
            self._write(row)
        elif isinstance(result, FileScore):
            self._table.append(row)
        if self._timelines is not None and isinstance(result, FileScore):
            for window in window_rows(result, self._decision):
                self._write_window(window)
            self._write_timeline(result, self._decision, self._timelines / self._names(result.name))

    def finish(self) -> None:
        if self._table is not None:
            print_table(self._table, self._decision, self._page)


def _whole_file(path: Path, stack: ExitStack) -> BinaryIO:
    unfinished = stack.enter_context(written_whole(path))
    return stack.enter_context(unfinished.open("wb"))


def _to_standard_output(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


@contextmanager
def _progress(total: int) -> Iterator[tuple]:
    """Two functions: one is told how many files are done, one prints a line; both on standard error."""
    console = Console(stderr=True)
    with progress(console) as bar:

        def show(done: float) -> None:
            bar("scoring", done, total)

        show(0)

        def complain(line: str) -> None:
            if console.is_terminal:
                console.print(Text(line, style="red"), soft_wrap=True)
            else:
                print(line, file=sys.stderr, flush=True)

        yield show, complain

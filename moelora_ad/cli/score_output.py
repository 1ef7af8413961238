"""Scores of many files on their way out: rows, a table, timelines, and what could not be scored."""

import argparse
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.text import Text

from moelora_ad.cli.arguments import FAILED
from moelora_ad.cli.terminal import progress
from moelora_ad.errors import InputError
from moelora_ad.files import written_whole
from moelora_ad.formats import left_out_note
from moelora_ad.inference.file_scores import FileFailure, FileScore
from moelora_ad.inference.output import (
    FILE_COLUMNS,
    DecisionRule,
    Row,
    RowWriter,
    file_row,
    print_scores,
)
from moelora_ad.inference.scorer import Scorer
from moelora_ad.inference.sources import AudioSources


def score_all(found: AudioSources, scorer: Scorer, arguments: argparse.Namespace) -> int:
    """Score what was found and write it as the arguments of the verb say; returns the exit code."""
    decision = DecisionRule.of(scorer.calibration is not None, arguments.prior, arguments.threshold)
    failed, total = len(found.problems), len(found.sounds) + len(found.problems)
    code, stop = 0, None
    with ExitStack() as stack:
        sink = _Sink(arguments, decision, scorer, stack)
        show, complain = stack.enter_context(_progress(len(found.sounds)))
        if arguments.format != "table" and not decision.is_calibrated:
            complain(f"note: {decision.explained()}")
        for note in scorer.precision_notes:
            complain(f"note: {note}")
        if found.left_out:
            complain(f"{left_out_note(found.left_out)}; a file that is named itself is always tried")
        for problem in found.problems:
            complain(str(problem))
        try:
            for result in scorer.score_files(found.sounds, show, arguments.track):
                if isinstance(result, FileFailure):
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

    def __init__(self, arguments: argparse.Namespace, decision: DecisionRule, scorer: Scorer, stack: ExitStack) -> None:
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
        self._timelines: Callable[[FileScore | FileFailure], None] | None = None
        if arguments.timeline is not None:
            from moelora_ad.inference.descriptions import described_model
            from moelora_ad.inference.timeline import timeline_folder  # matplotlib takes seconds

            about = described_model(scorer, arguments.model, decision)
            form = "jsonl" if arguments.format == "jsonl" else "csv"
            self._timelines = stack.enter_context(timeline_folder(Path(arguments.timeline), decision, about, form))

    def __call__(self, result: FileScore | FileFailure) -> None:
        row = file_row(result, self._decision)
        if self._table is None:
            self._write(row)
        elif isinstance(result, FileScore):
            self._table.append(row)
        if self._timelines is not None:
            self._timelines(result)

    def finish(self) -> None:
        if self._table is not None:
            print_scores(self._table, self._decision, self._page)


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

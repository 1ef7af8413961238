"""The output of score: rows, tables and timelines of many files, and messages on those that cannot be scored."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.text import Text

from moelora_ad import __version__
from moelora_ad.cli.arguments import FAILED
from moelora_ad.cli.terminal import progress
from moelora_ad.data.workers import starved
from moelora_ad.errors import InputError, counted, printable
from moelora_ad.files import file_hash, written_whole
from moelora_ad.formats import left_out_note
from moelora_ad.inference.batches.pieces import OPTION
from moelora_ad.inference.file_scores import FileFailure, FileScore
from moelora_ad.inference.output import (
    FILE_COLUMNS,
    DecisionRule,
    Row,
    RowWriter,
    file_row,
    print_scores,
    print_table,
)
from moelora_ad.inference.row_files import RowFile
from moelora_ad.inference.scorer import Scorer
from moelora_ad.inference.sounds import name_of
from moelora_ad.inference.sources import AudioSources

_ROWS_OF_TABLE = 1_000  # many files are printed as several tables, so that memory does not have to hold all rows


def score_all(found: AudioSources, scorer: Scorer, arguments: argparse.Namespace) -> int:
    """Score the inputs and write the results as the arguments say; returns the exit code."""
    decision = DecisionRule.of(scorer.calibration is not None, arguments.prior, arguments.threshold)
    total = len(found.sounds) + len(found.problems)
    replaces = arguments.output is not None and not arguments.resume and os.path.exists(arguments.output)
    code, stop = 0, None
    with ExitStack() as stack:
        sink = _Sink(arguments, decision, scorer, stack)
        sounds = [sound for sound in found.sounds if not sink.has(sound)]
        done = len(found.sounds) - len(sounds)
        show, complain = stack.enter_context(_progress(done, len(found.sounds)))
        if arguments.format != "table" and not decision.is_calibrated:
            complain(f"note: {decision.explained()}")
        for note in scorer.precision_notes:
            complain(f"note: {note}")
        if done:
            there = f"{counted(len(found.sounds), 'file')} {'is' if done == 1 else 'are'}"
            complain(f"{done:,} of {there} already in {arguments.output}")
        if found.left_out:
            complain(f"{left_out_note(found.left_out)}; a file that is named itself is always tried")
        for problem in found.problems:
            complain(str(problem))
        try:
            for result in scorer.score_files(sounds, show, arguments.track, arguments.num_workers):
                if isinstance(result, FileFailure):
                    complain(result.reason)
                sink(result)
            sink.finish()
        except KeyboardInterrupt as given:
            stop = given
            stop.args = (sink.left(),)
        except (InputError, RuntimeError) as error:  # what was computed is saved
            told = error if isinstance(error, InputError) else starved(error, arguments.num_workers or 0, OPTION)
            if told is None:
                raise
            complain(f"{told}; {sink.left()}")
            code = FAILED
        sink.close()
    if stop is not None:
        raise stop
    if not code:
        _tell_files(arguments, replaces)
    if failed := len(found.problems) + sink.failed:
        print(f"{failed} of {total} inputs could not be scored", file=sys.stderr)
    return code or (FAILED if failed else 0)


def _tell_files(arguments: argparse.Namespace, replaces: bool) -> None:
    """Print where the results are: on standard error if the rows are on standard output, for programs to read."""
    stream = sys.stderr if arguments.output is None and arguments.format != "table" else sys.stdout
    if arguments.output is not None:
        form = "" if arguments.format != "table" else " (a table for people; .csv and .jsonl have rows for programs)"
        earlier = "; it replaces an earlier file" if replaces else ""
        print(f"scores: {printable(arguments.output)}{form}{earlier}", file=stream)
    if arguments.timeline is not None:
        print(f"timeline: {printable(os.path.join(arguments.timeline, 'index.html'))}", file=stream)


class _Sink:
    """Writes each result to where the arguments say: as a row at once, in a table of many rows, in a timeline.

    Attributes:
        failed: number of files without a score, including those of the run that this one resumes.
    """

    def __init__(self, arguments: argparse.Namespace, decision: DecisionRule, scorer: Scorer, stack: ExitStack) -> None:
        self.failed = 0
        self._decision = decision
        self._table: list[Row] = []
        self._rows: RowFile | None = None
        self._write: Callable[[Row], None] = self._add_to_table
        self._page = Console()
        if arguments.format == "table":
            if arguments.output is not None:
                file = _whole_file(Path(arguments.output), stack)
                self._page = Console(file=io.TextIOWrapper(file, "utf-8", write_through=True), width=160)
        elif arguments.output is None:
            self._write = RowWriter(arguments.format, FILE_COLUMNS, _to_standard_output)
        else:
            origin = _origin(scorer, arguments, decision)
            self._rows = RowFile(Path(arguments.output), arguments.format, origin, arguments.resume)
            self._write = self._rows
            self.failed = self._rows.failed
        self._timelines: Callable[[FileScore | FileFailure], None] | None = None
        if arguments.timeline is not None:
            from moelora_ad.inference.descriptions import described_model
            from moelora_ad.inference.timeline import timeline_folder  # matplotlib takes seconds

            about = described_model(scorer, arguments.model, decision)
            form = "jsonl" if arguments.format == "jsonl" else "csv"
            self._timelines = stack.enter_context(timeline_folder(Path(arguments.timeline), decision, about, form))

    def has(self, place: str | BinaryIO) -> bool:
        """Whether the output already has a file's row."""
        return self._rows is not None and self._rows.has(name_of(place))

    def __call__(self, result: FileScore | FileFailure) -> None:
        row = file_row(result, self._decision)
        self._write(row)
        self.failed += isinstance(result, FileFailure)
        if self._timelines is not None:
            self._timelines(result)

    def _add_to_table(self, row: Row) -> None:
        if row["error"] is None:
            self._table.append(row)
        if len(self._table) == _ROWS_OF_TABLE:
            print_table(self._table, self._page)
            self._table = []

    def left(self) -> str:
        """The message about the results so far when a run ends early."""
        return "the files before are scored" + ("; --resume continues" if self._rows is not None else "")

    def finish(self) -> None:
        """Mark the rows as complete: all results have been written."""
        if self._rows is not None:
            self._rows.finish()

    def close(self) -> None:
        """Close the rows, or print the rest of the table: no more results follow."""
        if self._rows is not None:
            self._rows.close()
        elif self._write == self._add_to_table:
            print_scores(self._table, self._decision, self._page)


def _origin(scorer: Scorer, arguments: argparse.Namespace, decision: DecisionRule) -> dict[str, object]:
    """Everything that the rows of files depend on."""
    kept = getattr(scorer.detector, "configuration", None) or {}
    calibration, place = scorer.calibration, Path(arguments.model)
    return {
        "model": kept.get("weights_sha256") or (file_hash(place) if place.is_file() else arguments.model),
        "backbone": kept.get("backbone_sha256"),
        "settings": {name: kept.get(name) for name in ("backbone", "adaptation", "classifier")},  # such as a top_k
        "calibration": None if calibration is None else calibration.as_dict(),
        "precision": scorer.precision,
        "window": scorer.window,
        "hop": scorer.hop,
        "fill": scorer.fill,
        "track": arguments.track,
        "prior": decision.prior,
        "threshold": decision.threshold,
        "moelora_ad": __version__,
    }


def _whole_file(path: Path, stack: ExitStack) -> BinaryIO:
    unfinished = stack.enter_context(written_whole(path))
    return stack.enter_context(unfinished.open("wb"))


def _to_standard_output(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


@contextmanager
def _progress(before: int, total: int) -> Iterator[tuple]:
    """Yield two functions that write to standard error: one shows progress, given the number of files done besides
    those ``before``; the other prints a line."""
    console = Console(stderr=True)
    with progress(console, "files") as bar:

        def show(done: float) -> None:
            bar("scoring", before + done, total)

        show(0)

        def complain(line: str) -> None:
            if console.is_terminal:
                console.print(Text(line, style="red"), soft_wrap=True)
            else:
                print(line, file=sys.stderr, flush=True)

        yield show, complain

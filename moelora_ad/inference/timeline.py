"""Scores over time: a picture of each file, all windows as rows, and one page for all files."""

import base64
import io
import math
import mimetypes
import os
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote_from_bytes

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator
from numpy.typing import NDArray

from moelora_ad.corpora.storage.files import open_file
from moelora_ad.errors import InputError, printable
from moelora_ad.files import unused_name, written_whole
from moelora_ad.inference.descriptions import About, described
from moelora_ad.inference.file_scores import FileFailure, FileScore
from moelora_ad.inference.output import WINDOW_COLUMNS, DecisionRule, RowWriter, window_rows
from moelora_ad.inference.pages import BONA_FIDE, SPOOF, page_around_results, result_element

EMBEDDED, EMBEDDED_IN_ALL = 2**20, 32 * 2**20
"""Most bytes of a sound that is embedded in the page, and of all embedded sounds; other sounds are linked."""

_ENVELOPE, _GRID, _INK = "#d9d9d9", "#eeeeee", "#333333"


@contextmanager
def timeline_folder(
    folder: Path, decision: DecisionRule, about: About, form: str
) -> Iterator[Callable[[FileScore | FileFailure], None]]:
    """Give a function that is called with each result, and write a folder with ``NAME.png`` for each file,
    ``windows.FORM`` with the windows of all files, and ``index.html``, the page of all files with player, score over
    time, model, date and calibration. The last two files appear at the end of the block.

    The page is self-contained, except for sounds that are too large to embed: it plays them from where they are, by
    paths relative to the folder.

    Args:
        folder: Folder to write, created if it is missing.
        decision: Prior and threshold of verdicts.
        about: Description of the model, see `described_model`.
        form: Format of the windows: "csv" or "jsonl".
    """
    before, behind = page_around_results(about, f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC")
    sounds, names = _Sounds(folder), FileNames()
    with (
        written_whole(folder / f"windows.{form}") as windows_path,
        written_whole(folder / "index.html") as page_path,
        open(windows_path, "wb") as windows,
        open(page_path, "w", encoding="utf-8") as page,
    ):
        write_window = RowWriter(form, WINDOW_COLUMNS, windows.write)
        page.write(before)

        def write(result: FileScore | FileFailure) -> None:
            told = described(result, decision, waveform=True)
            told["name"] = printable(told["name"])
            if isinstance(result, FileScore):
                for row in window_rows(result, decision):
                    write_window(row)
                with written_whole(folder / f"{names(result.name)}.png") as picture:
                    picture.write_bytes(_png(timeline_figure(result, decision, (10, 4)), 150))
                told["sound"] = sounds(result.name)
            page.write(result_element(told))

        yield write
        page.write(behind)


class _Sounds:
    """Gives the addresses of sounds in the page of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._left = EMBEDDED_IN_ALL

    def __call__(self, place: str) -> str | None:
        """The address of a file or a place in an archive; None if the page cannot play it, because it came through a
        pipe, or is large and in an archive."""
        if os.path.exists(place) and not os.path.isfile(place):  # opening a pipe would wait
            return None
        most = min(EMBEDDED, self._left)
        try:
            source = place if os.path.isfile(place) else open_file(place)
            with open(source, "rb") if isinstance(source, str) else source as file:
                content = file.read(most + 1)
        except (InputError, OSError, ValueError):
            return None
        if len(content) <= most:
            self._left -= len(content)
            kind = mimetypes.guess_type(place)[0] or "audio/wav"  # browsers look at the content
            return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
        return quote_from_bytes(os.fsencode(os.path.relpath(place, self._folder))) if os.path.isfile(place) else None


def timeline_figure(result: FileScore, decision: DecisionRule, size: tuple[float, float]) -> Figure:
    """Draw the waveform in grey, and the score of each window as a step around the window's centre.

    Args:
        result: The score to draw.
        decision: Has the threshold.
        size: Width and height in inches.
    """
    figure = Figure(figsize=size, layout="constrained")
    waves: Axes = figure.add_subplot()
    _draw_envelope(waves, result)
    axes = waves.twinx()
    axes.yaxis.tick_left()
    axes.yaxis.set_label_position("left")
    _draw_scores(axes, result, decision.threshold)
    axes.set_ylabel("score (log-likelihood ratio)" if decision.is_calibrated else "score (raw log-odds)")
    waves.set_xlim(0, max(result.seconds, 1e-3))
    waves.set_xlabel("time (h:mm:ss)" if result.seconds >= 3_600 else "time (mm:ss)")
    waves.xaxis.set_major_locator(MultipleLocator(_tick_step(result.seconds / size[0])))
    waves.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: _tick(seconds, result.seconds)))
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9, columnspacing=1.2, handlelength=1.5)
    for spines in (waves.spines, axes.spines):
        spines[["top", "right"]].set_visible(False)
    verdict = str(result.verdict(threshold=decision.threshold)).replace("bonafide", "bona fide")
    words = f"{_shortened(printable(result.name))}\nscore {result.score:.3f}: {verdict}"
    if result.notice:
        words += f"\n{textwrap.fill(printable(result.notice), 110)}"
    axes.set_title(words, loc="left", fontsize=11, color=_INK, parse_math=False)
    return figure


def _draw_envelope(axes: Axes, result: FileScore) -> None:
    low, high = result.envelope[:, 0], result.envelope[:, 1]
    loudest = max(float(np.abs(result.envelope).max()), 1e-9)
    edges = np.minimum(np.arange(len(low) + 1) * result.envelope_step, result.seconds)
    axes.fill_between(edges, np.append(low, low[-1]), np.append(high, high[-1]), step="post", color=_ENVELOPE, lw=0)
    axes.set_ylim(-1.1 * loudest, 1.1 * loudest)
    axes.set_yticks([])


def _draw_scores(axes: Axes, result: FileScore, threshold: float) -> None:
    edges, scores = steps(result)
    values = np.append(scores, scores[-1])
    for side, colour in ((np.maximum, BONA_FIDE), (np.minimum, SPOOF)):
        axes.fill_between(edges, threshold, side(values, threshold), step="post", color=colour, alpha=0.18, lw=0)
    is_bona_fide = scores >= threshold
    for mask, colour, name in ((is_bona_fide, BONA_FIDE, "bona fide"), (~is_bona_fide, SPOOF, "spoof")):
        drawn = np.flatnonzero(mask)
        axes.hlines(scores[drawn], edges[drawn], edges[drawn + 1], color=colour, lw=2.2, label=f"window: {name}")
    axes.vlines(edges[1:-1], scores[:-1], scores[1:], color=_INK, lw=0.6, alpha=0.6)
    axes.axhline(threshold, color=_INK, lw=1, ls=(0, (4, 3)), label=f"threshold {threshold:.3g}")
    low, high = min(scores.min(), threshold), max(scores.max(), threshold)
    margin = 0.08 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)
    axes.grid(axis="y", color=_GRID)
    axes.set_axisbelow(True)


def steps(result: FileScore) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges (n + 1,) in seconds and scores (n,) of the steps: the step of a window begins and ends halfway between its
    centre and those of its neighbours."""
    centres = np.array([(window.start + window.end) / 2 for window in result.windows])
    edges = np.concatenate([[0.0], (centres[1:] + centres[:-1]) / 2, [result.seconds]])
    return edges, np.array([window.score for window in result.windows])


def _png(figure: Figure, dots_per_inch: int) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(content, format="png", dpi=dots_per_inch)
    return content.getvalue()


def _tick_step(least: float) -> float:
    """A round time between ticks in seconds, of at least ``least``."""
    small = [digit * 10.0**power for power in (-4, -3, -2, -1) for digit in (1, 2, 5)]
    large = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600]
    return next((step for step in (*small, *large) if step >= least), 3_600 * math.ceil(least / 3_600))


def _tick(seconds: float, length: float) -> str:
    whole = math.floor(seconds + 1e-6)
    hours, minutes = divmod(whole // 60, 60)
    text = f"{minutes:02}:{whole % 60:02}" if length < 3_600 else f"{hours}:{minutes:02}:{whole % 60:02}"
    return text + f"{seconds - whole:.4f}".removeprefix("0").rstrip("0").rstrip(".")


def _shortened(name: str, most: int = 90) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"


class FileNames:
    """Makes a unique name for each file's timeline, valid in any file system."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def __call__(self, place: str) -> str:
        """The name for a file, such as ``speech.wav``, or ``speech.wav-2`` for the second file of that name."""
        stem = re.sub(r"[^\w.-]", "_", re.split(r"[/\\]", place.rstrip("/"))[-1], flags=re.ASCII).lstrip(".")[-80:]
        return unused_name(stem or "sound", self._taken)

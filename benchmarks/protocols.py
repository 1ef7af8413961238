"""Time to parse large protocols, and memory of their trials, compared with the usual loop. Linux only.

    python benchmarks/protocols.py [--repeats 5]
    python benchmarks/protocols.py --pyarrow [--repeats 5]

The protocols are made up: as many lines and columns as the official ones of ASVspoof 5 (eval) and ASVspoof 2021 DF,
with unique ids and about as many different speakers, codecs and attacks. The usual loop is ``for line in file``, and
``tuple(line.strip().split(" "))`` of each into a list; it checks nothing. Every measurement has a fresh process, and
the two sides take turns. Figures are medians over the repeats, and the ratio is the median of the ratios of the pairs.

Peak: the most resident memory while parsing, beyond that before. Kept: the resident memory after parsing, beyond that
before. Access: one trial by its index, which makes a `Trial` of thirteen fields here, and fetches an existing tuple
from the usual loop's list.

``--pyarrow`` compares the columns that trials are stored in (`moelora_ad.corpora.protocols.columns`) with arrays of
pyarrow: two columns of unique texts and six of few different ones, 600,000 rows, made of the same lists of strings.
Choose: a tenth of the rows at random. Slice: a contiguous tenth, pickled. Pickle: all, there and back, as a worker
process gets them. Row: one by its index.
"""

import argparse
import importlib.util
import multiprocessing
import pickle
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moelora_ad.corpora import ASVspoof5, ASVspoof2021DF, TrialList
from moelora_ad.corpora.protocols.columns import CategoryPool, Texts

ROWS = 600_000


class Figures(NamedTuple):
    """The figures of one measurement: memory and size in MB, ``access`` in microseconds a trial."""

    seconds: float
    peak: float
    kept: float
    pickled: float
    access: float


class Protocol(NamedTuple):
    """A protocol that is made up and parsed."""

    name: str
    lines: int
    path: str
    line: Callable[[random.Random, int], str]
    parse: Callable[[str], TrialList]


def asvspoof5_line(draw: random.Random, utterance: int) -> str:
    codec = draw.choice(["-", *(f"C{n:02d}" for n in range(1, 12))])
    attack, key = ("bonafide",) * 2 if draw.random() < 0.2 else (f"A{draw.randint(17, 32)}", "spoof")
    seed = f"E_{draw.randrange(10**10):010d}"
    return (
        f"E_{draw.randrange(737):04d} E_{utterance:010d} {draw.choice('MF')} {codec} {draw.randrange(6)} {seed} AC1 "
        f"{attack} {key} -\n"
    )


def asvspoof2021_line(draw: random.Random, utterance: int) -> str:
    codec = draw.choice(["nocodec", *(f"{rate}_{kind}" for rate in ("low", "high") for kind in ("mp3", "m4a", "ogg"))])
    attack, label = ("-", "bonafide") if draw.random() < 0.03 else (f"A{draw.randint(7, 119)}", "spoof")
    phase = draw.choices(["eval", "progress", "hidden"], [87, 10, 3])[0]
    return (
        f"LA_{draw.randrange(100):04d} DF_E_{utterance:07d} {codec} {draw.choice(['asvspoof', 'vcc2018', 'vcc2020'])} "
        f"{attack} {label} notrim {phase} neural_vocoder_nonautoregressive Task1 team{draw.randrange(33)} FF English\n"
    )


def parse_asvspoof5(root: str) -> TrialList:
    return ASVspoof5(root, "eval").trials()


def parse_asvspoof2021(root: str) -> TrialList:
    return ASVspoof2021DF(root, "all").trials()


PROTOCOLS = (
    Protocol("ASVspoof 5 eval", 680_774, "ASVspoof5.eval.track_1.tsv", asvspoof5_line, parse_asvspoof5),
    Protocol("ASVspoof 2021 DF", 611_829, "keys/DF/CM/trial_metadata.txt", asvspoof2021_line, parse_asvspoof2021),
)


def usual_loop(path: str) -> list[tuple[str, ...]]:
    rows = []
    with open(path) as file:
        for line in file:
            rows.append(tuple(line.strip().split(" ")))
    return rows


def measure(parse: Callable[[str], Sequence[object]], place: str) -> Figures:
    """Measure one parse in this process."""
    before = memory("VmRSS")
    started = time.perf_counter()
    parsed = parse(place)
    seconds = time.perf_counter() - started
    peak = memory("VmHWM") - before
    kept = memory("VmRSS") - before
    picks = range(0, len(parsed), max(1, len(parsed) // 50_000))
    started = time.perf_counter()
    for pick in picks:
        parsed[pick]
    access = (time.perf_counter() - started) / len(picks) * 1e6
    return Figures(seconds, peak, kept, len(pickle.dumps(parsed)) / 1e6, access)


def memory(kind: str) -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[kind].split()[0]) * 1024 / 1e6


def pairs(protocol: Protocol, root: Path, repeats: int) -> Iterator[tuple[Figures, Figures]]:
    """The figures of the usual loop and ours, side by side."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for _ in range(repeats):
            usual = pool.apply(measure, (usual_loop, str(root / protocol.path)))
            yield usual, pool.apply(measure, (protocol.parse, str(root)))


class Columns(NamedTuple):
    """The figures of one measurement of columns: seconds, memory and size in MB, ``row`` in microseconds."""

    build: float
    kept: float
    choose: float
    slice: float
    pickle: float
    pickled: float
    row: float


def lists() -> list[list[str]]:
    """Two columns of unique texts, six of few different ones."""
    draw = random.Random(0)
    ids = [f"DF_E_{number:07d}" for number in draw.sample(range(10**7), ROWS)]
    few = [
        [f"{name}{number}" for number in range(count)]
        for name, count in zip("abcdef", (100, 9, 120, 3, 33, 2), strict=True)
    ]
    return [ids, [f"flac/{one}.flac" for one in ids], *(draw.choices(values, k=ROWS) for values in few)]


def ours(columns: list[list[str]]) -> list:
    pools = [CategoryPool() for _ in columns[2:]]
    for pool, column in zip(pools, columns[2:], strict=True):
        pool.extend(column)
    return [*map(Texts.of, columns[:2]), *(pool.packed() for pool in pools)]


def arrow(columns: list[list[str]]) -> list:
    import pyarrow

    arrays = [pyarrow.array(column) for column in columns]
    return [*arrays[:2], *(array.dictionary_encode() for array in arrays[2:])]


def chosen(columns: list, picks: np.ndarray) -> list:
    return [column.take(picks) if hasattr(column, "take") else column[picks] for column in columns]


def values(columns: list, index: int) -> list[str]:
    return [value.as_py() if hasattr(value, "as_py") else value for value in (column[index] for column in columns)]


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure_columns(build: Callable[[list[list[str]]], list]) -> Columns:
    """Measure one table in this process."""
    given = lists()
    build([column[:10] for column in given])  # so that imports are not measured
    before = memory("VmRSS")
    started = time.perf_counter()
    columns = build(given)
    seconds, kept = time.perf_counter() - started, memory("VmRSS") - before
    random_tenth = np.random.default_rng(0).choice(ROWS, ROWS // 10, replace=False)
    rows = range(0, ROWS, 60)
    return Columns(
        build=seconds,
        kept=kept,
        choose=seconds_of(lambda: chosen(columns, random_tenth)),
        slice=seconds_of(lambda: pickle.dumps([column[ROWS // 2 : ROWS // 2 + ROWS // 10] for column in columns])),
        pickle=seconds_of(lambda: pickle.loads(pickle.dumps(columns))),
        pickled=len(pickle.dumps(columns)) / 1e6,
        row=seconds_of(lambda: [values(columns, row) for row in rows]) / len(rows) * 1e6,
    )


def seconds_of_import() -> float:
    code = "import time, numpy; start = time.perf_counter(); import pyarrow; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def compare_columns(repeats: int) -> None:
    measured = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for _ in range(repeats):
            measured.append([pool.apply(measure_columns, (build,)) for build in (arrow, ours)])
    print(f"{ROWS:,} rows, 2 columns of unique texts and 6 of few; {repeats} pairs, medians")
    print("                  pyarrow     here   ratio")
    for name, unit in zip(Columns._fields, ("s", "MB", "s", "s", "s", "MB", "us"), strict=True):
        sides = [tuple(getattr(side, name) for side in pair) for pair in measured]
        there, here = (statistics.median(side) for side in zip(*sides, strict=True))
        ratio = statistics.median(before / after for before, after in sides)
        print(f"  {name:7} ({unit:2})   {there:8.3f} {here:8.3f}  {ratio:5.2f}x")
    folder = Path(str(importlib.util.find_spec("pyarrow").origin)).parent
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    seconds = statistics.median(seconds_of_import() for _ in range(repeats))
    print(
        f"  beyond numpy, pyarrow takes {seconds:.2f} s to import and {size:.0f} MB on disk; the columns here, nothing"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pyarrow", action="store_true", help="compare the columns with pyarrow's instead")
    arguments = parser.parse_args()
    if arguments.pyarrow:
        compare_columns(arguments.repeats)
        return
    for protocol in PROTOCOLS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, protocol.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            draw = random.Random(0)
            with path.open("w") as file:
                file.writelines(protocol.line(draw, id) for id in draw.sample(range(10**7), protocol.lines))
            measured = list(pairs(protocol, Path(folder), arguments.repeats))
            size = path.stat().st_size / 1e6
        print(f"{protocol.name}: {protocol.lines:,} lines, {size:.0f} MB; {arguments.repeats} pairs, medians")
        print("                    usual     here   ratio")
        for name, unit in zip(Figures._fields, ("s", "MB", "MB", "MB", "us"), strict=True):
            sides = [(getattr(usual, name), getattr(here, name)) for usual, here in measured]
            usual, here = (statistics.median(side) for side in zip(*sides, strict=True))
            ratio = statistics.median(before / after for before, after in sides)
            print(f"  {name:7} ({unit:2})   {usual:8.2f} {here:8.2f}  {ratio:5.2f}x")


if __name__ == "__main__":
    main()

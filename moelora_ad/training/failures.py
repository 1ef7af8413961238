"""Trials whose audio could not be read: listed beside the scores, counted on the terminal."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path

from moelora_ad.corpora import TrialList

COLUMNS = ("utterance", "audio", "reason")


def write_failures(path: Path, trials: TrialList, reasons: Mapping[int, str]) -> None:
    """Write a CSV file (UTF-8) with the header ``COLUMNS``, whole or not at all; without failures, there is no file.

    Args:
        path: of the file.
        trials: all trials of the set.
        reasons: why trials failed, by their index in the list.
    """
    if not reasons:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(unfinished, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for index, reason in reasons.items():
                writer.writerow((trials[index].utterance, trials[index].audio, reason))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)

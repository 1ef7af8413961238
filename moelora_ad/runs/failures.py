"""Trials whose audio could not be read: listed beside the scores, counted on the terminal."""

import csv
from collections.abc import Mapping
from pathlib import Path

from moelora_ad.corpora import TrialList
from moelora_ad.files import written_whole

COLUMNS = ("utterance", "audio", "reason")


def write_failures(path: Path, trials: TrialList, reasons: Mapping[int, str]) -> None:
    """Write a CSV file (UTF-8) with the header ``COLUMNS``, whole or not at all; without failures, remove the file.

    Args:
        path: path of the file.
        trials: all trials of the set.
        reasons: why trials failed, by their index in the list.
    """
    if not reasons:
        path.unlink(missing_ok=True)
        return
    with (
        written_whole(path) as unfinished,
        open(unfinished, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for index, reason in reasons.items():
            writer.writerow((trials[index].utterance, trials[index].audio, reason))

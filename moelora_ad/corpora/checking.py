"""Checks of a corpus: whether it matches its official numbers, and all of its audio is there and readable."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from moelora_ad.audio import SAMPLE_RATE, AudioReader
from moelora_ad.corpora.corpus import ClassCounts, Corpus, LeftOut
from moelora_ad.corpora.storage.files import exists, open_file
from moelora_ad.corpora.trial import TrialList
from moelora_ad.errors import InputError, counted

Progress = Callable[[Iterable[int], str, int], Iterable[int]]
"""Called with indices, a description and their number; yields the indices and shows the progress."""


_NOTHING = ClassCounts(0, 0, 0)


@dataclass
class CorpusReport:
    """The findings on a corpus.

    Args:
        name: Name of the corpus.
        found: Number of trials by class.
        official: Official numbers, including the trials that are left out, if known.
        selection: What is taken of the corpus, in words; empty for all.
        left_out: How many trials the selection leaves out; None if all are taken.
        splits: Number of trials by split.
        attacks: Number of trials by attack.
        missing: Utterances without an audio file.
        decoded: How many files were read to be decoded, including those that failed.
        undecodable: Utterances whose files could not be decoded, and why.
        rates: Number of decoded files by their own sample rate in hertz.
        seconds: Shortest, median and longest duration of the decoded files.
        hours: Duration of all trials, estimated from the decoded files.
        problems: What is wrong, one line each.
    """

    name: str
    found: ClassCounts = _NOTHING
    official: ClassCounts | None = None
    selection: str = ""
    left_out: LeftOut | None = None
    splits: dict[str, int] = field(default_factory=dict)
    attacks: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    decoded: int = 0
    undecodable: dict[str, str] = field(default_factory=dict)
    rates: dict[int, int] = field(default_factory=dict)
    seconds: tuple[float, float, float] | None = None
    hours: float | None = None
    problems: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return self.found.total or 0

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        counts = {"found": self.found, "official": self.official, "left_out": self.left_out}
        return asdict(self) | {name: None if one is None else one._asdict() for name, one in counts.items()}


def check_corpus(corpus: Corpus, most_decoded: int | None, progress: Progress) -> CorpusReport:
    """Count the trials of a corpus, look for the audio of each, and decode some or all of it.

    Args:
        corpus: The corpus, whose protocol is parsed here.
        most_decoded: How many files to decode, evenly spread over the list; None for all.
        progress: Shows the progress.

    Returns:
        The report. A corpus that cannot be parsed is a problem in the report, not an error.
    """
    report = CorpusReport(corpus.name, official=corpus.official_counts(), selection=corpus.selection_note)
    try:
        trials = corpus.trials()
    except InputError as error:
        report.problems.append(str(error))
        return report
    report.found = ClassCounts(len(trials), trials.num_bona_fide, trials.num_spoof)
    report.left_out = corpus.left_out
    report.splits = _counts(trial.split for trial in trials)
    report.attacks = _counts(trial.attack for trial in trials)
    _compare(report)
    _look_for_audio(report, trials, progress)
    _decode(report, trials, most_decoded, progress)
    return report


def _counts(values: Iterable[str | None]) -> dict[str, int]:
    return dict(sorted((value or "-", count) for value, count in Counter(values).items()))


def _compare(report: CorpusReport) -> None:
    official = report.official or (None,) * 3
    left_out = report.left_out or LeftOut()
    for what, found, out, expected in zip(
        ("trials", "bona fide", "spoof"), report.found, left_out, official, strict=True
    ):
        if expected is not None and (found or 0) + out != expected:
            report.problems.append(f"{what}: {expected:,} expected, {(found or 0) + out:,} found")


def _look_for_audio(report: CorpusReport, trials: TrialList, progress: Progress) -> None:
    total, first = len(trials), ""
    for index in progress(range(total), f"{report.name}: looking for audio", total):
        trial = trials[index]
        try:
            there = exists(trial.audio)
        except InputError as error:  # the archive's error: no other file of it can be read either
            report.problems.append(str(error))
            return
        if not there:
            report.missing.append(trial.utterance)
            first = first or trial.audio
    if report.missing:
        present = f"{total:,} expected, {total - len(report.missing):,} found"
        report.problems.append(f"audio: {present}, {len(report.missing):,} missing, first {first}")


def _decode(report: CorpusReport, trials: TrialList, most: int | None, progress: Progress) -> None:
    absent = set(report.missing)
    total = len(trials)
    chosen = range(total) if most is None else np.unique(np.linspace(0, total - 1, min(most, total)).round()).tolist()
    seconds: list[float] = []
    rates: Counter[int] = Counter()
    for index in progress(chosen, f"{report.name}: decoding", len(chosen)):
        trial = trials[int(index)]
        if trial.utterance in absent:
            continue
        try:
            with AudioReader(open_file(trial.audio), trial.audio) as sound:
                sound.read()
                seconds.append(sound.length / SAMPLE_RATE)
                rates[sound.source_rate] += 1
        except InputError as error:
            report.undecodable[trial.utterance] = str(error)
        report.decoded += 1
    report.rates = dict(sorted(rates.items()))
    if seconds:
        report.seconds = min(seconds), float(np.median(seconds)), max(seconds)
        report.hours = float(np.mean(seconds)) * total / 3600
    if report.undecodable:
        first = next(iter(report.undecodable.values()))
        report.problems.append(
            f"decoding: {len(report.undecodable):,} of {counted(report.decoded, 'file')} cannot be read; the first: "
            f"{first}"
        )

"""Keys: the labels of trials that score files do not have, and the strict joining of both."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, get_args

import numpy as np

from moelora_ad.corpora.asvspoof5 import read_asvspoof5_protocol
from moelora_ad.corpora.asvspoof2019 import ASVspoof2019Protocol
from moelora_ad.corpora.asvspoof2021 import ASVspoof2021DF, ASVspoof2021LA, Phase
from moelora_ad.corpora.collecting import Collector
from moelora_ad.corpora.manifest import Manifest
from moelora_ad.corpora.records import first_line, read_columns, read_text
from moelora_ad.corpora.trial import TEXT_FIELDS, TrialList
from moelora_ad.evaluation.equal_error_rate import ScoreError
from moelora_ad.evaluation.score_formats import Scores
from moelora_ad.evaluation.score_table import DELIMITERS, ScoreTable, read_score_columns

_NAMES = {"file_name": "utterance", "filename": "utterance", "cm-label": "label"}  # of the Arena and of ASVspoof 5
_SHOWN = 5
_ACCEPTED = (
    "a table with the columns utterance and label, a manifest, a protocol of ASVspoof 2019 (5 columns) or "
    "ASVspoof 5 (10), trial_metadata.txt of ASVspoof 2021, or the key of ASVspoof 5 or of the Speech DF Arena"
)


class Joined(NamedTuple):
    """Scores with the trials of a key.

    Args:
        table: The trials that both have, in the key's order.
        num_missing: Trials of the key without a score.
        num_extra: Scores of utterances that the key does not have.
    """

    table: ScoreTable
    num_missing: int
    num_extra: int


def read_key(path: str | Path, phase: str = "eval") -> TrialList:
    """Read the trials and labels of a key; its first line tells which of the official formats it has.

    Args:
        path: A protocol, key or manifest.
        phase: Which part of an ASVspoof 2021 key: ``eval``, ``progress``, ``hidden`` or ``all``.

    Raises:
        ScoreError: It is no key, or has no such phase.
        ProtocolError: It is faulty.
    """
    if phase not in get_args(Phase):
        raise ScoreError(f"phase {phase!r} is none of {', '.join(get_args(Phase))}")
    suffix = Path(path).suffix.lower()
    if suffix == ".jsonl":
        return Manifest(path).trials()
    if suffix == ".parquet":
        return _table(path, *read_score_columns(path))
    first = first_line(read_text(path, ScoreError))
    fields = first.split()
    if len(fields) == 5:
        return ASVspoof2019Protocol(Path(path).stem, path, audio="").trials()
    if len(fields) in (8, 13) and fields[1].startswith("LA_"):
        return ASVspoof2021LA("", phase, keys=path).trials()  # type: ignore[arg-type]
    if len(fields) in (8, 13) and fields[1].startswith("DF_"):
        return ASVspoof2021DF("", phase, keys=path).trials()  # type: ignore[arg-type]
    if len(fields) == 10:
        return read_asvspoof5_protocol(path)
    if "label" in first:
        return _table(path, *read_columns(path, ScoreError, "\t" if "\t" in first else DELIMITERS.get(suffix, ",")))
    raise ScoreError.at(path, f"is no key; accepted are {_ACCEPTED}", line=1)


def _table(
    path: str | Path, header: Sequence[str], lines: Sequence[int], columns: Mapping[str, Sequence[str]]
) -> TrialList:
    named = {_NAMES.get(name, name): columns[name] for name in header if name}
    if "label" in named and "utterance" not in named and "path" in named:
        return Manifest(path).trials()
    missing = [name for name in ("utterance", "label") if name not in named]
    if missing:
        raise ScoreError.at(path, f"no column {', '.join(map(repr, missing))}; a key is {_ACCEPTED}", line=1)
    collector = Collector(path)
    if lines:
        texts = {name: named[name] for name in TEXT_FIELDS if name in named}
        collector.add(lines, named["utterance"], named["label"], **{"corpus": Path(path).stem, **texts})
    return collector.trials(before="")


def join_scores(scores: ScoreTable | Scores, trials: TrialList, allow_partial: bool = False) -> Joined:
    """Give scores the trials of a key or corpus, by utterance id.

    Args:
        scores: Read from a file.
        trials: Of the key.
        allow_partial: Whether to go on with the trials that both have when they differ.

    Raises:
        ScoreError: Trials have no score or scores no trial (the message counts them and names the first), nothing is
            left, or labels in the scores contradict the key.
    """
    utterances = scores.trials.columns.utterance if isinstance(scores, ScoreTable) else scores.utterances
    place = {utterance: number for number, utterance in enumerate(utterances)}
    wanted = list(trials.columns.utterance)
    found = np.fromiter((place.get(utterance, -1) for utterance in wanted), np.int64, len(wanted))
    scored = np.flatnonzero(found >= 0)
    num_missing, num_extra = len(wanted) - len(scored), len(place) - len(scored)
    if not len(scored) or ((num_missing or num_extra) and not allow_partial):
        raise ScoreError(_difference(wanted, place, num_missing, num_extra, allow_partial))
    joined = trials if not num_missing else trials.select(scored)
    if isinstance(scores, ScoreTable):
        _refuse_contradictions(scores, joined, found[scored])
    return Joined(ScoreTable(joined, scores.scores[found[scored]]), num_missing, num_extra)


def _difference(
    wanted: Sequence[str], place: dict[str, int], num_missing: int, num_extra: int, allow_partial: bool
) -> str:
    keyed = set(wanted)
    missing = _listed(utterance for utterance in wanted if utterance not in place)
    extra = _listed(utterance for utterance in place if utterance not in keyed)
    parts = []
    if num_missing:
        parts.append(f"{num_missing:,} of {len(wanted):,} trials of the key have no score: {missing}")
    if num_extra:
        parts.append(f"{num_extra:,} of {len(place):,} scores are not of the key: {extra}")
    if num_missing == len(wanted):
        bare = {_bare(utterance) for utterance in place}
        ends = any(_bare(utterance) in bare for utterance in wanted)
        parts.append("the ids differ in folders or endings" if ends else "is it the key of another set?")
    elif not allow_partial:
        parts.append("give --allow-partial to use the trials that both have")
    return "; ".join(parts)


def _refuse_contradictions(scores: ScoreTable, joined: TrialList, places: np.ndarray) -> None:
    given, keyed = scores.labels[places], joined.labels
    wrong = np.flatnonzero((given >= 0) & (keyed >= 0) & (given != keyed))
    if len(wrong):
        names = _listed(joined.columns.utterance[int(number)] for number in wrong)
        raise ScoreError(f"{len(wrong):,} labels in the scores contradict the key: {names}")


def _listed(utterances: Iterable[str]) -> str:
    some: list[str] = []
    for utterance in utterances:
        if len(some) == _SHOWN:
            return f"{', '.join(some)}, ..."
        some.append(utterance)
    return ", ".join(some)


def _bare(utterance: str) -> str:
    return PurePosixPath(utterance).stem

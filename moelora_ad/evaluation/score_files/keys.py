"""Keys, which have the labels that score files lack, and the strict joining of both."""

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from moelora_ad.corpora.asvspoof5 import read_asvspoof5_protocol
from moelora_ad.corpora.asvspoof2019 import ASVspoof2019Protocol
from moelora_ad.corpora.asvspoof2021 import ASVspoof2021DF, ASVspoof2021LA, Phase
from moelora_ad.corpora.fakeavceleb import TrialsList, read_fakeavceleb
from moelora_ad.corpora.in_the_wild import read_in_the_wild
from moelora_ad.corpora.manifest import Manifest
from moelora_ad.corpora.protocols.collecting import Collector
from moelora_ad.corpora.protocols.records import delimiter_of, first_line, read_lines, read_text, split_header
from moelora_ad.corpora.storage.files import joined
from moelora_ad.corpora.trial import TEXT_FIELDS, TrialList, parse_label
from moelora_ad.errors import counted
from moelora_ad.evaluation.metrics.equal_error_rate import ScoreError
from moelora_ad.evaluation.score_files.formats import Scores
from moelora_ad.evaluation.score_files.matching import match_ids
from moelora_ad.evaluation.score_table import ID_NAMES, LABEL_NAMES, ScoreTable, one_of, read_score_columns

PHASES = tuple(dict.fromkeys((*get_args(Phase), *get_args(TrialsList))))
"""Phases and lists of the keys that have several."""
_SHOWN = 5
_ACCEPTED = (
    "a table whose first line names columns, utterance (or path, file_name, filename, file) and label among them, such "
    "as a manifest, meta.csv of In-the-Wild, or the key of ASVspoof 5 or of the Speech DF Arena; meta_data.csv of "
    "FakeAVCeleb; trial_metadata.txt of ASVspoof 2021; a protocol of ASVspoof 5, or lines such as those of ASVspoof "
    "2019, 'speaker utterance - attack label', or 'utterance label'"
)


class Joined(NamedTuple):
    """Scores with the trials of a key.

    Attributes:
        table: The trials that both have, in the key's order.
        num_missing: The number of trials of the key without a score.
        num_extra: The number of scores of utterances that the key does not have.
        note: How matched ids differ (see `match_ids`); None if all are equal.
    """

    table: ScoreTable
    num_missing: int
    num_extra: int
    note: str | None = None


def read_key(path: str | Path, phase: str | None = None) -> TrialList:
    """Read the trials and labels of a key; its first line determines the format.

    Args:
        path: A protocol, key, manifest or other table. A protocol without a header that is not an official one
            is ``speaker utterance ... attack label ...`` or ``utterance label ...``.
        phase: The phase of an ASVspoof 2021 key: ``eval`` (also for None), ``progress``, ``hidden`` or ``all``; or the
            list of FakeAVCeleb: ``all`` (also for None), ``a_vs_fake`` or ``a_vs_b``. Other keys have no parts.

    Raises:
        ScoreError: The file is not a key, or the key has no such part.
        ProtocolError: The key is faulty.
    """
    if phase is not None:
        _checked(phase, PHASES)
    if Path(path).suffix.lower() in (".jsonl", ".parquet"):
        return _table(path, *read_score_columns(path))
    first = first_line(read_text(path, ScoreError))
    names = set(split_header(first, ","))
    if {"file", "speaker", "label"} <= names and "utterance" not in names:
        return read_in_the_wild(path)
    if delimiter_of(first, LABEL_NAMES):
        return _table(path, *read_score_columns(path))
    if {"type", "category", "method"} <= names:
        return read_fakeavceleb(path, _checked(phase or "all", get_args(TrialsList)))
    fields = first.split()
    if len(fields) == 5:
        return ASVspoof2019Protocol(Path(path).stem, path, audio="").trials()
    if len(fields) in (8, 13) and fields[1].startswith("LA_"):
        return ASVspoof2021LA("", _checked(phase or "eval", get_args(Phase)), keys=path).trials()
    if len(fields) in (8, 13) and fields[1].startswith("DF_"):
        return ASVspoof2021DF("", _checked(phase or "eval", get_args(Phase)), keys=path).trials()
    if len(fields) == 10:
        return read_asvspoof5_protocol(path)
    label = max((number for number, field in enumerate(fields) if _is_label(field)), default=0)
    if label == 1 or label > 2:
        return _lines(path, len(fields), label)
    raise ScoreError.at(path, f"is not a key; accepted are {_ACCEPTED}", line=1)


def _checked(phase: str, phases: Sequence[str]) -> Any:
    if phase not in phases:
        raise ScoreError(f"phase {phase!r} is not one of {', '.join(phases)}")
    return phase


def _is_label(word: str) -> bool:
    try:
        parse_label(word)
    except ValueError:
        return False
    return True


def _lines(path: str | Path, num_fields: int, label: int) -> TrialList:
    """Read a protocol without a header whose field number ``label`` has the labels."""
    names = [f"field {number}" for number in range(num_fields)]
    names[label] = "label"
    names[1 if label > 1 else 0] = "utterance"
    if label > 2:
        names[0], names[label - 1] = "speaker", "attack"
    collector = Collector(path)
    for lines, columns in read_lines(path, names):
        texts = {name: columns[name] for name in ("speaker", "attack") if name in names}
        collector.add(lines, columns["utterance"], columns["label"], corpus=Path(path).stem, **texts)
    return collector.trials(before="")


def _table(
    path: str | Path, header: Sequence[str], lines: Sequence[int], columns: Mapping[str, Sequence[str]]
) -> TrialList:
    utterance, label = one_of(header, ID_NAMES), one_of(header, LABEL_NAMES)
    if utterance is None or label is None:
        missing = [name for name, found in (("utterance", utterance), ("label", label)) if found is None]
        raise ScoreError.at(path, f"no column {', '.join(map(repr, missing))}; a key is {_ACCEPTED}", line=1)
    if label == "label" and utterance == "path":
        return Manifest(path).trials()
    collector = Collector(path)
    audio = None
    if lines:
        texts = {name: columns[name] for name in TEXT_FIELDS if name in header}
        if "path" in header:  # scores of files are matched by it
            audio = [joined(os.path.dirname(path), place) if place else "" for place in columns["path"]]
        collector.add(lines, columns[utterance], columns[label], audio, **{"corpus": Path(path).stem, **texts})
    return collector.trials(before="" if audio is None else None)


def join_scores(scores: ScoreTable | Scores, trials: TrialList, allow_partial: bool = False) -> Joined:
    """Give scores the trials of a key or corpus, by utterance id (see `match_ids`).

    Args:
        scores: The scores, read from a file.
        trials: The trials of the key or corpus.
        allow_partial: Whether to use the trials that both have if they differ.

    Raises:
        ScoreError: Trials have no score or scores no trial (the message counts them and names the first ones), no trial
            is left, or labels in the scores contradict the key.
    """
    utterances = scores.trials.columns.utterance if isinstance(scores, ScoreTable) else scores.utterances
    wanted, scored_ids = list(trials.columns.utterance), list(utterances)
    found, note = match_ids(wanted, trials.columns.audio, scored_ids)
    scored = np.flatnonzero(found >= 0)
    if not len(scored) or ((len(scored) < len(wanted) or len(scored) < len(scored_ids)) and not allow_partial):
        raise ScoreError(_difference(wanted, scored_ids, found, allow_partial))
    joined = trials if len(scored) == len(wanted) else trials.select(scored)
    if isinstance(scores, ScoreTable):
        _refuse_contradictions(scores, joined, found[scored])
    table = ScoreTable(joined, scores.scores[found[scored]])
    return Joined(table, len(wanted) - len(scored), len(scored_ids) - len(scored), note)


def _difference(wanted: Sequence[str], scored: Sequence[str], found: NDArray[np.int64], allow_partial: bool) -> str:
    missing = [wanted[number] for number in np.flatnonzero(found < 0).tolist()]
    extra = [scored[number] for number in np.setdiff1d(np.arange(len(scored)), found).tolist()]
    parts = []
    if missing:
        parts.append(
            f"{len(missing):,} of {counted(len(wanted), 'trial')} of the key without a score: {_listed(missing)}"
        )
    if extra:
        parts.append(f"{len(extra):,} of {counted(len(scored), 'score')} not of the key: {_listed(extra)}")
    if len(missing) == len(wanted):
        bare = {_bare(utterance) for utterance in scored}
        ends = any(_bare(utterance) in bare for utterance in wanted)
        alike = "the ids differ in folders or endings, and do not match one to one without them"
        parts.append(alike if ends else "is it the key of another set?")
    elif not allow_partial:
        parts.append("give --allow-partial to use the trials that both have")
    return "; ".join(parts)


def _refuse_contradictions(scores: ScoreTable, joined: TrialList, places: NDArray[np.int64]) -> None:
    given, keyed = scores.labels[places], joined.labels
    wrong = np.flatnonzero((given >= 0) & (keyed >= 0) & (given != keyed))
    if len(wrong):
        names = _listed(joined.columns.utterance[int(number)] for number in wrong)
        raise ScoreError(f"against the key: {counted(len(wrong), 'label')} in the scores, {names}")


def _listed(utterances: Iterable[str]) -> str:
    some = list(islice(utterances, _SHOWN + 1))
    return ", ".join([*some[:_SHOWN], "..."] if len(some) > _SHOWN else some)


def _bare(utterance: str) -> str:
    return PurePosixPath(utterance).stem

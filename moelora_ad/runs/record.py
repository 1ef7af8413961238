"""The record of every training run: its settings, its progress, its results."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from moelora_ad.corpora import TrialList
from moelora_ad.documents import read_json
from moelora_ad.errors import InputError
from moelora_ad.files import files_below

RECORD = "run.json"
FORMAT = 1
DEV = "dev"
"""The set that checkpoints are selected on: it is shown, but is in no average."""
State = Literal["running", "finished", "failed", "interrupted"]


class RecordedSet(NamedTuple):
    """An evaluated set: its corpus, its EER as a share of 1 (None if it lacks a class), and its numbers of trials."""

    corpus: str
    eer: float | None
    num_bona_fide: int
    num_spoof: int


class ConfiguredSet(NamedTuple):
    """A set that a run is selected or tested on: its corpus, and `trials_hash` of its trials (None if not read yet)."""

    corpus: str
    trials: str | None


class InitialWeights(NamedTuple):
    """The origin of a run's initial weights: a model or a checkpoint, the SHA-256 of its file of weights, and how many
    tensors were taken from it, how many were initialised instead, and how many tensors in it were not used."""

    source: str
    sha256: str
    loaded: int
    begun_anew: int
    not_used: int


def trials_hash(trials: TrialList) -> str:
    """Return a hash of the ids and labels of trials that does not depend on their order."""
    digest = hashlib.sha256()
    for utterance, label in sorted(zip(trials.columns.utterance, trials.labels.tolist(), strict=True)):
        digest.update(f"{label} {utterance}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


@dataclass(frozen=True)
class RunRecord:
    """The record of one run.

    Attributes:
        folder: folder of the run; the record is ``run.json`` in it.
        state: state of the run; it stays "running" if the run is killed.
        reason: why the run failed or was interrupted, in one line.
        system: name of the system, shared by its runs with different seeds.
        seed: seed of all random numbers.
        started: start of the first attempt, ISO 8601, UTC.
        updated: when the record was written.
        seconds: duration of all attempts together.
        attempts: how often the run was started.
        epoch: number of completed epochs.
        max_epochs: limit of the epochs; None without a limit.
        step: number of completed optimiser steps.
        max_steps: number of steps expected at the start; None without a limit.
        dev_eer: EER of the last validation, as a share of 1.
        best_dev_eer: EER of the best validation, as a share of 1.
        parameters: number of trained parameters by part, and ``total``, the number of all parameters of the detector.
        training_corpora: names of the corpora trained on.
        configured_sets: the development set and the test sets of the run's configuration, by name; other sets that its
            checkpoints are tested on are left out of the run's averages. None in a record of an earlier version.
        sets: the sets evaluated with the best checkpoint, by name.
        checkpoint: path of the best checkpoint, relative to the run's folder; None before there is one.
        scores: folder of the score files, relative to the run's folder; None before there are any.
        peak_memory_bytes: largest peak of all attempts: ``host``, and ``cuda`` or None.
        versions: versions of Python and of the packages that figures depend on.
        git_commit: commit of the code, with ``-dirty`` if files differ from it; None outside a repository.
        command: arguments of the command line.
        init_weights: origin of the weights given by ``model.init_weights``; None for new weights, and in a record of
            an earlier version.
        selections: which trials of the corpora are used, in words, by ``train``, ``train.NAME``, ``dev`` and the names
            of test sets; sets of which all trials are used are absent.
    """

    folder: Path
    state: State
    reason: str | None
    system: str
    seed: int
    started: str
    updated: str
    seconds: float
    attempts: int
    epoch: int
    max_epochs: int | None
    step: int
    max_steps: int | None
    dev_eer: float | None
    best_dev_eer: float | None
    parameters: Mapping[str, int]
    training_corpora: tuple[str, ...]
    sets: Mapping[str, RecordedSet]
    checkpoint: str | None
    scores: str | None
    peak_memory_bytes: Mapping[str, int | None]
    versions: Mapping[str, str]
    git_commit: str | None
    command: tuple[str, ...]
    configured_sets: Mapping[str, ConfiguredSet] | None = None
    init_weights: InitialWeights | None = None
    selections: Mapping[str, str] = field(default_factory=dict)

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        return sum(number for part, number in self.parameters.items() if part != "total")

    @property
    def checkpoint_path(self) -> Path | None:
        return None if self.checkpoint is None else self.folder / self.checkpoint

    @property
    def score_folder(self) -> Path | None:
        return None if self.scores is None else self.folder / self.scores

    @property
    def configuration(self) -> Path:
        return self.folder / "config.yaml"

    def is_configured(self, name: str, trials: TrialList) -> bool:
        """Whether the run is configured with this set; true if its record is of an earlier version without that."""
        if self.configured_sets is None:
            return True
        one = self.configured_sets.get(name)
        return one is not None and one.trials in (None, trials_hash(trials))

    def as_dict(self) -> dict[str, Any]:
        """Return the content of the record's file."""
        fields = {name: value for name, value in vars(self).items() if name != "folder"}
        sets = {name: found._asdict() for name, found in self.sets.items()}
        of_run = self.configured_sets
        configured = None if of_run is None else {name: one._asdict() for name, one in of_run.items()}
        started = None if self.init_weights is None else self.init_weights._asdict()
        return {"format": FORMAT} | fields | {"sets": sets, "configured_sets": configured, "init_weights": started}


def read_record(folder: str | Path) -> RunRecord:
    """Read the record in a run's folder.

    Raises:
        InputError: there is no record, or it is damaged or of another format.
    """
    path = Path(folder) / RECORD
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise InputError(f"{folder}: no {RECORD}: it is not the folder of a run") from None
    except OSError as error:
        raise InputError.at(path, f"cannot be read: {error.strerror}") from None
    except InputError as error:
        raise InputError(f"{error}; the record is damaged: move it away to leave the run out, or resume it") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise InputError.at(path, f"is not a record of a run in format {FORMAT}")
    try:
        sets = {str(name): RecordedSet(**found) for name, found in content.pop("sets").items()}
        configured = content.pop("configured_sets", None)
        if configured is not None:
            configured = {str(name): ConfiguredSet(**one) for name, one in configured.items()}
        started = content.pop("init_weights", None)
        started = None if started is None else InitialWeights(**started)
        lists: dict[str, Any] = {}
        for name in ("training_corpora", "command"):
            found = content.pop(name)
            lists[name] = tuple(found) if isinstance(found, list) else found
        record = RunRecord(
            folder=Path(folder), sets=sets, configured_sets=configured, init_weights=started, **lists, **content
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError.at(path, f"is damaged: {error}") from None
    _check(record, path)
    return record


def find_records(paths: Iterable[str | Path]) -> list[RunRecord]:
    """Read the records of runs, each once, sorted by system, seed and folder.

    Args:
        paths: folders of runs, or folders with such folders anywhere below them.

    Raises:
        InputError: a path is not a folder or has no run, a folder cannot be read, or a record is damaged.
    """
    folders: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise InputError(f"{path}: no such folder: give the folder of a run, or one above runs")
        try:
            found = sorted(file.parent for file in files_below(path) if file.name == RECORD)
        except OSError as error:  # averages over the other runs would look complete
            reason = f"cannot be read: {error.strerror}; name the runs to use one by one"
            raise InputError.at(error.filename, reason) from None
        if not found:
            raise InputError(f"{path}: no run in it or below it: none has a {RECORD}")
        folders |= {folder.resolve(): folder for folder in found}
    records = [read_record(folder) for folder in folders.values()]
    return sorted(records, key=lambda record: (record.system, record.seed, str(record.folder)))


def _check(record: RunRecord, path: Path) -> None:
    """Check that every field has the type that its class declares, so that a damaged record is not used."""
    for name, kind in get_type_hints(RunRecord).items():
        value = getattr(record, name)
        if not _is(value, kind):
            raise InputError.at(path, f"is damaged: {name} is {value!r}")
    for name in ("checkpoint", "scores"):
        value = getattr(record, name) or ""
        if "\0" in value:
            raise InputError.at(path, f"is damaged: {name} is {value!r}, which has a NUL")
        sizes = [len(part.encode(errors="replace")) for part in Path(value).parts]
        if sum(sizes) > 2_000 or max(sizes, default=0) > 255:  # too long for a path
            raise InputError.at(path, f"is damaged: {name} is {value!r}")


def _is(value: Any, kind: Any) -> bool:
    """Whether a value and all values in it are of a type; an int counts as a float, a bool not as a number."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in parts
    if get_origin(kind) in (Union, UnionType):
        return any(_is(value, part) for part in parts)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is(one, parts[0]) for one in value)
    if get_origin(kind) is not None:
        return isinstance(value, dict) and all(_is(key, parts[0]) and _is(one, parts[1]) for key, one in value.items())
    if issubclass(kind, tuple):
        fields = get_type_hints(kind)
        return isinstance(value, kind) and all(_is(getattr(value, name), of) for name, of in fields.items())
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind if kind in (int, str) else isinstance(value, kind)

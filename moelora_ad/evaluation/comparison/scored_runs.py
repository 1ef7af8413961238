"""The runs of a comparison with the equal error rates of their score files."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

from moelora_ad.configuration.differences import differences
from moelora_ad.configuration.files import read_configuration
from moelora_ad.errors import InputError, counted
from moelora_ad.evaluation.provenance import partial_note, provenance_of, read_provenance
from moelora_ad.evaluation.score_files.labelled import ScoreReader
from moelora_ad.evaluation.score_files.paths import FAILED, failed_note
from moelora_ad.evaluation.score_table import AttackErrorRate, ScoreTable
from moelora_ad.runs.held_out import HELD_OUT, held_out_attack
from moelora_ad.runs.record import DEV, RecordedSet, RunRecord, trials_hash


@dataclass(frozen=True)
class ScoredSet:
    """A score file of a run.

    Args:
        corpus: name of the corpus of its trials.
        splits: splits of its trials.
        eer: a share of 1.
        num_bona_fide: number of bona fide trials.
        num_spoof: number of spoofed trials.
        complete: whether every trial of the set has a score.
        trials: hash of ids and labels of the scored trials, in any order.
        trial_list: hash of the whole list of trials, from the provenance; None if it is not recorded.
        selection: which trials of its corpus are used, in words; empty for all trials.
        attacks: error rates of the bona fide trials against the spoofs of each attack, by its name.
    """

    corpus: str
    splits: tuple[str, ...]
    eer: float
    num_bona_fide: int
    num_spoof: int
    complete: bool
    trials: str
    trial_list: str | None
    selection: str = ""
    attacks: Mapping[str, AttackErrorRate] = field(default_factory=dict)

    def has_other_trials(self, other: "ScoredSet") -> bool:
        if self.trial_list and other.trial_list:
            return self.trial_list != other.trial_list
        return self.complete and other.complete and self.trials != other.trials


@dataclass(frozen=True)
class ScoredRun:
    """A finished run: its record, its configuration, and its score files by the set's name.

    The set of a held-out attack is separate: it differs for every attack, and is in no average over sets.
    """

    record: RunRecord
    configuration: Mapping[str, Any] = field(repr=False)
    sets: Mapping[str, ScoredSet]
    held_out: ScoredSet | None = None

    @property
    def attack(self) -> str | None:
        """The attack that the run was trained and selected without; None for an ordinary run."""
        return held_out_attack(self.configuration)


def read_runs(
    records: Iterable[RunRecord], tick: Callable[[str], None] = lambda what: None
) -> tuple[list[ScoredRun], list[str]]:
    """Read the score files of finished runs.

    Args:
        records: records of the runs, in the order of `find_records`.
        tick: called before each run with its folder.

    Returns:
        The finished runs that have scores, in the order given, and notes on what is left out or not complete.

    Raises:
        InputError: no run is left, a file is damaged, two runs of one system have the same seed or configurations that
            differ in more than the seed, or runs have other trials in a set of the same name.
    """
    records = list(records)
    notes, usable = [], []
    for record in records:
        left_out = _why_left_out(record)
        if left_out:
            notes.append(f"{record.folder} ({record.system}, seed {record.seed}) is left out: {left_out}")
        else:
            usable.append(record)
    if not usable:
        hint = f": {notes[0]}" if notes else ""
        raise InputError(f"none of {counted(len(records), 'run')} is finished and has scores{hint}")
    configurations = {record.folder: read_configuration(record.configuration) for record in usable}
    for _, group in groupby(usable, key=lambda record: record.system):
        _check_one_system(list(group), configurations)
    runs = []
    for record in usable:
        tick(str(record.folder))
        sets, told = _read_sets(record)
        notes += told
        if sets:
            held_out = None
            if held_out_attack(configurations[record.folder]) is not None:
                held_out = sets.pop(HELD_OUT, None)
            runs.append(ScoredRun(record, configurations[record.folder], sets, held_out))
    if not runs:
        raise InputError(f"no score file has both classes: {notes[-1]}")
    notes += _check_trials(runs)
    return runs, notes


def _why_left_out(record: RunRecord) -> str | None:
    if record.state == "running":
        # A killed run cannot record that it was killed.
        return f"its record of {record.updated} says that it is running; it may have been killed"
    if record.state != "finished":
        return f"it {'has failed' if record.state == 'failed' else 'was interrupted'}: {record.reason or 'no reason'}"
    folder = record.score_folder
    if folder is None:
        return "it was not tested, so there are no scores"
    return None if _score_files(folder) else f"it is finished, but its score files are not in {folder}"


def _score_files(folder: Path) -> list[Path]:
    found = [path for path in sorted(folder.glob("*.csv")) if not path.name.startswith(".")]
    return [path for path in found if not path.stem.endswith(FAILED)]


def _check_one_system(records: Sequence[RunRecord], configurations: Mapping[Path, Mapping[str, Any]]) -> None:
    for first, second in combinations(records, 2):
        if first.seed == second.seed:
            raise InputError(
                f"{first.folder} and {second.folder} are both system {first.system!r} with seed {first.seed}: "
                "name one of them"
            )
    first, *others = records
    for other in others:
        found = differences(configurations[first.folder], configurations[other.folder])
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise InputError(
                f"{first.folder} and {other.folder} are both system {first.system!r}, but their configurations differ "
                f"in {'; '.join(found[:3])}{more}: name one of them, or give each its own --system in fit"
            )


def _read_sets(record: RunRecord) -> tuple[dict[str, ScoredSet], list[str]]:
    assert record.score_folder is not None
    files = {path.stem: path for path in _score_files(record.score_folder)}
    place = f"{record.system}, seed {record.seed}"
    notes = [f"{place}: the score file of {name} is missing" for name in record.sets if name not in files]
    sets = {}
    for name, path in files.items():
        provenance = provenance_of(path)
        if not provenance.of_run or (record.configured_sets is not None and name not in record.configured_sets):
            notes.append(f"{place}: {path.name} is not of a set that the run is configured with, and is left out")
            continue
        recorded = record.sets.get(name)
        if recorded and not (recorded.num_bona_fide and recorded.num_spoof):
            notes.append(f"{place}: {name} has trials of one class only and no EER")
            continue
        table = ScoreReader().read(path).table
        eer = table.equal_error_rate().eer
        missing = failed_note(path) or partial_note(path, len(table))
        notes += [f"{place}, {name}: {note}" for note in (missing, provenance.note, _other_eer(recorded, eer)) if note]
        corpora = _values(table, "corpus")
        sets[name] = ScoredSet(
            corpus=recorded.corpus if recorded else " + ".join(corpora),
            splits=_values(table, "split"),
            eer=eer,
            num_bona_fide=table.trials.num_bona_fide,
            num_spoof=table.trials.num_spoof,
            complete=missing is None,
            trials=trials_hash(table.trials),
            trial_list=_trial_list(read_provenance(path)),
            selection=record.selections.get(name, ""),
            attacks=table.attack_error_rates(),
        )
    return sets, notes


def _other_eer(recorded: RecordedSet | None, eer: float) -> str | None:
    """A note if a set's scores are not those of the run's own test: a later test may have had another segment."""
    if recorded is None or recorded.eer is None or abs(recorded.eer - eer) < 1e-9:
        return None
    return (
        f"EER {100 * eer:.2f} %, and {100 * recorded.eer:.2f} % in the run's own test: its scores were made again, "
        "maybe with other settings"
    )


def _trial_list(provenance: Mapping[str, Any]) -> str | None:
    corpus = provenance.get("corpus")
    found = corpus.get("trial_list_sha256") if isinstance(corpus, dict) else None
    return found if isinstance(found, str) else None


def _values(table: ScoreTable, name: str) -> tuple[str, ...]:
    return tuple(sorted(filter(None, table.trials.column(name).values)))


def _check_trials(runs: Sequence[ScoredRun]) -> list[str]:
    """Check that all runs have the same trials in a set; return notes on systems selected on different ones."""
    first: dict[tuple[str, str | None], ScoredRun] = {}
    notes = []
    for run in runs:
        for name, one in run.sets.items():
            # Runs without different attacks are selected on different trials.
            known = first.setdefault((name, run.attack if name == DEV else None), run)
            if not one.has_other_trials(known.sets[name]):
                continue
            if name != DEV or run.record.system == known.record.system:
                raise InputError(
                    f"{known.record.folder} and {run.record.folder} have other trials in the set {name!r}, so their "
                    "figures do not compare: test both on one list, or name the sets differently"
                )
            notes.append(f"{run.record.system} and {known.record.system} were selected on different trials of {DEV}")
    return list(dict.fromkeys(notes))

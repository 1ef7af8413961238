"""Which score files a command line means: files, folders, sets and runs."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from moelora_ad.errors import InputError, counted, printable
from moelora_ad.files import files_below
from moelora_ad.runs.record import DEV, RECORD, read_record

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".txt")
FAILED = ".failed"
OWN_FILES = ("figures.csv", "comparison.csv")
"""Files that evaluate itself writes; in a folder they are not taken for score files."""


class PathError(InputError):
    """Paths on the command line that name no scores."""


class ScoreFile(NamedTuple):
    """A score file (None for scores in memory), the name of its set, and the run that made it (empty if there is only
    one)."""

    path: Path | None
    set_name: str
    run: str

    @property
    def where(self) -> str:
        """The name of the scores in errors."""
        return self.set_name if self.path is None else str(self.path)


class ScoreFiles(NamedTuple):
    """Score files in the order given, and notes on what was left out."""

    files: list[ScoreFile]
    notes: list[str]


class Pair(NamedTuple):
    """The score files of two systems for one set."""

    set_name: str
    files: tuple[ScoreFile, ScoreFile]


class Compared(NamedTuple):
    """Two systems, with their score files for each set."""

    systems: tuple[str, str] = ("", "")
    pairs: Sequence[Pair] = ()
    notes: Sequence[str] = ()


def find_score_files(paths: Sequence[str], names: Sequence[str] = ()) -> ScoreFiles:
    """Find the score files in files, folders and runs.

    A set is named after its file; files of one name in several folders are several runs of the set. In a folder, lists
    of failures and the development set, which a model was selected on, are left out. In the folder of a run, the scores
    of the best checkpoint are used, or the newest ones if the run's record does not name any.

    Args:
        paths: Files, folders that have score files, or folders of runs.
        names: Names of the sets instead of those of the files, one for each file.

    Raises:
        PathError: A path does not exist or has no scores, a file is given twice, or the names do not fit.
    """
    files: list[Path] = []
    notes = []
    for path in map(Path, paths):
        try:
            if path.is_dir():
                folder, told = _of_run(path) if _is_run(path) else (path, [])
                of_folder, left_out = _of_folder(folder)
                files += of_folder
                notes += told + left_out
            elif path.exists():
                files.append(path)
            else:
                raise PathError(f"{path}: no such file or folder")
        except OSError as reason:
            raise PathError(f"{path}: cannot be read: {reason.strerror}") from None
    twice = [path for path, count in Counter(path.resolve() for path in files).items() if count > 1]
    if twice:
        raise PathError(f"{twice[0]} is given more than once")
    if names and len(names) != len(files):
        raise PathError(f"--names has {counted(len(names), 'name')} for {counted(len(files), 'score file')}")
    if not all(name.strip() for name in names):
        raise PathError("--names has an empty name")
    sets = [printable(name) for name in names] or [printable(path.stem) for path in files]
    runs = _runs(files, sets)
    return ScoreFiles([ScoreFile(*one) for one in zip(files, sets, runs, strict=True)], notes)


def _is_run(folder: Path) -> bool:
    return (folder / RECORD).exists() or ((folder / "config.yaml").exists() and (folder / "scores").is_dir())


def _of_run(run: Path) -> tuple[Path, list[str]]:
    """Return the folder that has the scores of a run, and a note on the choice."""
    try:
        best = read_record(run).score_folder if (run / RECORD).exists() else None
    except InputError as error:
        raise PathError(str(error)) from None
    if best is not None and best.is_dir() and any(map(_has_scores, best.iterdir())):
        return best, [f"{run}: the scores of its best checkpoint, {best}"]
    newest: dict[Path, float] = {}
    for path in files_below(run / "scores") if (run / "scores").is_dir() else ():
        if _has_scores(path):
            newest[path.parent] = max(path.stat().st_mtime, newest.get(path.parent, 0))
    if not newest:
        command = f"moelora-ad test --config {quote(str(run / 'config.yaml'))} --ckpt_path CHECKPOINT"
        raise PathError(f"{run}: the run has no scores; {command} makes some")
    chosen = max(newest, key=lambda folder: (newest[folder], str(folder)))
    which = "only ones" if len(newest) == 1 else f"newest of {len(newest)}"
    return chosen, [f"{run}: its record names no scores of a best checkpoint; using the {which}, {chosen}"]


def _of_folder(folder: Path) -> tuple[list[Path], list[str]]:
    found = [path for path in sorted(folder.iterdir()) if _has_scores(path)]
    kept = [path for path in found if path.stem != DEV]
    if kept:
        note = f"{folder / DEV} is left out: models are selected on the development set; name the file to include it"
        return kept, [note] * (len(kept) < len(found))
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and any(map(_has_scores, path.iterdir()))]
    hint = f"; its folder {inside[0].name!r} has some" if inside else ""
    if next(folder.rglob(RECORD), None) is not None:
        hint = "; it has runs: name one of them, or compare their systems by results --compare"
    raise PathError(f"{folder}: no score files ({', '.join(SUFFIXES)}) in this folder{hint}")


def _has_scores(path: Path) -> bool:
    own = path.name in OWN_FILES or path.stem.endswith(FAILED) or path.name.startswith(".")
    return path.suffix.lower() in SUFFIXES and not own and path.is_file()


def _runs(files: Sequence[Path], sets: Sequence[str]) -> list[str]:
    """Name the runs of files by what distinguishes them: the parts of their folders' paths that differ, or else the
    files' names."""
    if len(set(sets)) == len(sets):
        return [""] * len(sets)
    runs = _tell_apart([path.absolute().parent for path in files])
    if len(set(zip(sets, runs, strict=True))) < len(sets):
        runs = [f"{run}/{path.name}".lstrip("/") for run, path in zip(runs, files, strict=True)]
    repeated = [one for one, count in Counter(zip(sets, runs, strict=True)).items() if count > 1]
    if repeated:
        raise PathError(f"several files are set {repeated[0][0]!r} of one run; give other --names")
    return [printable(run) for run in runs]


def find_pairs(first: str, second: str) -> Compared:
    """Find the score files of two systems: two files, or two folders with the same sets.

    Raises:
        PathError: A path does not exist, or the folders have different sets.
    """
    found = [find_score_files([path]) for path in (first, second)]
    ones, others = ({file.set_name: file for file in files.files} for files in found)
    if Path(first).is_file() and Path(second).is_file():
        (one,), (other,) = ones.values(), others.values()
        same = one.set_name == other.set_name
        pairs = [Pair(one.set_name if same else f"{one.set_name} / {other.set_name}", (one, other))]
    elif set(ones) != set(others):
        odd = sorted(set(ones) ^ set(others))
        raise PathError(f"--compare: {first} and {second} must have the same sets; only one has {', '.join(odd)}")
    else:
        pairs = [Pair(name, (one, others[name])) for name, one in ones.items()]
    return Compared(_systems(Path(first), Path(second)), pairs, [note for files in found for note in files.notes])


def _systems(first: Path, second: Path) -> tuple[str, str]:
    """Name two systems by the records of their runs, or else by what differs in their paths."""
    bare = [path.absolute().with_suffix("") if path.is_file() else path.absolute() for path in (first, second)]
    runs, apart = [_name_of_run(path.absolute()) for path in (first, second)], _tell_apart(bare)
    one, other = (run or name or path.name for run, name, path in zip(runs, apart, bare, strict=True))
    if one == other and len(set(apart)) > 1:  # two copies or checkpoints of a run
        one, other = (f"{one.removesuffix(')')}, {name})" if name else one for name in apart)
    names = (printable(one), printable(other))
    return names if one != other else (f"{names[0]} (first)", f"{names[1]} (second)")


def _name_of_run(path: Path) -> str | None:
    """Return the system and seed of the run that a folder or score file belongs to; None if it belongs to no run."""
    for folder in (path, *path.parents)[:4]:  # RUN/scores/CHECKPOINT/SET.csv
        if (folder / RECORD).is_file():
            try:
                record = read_record(folder)
            except InputError:
                return None
            return f"{record.system} (seed {record.seed})"
    return None


def _tell_apart(paths: Sequence[Path]) -> list[str]:
    """Return each path without the first and last parts that all paths share; the rest may be empty."""
    parts = [path.parts for path in paths]
    start = _common(parts)
    end = _common([part[start:][::-1] for part in parts])
    return ["/".join(part[start : len(part) - end]) for part in parts]


def _common(parts: Sequence[Sequence[str]]) -> int:
    """Return how many leading parts all have in common."""
    return next((i for i, same in enumerate(zip(*parts, strict=False)) if len(set(same)) > 1), min(map(len, parts)))


def failed_note(path: Path) -> str | None:
    """Return a note on the trials in the list of failures beside a score file; None if there are none."""
    beside = path.with_name(f"{path.stem}{FAILED}.csv")
    try:
        with open(beside, encoding="utf-8", newline="") as file:
            number = max(0, sum(1 for _ in csv.reader(file)) - 1)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, csv.Error):
        return f"{beside.name} beside the scores cannot be read; some trials may have no score"
    return f"{counted(number, 'trial')} could not be scored ({beside.name}), in no figure" if number else None

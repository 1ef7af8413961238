"""FakeAVCeleb v1.2 (Khalid et al., NeurIPS Datasets and Benchmarks, 2021): videos with real or fake sound."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from moelora_ad.corpora.corpus import ClassCounts, Corpus
from moelora_ad.corpora.protocols.collecting import Collector
from moelora_ad.corpora.protocols.records import ProtocolError, read_table
from moelora_ad.corpora.storage.files import first_of, folder_of, joined
from moelora_ad.corpora.trial import TrialList

_TYPES = {
    "RealVideo-RealAudio": ("A", "real"),
    "RealVideo-FakeAudio": ("B", "fake"),
    "FakeVideo-RealAudio": ("C", "real"),
    "FakeVideo-FakeAudio": ("D", "fake"),
}
TrialsList = Literal["all", "a_vs_fake", "a_vs_b"]
_LISTS: dict[TrialsList, str] = {"all": "ABCD", "a_vs_fake": "ABD", "a_vs_b": "AB"}
_COUNTS: dict[TrialsList, ClassCounts] = {
    "all": ClassCounts(21_544, 10_209, 11_335),
    "a_vs_fake": ClassCounts(11_835, 500, 11_335),
    "a_vs_b": ClassCounts(1_000, 500, 500),
}
_NEEDED = ("source", "method", "category", "type", "race", "gender", "path")


class _Row(NamedTuple):
    """What is known of a file; all of its rows agree in everything but the method."""

    method: str
    source: str
    category: str
    type: str
    race: str
    gender: str


class FakeAVCeleb(Corpus):
    """The audio tracks of FakeAVCeleb's videos; a trial is spoofed if its sound is fake, whatever its picture.

    ``meta_data.csv`` has 21,566 rows for 21,544 files: A (real) 500, B (real video, fake audio) 500, C (fake video,
    real audio: copies of A's tracks) 9,709, D (both fake) 10,857 for 10,835 files, 22 of which are in two rows with
    different methods. A file is one trial, and the method of its first row is its attack.

    Args:
        root: The folder that has ``meta_data.csv``, or one that contains it as ``FakeAVCeleb_v1.2`` or ``FakeAVCeleb``.
        trials: ``all`` (A and C against B and D), ``a_vs_fake`` (A against B and D) or ``a_vs_b`` (nearly without
            copies). Figures of different lists cannot be compared, so the corpus's name has the list's.
    """

    def __init__(self, root: str | Path, trials: TrialsList = "all") -> None:
        self.name = f"FakeAVCeleb_{trials}"
        self.root = root
        self.trial_list = trials

    def trials(self) -> TrialList:
        """See `Corpus.trials`. The audio is in MP4 videos; ``source`` is the id of the clip it was made from."""
        names = tuple(f"{folder}meta_data.csv" for folder in ("", "FakeAVCeleb_v1.2/", "FakeAVCeleb/"))
        path = first_of(self.root, names, "set root to FakeAVCeleb's archive or where it was unpacked")
        return read_fakeavceleb(path, self.trial_list)

    def official_counts(self) -> ClassCounts:
        """See `Corpus.official_counts`."""
        return _COUNTS[self.trial_list]


def read_fakeavceleb(path: str | Path, trials: TrialsList = "all") -> TrialList:
    """The trials of ``meta_data.csv``, in either of its spellings.

    Args:
        path: The file; the videos are in its folder.
        trials: See `FakeAVCeleb`.

    Raises:
        ProtocolError: The file is faulty, or rows for the same video differ in more than the method.
    """
    files: dict[str, tuple[int, _Row]] = {}
    for line, file, row in _rows(path):
        before, first = files.setdefault(file, (line, row))
        for name, one, other in zip(_Row._fields[1:], first[1:], row[1:], strict=True):
            if one != other:
                problem = f"{other!r}, but {file} has {one!r} in line {before}"
                raise ProtocolError.at(path, problem, line=line, column=name)
    kept = {file: found for file, found in files.items() if found[1].category in _LISTS[trials]}
    collector = Collector(path)
    if kept:
        lines, rows = zip(*kept.values(), strict=True)
        methods, sources, _, types, races, genders = zip(*rows, strict=True)
        labels = [_TYPES[kind][1] for kind in types]
        collector.add(
            lines,
            [file.removesuffix(".mp4") for file in kept],
            labels,
            [joined(folder_of(str(path)), file) for file in kept],
            attack=[method if label == "fake" else "" for method, label in zip(methods, labels, strict=True)],
            speaker=sources,
            source=sources,
            gender=genders,
            race=races,
            corpus=f"FakeAVCeleb_{trials}",
        )
    return collector.trials()


def _rows(path: str | Path) -> Iterator[tuple[int, str, _Row]]:
    """The line, the file's path in the distribution, and the content of each row."""
    header, blocks = read_table(path)
    # In v1.2 the column "path" is the folder; before, it was the file's name, and the folder's column had no heading.
    name, folder = ("filename", "path") if "filename" in header else ("path", "")
    missing = [column for column in (*_NEEDED, name, folder) if column not in header]
    if missing:
        raise ProtocolError.at(path, f"no column {', '.join(map(repr, missing))}", line=1)
    for lines, columns in blocks:
        content = zip(*(columns[field] for field in _Row._fields), strict=True)
        for line, below, file, row in zip(lines, columns[folder], columns[name], map(_Row._make, content), strict=True):
            if row.type not in _TYPES:
                known = ", ".join(_TYPES)
                raise ProtocolError.at(path, f"{row.type!r} is not one of {known}", line=line, column="type")
            if row.category != _TYPES[row.type][0]:
                raise ProtocolError.at(path, f"{row.category!r} does not fit {row.type}", line=line, column="category")
            yield line, "/".join([*below.strip("/").split("/")[1:], file]), row

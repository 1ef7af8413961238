"""FakeAVCeleb v1.2 (Khalid et al., NeurIPS Datasets and Benchmarks, 2021): videos with real or fake sound."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from moelora_ad.corpora.collecting import Collector
from moelora_ad.corpora.corpus import ClassCounts, Corpus
from moelora_ad.corpora.records import ProtocolError, read_table
from moelora_ad.corpora.storage import first_of, folder_of, joined
from moelora_ad.corpora.trial import TrialList

_TYPES = {
    "RealVideo-RealAudio": ("A", "real"),
    "RealVideo-FakeAudio": ("B", "fake"),
    "FakeVideo-RealAudio": ("C", "real"),
    "FakeVideo-FakeAudio": ("D", "fake"),
}
_LISTS = {"all": "ABCD", "a_vs_fake": "ABD", "a_vs_b": "AB"}
# Which of the 21,566 rows repeat others, so that 21,544 files remain, is not published.
_COUNTS = {"all": ClassCounts(21_544), "a_vs_fake": ClassCounts(None, 500), "a_vs_b": ClassCounts(1_000, 500, 500)}
_NEEDED = ("source", "method", "category", "type", "race", "gender", "path")


class _Row(NamedTuple):
    file: str
    category: str
    label: str
    method: str
    source: str
    gender: str
    race: str


class FakeAVCeleb(Corpus):
    """The audio tracks of FakeAVCeleb's videos; a trial is spoofed if its sound is fake, whatever its picture.

    ``meta_data.csv`` has 21,566 rows for 21,544 files: A (real) 500, B (real video, fake audio) 500, C (fake video,
    real audio: copies of A's tracks) 9,709, D (both fake) 10,857. Rows for the same file are taken once.

    Args:
        root: The folder that has ``meta_data.csv``, or one that contains it as ``FakeAVCeleb_v1.2`` or ``FakeAVCeleb``.
        trials: ``all`` (A and C against B and D), ``a_vs_fake`` (A against B and D) or ``a_vs_b`` (nearly without
            copies). Figures of one do not compare with those of another, so the corpus's name has it.
    """

    def __init__(self, root: str | Path, trials: Literal["all", "a_vs_fake", "a_vs_b"] = "all") -> None:
        self.name = f"FakeAVCeleb_{trials}"
        self.root = root
        self.categories = _LISTS[trials]
        self._counts = _COUNTS[trials]

    def trials(self) -> TrialList:
        """See `Corpus.trials`. The audio is in MP4 videos; ``source`` is the id of the clip it was made from."""
        names = tuple(f"{folder}meta_data.csv" for folder in ("", "FakeAVCeleb_v1.2/", "FakeAVCeleb/"))
        path = first_of(self.root, names, "set root to FakeAVCeleb's archive or where it was unpacked")
        lines: dict[_Row, int] = {}
        for line, row in self._rows(path):
            if row.category in self.categories:
                lines.setdefault(row, line)
        collector = Collector(path)
        folder = folder_of(path)
        if lines:
            files, _, labels, methods, sources, genders, races = zip(*lines, strict=True)
            collector.add(
                list(lines.values()),
                [file.removesuffix(".mp4") for file in files],
                labels,
                [joined(folder, file) for file in files],
                attack=[method if label == "fake" else "" for method, label in zip(methods, labels, strict=True)],
                speaker=sources,
                source=sources,
                gender=genders,
                race=races,
                corpus=self.name,
            )
        return collector.trials()

    def official_counts(self) -> ClassCounts:
        """See `Corpus.official_counts`."""
        return self._counts

    @staticmethod
    def _rows(path: str) -> Iterator[tuple[int, _Row]]:
        header, blocks = read_table(path)
        # v1.2 has the folder in the column "path"; before, that was the file's name and the folder had no heading.
        name, folder = ("filename", "path") if "filename" in header else ("path", "")
        missing = [column for column in (*_NEEDED, name, folder) if column not in header]
        if missing:
            raise ProtocolError.at(path, f"no column {', '.join(map(repr, missing))}", line=1)
        for lines, columns in blocks:
            read = (columns[column] for column in (folder, name, "type", *_NEEDED[:3], "gender", "race"))
            for line, below, file, kind, source, method, category, gender, race in zip(lines, *read, strict=True):
                if kind not in _TYPES:
                    raise ProtocolError.at(path, f"{kind!r} is none of {', '.join(_TYPES)}", line=line, column="type")
                expected, label = _TYPES[kind]
                if category != expected:
                    raise ProtocolError.at(path, f"{category!r} does not fit {kind}", line=line, column="category")
                inside = "/".join([*below.strip("/").split("/")[1:], file])
                yield line, _Row(inside, category, label, method, source, gender, race)

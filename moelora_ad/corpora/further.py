"""Two readers for further public sets, whose files are in a list or sorted into folders; class attributes say how."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from moelora_ad.corpora.corpus import Corpus
from moelora_ad.corpora.protocols.collecting import Collector
from moelora_ad.corpora.protocols.records import Block, ProtocolError, read_lines, read_table
from moelora_ad.corpora.storage.files import audio_files, exists, joined, located
from moelora_ad.corpora.trial import TrialList, parse_label


class ListedCorpus(Corpus):
    """A set with a file that lists its audio.

    Args:
        root: The folder that has what ``listing`` and ``audio`` name, or one that contains it as ``top``.
    """

    top: ClassVar[str] = ""
    """The folder that the distribution unpacks to."""
    listing: str
    """The list, below root; ``{split}`` is the split."""
    audio: Sequence[str]
    """The folder of audio, below root: the first of these that is there."""
    ending: ClassVar[str] = ""
    """The ending that the names in the list lack."""
    columns: ClassVar[Sequence[str]] = ()
    """The names of the columns of a list without header; a list with a header is CSV."""
    file: ClassVar[str] = "file"
    """The column of the files' names, which are the utterance ids."""
    label: ClassVar[str | None] = "label"
    """The column of labels; if there is none, trials without an attack are bona fide."""
    unknown: ClassVar[str | None] = None
    """An unknown label in the column of labels, in lower case; None if labels are always known."""
    no_attack: ClassVar[str] = "-"
    """The value of bona fide trials in the column of attacks."""
    part: ClassVar[str | None] = None
    """The column of splits, if one list has them all."""
    fields: ClassVar[dict[str, str]] = {}
    """Other fields of a trial, and the columns where they are."""

    split: str | None = None

    def __init__(self, root: str | Path) -> None:
        self.root = root

    def trials(self) -> TrialList:
        """See `Corpus.trials`. Utterance ids are the names in the list."""
        root = _first_folder(located(self.root), (self.top, ""))
        path = joined(root, self.listing.format(split=self.split))
        collector = Collector(path, unlabelled=self.unknown is not None)
        for block in self._blocks(path):
            columns = block.columns
            fields: dict[str, Sequence[str]] = {field: columns[column] for field, column in self.fields.items()}
            if "attack" in fields:
                fields["attack"] = ["" if attack == self.no_attack else attack for attack in fields["attack"]]
            split = self.split if self.part is None else columns[self.part]
            collector.add(
                block.lines, columns[self.file], self._labels(block, fields), corpus=self.name, split=split, **fields
            )
        audio = _first_folder(root, self.audio, self.split)
        return collector.trials(before=joined(audio, ""), after=self.ending)

    def _labels(self, block: Block, fields: dict[str, Sequence[str]]) -> Sequence[str]:
        if self.label is None:
            return ["spoof" if attack else "bonafide" for attack in fields["attack"]]
        return ["" if word.lower() == self.unknown else word for word in block.columns[self.label]]

    def _blocks(self, path: str) -> Iterator[Block]:
        if self.columns:
            yield from read_lines(path, self.columns)
            return
        header, blocks = read_table(path)
        needed = (self.file, self.label, self.part, *self.fields.values())
        if missing := [name for name in needed if name is not None and name not in header]:
            raise ProtocolError.at(path, f"no column {', '.join(map(repr, missing))}", line=1)
        for block in blocks:
            if self.part is None or self.split is None:
                yield block
            else:
                yield block.where([word.lower() == self.split for word in block.columns[self.part]])


class FolderedCorpus(Corpus):
    """A set whose folders say what is in them.

    Args:
        root: The folder that has what ``audio`` names.
    """

    audio: ClassVar[Sequence[str]]
    """The folder of audio, below root: the first of these that is there; ``{split}`` is the split."""
    levels: ClassVar[Sequence[str]] = ()
    """The meaning of each level of folders below ``audio``, from the outermost: ``label``, a field of a trial, or
    empty."""
    label: ClassVar[str] = "spoof"
    """The label of all trials, unless a level of folders is the label or ``bona_fide`` determines it."""
    bona_fide: ClassVar[str | None] = None
    """The folder of attacks that holds the bona fide trials; all other trials are spoofs."""
    speaker: ClassVar[str | None] = None
    """The regular expression of the speaker's id, whose first match in a file's name is taken; None if names have no
    such id."""

    split: str | None = None

    def __init__(self, root: str | Path) -> None:
        self.root = root

    def trials(self) -> TrialList:
        """See `Corpus.trials`. Utterance ids are the files' paths."""
        collector = Collector(self.root)
        self.collect(collector, self.name)
        return collector.trials()

    def collect(self, collector: Collector, name: str) -> None:
        """Add the trials to a collector, as trials of the corpus ``name``."""
        folder = _first_folder(located(self.root), self.audio, self.split)
        files, fields = self._fields(folder, audio_files(folder))
        labels = fields.pop("label", [self.label] * len(files))
        for file, label in zip(files, labels, strict=True):
            try:
                parse_label(label)
            except ValueError as error:
                raise ProtocolError.at(joined(folder, file), str(error)) from None
        if self.bona_fide is not None:
            labels = ["bonafide" if attack == self.bona_fide else "spoof" for attack in fields["attack"]]
            fields["attack"] = ["" if attack == self.bona_fide else attack for attack in fields["attack"]]
        audio = [joined(folder, file) for file in files]
        texts: dict[str, Sequence[str] | str | None] = {"split": self.split, **fields}
        collector.add(range(len(files)), files, labels, audio, corpus=name, **texts)

    def _fields(self, folder: str, names: Sequence[str]) -> tuple[list[str], dict[str, Sequence[str]]]:
        """The files of the split, and the trials' fields that their paths contain."""
        rows = []
        for name in names:
            *above, file = name.split("/")
            if len(above) < len(self.levels):
                wanted = "/".join(level or "..." for level in self.levels)
                raise ProtocolError.at(joined(folder, name), f"is not in folders {wanted}; is root right?")
            row = dict(zip(self.levels, above, strict=False))
            if self.speaker is not None:
                found = re.search(self.speaker, file)
                row["speaker"] = found[0] if found else ""
            if self.split is None or row.get("split", self.split) == self.split:
                rows.append((name, row))
        known = [*filter(None, self.levels), *(() if self.speaker is None else ("speaker",))]
        fields: dict[str, Sequence[str]] = {field: [row[field] for _, row in rows] for field in known}
        return [name for name, _ in rows], fields


def _first_folder(root: str, names: Sequence[str], split: str | None = None) -> str:
    places = [joined(root, name.format(split=split)) if name else root for name in names]
    return next(filter(exists, places[:-1]), places[-1])
